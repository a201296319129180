"""Where a report may be written: never over anything that is not an earlier report of the same kind."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from heatlens.batch.run_record import RUN_RECORD
from heatlens.errors import ConfigError, SetupError, one_line

_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Kind:
    """A kind of report: the names at the top of its folder, and the record that tells it: its file and some keys."""

    names: Collection[str]
    record: str
    keys: Collection[str]


REPORT = Kind(("report.md", "report.json", "per_map.csv", "plots"), "report.json", ("evaluated", "groups", "truth"))
COMPARISON = Kind(("compare.md", "compare.json", "plots"), "compare.json", ("matched", "groups", "a", "b"))


def check_place(folder: Path, kind: Kind) -> None:
    """Before anything is measured: may a report of ``kind`` be written into ``folder``?

    ConfigError where it would lie over somebody else's files; SetupError where nothing can be written. Other files in
    the folder are left alone.
    """
    try:
        _check_writable(folder)
        _check_foreign(folder, kind)
    except OSError as error:
        raise SetupError(f"--output={folder}: {one_line(error)}") from None


def _check_writable(folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
    if not there.is_dir():
        raise ConfigError(f"--output={folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SetupError(f"cannot write the report into {folder}: {there} is read-only; name another --output")


def _check_foreign(folder: Path, kind: Kind) -> None:
    if (folder / RUN_RECORD).exists() or (folder / "shards").exists():
        raise ConfigError(f"--output={folder}: this is the results folder of a run; name a folder of its own")
    there = [name for name in sorted(kind.names) if os.path.lexists(folder / name)]
    if there and not _is_ours(folder / kind.record, kind):
        raise ConfigError(
            f"--output={folder}: {there[0]} is there and not of an earlier report; nothing is written over it. Name "
            "another folder, or move it away"
        )


def _is_ours(path: Path, kind: Kind) -> bool:
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return False
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and all(key in record for key in kind.keys)
