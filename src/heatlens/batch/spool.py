"""Rows on their way through a sort that does not fit into memory.

A spool is one temporary file of many small batches, each with rows of one *bucket*: SPAN neighbouring rows of
the data set. Rows come in any order; later the buckets are read one after the other, and each is sorted in
memory. What a sort costs is thus one bucket, whatever the size of the data set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from heatlens.batch.tables import valid_text

ROWS = 8192
"""Rows per table in :func:`exactly`, and so per row group of details.parquet."""

SPAN = 1 << 14
"""Rows of the data set per bucket: some ten MB of heat maps."""

# Rows of one bucket, and of all, that wait in memory to be written together.
_TOGETHER = 1024
_WAITING = 1 << 16


class Spool:
    """Rows (tuples in the order of ``schema``) by bucket; written inside a ``with`` block, read after it."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._waiting: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self._count = 0
        self._batches: defaultdict[int, list[int]] = defaultdict(list)
        self._written = 0
        # Through a Python file, so that a full disk is an OSError with its number.
        self._stream = path.open("wb")
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self._writer = pa.ipc.new_file(self._stream, schema, options=options)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            if kind is None:
                self._write_all()
                self._writer.close()

    def add(self, number: int, row: tuple[Any, ...]) -> None:
        """Append one row that belongs to row ``number`` of the data set."""
        bucket = number // SPAN
        waiting = self._waiting[bucket]
        waiting.append(row)
        self._count += 1
        if len(waiting) >= _TOGETHER:
            self._write(bucket)
        elif self._count >= _WAITING:
            self._write_all()

    def _write_all(self) -> None:
        for bucket in list(self._waiting):
            self._write(bucket)

    def _write(self, bucket: int) -> None:
        rows = self._waiting.pop(bucket)
        columns = zip(*rows, strict=True)
        arrays = [_column(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._batches[bucket].append(self._written)
        self._written += 1
        self._count -= len(rows)

    def buckets(self) -> list[int]:
        """The buckets that have rows, in data-set order."""
        return sorted(self._batches)

    def table(self, bucket: int, *, by: Sequence[str]) -> pa.Table:
        """A bucket's rows (none, if it has none) sorted by these columns of numbers."""
        with pa.OSFile(str(self._path)) as source:
            reader = pa.ipc.open_file(source)
            table = pa.Table.from_batches(
                [reader.get_batch(one) for one in self._batches.get(bucket, ())], self._schema
            )
        return table.take(np.lexsort([table.column(name).to_numpy() for name in reversed(by)]))


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Python values as an Arrow array; lone surrogates in texts are replaced."""
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([_valid(value) for value in values], kind)


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return valid_text(value)
    return [_valid(one) for one in value] if isinstance(value, (list, tuple)) else value


def exactly(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS rows; the last may be shorter."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        rest = table
        while count + len(rest) >= ROWS:
            head = rest.slice(0, ROWS - count)
            yield pa.concat_tables([*waiting, head]).combine_chunks()
            rest = rest.slice(len(head))
            waiting, count = [], 0
        if len(rest):
            waiting.append(rest)
            count += len(rest)
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
