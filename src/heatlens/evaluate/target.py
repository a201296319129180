"""Where a heat map should point: boxes or a mask, as pixels of a map of any size.

A pixel of the map belongs to the area when its centre lies in the box (half-open), or on a pixel of the mask that is
set. So a mask that is a rectangle of whole pixels and the box around it are the same area at every size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""width, height"""
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the film, half-open"""
Area = NDArray[np.bool_]


class Mask(Protocol):
    """A mask that covers the whole film."""

    def at(self, size: Size) -> Area:
        """At ``size`` (width, height): bool (h, w)."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where one heat map should point.

    ``finding``: what is looked for, "" when the annotation has no name for it. ``boxes``: in pixels of the film, cut
    off at its border; those of a mask are tight. ``mask``: None where the boxes are the area.
    """

    finding: str
    boxes: tuple[Box, ...]
    mask: Mask | None = None

    def area(self, size: Size, source: Size) -> Area:
        """The area on a map of ``size`` that shows the whole film of ``source`` (both width, height): bool (h, w).

        Several boxes are one area. Never empty: what is smaller than a pixel covers the pixel its centre lies in.
        """
        return boxes_area(self.boxes, size, source) if self.mask is None else self.mask.at(size)


def boxes_area(boxes: Sequence[Box], size: Size, source: Size) -> Area:
    """The union of ``boxes`` (pixels of ``source``) on a grid of ``size``: bool (h, w)."""
    area = np.zeros((size[1], size[0]), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        rows, columns = _span(y1, y2, size[1], source[1]), _span(x1, x2, size[0], source[0])
        area[rows, columns] = True
    return area


def _span(low: float, high: float, pixels: int, length: int) -> slice:
    """Along one axis: the pixels whose centres lie in [low, high), else the one that the middle lies in."""
    # The centre of pixel i lies at (i + 0.5) * length / pixels. Compared there, not divided back: what is a whole
    # number in the film stays one.
    centres = (np.arange(pixels) + 0.5) * length / pixels
    first, last = (int(np.searchsorted(centres, edge, side="left")) for edge in (low, high))
    if first < last:
        return slice(first, last)
    middle = min(max(math.floor((low + high) / 2 * pixels / length), 0), pixels - 1)
    return slice(middle, middle + 1)


def sampled(mask: Area, size: Size) -> Area:
    """A mask (H, W) with at least one pixel set on a grid of ``size`` (width, height): bool (h, w), never empty.

    Every pixel takes the value at its centre. What is too thin for that covers the pixels that it lies in.
    """
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    rows, columns = (_nearest(pixels, own) for pixels, own in zip((size[1], size[0]), mask.shape, strict=True))
    area: Area = mask[rows][:, columns]
    if not area.any():
        rows, columns = np.nonzero(mask)
        area[rows * size[1] // mask.shape[0], columns * size[0] // mask.shape[1]] = True
    return area


def _nearest(pixels: int, own: int) -> NDArray[np.int64]:
    """For every pixel of an axis, the pixel of the mask's ``own`` that its centre lies in. In whole numbers."""
    return (2 * np.arange(pixels, dtype=np.int64) + 1) * own // (2 * pixels)
