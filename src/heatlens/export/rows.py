"""A finished run of stage bbox, row by row: what was found and what the data set has, checked.

Nothing of the size of the run is held: boxes.jsonl is read line by line, and beside it, only where it is wanted,
details.parquet, which has the same heat maps in the same order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from heatlens.batch.annotated import annotated_box
from heatlens.batch.details import DETAILS
from heatlens.batch.run_record import RUN_RECORD
from heatlens.batch.tables import index_of
from heatlens.errors import ConfigError, ItemError, SetupError, one_line
from heatlens.files import safe_relative
from heatlens.questions.rows import Box, Region

STAGE = "bbox"
LABELS = ("region", "question", "prompt", "type")
NAMELESS = "finding"
"""The label of a heat map whose own is empty."""

_BATCH = 8192
_TEXTS = ("image_path", "overlay", "question_id", "question", "region", "prompt")
_JOINED = ("image_path", "boxes", "question_type", "content_type")

Size = tuple[int, int]


class FoundBox(NamedTuple):
    """A box of boxes.jsonl: source pixels (half-open), mean heat and share of all heat, 0..1."""

    xyxy: tuple[int, int, int, int]
    score: float
    mass: float


class Row(NamedTuple):
    """One heat map. ``image`` is relative to IMAGE_ROOT and safe to join to a folder; ``size`` its (W, H).

    ``annotated``: the data set's boxes in source pixels; ``unusable``: how many more have a frame that is not known
    or lie outside the film. Both are empty unless asked for.
    """

    image: str
    size: Size
    label: str
    question_id: str
    overlay: str
    found: tuple[FoundBox, ...]
    annotated: tuple[Box, ...] = ()
    unusable: int = 0


@dataclass(frozen=True)
class Run:
    """The results folder of a finished bbox run. ``config``: KEY -> value, as run.json has them."""

    folder: Path
    config: dict[str, Any]

    def rows(self, label: str, *, annotated: bool = False) -> Iterator[Row]:
        """Every heat map in data-set order. SetupError with file and line for what cannot be used."""
        path = self.folder / index_of(STAGE)
        joined = _details(self.folder) if annotated or label == "type" else None
        try:
            with path.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    try:
                        yield _row(_object(line), next(joined, None) if joined else {}, label, annotated)
                    except ItemError as error:
                        raise SetupError(f"{path}:{number}: {error.reason}; {_AGAIN}") from None
        except OSError as error:
            raise SetupError(f"{path} cannot be read: {error.strerror}") from error
        if joined and next(joined, None) is not None:
            raise SetupError(f"{self.folder}: {DETAILS} has more heat maps than {path.name}; {_AGAIN}")


_AGAIN = f"run the stage's command again: it writes {index_of(STAGE)} and {DETAILS} anew"


def open_run(folder: Path) -> Run:
    """The run in ``folder``. ConfigError when it is none of this stage, SetupError when it is not finished."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the results folder of a run of stage {STAGE}")
    try:
        record = json.loads((folder / RUN_RECORD).read_text(encoding="utf-8"))
        stage, status = record["stage"], record["status"]
        config = {key: entry["value"] for key, entry in record["config"].items()}
    except FileNotFoundError:
        if (folder / "shards").is_dir():
            raise SetupError(
                f"{folder} holds a run that is not finished: `heatlens status {folder}` says how to go on"
            ) from None
        raise ConfigError(f"{folder} holds no run; {_HOW}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SetupError(f"{folder / RUN_RECORD} is unreadable; run the stage's command again") from None
    if stage != STAGE:
        raise ConfigError(f"{folder} is a run of stage {stage}, which finds no boxes; {_HOW}")
    if status == "partial":
        raise SetupError(f"{folder} holds a run that was stopped early; `heatlens status {folder}` says how to go on")
    return Run(folder, config)


_HOW = f"`heatlens run {STAGE} --config FILE.conf` makes boxes"


def plain_label(text: str) -> str:
    """A label on one line, blanks collapsed, without what cannot be printed; NAMELESS for an empty one."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words) or NAMELESS


def _details(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of details.parquet with the columns that are joined."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(folder / DETAILS) as table:
            for batch in table.iter_batches(_BATCH, columns=list(_JOINED)):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise SetupError(f"{folder / DETAILS} cannot be read: {one_line(error)[:200]}") from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise ItemError("row", "not a line of JSON") from None
    if not isinstance(data, dict):
        raise ItemError("row", "not a JSON object")
    return data


def _row(data: dict[str, Any], details: dict[str, Any] | None, label: str, annotated: bool) -> Row:
    image, overlay, question_id, question, region, prompt = (_text(data, name) for name in _TEXTS)
    size = _size(data.get("image_size"))
    boxes = data.get("boxes")
    if not isinstance(boxes, list):
        raise ItemError("row", "boxes is not a list")
    if details is None or details.get("image_path", overlay) != overlay:
        raise ItemError("row", f"{DETAILS} has no such heat map at this place")
    if label == "type":
        text = details["content_type"] or (details["question_type"] or "").replace("_", " ")
    else:
        text = {"region": region, "question": question, "prompt": prompt}[label]
    usable, unusable = _annotated(details["boxes"], size) if annotated else ((), 0)
    found = tuple(_found(box, size) for box in boxes)
    return Row(safe_relative(image).as_posix(), size, plain_label(text), question_id, overlay, found, usable, unusable)


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise ItemError("row", f"{name} is {'missing' if value is None else 'not a text'}")
    return value


def _size(value: Any) -> Size:
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return value[0], value[1]
    raise ItemError("row", "image_size is not [width, height]")


def _found(box: Any, size: Size) -> FoundBox:
    edges = box.get("xyxy") if isinstance(box, dict) else None
    if not (isinstance(edges, list) and len(edges) == 4 and all(type(edge) is int for edge in edges)):
        raise ItemError("row", "a box has no xyxy of four whole numbers")
    x1, y1, x2, y2 = edges
    if not (0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]):
        raise ItemError("row", f"the box {edges} does not lie in an image of {size[0]} x {size[1]} pixels")
    return FoundBox((x1, y1, x2, y2), _share(box, "score"), _share(box, "mass"))


def _share(box: dict[str, Any], name: str) -> float:
    value = box.get(name)
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ItemError("row", f"a box has no {name}")
    return float(value)  # type: ignore[arg-type]


def _annotated(text: str, size: Size) -> tuple[tuple[Box, ...], int]:
    """The data set's boxes of a heat map in source pixels, and how many cannot be used."""
    if text == "[]":
        return (), 0
    try:
        regions = [Region(one["name"], tuple(one["box"]), one["frame"]) for one in json.loads(text) if one["box"]]
        boxes = [annotated_box(region, size) for region in regions]
    except (ValueError, KeyError, TypeError):
        raise ItemError("row", f"{DETAILS} has unreadable boxes for it") from None
    usable = tuple(box for box in boxes if box)
    return usable, len(boxes) - len(usable)
