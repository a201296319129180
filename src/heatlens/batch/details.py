"""details.parquet: one row per finished heat map, in data-set order, written in one pass. No timings.

Columns, before the stage's own statistics:

``image_path``        the stage's main output, relative to the results folder (as in the manifest)
``source_image``      the image, relative to IMAGE_ROOT
``row``, ``source``   number of the row in the whole data set (from 0), and its file and line
``question_id``, ``question``, ``answer``, ``choices`` (list), ``question_type``, ``content_type``
``region``, ``boxes`` name of the region; JSON list of {"name", "box" [x1, y1, x2, y2] or null, "frame"}
``prompt``, ``prompt_truncated``  the text given to the model, and whether it was longer than it reads
``score``             the model's score of the whole image for the prompt (CLIP: the scaled logit)
...                   the stage's statistics (:attr:`heatlens.batch.protocols.Stage.columns`)
``geometry``          JSON: how source image and model frame map to each other
``warnings``          list of texts: of the engine, of the stage, of the data set's row
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from heatlens.batch.protocols import MadeMap
from heatlens.batch.tables import valid_text
from heatlens.files import atomic_file

DETAILS = "details.parquet"
_ROWS_PER_GROUP = 8192
_TEXTS = (
    "image_path", "source_image", "source", "question_id", "question", "answer", "question_type",
    "content_type", "region", "boxes", "prompt", "geometry",
)  # fmt: skip


def write_details(folder: Path, made: Iterator[MadeMap], columns: Mapping[str, type]) -> Path:
    """Write the table atomically; ``columns`` are the stage's statistics with their types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / DETAILS
    schema = pa.schema(_fields(pa, columns))
    with atomic_file(path) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        while rows := list(islice(made, _ROWS_PER_GROUP)):
            table = pa.Table.from_pylist([detail_row(one, columns) for one in rows], schema=schema)
            writer.write_table(table)
    return path


def detail_row(one: MadeMap, columns: Iterable[str]) -> dict[str, Any]:
    """One row as plain values."""
    asked, record = one.heat_map, one.record
    row: dict[str, Any] = {
        "image_path": record.output,
        "source_image": one.source_image,
        "row": asked.row,
        "source": asked.source,
        "question_id": asked.question_id,
        "question": asked.question,
        "answer": asked.answer,
        "choices": [valid_text(choice) for choice in asked.choices],
        "question_type": asked.question_type,
        "content_type": asked.content_type,
        "region": asked.region,
        "boxes": json.dumps([{"name": box.name, "box": box.box, "frame": box.frame} for box in asked.boxes]),
        "prompt": asked.prompt,
        "prompt_truncated": record.prompt_truncated,
        "score": record.score,
        **{name: record.statistics.get(name) for name in columns},
        "geometry": record.statistics.get("geometry") or "",
        "warnings": [valid_text(text) for text in (*record.warnings, *asked.notes)],
    }
    return {name: valid_text(value) if name in _TEXTS else value for name, value in row.items()}


def _fields(pa: Any, columns: Mapping[str, type]) -> list[tuple[str, Any]]:
    """Names and Arrow types in the order of :func:`detail_row`."""
    own = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    text, texts = pa.string(), pa.list_(pa.string())
    return [
        ("image_path", text),
        ("source_image", text),
        ("row", pa.int64()),
        ("source", text),
        ("question_id", text),
        ("question", text),
        ("answer", text),
        ("choices", texts),
        ("question_type", text),
        ("content_type", text),
        ("region", text),
        ("boxes", text),
        ("prompt", text),
        ("prompt_truncated", pa.bool_()),
        ("score", pa.float64()),
        *((name, own[kind]) for name, kind in columns.items()),
        ("geometry", text),
        ("warnings", texts),
    ]
