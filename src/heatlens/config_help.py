"""What people read about the keys: ``--help``, the documentation, the resolved settings. Names no key."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from heatlens.errors import ConfigError
from heatlens.keys import EVERY_STAGE, Key, Truth

GROUPS = {
    "data": "What is asked",
    "prompt": "The text",
    "model": "Who looks",
    "map": "Where it looks",
    "picture": "The picture",
    "run": "The run",
    "boxes": "Boxes",
}
STAGE_SUMMARIES = {
    "attn_map": "Heat maps of a vision-language model: one overlay per question, and vqa_manifest.csv.",
    "bbox": "Boxes from the same heat maps: one overlay per question, and boxes.jsonl.",
}

INTRODUCTION = """\
# Configuration

<!-- Written by `heatlens config --reference`. Edit src/heatlens/settings.py, then run that command again. -->

Every key can be set in three places; the first of them that names the key wins:

1. a flag of the stage script: `--stop-after 5` (kebab case; `--stop-after ""` sets the empty value);
2. an environment variable of the same name: `STOP_AFTER=5`. The run says which ones it uses;
3. the `.conf` file.

`heatlens config FILE.conf` prints every key with its value and where it comes from.

**A `.conf`** is a list of `KEY=value` lines that bash reads once (`set -eu`, in a child shell): quotes,
`$HOME`, `${DATA:-/data}` and helper variables in lower case work. Upper-case names are keys: an unknown one
is an error, and so is any command in the file that fails. On a machine without bash only plain `KEY=value`
lines are read.

**Relative paths** in a `.conf` start at the repository root, i.e. at the folder that holds its `configs/`
folder (a `.conf` outside any `configs/`: at its own folder); in a flag or the environment they start at the
current folder. `~` is the home folder.

**Fixed** marks the keys that finished work depends on (`attn_map`, `bbox`: that of this stage, because the
other does not read the key; `unless SKIP_CRF`: only while that key is false): with another value, a results
folder is not continued but refused, and the keys that differ are named. The others may change:
`STOP_AFTER=5` grows into the full run.
"""


class KeyParser(argparse.ArgumentParser):
    """Argument parser whose errors are ConfigErrors, with the nearest flag for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `--help` lists every flag")

    def split(self, argv: list[str]) -> tuple[Path | None, dict[str, str]]:
        """The .conf (None without ``--config``) and KEY -> text for the flags that were given."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            self._refuse(unknown[0])
        flags = {name.upper(): text for name, text in vars(known).items() if name != "config"}
        conf = getattr(known, "config", None)
        return (Path(conf) if conf else None), flags

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith("-"):
            hint = "give the .conf with --config" if word.endswith(".conf") else "settings look like --key value"
            raise ConfigError(f"{word!r} stands alone; {hint}")
        flags = [option for action in self._actions for option in action.option_strings]
        plain = word.partition("=")[0].lower().replace("_", "-")
        close = difflib.get_close_matches(plain, flags, n=1, cutoff=0.5)
        self.error(f"unknown flag {word}{f'; did you mean {close[0]}?' if close else ''}")


def parser_for(stage: str, keys: Mapping[str, Key]) -> KeyParser:
    """The command line of ``stage``: ``--config`` and one flag per key, in groups."""
    parser = KeyParser(
        usage="%(prog)s [--config FILE.conf] [--key value ...]",
        description=STAGE_SUMMARIES.get(stage, stage),
        epilog="A flag beats the environment variable of the same name (STOP_AFTER), which beats the .conf.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE.conf", help="the experiment; relative to the current folder")
    for group, title in GROUPS.items():
        section = parser.add_argument_group(title)
        for key in keys.values():
            if key.group == group:
                text = f"{key.help}. Default: {key.default or 'empty'}. Allowed: {key.allowed}"
                metavar = key.type.upper().replace(" ", "_")
                # A switch needs no value: --retry-failed is --retry-failed true.
                alone: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(key.kind, Truth) else {}
                section.add_argument(key.flag, metavar=metavar, help=text.replace("%", "%%"), **alone)
    return parser


def nearest_key(name: str, keys: Iterable[str]) -> str:
    """The key that ``name`` was probably meant to be, or ``""``."""
    known = {key.replace("_", ""): key for key in keys}
    close = difflib.get_close_matches(name.upper().replace("_", ""), list(known), n=1, cutoff=0.6)
    return known[close[0]] if close else ""


def shown(text: str) -> str:
    """A value in a message: as typed when that is one plain word, otherwise quoted; one line, cut at 200."""
    short = text if len(text) <= 200 else f"{text[:200]}..."
    return short if text and text.isprintable() and " " not in text else repr(short)


def value_text(value: Any) -> str:
    """A typed value as a .conf would hold it, before quoting."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def resolved_lines(settings: Any, keys: Mapping[str, Key]) -> list[str]:
    """``KEY=value  # origin`` for every key: a complete .conf of what a run would use."""
    lines = []
    for name in keys:
        line = f"{name}={shlex.quote(value_text(getattr(settings, name.lower())))}"
        lines.append(f"{line:<40}  # {settings.origins.get(name, 'default')}")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def key_table(keys: Iterable[Key]) -> str:
    """A Markdown table of keys: name, default, allowed, meaning, and whether finished work depends on it."""
    rows = ["| key | default | allowed | meaning | fixed |", "|---|---|---|---|---|"]
    for key in keys:
        default = f"`{key.default}`" if key.default else ""
        fixed = "yes" if key.fixed == EVERY_STAGE else key.fixed and f"`{key.fixed}`"
        fixed += f", unless `{key.unless}`" if fixed and key.unless else ""
        cells = [f"`{key.name}`", default, _cell(key.allowed), _cell(key.help), fixed]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def reference_for(keys: Mapping[str, Key]) -> str:
    """The documentation page: how settings come together, and a table per group."""
    sections = [
        f"## {title}\n\n{key_table(key for key in keys.values() if key.group == group)}"
        for group, title in GROUPS.items()
    ]
    return "\n".join([INTRODUCTION, *sections])
