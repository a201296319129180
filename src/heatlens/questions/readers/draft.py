"""From loosely typed fields to a QuestionRow: what makes a row unusable, and what is only worth a note."""

from __future__ import annotations

import json
import math
import re
from itertools import repeat
from typing import Any

from heatlens.questions.rows import LETTERBOX_224, UNKNOWN_FRAME, Box, QuestionRow, Region, answer_text

_TEXTS = frozenset({str})
_NUMBERS = frozenset({int, float})
_new = tuple.__new__  # a named tuple at half the price
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {
    dict: "an object",
    list: "a list",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    bytes: "binary data",
    str: "a text",
}


def kind_of(value: Any) -> str:
    """A value's JSON type in words, for error texts (the value itself may be report text)."""
    return _KINDS.get(type(value), "null" if value is None else f"a {type(value).__name__}")


class Draft:
    """Checks the fields of one row. ``problems`` make the row unusable, ``notes`` do not."""

    __slots__ = ("notes", "problems")

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    def clean(self, value: str, name: str) -> str:
        """``value`` unchanged if it can be written as UTF-8; otherwise a problem, and U+FFFD for each fault.

        Readers decode files with ``surrogateescape``: a byte that is not UTF-8 arrives as a lone surrogate.
        """
        if value.isascii() or not _SURROGATE.search(value):
            return value
        self.problems.append(f"{name} is not valid Unicode (bytes that are not UTF-8, or half a surrogate pair)")
        return _SURROGATE.sub("\ufffd", value)

    def text(self, value: Any, name: str, *, required: bool = False) -> str:
        """A text field; missing is "" (a problem if ``required``), another type is a problem."""
        if isinstance(value, str):
            if required and (not value or value.isspace()):
                self.problems.append(f"{name} is empty")
            return value if value.isascii() else self.clean(value, name)
        if value is not None:
            self.problems.append(f"{name} is {kind_of(value)}, not a text")
        elif required:
            self.problems.append(f"no {name}")
        return ""

    def label(self, value: Any, name: str) -> str:
        """A short field that the row can do without: other than a text or a number, it is noted."""
        if type(value) is int:
            return str(value)
        if value is None or isinstance(value, str):
            return self.clean(value or "", name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        self.notes.append(f"{name} is {kind_of(value)}: left out")
        return ""

    def answer(self, value: Any) -> str:
        """The answer, verbatim or as JSON."""
        return self.clean(answer_text(value), "answer")

    def choices(self, value: Any) -> tuple[str, ...]:
        """Choices as given: a list of texts, one text, or an object {"A": "text"}."""
        if value is None or value == "":
            return ()
        if type(value) is list and _TEXTS.issuperset(map(type, value)) and "".join(value).isascii():
            return tuple(value)
        if isinstance(value, dict):
            value = [f"{letter}: {answer_text(text)}" for letter, text in value.items()]
        if not isinstance(value, (str, list)):
            self.notes.append(f"choices is {kind_of(value)}: left out")
            return ()
        return tuple(
            self.clean(answer_text(item), "choices") for item in ([value] if isinstance(value, str) else value)
        )

    def regions(self, names: Any, boxes: Any, frame: str) -> tuple[Region, ...]:
        """Names and boxes side by side. The number of regions never depends on whether a box is usable."""
        texts = self._names(names)
        listed = self._box_list(boxes)
        if texts and listed and len(texts) != len(listed):
            self.notes.append(f"{len(texts)} regions but {len(listed)} boxes: the boxes are left out")
            listed = []
        if not texts:
            texts = [""] * len(listed)
        listed = listed or [None] * len(texts)
        return tuple(map(self._region, texts, listed, repeat(frame)))

    def _names(self, value: Any) -> list[str]:
        if value is None or value == "":
            return []
        items = [value] if isinstance(value, str) else value
        try:
            plain = isinstance(items, list) and "".join(items).isascii()
        except TypeError:
            items = None
        if not isinstance(items, list):
            self.problems.append("the regions are not a list of names")
            return []
        return items if plain else [self.clean(item, "region name") for item in items]

    def _box_list(self, value: Any) -> list[Any]:
        if value is None or value == []:
            return []
        if type(value) is list and type(value[0]) is list:
            return value
        if not isinstance(value, list):
            self.notes.append(f"the boxes are {kind_of(value)}, not a list: left out")
            return []
        flat = len(value) == 4 and all(isinstance(item, (int, float)) for item in value)
        return [value] if flat else value

    def _region(self, name: str, value: Any, frame: str) -> Region:
        if value is None:
            return Region(name)
        # The plain case first, at half the price: numbers, in order, and inside any frame.
        if type(value) is list and len(value) == 4 and _NUMBERS.issuperset(map(type, value)):
            x1, y1, x2, y2 = value
            if -1 <= x1 < x2 <= 225 and -1 <= y1 < y2 <= 225:
                return _new(Region, (name, (float(x1), float(y1), float(x2), float(y2)), frame))
        box, fault = read_box(value)
        if box is None:
            self.notes.append(f"box of region {name!r} {fault}: left out")
            return Region(name)
        # A pixel of tolerance: boxes in the wild touch 224, and -0.4 is rounding.
        if frame == LETTERBOX_224 and not (min(box) >= -1 and max(box) <= 225):
            self.notes.append(f"box of region {name!r} lies outside 224 x 224: its frame is unknown")
            frame = UNKNOWN_FRAME
        return Region(name, box, frame)

    def row(
        self, number: int, source: str, *, image_path: str, question_id: str, question: str, answer: str,
        choices: tuple[str, ...] = (), question_type: str = "", content_type: str = "",
        regions: tuple[Region, ...] = (), split: str = "", view: str = "",
    ) -> QuestionRow:  # fmt: skip
        """The finished row, with its error text ("file:line: what; what") if there were problems."""
        error = f"{source}: {'; '.join(self.problems)}" if self.problems else ""
        return _new(QuestionRow, (
            number, source, image_path, question_id, question, answer, choices, question_type, content_type,
            regions, error, split, view, tuple(self.notes) if self.notes else (),
        ))  # fmt: skip


def read_box(value: Any) -> tuple[Box | None, str]:
    """(box, "") or (None, what is wrong): four finite numbers with x1 < x2 and y1 < y2."""
    if not isinstance(value, list) or len(value) != 4:
        return None, f"has {len(value)} numbers, not 4" if isinstance(value, list) else f"is {kind_of(value)}"
    if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value):
        return None, "holds something that is not a number"
    try:
        x1, y1, x2, y2 = (float(item) for item in value)
    except OverflowError:
        return None, "holds a number that is too large"
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return None, "holds NaN or infinity"
    if x1 >= x2 or y1 >= y2:
        return None, "has no area (x1 < x2 and y1 < y2 is needed)"
    return (x1, y1, x2, y2), ""


