"""A plain table: CSV, TSV, JSON lines, a JSON list or Parquet, with an image and a question per row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any

from heatlens.errors import DataSetError
from heatlens.questions.readers import columns
from heatlens.questions.readers.base import FileReader, place, type_of_file
from heatlens.questions.readers.draft import Draft
from heatlens.questions.readers.jsonfiles import Record, json_container
from heatlens.questions.readers.layouts import checked_json, look, unknown_layout
from heatlens.questions.readers.sources import SourceFile, opened
from heatlens.questions.rows import SOURCE, QuestionRow, question_type_by_shape, question_type_named

MAX_CELL = 16 << 20
_BOX = ("x1", "y1", "x2", "y2")
_CORNER = ("x", "y", "w", "h")


class TableReader(FileReader):
    """Rows of a user's own table; :mod:`~heatlens.questions.readers.columns` lists the column names.

    Boxes (x1, y1, x2, y2, or x, y, w, h) are in source pixels. ``type`` holds a question type if it names one
    of the four, else a content type. ``choices`` is a JSON list, or a text with ``|`` between the choices. An
    own ``question_id`` is kept verbatim; without one it is "<file stem>:row<n>".
    """

    _text = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
    suffixes = (*_text, *(f"{suffix}.gz" for suffix in _text), ".parquet", ".pq")

    def records(self, source: SourceFile) -> Iterator[Record]:
        """The rows of one file, by our field names."""
        container, found = ("JSON lines", set[str]()) if source.span else look(source)
        if _is_json(source, container):
            return map(_renamed, checked_json("table", source))
        if container not in ("CSV", "Parquet") or not columns.usable(found):
            raise unknown_layout("table", container, source, found)
        if container == "CSV":
            return map(_renamed, read_csv(source))
        from heatlens.questions.readers.parquet import read_parquet

        return map(_renamed, read_parquet(source, list(columns.mapping(found).values())))

    def has_lines(self, source: SourceFile) -> bool:
        """JSON lines can be cut; a line break in a CSV file may lie within a cell."""
        return _is_json(source, look(source)[0]) and json_container(source) == "JSON lines"

    def row(self, record: Record, source: SourceFile, number: int) -> QuestionRow:
        """One row of the table as ours."""
        data, draft = record.data or {}, Draft()
        answer, choices = draft.answer(data.get("answer")), draft.choices(_choices(data.get("choices")))
        named = draft.label(data.get("question_type"), "question_type")
        other = draft.label(data.get("type"), "type")
        return draft.row(
            number,
            place(source, record),
            image_path=draft.text(data.get("image"), "image", required=True),
            question_id=draft.label(data.get("question_id"), "question_id") or f"{source.stem}:row{record.place}",
            question=draft.text(data.get("question"), "question", required=True),
            answer=answer,
            choices=choices,
            question_type=question_type_named(named)
            or question_type_named(other)
            or type_of_file(source.stem)
            or question_type_by_shape(data.get("answer"), choices),
            content_type="" if question_type_named(other) else other,
            regions=draft.regions(data.get("region"), _box(data, draft), SOURCE),
            split=draft.label(data.get("split"), "split"),
            view=draft.label(data.get("view"), "view"),
        )


def _is_json(source: SourceFile, container: str) -> bool:
    """A file called .jsonl is one, even if its first line is broken and so looks like a CSV header."""
    named_json = source.path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json"))
    return container.startswith("JSON") or (container == "CSV" and named_json)


@contextmanager
def _csv(source: SourceFile) -> Iterator[tuple[list[str], Any, int]]:
    """(header, csv reader behind it, blank lines in front of it). DataSetError when the header is no CSV."""
    # The default of 128 KiB holds for the whole process, so it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    with (
        opened(source.path) as raw,
        io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as text,
    ):
        blank = 0
        while (first := text.readline()).isspace():
            blank += 1
        reader = csv.reader(chain([first], text), delimiter=columns.delimiter(first), strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise DataSetError(
                f"{source.path}:{blank + 1}: the header is not valid CSV: {error}. Column names in quotes end with a "
                "quote, and a delimiter or the line's end follows it"
            ) from error
        yield header, reader, blank


def csv_header(source: SourceFile) -> list[str]:
    """The column names of a delimited file, as they stand there."""
    with _csv(source) as (header, _, _):
        return header


def read_csv(source: SourceFile) -> Iterator[Record]:
    """The rows of a delimited file. ``place`` is the line where a row starts."""
    with _csv(source) as (header, reader, blank):
        while True:
            line = blank + reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Record(line, None, f"not valid CSV: {error} (a quote that is never closed?)")
            else:
                if cells:
                    yield _csv_record(line, header, cells)


def _csv_record(line: int, header: list[str], cells: list[str]) -> Record:
    if len(cells) != len(header):
        return Record(
            line, None, f"{len(cells)} cells where the header has {len(header)} (a delimiter without quotes?)"
        )
    return Record(line, dict(zip(header, cells, strict=True)))


def _renamed(record: Record) -> Record:
    """The record under our field names; columns that we do not know are dropped here."""
    if record.data is None:
        return record
    data = record.data
    return record._replace(data={field: data[name] for field, name in _mapping(tuple(data)).items()})


@lru_cache(maxsize=1024)
def _mapping(names: tuple[str, ...]) -> dict[str, str]:
    """Rows of a table mostly share their keys."""
    return columns.mapping(names)


def _choices(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.strip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value.split("|") if "|" in value else value


def _box(data: Mapping[str, Any], draft: Draft) -> list[Any] | None:
    """The row's box as a list of one, or None where the row has none."""
    for fields in (_BOX, _CORNER):
        values = [_number(data.get(field)) for field in fields]
        if all(value is None for value in values):
            continue
        if any(value is None for value in values):
            draft.notes.append(f"the box lacks some of {', '.join(fields)}: left out")
            return None
        x, y, third, fourth = values
        if fields is _CORNER and all(isinstance(value, float) for value in values):
            third, fourth = x + third, y + fourth
        return [[x, y, third, fourth]]
    return None


def _number(value: Any) -> Any:
    """A cell as a number; an empty cell (or a data frame's NaN) as None; a text that is no number stays."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool):
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return None if number != number else number
