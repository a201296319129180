"""GEMeX's plain rows by whole columns: rows about which the reader's rules have nothing to say.

What a row means stands in :mod:`~heatlens.questions.readers.gemex` and ``draft`` alone. Here, one regular expression
per layout recognises lines that those rules take as they are and finds the values in them; Python's own JSON parser
reads values that are not as they are written. If anything else occurs in a block of lines, none of it is read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from json.encoder import encode_basestring  # type: ignore[attr-defined]
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from heatlens.questions.expand import usable_image
from heatlens.questions.readers.sources import SourceFile
from heatlens.questions.rows import LETTERBOX_224, answer_text

Value = TypeVar("Value")
Texts = Sequence[str] | Sequence[bytes]
"""A column of texts; bytes where that is what they are made of anyway."""


class PlainRows(NamedTuple):
    """Columns of rows without error and note, named as in QuestionRow. JSON texts are without spaces."""

    source: pa.Array
    image: pa.DictionaryArray  # canonical; the different ones in the order of their first appearance
    question_id: pa.Array
    question: pa.Array
    answer: pa.Array
    choices: pa.Array  # JSON list, or ""
    question_type: pa.Array
    content_type: pa.Array
    regions: pa.Array  # JSON list of [name, box, frame], or ""
    region_count: npt.NDArray[np.int32]


TEXT, TEXTS, WHOLE, BOXES = "text", "list of texts", "whole number", "list of boxes"
_KINDS = {str: TEXT, list: TEXTS, int: WHOLE}
_WANTED = {
    "question": (TEXT,), "image_path": (TEXT,), "q_id": (WHOLE,), "type": (TEXT,), "answer": (TEXT, TEXTS),
    "choices": (TEXTS,), "visual_regions": (TEXTS,), "visual_locations": (BOXES,),
}  # fmt: skip
_REQUIRED = {"question", "image_path", "q_id"}
_MOST_KEYS = 64
_LONGEST = 4096
"""Bytes of a value that is kept for the next row that has it."""
_BLANK: dict[type, Callable[..., bool]] = {str: str.isspace, bytes: bytes.isspace}

# Escaped backslashes and quotes are masked while values are looked for, so that a quote always ends a text. The
# masks are control characters, of which a plain line has none.
_MASKS = ((b"\\\\", b"\1\1"), (b'\\"', b"\2\2"))
_OTHER_ESCAPE = re.compile(rb"\\(?:[/bfnrt]|u[0-9A-Fa-f]{4})")

_LOWEST, _HIGHEST = -1, 225
"""Of a box in the 224 x 224 frame, with the reader's pixel of tolerance."""
_SPAN = _HIGHEST - _LOWEST + 1


def read_plain(lines: bytes, source: SourceFile, question_type: str) -> PlainRows | None:
    """The rows of whole lines, which ``source`` has the place of, or None if any of them is not plain."""
    try:
        first = lines.split(b"\n", 1)[0]
        space = b" " if b": " in first[: first.find(b",")] else b""
        cells = _cells(lines, _layout(first), space)
        return _columns(cells, space, source, question_type) if cells else None
    except (ValueError, RecursionError):  # not JSON, not Unicode: the reader will say what and where
        return None


def _layout(line: bytes) -> tuple[tuple[str, str], ...]:
    """The keys of a line in order and the kinds of their values, or () if it cannot be a plain row's."""
    row = json.loads(line)
    if type(row) is not dict or not row.keys() >= _REQUIRED or len(row) > _MOST_KEYS:
        return ()
    layout = []
    for key, value in row.items():
        kind = BOXES if key == "visual_locations" else _KINDS.get(type(value), "")
        if not kind or kind not in _WANTED.get(key, (kind,)):
            return ()
        layout.append((key, kind))
    return tuple(layout)


