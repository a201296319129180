"""From the question index back to rows and image tasks, one row group at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from heatlens.questions.chosen import Mask
from heatlens.questions.expand import BadRow, HeatMap, ImageTask, expand
from heatlens.questions.index import GROUP_ROWS, QuestionIndex
from heatlens.questions.rows import Box, QuestionRow, Region

_TEXTS = ("source", "question_id", "question", "answer", "choices", "question_type", "content_type", "regions", "notes")
_BAD = ("number", "source", "bad_image", "question_id", "question", "reason")


def image_tasks(index: QuestionIndex, rows: Mask | None, images: Mask, mode: str, template: str) -> Iterator[ImageTask]:
    """The tasks of the ``images`` (a bit per image index), with the ``rows`` that are selected (None: all)."""
    names = _Images(index.images)
    for number, entries in groupby(_usable(index, rows, images), key=itemgetter(0)):
        path, base = names.of(number)
        heat_maps: list[HeatMap] = []
        bad: list[BadRow] = []
        for _, first_number, row in entries:
            made, failed = expand(row, path, base, first_number, mode, template)
            heat_maps += made
            bad += failed
        yield ImageTask(path, tuple(heat_maps), tuple(bad), number)


def bad_rows(index: QuestionIndex, rows: Mask | None) -> Iterator[BadRow]:
    """The selected rows that cannot be used, in data-set order."""
    with pq.ParquetFile(index.questions) as file:
        end = 0
        for group in range(file.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            if end <= index.usable:
                continue
            table = file.read_row_group(group, columns=list(_BAD), use_threads=False)
            table = table.slice(max(index.usable - start, 0))
            if rows is not None:
                table = table.filter(pa.array(rows[table["number"].to_numpy()]))
            for cells in zip(*(table[name].to_pylist() for name in _BAD), strict=True):
                number, source, image, question_id, question, reason = cells
                yield BadRow(number, source, image, question_id, question, "", reason)


def image_paths(index: QuestionIndex, images: Mask) -> Iterator[str]:
    """The canonical paths of ``images``, in their order."""
    start = 0
    with pq.ParquetFile(index.images) as file:
        for batch in file.iter_batches(GROUP_ROWS, columns=["image"], use_threads=False):
            yield from batch[0].filter(pa.array(images[start : start + batch.num_rows])).to_pylist()
            start += batch.num_rows


def _usable(index: QuestionIndex, rows: Mask | None, images: Mask) -> Iterator[tuple[int, int, QuestionRow]]:
    """(image index, first number, row) of the usable rows that are wanted, by image and number."""
    columns = ["image_index", "number", "first_number", *_TEXTS]
    with pq.ParquetFile(index.questions) as file:
        end = 0
        for group in range(file.num_row_groups):
            facts = file.metadata.row_group(group)
            start, end = end, end + facts.num_rows
            if start >= index.usable:
                return
            if end <= index.usable and not _any_of(facts, images):
                continue
            table = file.read_row_group(group, columns=columns, use_threads=False).slice(0, index.usable - start)
            wanted = images[table["image_index"].to_numpy()]
            if rows is not None:
                wanted &= rows[table["number"].to_numpy()]
            table = table.filter(pa.array(wanted))
            for cells in zip(*(table[name].to_pylist() for name in columns), strict=True):
                yield cells[0], cells[2], _row(cells[1], *cells[3:])


def _any_of(facts: Any, images: Mask) -> bool:
    """Whether a row group of usable rows, by its statistics, may hold one of the images."""
    limits = facts.column(0).statistics
    if limits is None or not limits.has_min_max or facts.column(0).path_in_schema != "image_index":
        return True
    return bool(images[limits.min : limits.max + 1].any())


def _row(
    number: int, source: str, question_id: str, question: str, answer: str, choices: str, question_type: str,
    content_type: str, regions: str, notes: str,
) -> QuestionRow:  # fmt: skip
    return QuestionRow(
        number, source, "", question_id, question, answer, tuple(json.loads(choices)) if choices else (),
        question_type, content_type, _regions(regions) if regions else (),
        notes=tuple(json.loads(notes)) if notes else (),
    )  # fmt: skip


def _regions(text: str) -> tuple[Region, ...]:
    return tuple([
        Region(name, None if box is None else _box(*box), frame) for name, box, frame in json.loads(text)
    ])  # fmt: skip


def _box(x1: float, y1: float, x2: float, y2: float) -> Box:
    return float(x1), float(y1), float(x2), float(y2)


class _Images:
    """Path and base of images that are asked for in ascending order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._group = lru_cache(maxsize=1)(self._read)

    def of(self, index: int) -> tuple[str, str]:
        group, place = divmod(index, GROUP_ROWS)
        paths, bases = self._group(group)
        return paths[place], bases[place]

    def _read(self, group: int) -> tuple[list[str], list[str]]:
        with pq.ParquetFile(self._path) as file:
            table = file.read_row_group(group, columns=["image", "base"], use_threads=False)
        return table["image"].to_pylist(), table["base"].to_pylist()
