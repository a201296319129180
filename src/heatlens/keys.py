"""How the value of one configuration key is written: its kind, its allowed range, and reading it from text.

A kind turns text (from a .conf, the environment or a flag) into a typed value, and says in words what is
allowed. :mod:`heatlens.config` holds the table of keys; this module knows no key by name.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Protocol, get_args

from heatlens.errors import ConfigError
from heatlens.registry import GRAD_CAM_PREFIX, KINDS, find, nearest_hint

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
EVERY_STAGE = "every stage"
FOLDER_START = re.compile(r"(?:/|\./|\.\./|~)|\.{1,2}$")


class Kind(Protocol):
    """What a key's value is."""

    @property
    def label(self) -> str:
        """One or two words for the type column: ``number``, ``path`` ..."""

    @property
    def allowed(self) -> str:
        """What is allowed, in words; the error text and the documentation show it."""

    def read(self, text: str, base: Path) -> Any:
        """The value that ``text`` says; relative paths start at ``base``. ValueError with the reason."""

    def accepts(self, value: Any) -> bool:
        """Whether a typed value lies in the allowed range."""


@dataclass(frozen=True)
class Truth:
    """true or false (yes/no, on/off and 1/0 are understood)."""

    label = "true/false"
    allowed = "true or false"

    def read(self, text: str, base: Path) -> bool:  # noqa: ARG002
        word = text.strip().casefold()
        if word not in TRUE + FALSE:
            raise ValueError("allowed: true or false")
        return word in TRUE

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` to ``high``; with ``empty`` set, no text is None: what ``empty`` says."""

    low: int
    high: int | None = None
    empty: str = ""

    label = "whole number"

    @property
    def allowed(self) -> str:
        span = f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"
        return f"{span}, or empty ({self.empty})" if self.empty else span

    def read(self, text: str, base: Path) -> int | None:  # noqa: ARG002
        word = text.strip()
        if not word and self.empty:
            return None
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", word) or not self.accepts(int(word)):
            raise ValueError(f"allowed: {self.allowed}")
        return int(word)

    def accepts(self, value: Any) -> bool:
        if value is None:
            return bool(self.empty)
        return self.low <= value and (self.high is None or value <= self.high)


@dataclass(frozen=True)
class Number:
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float

    label = "number"

    @property
    def allowed(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def read(self, text: str, base: Path) -> float:  # noqa: ARG002
        word = text.strip()
        plain = re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", word)
        if not plain or not self.accepts(float(word)):
            raise ValueError(f"allowed: {self.allowed}")
        return float(word)

    def accepts(self, value: Any) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of a few words, given as a ``Literal`` so that the type and the table cannot differ."""

    literal: Any
    label = "word"

    @property
    def names(self) -> list[str]:
        return list(get_args(self.literal))

    @property
    def allowed(self) -> str:
        return ", ".join(self.names)

    def read(self, text: str, base: Path) -> str:  # noqa: ARG002
        word = text.strip().casefold()
        if word not in self.names:
            raise ValueError(nearest_hint(text.strip(), self.names))
        return word

    def accepts(self, value: Any) -> bool:
        return value in self.names


@dataclass(frozen=True)
class Registered:
    """A name of the registry; stored as its canonical spelling."""

    kind: str
    label = "name"

    @property
    def allowed(self) -> str:
        bridge = f", {GRAD_CAM_PREFIX}NAME" if self.kind == "method" else ""
        return ", ".join(KINDS[self.kind]) + bridge

    def read(self, text: str, base: Path) -> str:  # noqa: ARG002
        try:
            return find(self.kind, text).name
        except ConfigError as error:
            raise ValueError(str(error).partition("; ")[2]) from None

    def accepts(self, value: Any) -> bool:
        try:
            return find(self.kind, value).name == value
        except ConfigError:
            return False


@dataclass(frozen=True)
class Text:
    """Text as it is; with ``pattern``, all of it must match (``meaning`` says that in words)."""

    meaning: str = "any text"
    pattern: str = ""
    empty: str = ""

    label = "text"

    @property
    def allowed(self) -> str:
        return f"{self.meaning}, or empty ({self.empty})" if self.empty else self.meaning

    def read(self, text: str, base: Path) -> str:  # noqa: ARG002
        value = text.strip() if self.pattern else text
        if not self.accepts(value):
            raise ValueError(f"allowed: {self.allowed}")
        return value

    def accepts(self, value: Any) -> bool:
        if not value:
            return bool(self.empty)
        return not self.pattern or re.fullmatch(self.pattern, value) is not None


@dataclass(frozen=True)
class Amount:
    """How many of something: a whole number from 1, a fraction between 0 and 1, or None when empty."""

    empty: str
    label = "number"

    @property
    def allowed(self) -> str:
        return f"a whole number from 1, a fraction between 0 and 1, or empty ({self.empty})"

    def read(self, text: str, base: Path) -> float | None:
        if not text.strip():
            return None
        try:
            value = Number(0, 1e15).read(text, base)
        except ValueError:
            value = -1.0
        if not self.accepts(value):
            raise ValueError(f"allowed: {self.allowed}")
        return value

    def accepts(self, value: Any) -> bool:
        return value is None or 0 < value < 1 or (value >= 1 and value == int(value))


@dataclass(frozen=True)
class FilePath:
    """A path; ``~`` is the home folder, a relative one starts at the base that its origin has."""

    empty: str
    label = "path"

    @property
    def allowed(self) -> str:
        return f"a path, or empty ({self.empty})"

    def read(self, text: str, base: Path) -> Path | None:
        return absolute(text, base) if text else None

    def accepts(self, value: Any) -> bool:
        return value is None or isinstance(value, Path)


@dataclass(frozen=True)
class ModelName:
    """A model: a local folder or checkpoint becomes an absolute path, every other name stays as it is."""

    label = "model"
    allowed = "demo, hf-hub:OWNER/NAME, a local folder or local-dir:FOLDER, open_clip's NAME/TAG or NAME/FILE"

    def read(self, text: str, base: Path) -> str:
        name = text.strip()
        scheme, _, folder = name.partition(":")
        if scheme == "local-dir" and folder:
            return f"local-dir:{absolute(folder, base)}"
        if FOLDER_START.match(name) or ("/" in name and ":" not in name and absolute(name, base).is_dir()):
            return str(absolute(name, base))
        if not self.accepts(name):
            raise ValueError(f"allowed: {self.allowed}")
        architecture, _, checkpoint = name.partition("/")
        if ":" not in name and checkpoint and absolute(checkpoint, base).is_file():
            return f"{architecture}/{absolute(checkpoint, base)}"
        return name

    def accepts(self, value: Any) -> bool:
        """``demo``, ``hf-hub:...``, ``local-dir:...``, an absolute path or ``NAME/...``."""
        if value == "demo" or value.startswith("/"):
            return True
        return re.fullmatch(r"(?:hf-hub|local-dir):\S.*|[\w.-]+/\S.*", value) is not None


@dataclass(frozen=True)
class Template:
    """A prompt template: text, with the given fields in braces (none of them: one prompt for all)."""

    fields: tuple[str, ...]
    label = "text"

    @property
    def allowed(self) -> str:
        names = ", ".join(f"{{{name}}}" for name in self.fields)
        return f"text with any of {names}; {{{{ and }}}} for braces"

    def read(self, text: str, base: Path) -> str:  # noqa: ARG002
        try:
            parts = [part for part in Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"{error}; allowed: {self.allowed}") from None
        for _, name, form, conversion in parts:
            if name not in self.fields or form or conversion:
                raise ValueError(f"{{{name}}} is no plain field; allowed: {self.allowed}")
        if not text.strip():
            raise ValueError(f"it is empty; allowed: {self.allowed}")
        return text

    def accepts(self, value: Any) -> bool:
        try:
            return self.read(value, Path()) == value
        except ValueError:
            return False


def absolute(text: str, base: Path) -> Path:
    """``text`` as an absolute path; links are kept, since cluster data is made of them."""
    return Path(os.path.abspath(base / os.path.expanduser(text)))  # noqa: PTH100, PTH111


@dataclass(frozen=True)
class Key:
    """One configuration key: all that help, documentation, errors and the fingerprint need of it."""

    name: str
    kind: Kind
    default: str
    help: str
    group: str
    fixed: str = ""
    """for whose finished work the value counts: EVERY_STAGE, one stage's name, or "" for none"""
    unless: str = ""
    """a true/false key: while that one is true, nothing reads this one"""

    @property
    def flag(self) -> str:
        """The command-line flag: the name in kebab case."""
        return "--" + self.name.lower().replace("_", "-")

    def fixed_for(self, stage: str) -> bool:
        """Is work that ``stage`` finished with another value not to be continued?"""
        return self.fixed in (EVERY_STAGE, stage)

    @property
    def type(self) -> str:
        return self.kind.label

    @property
    def allowed(self) -> str:
        return self.kind.allowed