def unusable(number: int, source: str, question_id: str, reason: str, question_type: str = "") -> QuestionRow:
    """The row of a line that could not be parsed at all: image and question are unknown."""
    return QuestionRow(number, source, "", question_id, "", "", (), question_type, "", (), f"{source}: {reason}")


_CHOICES_TAG = re.compile(r"<choices>\s*:?\s*\[(?P<body>.*)\]\s*(?:</choices>)?\s*$", re.DOTALL | re.IGNORECASE)


def choices_in_question(question: str) -> tuple[str, ...]:
    """The choices that GEMeX's training format writes into the question: ``<choices>: [A: .., B: ..]``.

    Split before "B:", "C:", ... in that order, so that commas and colons inside a choice stay where they are.
    """
    match = _CHOICES_TAG.search(question)
    if not match:
        return ()
    body = match["body"].strip()
    if body.startswith(('["', '"')):
        try:
            return tuple(str(item) for item in json.loads(f"[{body}]"))
        except ValueError:
            pass
    starts, position = [], 0
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        found = re.compile(rf"(?:^|,)\s*(['\"]?)(?={letter}\s*[:.)])").search(body, position)
        if not found:
            break
        starts.append((found.start(), found.end(), found[1]))
        position = found.end()
    if not starts:
        return ()
    ends = [start for start, _, _ in starts[1:]] + [len(body)]
    return tuple(
        body[first:end].strip().removesuffix(quote) if quote else body[first:end].strip()
        for (_, first, quote), end in zip(starts, ends, strict=True)
    )
