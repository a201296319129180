"""Level 1 of the plan: all questions of a data set, numbered and grouped by image, in two Parquet files.

``questions-<digest>.parquet`` has a row per question: first the usable ones, by image (in the order of first
appearance) and number, then those that cannot be used, in data-set order. ``images-<digest>.parquet`` has a
row per image and, in its schema, what is known of the whole. Both depend on the data set, its reader and REGIONS
alone; every selection and every shard of a data set reads the same two files.

Reading is ``parts``' work, ordering ``gather``'s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from heatlens.errors import DataSetError, SetupError, one_line
from heatlens.files import atomic_file, digest_text, remove_temporary, temporaries_in, temporary_folder
from heatlens.questions.outputs import bases_and_clashes
from heatlens.questions.parts import Part, write_parts
from heatlens.questions.rows import Reader

if TYPE_CHECKING:
    from heatlens.questions.gather import Order

FORMAT = 1
"""Raised whenever the same data set would give other files, a change of what a reader makes of a row included."""
GROUP_ROWS = 8192
"""Rows of a row group: what a shard holds at a time."""
EXAMPLES = 20
_FACTS = b"heatlens"


@dataclass(frozen=True)
class QuestionIndex:
    """The two files and what they hold. ``usable``: rows at the head of ``questions`` that can be used.

    ``collisions``: images that keep their suffix in the names of their heat maps, or get a digest there;
    ``collision_examples`` holds the first lines about them.
    """

    digest: str
    questions: Path
    images: Path
    rows: int
    usable: int
    image_count: int
    collisions: int
    collision_examples: tuple[str, ...]


def index_digest(reader: Reader, data_digest: str, mode: str) -> str:
    """What an index depends on. File names are in it (ids and question types come from them), folders are not."""
    kind = type(reader)
    files = reader.files()
    common = os.path.commonpath([file.absolute().parent for file in files]) if files else ""
    names = [os.path.relpath(file.absolute(), common) for file in files]
    return digest_text(str(FORMAT), data_digest, kind.__module__, kind.__qualname__, mode, *names)


def open_index(folder: Path, digest: str) -> QuestionIndex | None:
    """The index with this digest, or None if it is not there or a file of it is damaged."""
    questions, images = _paths(folder, digest)
    try:
        facts = json.loads((pq.read_schema(images).metadata or {})[_FACTS])
        rows = pq.read_metadata(questions).num_rows
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    if (facts.pop("digest"), facts["rows"]) != (digest, rows):
        return None
    examples = tuple(facts.pop("collision_examples"))
    return QuestionIndex(digest, questions, images, **facts, collision_examples=examples)


def make_index(reader: Reader, folder: Path, digest: str, mode: str, workers: int) -> QuestionIndex:
    """Read the whole data set and write its index into ``folder``; nothing half-made is left or seen there."""
    with _explained(folder), temporary_folder(folder) as temporary:
        parts = write_parts(reader, temporary, mode, workers)
        rows = sum(part.rows for part in parts)
        if not rows:
            raise DataSetError(f"the data set holds no rows: {', '.join(map(str, reader.files()[:5]))}")
        _write(parts, rows, temporary, folder, digest, workers)
    index = open_index(folder, digest)
    if index is None:
        raise SetupError(f"{folder}: the plan was written and cannot be read back")
    return index


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in ``folder``. Only for who knows that no other process plans there."""
    for path in temporaries_in(folder):
        remove_temporary(path)


def _paths(folder: Path, digest: str) -> tuple[Path, Path]:
    return folder / f"questions-{digest[:16]}.parquet", folder / f"images-{digest[:16]}.parquet"


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """A full disk or too little memory, in one line."""
    import duckdb

    try:
        yield
    except (OSError, MemoryError, pa.ArrowException, duckdb.Error) as error:
        raise SetupError(f"{folder}: the plan cannot be written: {one_line(error)[:300]}") from error


def _write(parts: list[Part], rows: int, temporary: Path, folder: Path, digest: str, workers: int) -> None:
    from heatlens.questions.gather import order_of, write_questions

    questions, images = _paths(folder, digest)
    order = order_of(parts, temporary, workers)
    _write_images(order, images, {"digest": digest, "rows": rows})
    made = temporary / "questions.parquet"
    if not write_questions(parts, order, made, GROUP_ROWS, workers) == order.rows == rows:
        raise SetupError(f"{folder}: the plan has lost rows while it was sorted")
    with made.open("rb") as stream:
        os.fsync(stream.fileno())
    made.replace(questions)


def _write_images(order: Order, path: Path, facts: dict[str, Any]) -> None:
    """Write the images' file with their names on disk; ``facts`` are stored with what is known now."""
    bases, clashes = bases_and_clashes(order.images)
    facts = facts | {
        "usable": order.usable,
        "image_count": len(order.images),
        "collisions": len(clashes),
        "collision_examples": [f"{image}: {bases[image]}_idx<n>" for image in clashes[:EXAMPLES]],
    }
    schema = pa.schema(
        [("image", pa.string()), ("base", pa.string()), ("heat_maps", pa.int64())], {_FACTS: json.dumps(facts).encode()}
    )
    table = pa.table([order.images, [bases[image] for image in order.images], order.heat_maps], schema=schema)
    with atomic_file(path) as stream:
        pq.write_table(table, stream, row_group_size=GROUP_ROWS, compression="zstd")
