"""Boxes of a final map, best first.

Pixels above the threshold form regions (eight neighbours); a region of at least MIN_AREA gives a box. Boxes are
half-open, like slices: ``film[y1:y2, x1:x2]`` is what lies inside, and the box of one pixel is (x, y, x + 1, y + 1).
They are in whole pixels of the source image: an edge that falls between two of them moves outwards, so that a box
always contains its region. Boxes of different regions may overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.boxes.threshold import threshold_of

Size = tuple[int, int]
Edges = tuple[int, int, int, int]

NO_HEAT = "the map is constant or empty inside body and view"
NOTHING_ABOVE = "no pixel is above the threshold"
TOO_SMALL = "every region above the threshold is smaller than MIN_AREA"


@dataclass(frozen=True, slots=True)
class BoxRules:
    """The keys BOX_THRESHOLD, MAX_BOXES, MIN_AREA (share of the picture) and BOX_PADDING (share of the box's sides)."""

    threshold: str
    most: int
    min_area: float
    padding: float


@dataclass(frozen=True, slots=True)
class FoundBox:
    """One region's box.

    ``xyxy``: source pixels, padding included. ``score``: mean heat of the region's pixels, 0..1 (their maximum is 1
    in the hottest region of every map, so it says nothing). ``mass``: the region's share of all heat of the map, 0..1;
    boxes are ranked by it. ``padding``: source pixels that were added left, top, right, bottom.
    """

    xyxy: Edges
    score: float
    mass: float
    padding: Edges


@dataclass(frozen=True, slots=True)
class Found:
    """The boxes of one map, or the ``reason`` why there are none. ``threshold`` is None for a map without heat."""

    threshold: float | None
    boxes: tuple[FoundBox, ...] = ()
    reason: str = ""


def find_boxes(values: NDArray[np.float32], inside: NDArray[np.bool_], rules: BoxRules, source: Size) -> Found:
    """Boxes of a map in the picture's frame, in pixels of the ``source`` (width, height) that the picture shows.

    ``values`` float32 (h, w) in 0..1; ``inside`` (h, w): body and view. Heat outside does not count.
    """
    inside = np.ascontiguousarray(inside)
    low, high, _, _ = cv2.minMaxLoc(values, inside.view(np.uint8)) if inside.any() else (0.0, 0.0, None, None)
    if not high > low:
        return Found(None, reason=NO_HEAT)
    threshold = threshold_of(rules.threshold, values, inside)
    above = (values > threshold) & inside
    if not above.any():
        return Found(threshold, reason=NOTHING_ABOVE)
    regions = _regions(values, above, least=rules.min_area * values.size)
    if not regions:
        return Found(threshold, reason=TOO_SMALL)
    height, width = values.shape
    total = float(values.sum(where=inside, dtype=np.float64))
    boxes = []
    for mass, tight, score in regions[: rules.most]:
        xyxy, padding = _padded(_in_source(tight, (width, height), source), rules.padding, source)
        boxes.append(FoundBox(xyxy, score, min(mass / total, 1.0), padding))
    return Found(threshold, tuple(boxes))


def _regions(values: NDArray[np.float32], above: NDArray[np.bool_], least: float) -> list[tuple[float, Edges, float]]:
    """(sum of heat, edges, mean heat) of the regions of at least ``least`` pixels, most heat first; equal ones from
    top to bottom, then from left to right."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8)
    heat = np.bincount(labels[above], weights=values[above], minlength=count)
    found = []
    for label in range(1, count):  # 0 is what lies below the threshold
        left, top, width, height, area = (int(number) for number in stats[label])
        if area >= least:
            mass = float(heat[label])
            found.append((mass, (left, top, left + width, top + height), min(mass / area, 1.0)))
    return sorted(found, key=lambda region: (-region[0], region[1][1], region[1][0], region[1][2:]))


def _in_source(edges: Edges, picture: Size, source: Size) -> Edges:
    """Edges in the picture -> in the source, outwards to whole pixels. In whole numbers: nothing is rounded twice."""
    (width, height), (source_width, source_height) = picture, source
    left, top, right, bottom = edges
    return (
        left * source_width // width,
        top * source_height // height,
        -(-right * source_width // width),
        -(-bottom * source_height // height),
    )


def _padded(box: Edges, share: float, source: Size) -> tuple[Edges, Edges]:
    """The box with ``share`` of its width added left and right and of its height above and below, as far as the image
    goes (nothing where it already touches the border); and what was added."""
    left, top, right, bottom = box
    across, along = round(share * (right - left)), round(share * (bottom - top))
    added = (min(across, left), min(along, top), min(across, source[0] - right), min(along, source[1] - bottom))
    return (left - added[0], top - added[1], right + added[2], bottom + added[3]), added
