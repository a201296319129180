"""JSON lines and JSON lists, one object at a time; broken pieces are named, and the rest goes on."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from heatlens.errors import DataSetError
from heatlens.questions.readers.draft import kind_of
from heatlens.questions.readers.sources import SourceFile, opened

MAX_ITEM = 64 << 20
"""Bytes of one line, or characters of one list item: beyond that it is no question but another format."""
_CHUNK = 1 << 20
_BLANK = " \t\r\n"
_LINE_ENDS = ("\n", "", "\r\n")


class Record(NamedTuple):
    """One row of a file before anything is checked. ``place`` is its line (or item, or row) from 1."""

    place: int
    data: dict[str, Any] | None
    error: str = ""


def json_container(source: SourceFile) -> str:
    """ "JSON list" or "JSON lines", by the file's first character."""
    with opened(source.path) as stream:
        first = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return "JSON list" if first == b"[" else "JSON lines"


def read_json(source: SourceFile) -> Iterator[Record]:
    """The objects of a JSON-lines file, or of a file that holds one JSON list."""
    return read_array(source) if json_container(source) == "JSON list" else read_lines(source)


def read_lines(source: SourceFile) -> Iterator[Record]:
    """One record per non-empty line. A line that is no JSON object is a record with ``error``."""
    start, end, first_line = source.span or (0, sys.maxsize, 1)
    with opened(source.path) as stream:
        if start:
            stream.seek(start)
        for number, line in enumerate(_lines(stream, start, end), start=first_line):
            if line is None:
                yield Record(number, None, f"the line is longer than {MAX_ITEM >> 20} MiB")
            elif line and not line.isspace():
                yield _parsed(number, line)


def _lines(stream: IO[bytes], position: int, end: int) -> Iterator[bytes | None]:
    """Lines from ``position`` to ``end``, without the file's byte order mark; None for one too long to be held."""
    prefix = b"" if position else codecs.BOM_UTF8
    while position < end and (line := stream.readline(MAX_ITEM)):
        length = len(line)
        position += length
        if length == MAX_ITEM and not line.endswith(b"\n"):
            while rest := stream.readline(MAX_ITEM):
                position += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield None
        else:
            yield line.removeprefix(prefix) if prefix else line
        prefix = b""


_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # what raw_decode calls


def _parsed(number: int, line: bytes) -> Record:
    text = line.decode("utf-8", "surrogateescape")
    try:  # the plain case at half the price of json.loads, which then explains the others
        data, end = _scan(text, 0)
        if type(data) is dict and text[end:] in _LINE_ENDS:
            return tuple.__new__(Record, (number, data, ""))
    except (StopIteration, ValueError, RecursionError):
        pass
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return Record(number, None, f"not valid JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Record(number, None, f"not valid JSON: {_safe(error)}")
    return as_record(number, data)


def as_record(place: int, data: Any) -> Record:
    """A parsed value as a record; anything but an object is an error."""
    if isinstance(data, dict):
        return Record(place, data)
    return Record(place, None, f"not a JSON object but {kind_of(data)}")


def _safe(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


def read_array(source: SourceFile) -> Iterator[Record]:
    """The items of one JSON list, with one item and at most a few MiB of text in memory.

    A list cannot be read past a syntax error, and going on would lose every question behind it: DataSetError.
    """
    with opened(source.path) as stream:
        window = _Window(source.label, stream)
        window.expect("[")
        place = 0
        while window.peek() != "]":
            if place:
                window.expect(",")
            place += 1
            yield as_record(place, window.value(place))
        window.expect("]")
        if window.peek():
            raise DataSetError(f"{source.label}: text after the end of the JSON list of {place} items")


class _Window:
    """A sliding piece of a file's text, from which JSON values are taken."""

    def __init__(self, label: str, stream: IO[bytes]) -> None:
        self._label, self._stream = label, stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False

    def _grow(self) -> None:
        """Drop what was read and add a chunk at least as long as the rest, so that growing stays linear."""
        rest = self._text[self._at :]
        data = self._stream.read(max(_CHUNK, len(rest)))
        self._ended = not data
        self._text, self._at = rest + self._decode(data, final=not data), 0

    def peek(self) -> str:
        """The next character that is not blank, or "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._grow()

    def expect(self, character: str) -> None:
        """Step over ``character`` or raise."""
        if self.peek() != character:
            found = f"{self.peek()!r}" if self.peek() else "the end of the file"
            raise DataSetError(f"{self._label}: not a whole JSON list: {character!r} expected, {found} found")
        self._at += 1

    def value(self, place: int) -> Any:
        """The JSON value that starts here."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
                # A number at the window's edge ("12", "0.", "1e-") may be the head of a longer one.
                if self._ended or len(self._text) - end > 3 or self._text[end : end + 1] in (*"]},", *_BLANK):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended or not self._cut_short(error):
                    self._refuse(place, error.msg)
            except (ValueError, RecursionError) as error:
                self._refuse(place, _safe(error))
            if len(self._text) - self._at > MAX_ITEM:
                self._refuse(place, f"longer than {MAX_ITEM >> 20} Mi characters")
            self._grow()

    def _cut_short(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend this: an open string, or a fault at the window's very end."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16

    def _refuse(self, place: int, reason: str) -> None:
        raise DataSetError(
            f"{self._label}: item {place} of the JSON list is not valid JSON: {reason}; nothing behind it "
            "can be read. Mend the file, or bring it as JSON lines, where a broken line stands for itself"
        )
