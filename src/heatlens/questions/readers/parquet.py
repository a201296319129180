"""Parquet files batch by batch, only the columns that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from heatlens.errors import DataSetError
from heatlens.questions.readers.jsonfiles import Record
from heatlens.questions.readers.sources import SourceFile

BATCH_ROWS = 2048


# Of pyarrow, and of Python's own types: a name that is not UTF-8, a date beyond the year 9999.
_FAULTS = (pa.ArrowException, OSError, ValueError, OverflowError)


def _fault(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except _FAULTS as error:
        raise DataSetError(f"{path}: not a readable Parquet file: {_fault(error)}") from error


def column_names(path: Path) -> list[str]:
    """The top-level column names."""
    with _open(path) as file:
        try:
            return list(file.schema_arrow.names)
        except _FAULTS as error:
            raise DataSetError(f"{path}: its columns cannot be read: {_fault(error)}") from error


def read_parquet(source: SourceFile, wanted: Sequence[str]) -> Iterator[Record]:
    """One record per row, with the ``wanted`` columns only; report text and reasoning are never read."""
    with _open(source.path) as file:
        place = 0
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(wanted)):
                for values in zip(*(_values(column) for column in batch.columns), strict=True):
                    place += 1
                    yield Record(place, dict(zip(batch.schema.names, values, strict=True)))
        except _FAULTS as error:
            raise DataSetError(f"{source.path}: cannot be read after row {place}: {_fault(error)}") from error


def _values(column: pa.Array) -> list[Any]:
    """Python values; a text that is not UTF-8 becomes lone surrogates, which the row check then names."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        kind = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        raw = column.view(kind) if not pa.types.is_dictionary(column.type) else column.dictionary_decode().view(kind)
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw.to_pylist()]
