"""Stage ``bbox``: boxes of every heat map as ``boxes.jsonl``, and the film with the boxes over it.

A line of ``boxes.jsonl`` is one heat map, in data-set order::

    {"image_path": "files/p10/...jpg", "overlay": "files/p10/..._idx1.png", "question_id": "...", "question": "...",
     "answer": "...", "region": "...", "prompt": "...", "image_size": [2544, 3056], "threshold": 0.41,
     "boxes": [{"xyxy": [812, 640, 1420, 1377], "xyxy_224": [78.14, 46.91, 122.71, 100.93],
                "score": 0.71, "mass": 0.64, "padding": [0, 0, 0, 0]}],
     "reason": ""}

``image_path`` is the film, relative to IMAGE_ROOT, ``overlay`` the picture, relative to the results folder. What the
numbers of a box are, :mod:`heatlens.boxes.find` says; ``xyxy_224`` is the same box in GEMeX's letterboxed 224 x 224
frame. ``reason`` says why ``boxes`` is empty, and is "" otherwise; ``threshold`` is null for a map without heat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatlens.batch.annotated import annotated_box
from heatlens.batch.protocols import MadeMap, Statistic
from heatlens.batch.tables import index_of, valid_text
from heatlens.boxes.find import BoxRules, Found, FoundBox, find_boxes
from heatlens.files import atomic_file
from heatlens.images.geometry import source_box_to_gemex
from heatlens.questions.rows import Region
from heatlens.render.boxes import ANNOTATED, FOUND, Frame, draw_frames
from heatlens.stages.base import MAP_COLUMNS, FinalMap, ImageView, MapStage

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.questions.plan import HeatMap

Size = tuple[int, int]

BOX_COLUMNS: Mapping[str, type] = {
    "box_count": int,
    "box_threshold": float,
    "box_reason": str,
    "found_boxes": str,
}
"""What details.parquet has beside MAP_COLUMNS; ``found_boxes`` is the JSON list of the line in boxes.jsonl."""


class BoxStage(MapStage):
    """The picture is the film with the boxes that were found, and those that the data set has in another colour."""

    name = "bbox"
    columns: Mapping[str, type] = {**MAP_COLUMNS, **BOX_COLUMNS}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._rules = BoxRules(settings.box_threshold, settings.max_boxes, settings.min_area, settings.box_padding)

    def draw(
        self, view: ImageView, heat_map: HeatMap, final: FinalMap
    ) -> tuple[NDArray[np.uint8], Mapping[str, Statistic]]:
        """The film with its boxes, and what details.parquet says of them."""
        found = find_boxes(final.values, final.inside, self._rules, view.source)
        frames = [*_found_frames(found.boxes, heat_map.region), *_annotated_frames(heat_map.boxes, view.source)]
        shares = (view.size[0] / view.source[0], view.size[1] / view.source[1])
        return draw_frames(view.picture, [_scaled(frame, shares) for frame in frames]), _statistics(found, view.source)

    def write_index(self, folder: Path, made: Iterator[MadeMap]) -> Sequence[Path]:
        """``boxes.jsonl``."""
        path = folder / index_of(self.name)
        with atomic_file(path) as stream:
            for one in made:
                stream.write(json.dumps(boxes_line(one)).encode("ascii") + b"\n")
        return [path]


def boxes_line(one: MadeMap) -> dict[str, Any]:
    """One line of boxes.jsonl."""
    asked, numbers = one.heat_map, one.record.statistics
    return {
        "image_path": valid_text(one.source_image),
        "overlay": valid_text(one.record.output),
        "question_id": valid_text(asked.question_id),
        "question": valid_text(asked.question),
        "answer": valid_text(asked.answer),
        "region": valid_text(asked.region),
        "prompt": valid_text(asked.prompt),
        "image_size": json.loads(str(numbers["geometry"]))["source"],
        "threshold": numbers["box_threshold"],
        "boxes": json.loads(str(numbers["found_boxes"])),
        "reason": numbers["box_reason"],
    }


def _found_frames(boxes: Sequence[FoundBox], region: str) -> list[Frame]:
    """The region's name stands at the first box, its score at each."""
    return [Frame(box.xyxy, FOUND, "" if number else region, f"{box.score:.2f}") for number, box in enumerate(boxes)]


def _annotated_frames(regions: Sequence[Region], source: Size) -> list[Frame]:
    boxes = [box for region in regions if (box := annotated_box(region, source))]
    return [Frame(box, ANNOTATED, "annotated") for box in boxes]


def _scaled(frame: Frame, shares: tuple[float, float]) -> Frame:
    """From the source's pixels to the picture's."""
    x1, y1, x2, y2 = frame.xyxy
    xyxy = (x1 * shares[0], y1 * shares[1], x2 * shares[0], y2 * shares[1])
    return Frame(xyxy, frame.colour, frame.text, frame.figure)


def _statistics(found: Found, source: Size) -> dict[str, Statistic]:
    boxes = [
        {
            "xyxy": box.xyxy,
            "xyxy_224": [round(edge, 2) for edge in source_box_to_gemex(box.xyxy, source)],
            "score": round(box.score, 4),
            "mass": round(box.mass, 4),
            "padding": box.padding,
        }
        for box in found.boxes
    ]
    return {
        "box_count": len(boxes),
        "box_threshold": None if found.threshold is None else round(found.threshold, 6),
        "box_reason": found.reason,
        "found_boxes": json.dumps(boxes),
    }
