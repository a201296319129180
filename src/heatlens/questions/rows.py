"""What a data set reader yields: one :class:`QuestionRow` per question, usable or not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 with x1 < x2 and y1 < y2; the unit is that of the region's frame."""

LETTERBOX_224 = "letterbox224"
SOURCE = "source"
UNKNOWN_FRAME = "unknown"

QUESTION_TYPES = ("open_ended", "closed_ended", "single_choice", "multi_choice")
CONTENT_TYPES = ("disease", "abnormality", "finding", "size", "location", "severity")
"""GEMeX's own content types; a table may bring others."""


class Region(NamedTuple):
    """One region that a row points at.

    ``name`` may be empty (GEMeX's training format has boxes only); ``box`` is None where the data has none or
    an unusable one. ``frame`` says what the box is measured in: ``letterbox224`` (GEMeX: 224 x 224, aspect
    kept, centred padding), ``source`` (pixels of the image file), ``relative`` (0..1) or ``unknown``.
    """

    name: str
    box: Box | None = None
    frame: str = ""


class QuestionRow(NamedTuple):
    """One question about one image, as the data set states it. Report text is never part of it.

    ``number`` counts from 0 over the whole data set. ``source`` is "file:line". ``image_path`` is raw, not to
    be trusted. ``answer`` is verbatim; a list is its JSON text. ``question_type`` is one of
    :data:`QUESTION_TYPES` or "". A row that cannot be used has its reason in ``error`` and whatever fields
    could be read; ``notes`` are oddities that do not stop it (a box left out).
    """

    number: int
    source: str
    image_path: str
    question_id: str
    question: str
    answer: str
    choices: tuple[str, ...]
    question_type: str
    content_type: str
    regions: tuple[Region, ...]
    error: str = ""
    split: str = ""
    view: str = ""
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """A data set. Constructing one checks that its files are there (DataSetError otherwise)."""

    def __init__(self, path: Path) -> None: ...

    def rows(self) -> Iterator[QuestionRow]:
        """All rows in data-set order, streamed; a broken one has ``error`` set and never raises."""
        ...

    def files(self) -> list[Path]:
        """The files in data-set order: what the data digest covers."""
        ...

    def image_root(self) -> Path | None:
        """The folder that images are looked up in when IMAGE_ROOT is empty."""
        ...


_TYPE_WORDS = re.compile(
    r"(?:^|[^a-z])(?:(?P<open>open)|(?P<closed>closed?)|(?P<single>single)|(?P<multi>multi(?:ple)?))"
    r"[\s_-]*(?P<kind>ended|choices?)?(?:[\s_-]*questions?)?(?=$|[^a-z])"
)
_TYPE_OF_WORD = dict(zip(("open", "closed", "single", "multi"), QUESTION_TYPES, strict=True))


def question_type_named(text: str, *, loose: bool = True) -> str:
    """The question type that ``text`` names ("open_ended_questions", "Single-Choice", "closed"), or "".

    With ``loose=False`` the bare words do not count: a file called ``open.jsonl`` says nothing.
    """
    for match in _TYPE_WORDS.finditer(text.strip().lower()):
        word = next(name for name in _TYPE_OF_WORD if match[name])
        kind = match["kind"] or ""
        fits = not kind or kind.startswith("choice") == (word in ("single", "multi"))
        whole = match.end() - match.start() == len(text.strip())
        if fits and (kind or (loose and whole)):
            return _TYPE_OF_WORD[word]
    return ""


def question_type_by_shape(answer: Any, choices: tuple[str, ...]) -> str:
    """The question type that a row's own shape shows: choices and a list, choices, yes or no, a sentence."""
    if choices:
        many = isinstance(answer, list) or re.fullmatch(r"\s*[A-Z](\s*,\s*[A-Z])+\s*", str(answer or ""))
        return "multi_choice" if many else "single_choice"
    if answer is None or answer == "":
        return ""
    word = str(answer).strip().rstrip(".").casefold()
    return "closed_ended" if word in ("yes", "no") else "open_ended"


_as_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


def answer_text(value: Any) -> str:
    """An answer as text: a string verbatim, nothing as "", anything else as JSON (``["A", "B"]``, ``3``)."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return _as_json(value)
