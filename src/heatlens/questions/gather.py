"""From parts in data-set order to rows in the order of the plan: numbered, by image, in one Parquet file.

Numbering and sorting are DuckDB's: within :data:`MEMORY`, and beyond it on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heatlens.questions.parts import TEXTS, Part

if TYPE_CHECKING:
    import duckdb

MEMORY = "400MB"
_NUMBERS = [
    pa.field("image_index", pa.int32(), nullable=False),  # -1 for a row without a usable path
    pa.field("number", pa.int64(), nullable=False),  # in the whole data set, from 0
    # Of the row's heat maps among those of its image, from 1; 0 without an image.
    pa.field("first_number", pa.int64(), nullable=False),
    pa.field("shares", pa.int32()),  # heat maps of the row
]
QUESTIONS = pa.schema([*_NUMBERS, *((name, pa.string()) for name in TEXTS)])
_REPEATED = ["reason", "bad_image", "question_type", "content_type", "split", "view", "notes"]

_FIRST_NUMBERS = """
    SELECT CASE WHEN image_index < 0 THEN 0
        ELSE 1 + sum(shares) OVER (PARTITION BY image_index ORDER BY number) - shares END::BIGINT AS first_number
    FROM narrow ORDER BY number
"""
_IN_ORDER = """
    FROM questions
    ORDER BY reason <> '', CASE WHEN reason = '' THEN image_index ELSE 0 END, number
"""

Integers = npt.NDArray[Any]


@dataclass(frozen=True)
class Order:
    """The numbers of all rows, by row number, and of all images.

    ``image``: the index into ``images``, or -1. ``heat_maps``: of each image. ``usable`` rows come first in the file.
    """

    images: list[str]
    heat_maps: Integers
    usable: int
    image: Integers
    first_number: Integers
    shares: Integers

    @property
    def rows(self) -> int:
        """Rows of the whole data set."""
        return len(self.image)


def order_of(parts: Sequence[Part], folder: Path, workers: int) -> Order:
    """Read what decides the order; images are numbered by first appearance. ``folder`` takes what memory does not."""
    indices: dict[str, int] = {}
    columns: list[tuple[Integers, ...]] = []
    for batch in _batches(parts, ["image", "shares", "reason"]):
        image = batch["image"]
        known = [indices.setdefault(path, len(indices)) for path in image.dictionary.to_pylist()]
        places = image.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        bad = pc.not_equal(batch["reason"], "").to_numpy(zero_copy_only=False)
        columns.append((np.array([*known, -1], np.int32)[places], batch["shares"].to_numpy(), bad))
    image, shares, bad = (np.concatenate(column) for column in zip(*columns, strict=True))
    good = ~bad
    narrow = pa.table({"image_index": image, "number": np.arange(len(image)), "shares": shares})
    with _engine(folder, workers) as engine:
        engine.register("narrow", narrow)
        first_number = np.asarray(engine.execute(_FIRST_NUMBERS).fetchnumpy()["first_number"])
    heat_maps = np.bincount(image[good], shares[good], len(indices)).astype(np.int64)
    return Order(list(indices), heat_maps, int(np.count_nonzero(good)), image, first_number, shares)


def write_questions(parts: Sequence[Part], order: Order, path: Path, group_rows: int, workers: int) -> int:
    """Write all rows to the Parquet file ``path``; returns how many."""
    written = 0
    with _engine(path.parent, workers) as engine, pq.ParquetWriter(
        path, QUESTIONS, compression="zstd", compression_level=1, use_dictionary=_REPEATED,
        write_statistics=["image_index", "number"],
    ) as writer:  # fmt: skip
        engine.register("questions", pa.RecordBatchReader.from_batches(QUESTIONS, _numbered(parts, order)))
        for batch in engine.sql(_IN_ORDER).to_arrow_reader(group_rows):
            writer.write_table(pa.Table.from_batches([batch]).cast(QUESTIONS), row_group_size=group_rows)
            written += batch.num_rows
    return written


def _engine(folder: Path, workers: int) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills into ``folder``."""
    import duckdb

    return duckdb.connect(
        config={"memory_limit": MEMORY, "threads": max(1, workers), "temp_directory": str(folder / "spill"),
                "preserve_insertion_order": False},
    )  # fmt: skip


def _numbered(parts: Sequence[Part], order: Order) -> Iterator[pa.RecordBatch]:
    """The rows in data-set order as the file has them."""
    start = 0
    for batch in _batches(parts, TEXTS):
        rows = slice(start, start + batch.num_rows)
        numbers = (order.image[rows], np.arange(rows.start, rows.stop), order.first_number[rows], order.shares[rows])
        yield pa.RecordBatch.from_arrays([*map(pa.array, numbers), *batch.columns], schema=QUESTIONS)
        start = rows.stop


def _batches(parts: Sequence[Part], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """All batches of the parts' Arrow streams, with some of their columns in this order."""
    for part in parts:
        with pa.OSFile(str(part.path), "rb") as file:
            with pa.ipc.open_stream(file) as stream:
                fields = [stream.schema.get_field_index(name) for name in names]
            file.seek(0)
            options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
            with pa.ipc.open_stream(file, options=options) as stream:
                for batch in stream:
                    yield batch.select(list(names))
