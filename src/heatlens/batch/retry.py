"""The commands that continue a run and retry its failures, as one line to paste into a shell."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heatlens.config import Settings

# docker/run_stage.sh sets this in a container to the line that continues the run outside: the program that runs in
# there cannot be called from the host.
HOST_COMMAND = "HEATLENS_HOST_COMMAND"

# Not part of a retry: it must not move the results away, and it is for all shards together.
_LEFT_OUT = frozenset({"OVERWRITE", "RETRY_FAILED", "SHARD_INDEX", "NUM_SHARDS"})


def retry_command(settings: Settings) -> str:
    """What to type to make the failed heat maps again, with every setting that was not the .conf's."""
    if host := os.environ.get(HOST_COMMAND):
        return f"RETRY_FAILED=true NUM_SHARDS=1 SHARD_INDEX=0 {host}"
    # One process for all shards, whatever the .conf says; the same line from every shard.
    alone = ["--num-shards", "1", "--shard-index", "0"] if settings.config is not None else []
    return shlex.join([*_words(settings), *alone, "--retry-failed", "true"])


def run_command(settings: Settings) -> str:
    """What to type to continue the run. Which shard is said in the environment, in front of it."""
    return os.environ.get(HOST_COMMAND) or shlex.join(_words(settings))


def _words(settings: Settings) -> list[str]:
    words = [sys.executable or "python3", str(_script())]
    if settings.config is not None:
        words += ["--config", str(settings.config)]
    return words + _overriding_flags(settings)


def _script() -> Path:
    return Path(sys.argv[0] or "generate_heatmaps.py").absolute()


def _overriding_flags(settings: Settings) -> list[str]:
    """Settings that came from flags or the environment, as flags."""
    from heatlens.config import KEYS

    words: list[str] = []
    for name, key in KEYS.items():
        if settings.origins.get(name) in ("flag", "environment") and name not in _LEFT_OUT:
            words += [key.flag, text_of(getattr(settings, name.lower()))]
    return words


def text_of(value: object) -> str:
    """A key's typed value as the text that gives it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return str(value)