def _cells(lines: bytes, layout: tuple[tuple[str, str], ...], space: bytes) -> dict[str, Sequence[bytes]] | None:
    """The raw values of the wanted keys, row by row (texts without their quotes), or None."""
    text = b"\n" + lines
    codes = np.frombuffer(text, np.uint8)
    breaks = np.count_nonzero(codes == ord("\n"))
    if not layout or np.count_nonzero(codes < ord(" ")) != breaks:
        return None  # control characters, which JSON forbids within texts, or carriage returns
    if b"\\" in text:
        for escape, mask in _MASKS:
            text = text.replace(escape, mask)
        if text.count(b"\\") != len(_OTHER_ESCAPE.findall(text)):
            return None
    pattern = _pattern(layout, space)
    found = pattern.findall(text)
    # Each match takes the line break in front of it. If that uses up all of them, no match holds another one.
    if len(found) != breaks - lines.endswith(b"\n"):
        return None
    return dict(zip(pattern.groupindex, zip(*found, strict=True), strict=True))


@lru_cache(maxsize=64)
def _pattern(layout: tuple[tuple[str, str], ...], space: bytes) -> re.Pattern[bytes]:
    """A line of this layout and the line break in front of it, with a group for each wanted key."""
    comma = b"," + space

    def listed(item: bytes) -> bytes:
        return rb"\[(?:%b(?:%b%b)*)?\]" % (item, comma, item)

    box = rb"\[%b\]" % comma.join([rb"(?:[1-9][0-9]{0,2}|0|-1)"] * 4)
    values = {TEXT: rb'[^"]*', TEXTS: listed(rb'"[^"]*"'), WHOLE: rb"(?:0|-?[1-9][0-9]{0,17})", BOXES: listed(box)}
    fields = []
    for key, kind in layout:
        value, name = values[kind], "answers" if (key, kind) == ("answer", TEXTS) else key
        if key in _WANTED:
            value = b"(?P<%b>%b)" % (name.encode(), value)
        if kind == TEXT:
            value = b'"%b"' % value
        fields.append(re.escape(encode_basestring(key).encode()) + b":" + space + value)
    return re.compile(rb"\n\{%b\}(?=\n|\Z)" % comma.join(fields))


def _columns(
    cells: dict[str, Sequence[bytes]], space: bytes, source: SourceFile, question_type: str
) -> PlainRows | None:
    """What the cells hold, or None where the reader has something to say about it."""
    rows, question = len(cells["q_id"]), _texts(cells["question"])
    no_text, no_list = [b""] * rows, [b"[]"] * rows
    regions = _regions(cells.get("visual_regions", no_list), cells.get("visual_locations", no_list))
    image = _images(cells["image_path"])
    if regions is None or image is None or not all(question) or any(map(_BLANK[type(question[0])], question)):
        return None
    answer = _each(_answer, cells["answers"]) if "answers" in cells else _texts(cells.get("answer", no_text))
    first_line = source.span.first_line if source.span else 1
    lines = pa.array(np.arange(first_line, first_line + rows)).cast(pa.string())
    return PlainRows(
        source=pc.binary_join_element_wise(pa.scalar(f"{source.label}:"), lines, ""),
        image=image,
        question_id=pc.binary_join_element_wise(pa.scalar(f"{source.stem}:"), pa.array(cells["q_id"], pa.string()), ""),
        question=pa.array(question, pa.string()),
        answer=pa.array(answer, pa.string()),
        choices=pa.array(_lists(cells["choices"], space) if "choices" in cells else no_text, pa.string()),
        question_type=pa.repeat(question_type, rows),
        content_type=pa.array(_texts(cells.get("type", no_text)), pa.string()),
        regions=regions[0],
        region_count=regions[1],
    )


def _images(raws: Sequence[bytes]) -> pa.DictionaryArray | None:
    """The canonical paths, or None if one cannot be used. Several spellings may be one image."""
    different = dict.fromkeys(raws)
    images, faults = zip(*map(usable_image, _values(b'["%b"]' % b'","'.join(different))), strict=True)
    if any(faults):
        return None
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
    number = {raw: numbers[image] for raw, image in zip(different, images, strict=True)}
    indices = pa.array([number[raw] for raw in raws], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(numbers), pa.string()))


