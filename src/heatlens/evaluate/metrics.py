"""What is measured of one map against its target. All numbers: the higher, the better.

The map covers the whole film, float32 (h, w) in 0..1; boxes are half-open, in pixels of the film. A constant map shows
no place: it is a miss with all numbers 0, and is never left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.evaluate.pointing import FRAME
from heatlens.evaluate.target import Target

Values = NDArray[np.float32]
Area = NDArray[np.bool_]
Size = tuple[int, int]
Box = tuple[float, float, float, float]

TOLERANCE = 8
"""pixels of a film whose longer side is scaled to 224: half a patch of a ViT-B/16"""
MIOU_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
NO_SPREAD = 1e-12
"""a variance below this is rounding"""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is called, what it is, which direction is better, and who described it."""

    label: str
    definition: str
    source: str
    better: str = "higher"


METRICS: dict[str, Metric] = {
    "pointing": Metric(
        "pointing game",
        "share of maps whose maximum lies on the target (strict)",
        "Zhang et al., ECCV 2016, arXiv:1608.00507",
    ),
    "pointing_8": Metric(
        f"pointing game, {TOLERANCE} px",
        f"the same, or at most {TOLERANCE} px away from it, on a film scaled to {FRAME} px along its longer side",
        "Zhang et al., ECCV 2016, arXiv:1608.00507 (there 15 px of the image)",
    ),
    "cnr": Metric(
        "CNR",
        "signed contrast-to-noise ratio (mean inside - mean outside) / sqrt(variance inside + variance outside) over "
        "all pixels of the film; none where the target is the whole film, or where neither side varies",
        "Boecking et al. (BioViL), ECCV 2022, arXiv:2204.09817",
    ),
    "iou": Metric(
        "IoU",
        "intersection over union of the target and the map above the threshold of BOX_THRESHOLD",
        "Jaccard 1912",
    ),
    "dice": Metric(
        "Dice",
        "twice the intersection over the sum of both areas, at the same threshold as IoU",
        "Dice 1945",
    ),
    "miou": Metric(
        "mIoU",
        "mean IoU of the target and the map above 0.1, 0.2, 0.3, 0.4 and 0.5 (not the foreground/background mean)",
        "Boecking et al. (BioViL), ECCV 2022, arXiv:2204.09817",
    ),
    "energy": Metric(
        "energy inside",
        "share of all heat that lies on the target",
        "energy-based pointing game: Wang et al. (Score-CAM), CVPRW 2020, arXiv:1910.01279",
    ),
    "box_iou": Metric(
        "box IoU",
        "IoU of the map's best box (most heat) and the target's box that fits it best; no box found counts as 0",
        "Everingham et al. (PASCAL VOC), IJCV 2010",
    ),
    "any_box_iou": Metric(
        "box IoU, any",
        "IoU of the best pair of any found box and any of the target's boxes; no box found counts as 0",
        "Everingham et al. (PASCAL VOC), IJCV 2010",
    ),
}
"""key -> what it is, in the order of every table"""

KEYS = tuple(METRICS)


class Aim:
    """A target on a map of one size, prepared once for the map and its baselines.

    ``area`` (h, w) bool with ``pixels`` set; ``window`` the rows and columns around them; ``share`` and ``near_share``
    the shares of the film that are a hit, strictly and with TOLERANCE.
    """

    def __init__(self, area: Area, boxes: Sequence[Box]) -> None:
        if not area.any():
            raise ValueError("the target is empty: nothing can be pointed at")
        self.area, self.boxes = area, tuple(boxes)
        left, top, width, height = cv2.boundingRect(area.view(np.uint8))
        self.window = slice(top, top + height), slice(left, left + width)
        self.inside = np.ascontiguousarray(area[self.window])
        self.pixels = int(np.count_nonzero(self.inside))
        self.outside_pixels = area.size - self.pixels
        self.share = self.pixels / area.size
        self._reach = TOLERANCE * max(area.shape) / FRAME
        margin = int(self._reach) + 1
        self.near_window = (
            slice(max(top - margin, 0), min(top + height + margin, area.shape[0])),
            slice(max(left - margin, 0), min(left + width + margin, area.shape[1])),
        )
        # No pixel beyond the window is near, and distances within it do not depend on what lies beyond.
        away = np.ascontiguousarray(~area[self.near_window]).view(np.uint8)
        self.near = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= self._reach
        self.near_share = int(np.count_nonzero(self.near)) / area.size

    @classmethod
    def at(cls, target: Target, size: Size, source: Size) -> Aim:
        """``target`` on a map of ``size`` that shows a film of ``source``, both (width, height)."""
        return cls(np.ascontiguousarray(target.area(size, source)), target.boxes)

    def hit(self, x: int, y: int) -> tuple[float, float]:
        """``pointing`` and ``pointing_8`` of a map whose maximum is there."""
        rows, columns = self.near_window
        if not (rows.start <= y < rows.stop and columns.start <= x < columns.stop):
            return 0.0, 0.0
        return float(self.area[y, x]), float(self.near[y - rows.start, x - columns.start])

    def chance(self, where: Area | None = None) -> tuple[float, float]:
        """The exact chance that a random pixel (of ``where``, with at least one pixel) hits."""
        if where is None:
            return self.share, self.near_share
        pixels = np.count_nonzero(where)
        on = np.count_nonzero(where[self.window] & self.inside)
        return on / pixels, np.count_nonzero(where[self.near_window] & self.near) / pixels


