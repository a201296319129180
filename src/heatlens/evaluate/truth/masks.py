"""Masks: a picture file, run lengths, boxes, or several of them together. All can be sent to another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from heatlens.errors import ItemError
from heatlens.evaluate.target import Area, Box, Mask, Size, boxes_area, sampled
from heatlens.images.decode import read_film
from heatlens.images.film import check_size


class Drawn(Mask, Protocol):
    """A mask of pixels of its own. Hashable, so that it is looked at once."""

    def __hash__(self) -> int: ...

    def pixels(self) -> Area:
        """At its own size: bool (H, W). ItemError when it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class FileMask:
    """A picture: set where it is brighter than half of its brightest value (0 and 255, or 0 and 1)."""

    path: Path

    def pixels(self) -> Area:
        values = read_film(self.path).pixels
        grey = values if values.ndim == 2 else values.max(axis=2)
        return np.asarray(2 * grey.astype(np.uint16) > int(grey.max())) & (grey > 0)

    def at(self, size: Size) -> Area:
        return sampled(self.pixels(), size)


@dataclass(frozen=True, slots=True)
class RunLengths:
    """COCO's run lengths: of ``size`` (width, height), columns first, beginning with pixels that are not set."""

    size: Size
    counts: tuple[int, ...]

    def pixels(self) -> Area:
        # Checked at the time of use as well: only then does the sum of lengths bound what is made here.
        if sum(self.counts) != self.size[0] * self.size[1] or min(self.counts) < 0:
            raise ItemError("decode", "the mask's run lengths do not fill its size")
        values = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(values, self.counts).reshape(self.size).T

    def at(self, size: Size) -> Area:
        return sampled(self.pixels(), size)


def run_lengths(size: object, counts: object) -> RunLengths:
    """COCO's ``{"size": [height, width], "counts": text or list}`` as a mask. ItemError for what is none.

    Not by pycocotools: for run lengths that do not fill the mask it hands back memory that nobody has written.
    """
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)):
        raise ItemError("row", "the mask has no size [height, width]")
    check_size(size[1], size[0])
    if isinstance(counts, str):
        counts = _from_text(counts)
    if not isinstance(counts, list) or not all(type(one) is int and one >= 0 for one in counts):
        raise ItemError("row", "the mask's counts are not run lengths")
    if sum(counts) != size[0] * size[1]:
        raise ItemError("row", f"the mask's run lengths cover {sum(counts)} of {size[0] * size[1]} pixels")
    return RunLengths((size[1], size[0]), tuple(counts))


def _from_text(text: str) -> list[int]:
    """COCO's text: five bits a character from the lowest on, 32 says that more follow, the last one's 16 is the sign;
    from the fourth number on, the difference to the last but one."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 35:
            raise ItemError("row", "the mask's counts are not COCO's run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ItemError("row", "the mask's counts break off")
    return counts


@dataclass(frozen=True, slots=True)
class BoxMask:
    """Boxes in pixels of ``source`` (width, height), beside masks of the same target."""

    boxes: tuple[Box, ...]
    source: Size

    def at(self, size: Size) -> Area:
        return boxes_area(self.boxes, size, self.source)


@dataclass(frozen=True, slots=True)
class Union:
    """All of several masks."""

    masks: tuple[Mask, ...]

    def at(self, size: Size) -> Area:
        return np.logical_or.reduce([mask.at(size) for mask in self.masks])


def together(masks: Sequence[Mask]) -> Mask:
    """One mask of at least one."""
    return masks[0] if len(masks) == 1 else Union(tuple(masks))


@lru_cache(maxsize=1 << 14)
def outline(mask: Drawn) -> tuple[Size, tuple[int, int, int, int] | None]:
    """A mask's own (width, height), and its tight box there, None for an empty one. ItemError as ``pixels``."""
    pixels = mask.pixels()
    size = (pixels.shape[1], pixels.shape[0])
    columns, rows = np.flatnonzero(pixels.any(axis=0)), np.flatnonzero(pixels.any(axis=1))
    if not len(columns):
        return size, None
    return size, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