def _texts(raws: Sequence[bytes]) -> Texts:
    """What JSON texts without their quotes mean: the same, unless something is escaped or not ASCII."""
    text = b'","'.join(raws)
    return raws if text.isascii() and not _escaped(text) else _values(b'["%b"]' % text)


def _escaped(text: bytes) -> bool:
    return b"\\" in text or any(mask[:1] in text for _, mask in _MASKS)


def _values(text: bytes) -> Any:
    """What a JSON text means that may hold masks."""
    for escape, mask in _MASKS:
        text = text.replace(mask, escape)
    return json.loads(text.decode())


def _lists(raws: Sequence[bytes], space: bytes) -> Texts:
    """JSON lists of texts, without spaces and with nothing escaped that need not be; an empty one as ""."""
    text = b",".join(raws)
    if _escaped(text) or not text.isascii():
        return [f"[{','.join(map(encode_basestring, row))}]" if row else "" for row in _values(b"[%b]" % text)]
    if space:
        # Behind the first quote, every other `", "` from the left is an end, a comma and a start.
        return [b'["%b"]' % raw[2:-2].replace(b'", "', b'","') if len(raw) > 2 else b"" for raw in raws]
    return [raw if len(raw) > 2 else b"" for raw in raws]


def _each(read: Callable[[bytes], Value], raws: Sequence[bytes]) -> list[Value]:
    """A column by a function that remembers its results."""
    if max(map(len, raws)) > _LONGEST:
        raise ValueError("a value that is too long to be remembered")
    return list(map(read, raws))


@lru_cache(maxsize=1 << 12)
def _answer(raw: bytes) -> str:
    """An answer that is a list of texts. Mostly letters, so that few are different."""
    return answer_text(_values(raw))


@lru_cache(maxsize=1 << 14)
def _heads(raw: bytes) -> tuple[str, ...]:
    """The regions of a list of names as JSON texts, up to their first number."""
    names = _values(raw)
    if not all(names):
        raise ValueError("a region without a name")
    return tuple(f"[{encode_basestring(name)},[" for name in names)


def _regions(names: Sequence[bytes], boxes: Sequence[bytes]) -> tuple[pa.Array, npt.NDArray[np.int32]] | None:
    """(JSON texts or "", numbers of regions) of all rows; None unless each region has a name and a plain box."""
    heads = _each(_heads, names)
    counts = list(map(len, heads))
    if counts != [raw.count(b"[") - 1 for raw in boxes]:
        return None
    numbers = b",".join([raw for raw in boxes if len(raw) > 2]).translate(None, b"[] ")
    corners = np.fromstring(numbers, np.int32, sep=",").reshape(-1, 4) - _LOWEST
    if corners.size and not (corners.min() >= 0 and corners.max() < _SPAN):
        return None
    x1, y1, x2, y2 = corners.T
    if not ((x1 < x2) & (y1 < y2)).all():
        return None
    first, second = _corners()
    head = pa.array(list(chain.from_iterable(heads)), pa.string())
    texts = pc.binary_join_element_wise(
        head, first.take(pa.array(x1 * _SPAN + y1)), second.take(pa.array(x2 * _SPAN + y2)), ""
    )
    region_count = np.array(counts, np.int32)
    ends = pa.array(np.cumsum([0, *counts], dtype=np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(ends, texts), ",")
    listed = pc.binary_join_element_wise("[", joined, "]", "")
    return pc.if_else(pa.array(region_count > 0), listed, ""), region_count


@lru_cache(maxsize=1)
def _corners() -> tuple[pa.Array, pa.Array]:
    """JSON texts of a box's first corner, and of its second with the rest of the region, at x * _SPAN + y."""
    numbers = [str(float(number)) for number in range(_LOWEST, _HIGHEST + 1)]
    pairs = [f"{x},{y}" for x in numbers for y in numbers]
    return pa.array(pairs), pa.array([f',{pair}],"{LETTERBOX_224}"]' for pair in pairs])
