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

A row comes from two sides, the plan (what was asked) and a ledger (what was recorded). What joins them is
``position``, the heat map's place in :class:`heatlens.batch.finished.FinishedKeys`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from heatlens.batch.ledger import HeatMapRecord
from heatlens.batch.protocols import MadeMap
from heatlens.files import atomic_file
from heatlens.questions.plan import HeatMap
from heatlens.questions.rows import Region

if TYPE_CHECKING:
    from heatlens.questions.plan import ImageTask

DETAILS = "details.parquet"

POSITION = [("position", pa.int64())]
ORDER = ("row", "region_index", "place")
"""Data-set order; ``place`` counts in plan order, for the case that all else is equal."""
PLACE = [(name, pa.int64()) for name in ORDER]

_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
_ASKED = (
    "source_image", "row", "source", "question_id", "question", "answer", "choices", "question_type",
    "content_type", "region", "boxes", "prompt",
)  # fmt: skip
_ARROW = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}

ASKED = pa.schema(
    [
        *POSITION,
        *PLACE,
        ("number", pa.int64()),
        *((name, _TEXTS if name == "choices" else _TEXT) for name in _ASKED if name != "row"),
        ("notes", _TEXTS),
    ]
)
"""The plan's side."""


def asked_row(position: int, place: int, task: ImageTask, asked: HeatMap) -> tuple[Any, ...]:
    """A heat map of the plan in the order of ASKED."""
    return (
        position,
        asked.row,
        asked.region_index,
        place,
        asked.number,
        task.image_path,
        asked.source,
        asked.question_id,
        asked.question,
        asked.answer,
        asked.choices,
        asked.question_type,
        asked.content_type,
        asked.region,
        json.dumps([{"name": box.name, "box": box.box, "frame": box.frame} for box in asked.boxes]),
        asked.prompt,
        asked.notes,
    )


def recorded_schema(columns: Mapping[str, type]) -> pa.Schema:
    """The ledgers' side; ``columns`` are the stage's statistics with their types."""
    return pa.schema(
        [
            *POSITION,
            ("image_path", _TEXT),
            ("prompt_truncated", pa.bool_()),
            ("score", pa.float64()),
            *((name, _ARROW[kind]) for name, kind in columns.items()),
            ("geometry", _TEXT),
            ("warnings", _TEXTS),
        ]
    )


def recorded_row(
    position: int, entry: Mapping[str, Any], shared: Mapping[str, Any], columns: Mapping[str, type]
) -> tuple[Any, ...]:
    """An ``ok`` heat map of a ledger's line in the order of the recorded schema; ``shared`` is of its image."""
    statistics = {**shared, **entry.get("statistics", {})}
    return (
        position,
        entry["output"],
        bool(entry.get("prompt_truncated", False)),
        entry["score"],
        *map(statistics.get, columns),
        statistics.get("geometry") or "",
        entry.get("warnings", ()),
    )


def details_schema(columns: Mapping[str, type]) -> pa.Schema:
    """The table's columns."""
    recorded = recorded_schema(columns)
    own = [(name, recorded.field(name).type) for name in ("prompt_truncated", "score", *columns, "geometry")]
    asked = [(name, ASKED.field(name).type) for name in _ASKED]
    return pa.schema([("image_path", _TEXT), *asked, *own, ("warnings", _TEXTS)])


def details_table(asked: pa.Table, recorded: pa.Table, columns: Mapping[str, type]) -> pa.Table:
    """Both sides, row by row, as the table's columns; ``region_index`` and ``number`` come behind them."""
    warnings = [
        first + second
        for first, second in zip(recorded["warnings"].to_pylist(), asked["notes"].to_pylist(), strict=True)
    ]
    sides = {name: recorded[name] for name in recorded.column_names}
    sides |= {name: asked[name] for name in (*_ASKED, "region_index", "number")}
    sides["warnings"] = pa.array(warnings, _TEXTS)
    return pa.table({name: sides[name] for name in (*details_schema(columns).names, "region_index", "number")})


def write_details(
    folder: Path, tables: Iterator[pa.Table], columns: Mapping[str, type]
) -> Generator[MadeMap, None, None]:
    """Write the table atomically from ``details_table``'s rows, and hand every row on as it is written.

    The file is in place when the iterator ends, not before. One row group per table that comes in.
    """
    schema = details_schema(columns)
    with atomic_file(folder / DETAILS) as stream:
        writer = pq.ParquetWriter(stream, schema, compression="zstd")
        try:
            for table in tables:
                writer.write_table(table.select(schema.names))
                yield from made_maps(table, list(columns))
            writer.close()
        finally:
            # After an error: or it would write on when it is collected, into a file that is closed.
            writer.is_open = False


def made_maps(table: pa.Table, columns: Sequence[str]) -> Iterator[MadeMap]:
    """Rows as objects. ``heat_map.key`` is "" and ``heat_map.output`` the main output without its suffix."""
    value = {name: table.column(name).to_pylist() for name in table.column_names}
    # Column by column, in the order of the fields: a million rows are worth it.
    heat_maps = map(
        HeatMap,
        repeat(""),
        value["row"],
        value["region_index"],
        value["number"],
        [output.rpartition(".")[0] for output in value["image_path"]],
        value["source"],
        value["question_id"],
        value["question"],
        value["answer"],
        map(tuple, value["choices"]),
        value["question_type"],
        value["content_type"],
        value["region"],
        map(_regions, value["boxes"]),
        value["prompt"],
    )
    names = (*columns, "geometry")
    statistics = (dict(zip(names, one, strict=True)) for one in zip(*map(value.get, names), strict=True))
    records = map(
        HeatMapRecord,
        repeat(""),
        repeat("ok"),
        value["image_path"],
        repeat(""),
        repeat(""),
        value["score"],
        value["prompt_truncated"],
        statistics,
        map(tuple, value["warnings"]),
    )
    return map(MadeMap, value["source_image"], heat_maps, records)


def _regions(text: str) -> tuple[Region, ...]:
    if text == "[]":
        return ()
    return tuple(
        Region(one["name"], tuple(one["box"]) if one["box"] else None, one["frame"]) for one in json.loads(text)
    )