def measure(
    values: Values, above: Area, boxes: Sequence[Box], pointing: tuple[float, float], aim: Aim
) -> dict[str, float]:
    """All of METRICS; NaN for a number that does not exist.

    ``above`` (h, w): what is above the threshold; ``boxes``: found, best first; ``pointing``: strict and tolerant.
    """
    iou, dice = overlap(above, aim)
    cnr, energy = contrast(values, aim)
    return {
        "pointing": pointing[0],
        "pointing_8": pointing[1],
        "cnr": cnr,
        "iou": iou,
        "dice": dice,
        "miou": mean_iou(values, aim),
        "energy": energy,
        "box_iou": best_box_iou(boxes[:1], aim.boxes),
        "any_box_iou": best_box_iou(boxes, aim.boxes),
    }


def nowhere() -> dict[str, float]:
    """The numbers of a constant map."""
    return dict.fromkeys(KEYS, 0.0)


def overlap(above: Area, aim: Aim) -> tuple[float, float]:
    """IoU and Dice of the pixels above a threshold and the target."""
    heated = np.count_nonzero(above)
    both = np.count_nonzero(above[aim.window] & aim.inside)
    return both / (heated + aim.pixels - both), 2 * both / (heated + aim.pixels)


def mean_iou(values: Values, aim: Aim) -> float:
    """Mean over MIOU_THRESHOLDS of the IoU of ``values > threshold`` and the target."""
    inside = values[aim.window][aim.inside]
    found = []
    for threshold in MIOU_THRESHOLDS:
        both = np.count_nonzero(inside > threshold)
        found.append(both / (np.count_nonzero(values > threshold) + aim.pixels - both))
    return sum(found) / len(found)


def contrast(values: Values, aim: Aim) -> tuple[float, float]:
    """CNR and the share of heat on the target. Variances are those of all pixels of a side (divided by n)."""
    mean_in, spread_in = _moments(values[aim.window], aim.inside)
    heat_in = mean_in * aim.pixels
    if not aim.outside_pixels:
        return float("nan"), 1.0 if heat_in > 0 else 0.0
    mean_out, spread_out = _moments(values, ~aim.area)
    heat = heat_in + mean_out * aim.outside_pixels
    variance = spread_in**2 + spread_out**2
    if variance > NO_SPREAD:
        cnr = (mean_in - mean_out) / variance**0.5
    else:
        cnr = 0.0 if abs(mean_in - mean_out) < NO_SPREAD**0.5 else float("nan")
    return cnr, min(heat_in / heat, 1.0) if heat > 0 else 0.0


def _moments(values: Values, where: Area) -> tuple[float, float]:
    """Mean and standard deviation in double precision."""
    mean, deviation = cv2.meanStdDev(np.ascontiguousarray(values), mask=where.view(np.uint8))
    return float(mean[0, 0]), float(deviation[0, 0])


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union of two half-open boxes; 0 for two without any area."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    along = min(one[3], other[3]) - max(one[1], other[1])
    both = across * along if across > 0 and along > 0 else 0.0
    union = _box_area(one) + _box_area(other) - both
    return both / union if union > 0 else 0.0


def best_box_iou(found: Sequence[Box], wanted: Sequence[Box]) -> float:
    """IoU of the best pair; 0 where there is none."""
    return max((box_iou(one, other) for one in found for other in wanted), default=0.0)


def _box_area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
