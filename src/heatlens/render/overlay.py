"""Sizes, the map's range, and the blend of colours over a film."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.render.colormaps import Table, colourise, levels_of

Size = tuple[int, int]

_FLAT = 1e-6
"""relative range below which a map is constant: what is left is float32 rounding, and must not be shown as heat"""
_CANCELS = 16.0
"""times its range that a map's values may be away from 0 until single precision gets in the way"""
_BAND = 64
"""rows"""


def output_size(source: Size, longest: int | None) -> Size:
    """(width, height) with the longer side at most ``longest`` pixels; a film is never enlarged."""
    if longest is None or max(source) <= longest:
        return source
    scale = longest / max(source)
    return max(1, round(source[0] * scale)), max(1, round(source[1] * scale))


def resize_film(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Pixels (H, W[, 3]) at ``size`` (width, height): area-averaged when smaller, untouched when equal."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    smaller = size[0] <= pixels.shape[1]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR).astype(np.uint8)


class Range(NamedTuple):
    """The lowest and the highest value of a map, and the (x, y) of a highest one."""

    low: float
    high: float
    hottest: tuple[int, int]


def value_range(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> Range | None:
    """Of the values inside ``mask``, both (h, w); None when they are constant or there are none."""
    if not mask.any():
        return None
    low, high, _, (x, y) = cv2.minMaxLoc(values, _as_bytes(mask))
    return Range(low, high, (x, y)) if high - low > _FLAT * max(abs(low), abs(high)) else None


def normalise(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], bool]:
    """Min-max inside ``mask`` to 0..1, 0 outside. Both (h, w). The flag: constant inside (then all 0), or no inside."""
    found = value_range(values, mask)
    if found is None:
        return np.zeros(values.shape, dtype=np.float32), True
    return stretched(values, mask, found), False


def stretched(values: NDArray[np.float32], mask: NDArray[np.bool_], between: Range) -> NDArray[np.float32]:
    """The range of the values inside ``mask`` to 0..1, 0 outside."""
    scaled = np.zeros(values.shape, dtype=np.float32)
    inside = _as_bytes(mask)
    least, span = np.float32(between.low), np.float32(between.high - between.low)
    for top in range(0, len(values), _BAND):  # a band at a time: it stays in the processor's cache
        band = slice(top, top + _BAND)
        share = values[band] - least
        share /= span  # the highest is exactly 1: it was rounded as the span was
        cv2.copyTo(share, inside[band], scaled[band])
    return scaled


def levels_between(values: NDArray[np.float32], mask: NDArray[np.bool_], between: Range) -> NDArray[np.uint8]:
    """The range of the values inside ``mask`` to 0..255, rounded, 0 outside: the levels of what :func:`stretched`
    gives, to a thousandth of a level before rounding, without that map on the way."""
    low, high, _ = between
    if max(abs(low), abs(high)) > _CANCELS * (high - low):
        return levels_of(stretched(values, mask, between))
    scale = 255.0 / (high - low)
    levels = cv2.convertScaleAbs(values, alpha=scale, beta=-low * scale)
    return np.asarray(cv2.bitwise_and(levels, levels, mask=_as_bytes(mask)), dtype=np.uint8)


def _as_bytes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(mask).view(np.uint8)


def blend(
    film: NDArray[np.uint8],
    values: NDArray[np.float32] | NDArray[np.uint8],
    table: Table,
    alpha: float,
    *,
    mask: NDArray[np.bool_],
    background: str = "map",
) -> NDArray[np.uint8]:
    """``(1 - alpha) * film + alpha * colour(values)``, uint8 RGB (h, w, 3).

    ``film`` (h, w) grey or (h, w, 3) RGB; ``values`` (h, w) in 0..1 or their levels 0..255. ``alpha`` 0 gives the
    film's own levels, 1 the colours. ``background="film"`` leaves the film bare outside ``mask``; ``"map"`` blends
    everywhere.
    """
    bare = film if film.ndim == 3 else cv2.cvtColor(film, cv2.COLOR_GRAY2RGB)
    colours = colourise(values, table)
    blended = cv2.addWeighted(bare, 1.0 - alpha, colours, alpha, 0.0)
    if background == "film":
        blended = np.where(mask[..., None], blended, bare)
    return np.asarray(blended, dtype=np.uint8)
