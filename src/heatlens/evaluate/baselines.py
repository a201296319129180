"""Maps that know nothing of the question, measured like the run's own: what a number is worth shows beside them.

``centre``  always the same: an isotropic Gaussian at the middle of the film, standard deviation a quarter of its longer
            side; it points at the middle pixel
``random``  uniform noise on the model's patch grid, brought to the film as the run's maps are; its pointing figures are
            the exact chance of a random pixel of the film. Seeded by image and row: it depends on nothing else
``body``    the body mask as a map of 0 and 1, its box the body's; its pointing figures are the exact chance of a random
            pixel of the body

The boxes of ``centre`` and ``random`` are found on a copy of at most 256 pixels: both are smooth, and looking for
regions at full size would cost more than all else together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.boxes.find import BoxRules, find_boxes
from heatlens.boxes.threshold import threshold_of
from heatlens.cam.protocols import PatchGrid
from heatlens.evaluate.metrics import Aim, Area, Box, Size, Values, measure
from heatlens.images.geometry import FrameGeometry

BASELINES = ("centre", "random", "body")
SIGMA = 0.25
"""of the film's longer side"""
BOX_SIDE = 256
"""pixels"""


@dataclass(frozen=True)
class Model:
    """What of the model decides how noise on its grid looks on a film: PREPROCESS, its frame and its patch grid.
    Without a better word: a ViT-B/16's."""

    preprocess: str = "letterbox"
    frame: Size = (224, 224)
    grid: PatchGrid = field(default_factory=lambda: PatchGrid(14, 14, (16.0, 16.0)))

    def geometry(self, source: Size) -> FrameGeometry:
        """How a film of ``source`` (width, height) lies in the frame."""
        return FrameGeometry.fit(self.preprocess, source, self.frame)


@dataclass(frozen=True)
class Knowing:
    """A baseline's map with all that does not depend on the target. Arrays (h, w), not to be written to."""

    values: Values
    above: Area
    boxes: tuple[Box, ...]

    @classmethod
    def of(cls, values: Values, rules: BoxRules, source: Size) -> Knowing:
        """A smooth map with something on it: thresholded over the whole film, as the run's maps are over the body."""
        threshold = threshold_of(rules.threshold, values, np.ones(values.shape, dtype=bool))
        return cls(values, values > threshold, _boxes(values, rules, source))


def centre_numbers(aim: Aim, rules: BoxRules, source: Size) -> dict[str, float]:
    """All metrics of the Gaussian at the film's middle."""
    height, width = aim.area.shape
    made = _centre((width, height), rules, source)
    return measure(made.values, made.above, made.boxes, aim.hit(width // 2, height // 2), aim)


def random_numbers(
    aim: Aim, rules: BoxRules, source: Size, noise: NDArray[np.float32], model: Model
) -> dict[str, float]:
    """All metrics of ``noise`` (rows, columns of the model's grid)."""
    height, width = aim.area.shape
    values, seen = model.geometry(source).map_to_source(noise, model.grid, (width, height))
    made = Knowing.of(_stretched(values, seen), rules, source)
    return measure(made.values, made.above, made.boxes, aim.chance(), aim)


def body_numbers(aim: Aim, body: Area, source: Size) -> dict[str, float]:
    """All metrics of the ``body`` (h, w), with at least one pixel."""
    return measure(body.astype(np.float32), body, (_bounding(body, source),), aim.chance(body), aim)


def noise_for(image: str, row: int, grid: PatchGrid, seed: int) -> NDArray[np.float32]:
    """Uniform noise in 0..1 for a row of an image: the same in every run, whatever else is measured."""
    digest = hashlib.blake2b(f"{seed}\0{row}\0{image}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    return generator.random((grid.rows, grid.cols), dtype=np.float32)


@lru_cache(maxsize=4)
def _centre(size: Size, rules: BoxRules, source: Size) -> Knowing:
    """Films of one size follow each other: kept for the last few."""
    return Knowing.of(gaussian(size), rules, source)


def gaussian(size: Size) -> Values:
    """The centre baseline at ``size`` (width, height): float32 (h, w), 0 to 1 as every final map."""
    width, height = size
    sigma = SIGMA * max(size)
    across, along = (np.exp(-(((np.arange(n) + 0.5 - n / 2) / sigma) ** 2) / 2) for n in (width, height))
    return _stretched((along[:, None] * across).astype(np.float32), None)


def _stretched(values: Values, seen: Area | None) -> Values:
    """Min-max inside ``seen`` to 0..1, 0 outside; a constant map (of one cell or pixel) stays as it is."""
    mask = None if seen is None or seen.all() else seen.view(np.uint8)
    low, high, _, _ = cv2.minMaxLoc(values, mask)
    if not high > low:
        return values
    stretched = (values - np.float32(low)) / np.float32(high - low)
    if seen is not None:
        stretched[~seen] = 0.0
    return stretched


def _boxes(values: Values, rules: BoxRules, source: Size) -> tuple[Box, ...]:
    height, width = values.shape
    scale = BOX_SIDE / max(width, height)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        values = cv2.resize(values, size, interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)
    found = find_boxes(values, np.ones(values.shape, dtype=bool), rules, source)
    return tuple(box.xyxy for box in found.boxes)


def _bounding(mask: Area, source: Size) -> Box:
    """The box around a mask (h, w) in pixels of the film, outwards to whole ones."""
    left, top, across, along = cv2.boundingRect(mask.view(np.uint8))
    height, width = mask.shape
    return (
        left * source[0] // width,
        top * source[1] // height,
        -(-(left + across) * source[0] // width),
        -(-(top + along) * source[1] // height),
    )
