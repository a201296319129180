"""Sizes, the map's range, and the blend of colours over a film."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.render.colormaps import Table, colourise

Size = tuple[int, int]

_FLAT = 1e-6
"""relative range below which a map is constant: what is left is float32 rounding, and must not be shown as heat"""
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


def normalise(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], bool]:
    """Min-max inside ``mask`` to 0..1, 0 outside. Both (h, w). The flag: constant inside (then all 0), or no inside."""
    scaled = np.zeros(values.shape, dtype=np.float32)
    if not mask.any():
        return scaled, True
    inside = np.ascontiguousarray(mask).view(np.uint8)
    low, high, _, _ = cv2.minMaxLoc(values, inside)
    if not high - low > _FLAT * max(abs(low), abs(high)):
        return scaled, True
    least, span = np.float32(low), np.float32(high - low)
    for top in range(0, len(values), _BAND):  # a band at a time: it stays in the processor's cache
        band = slice(top, top + _BAND)
        share = values[band] - least
        share /= span  # the highest is exactly 1: it was rounded as the span was
        cv2.copyTo(share, inside[band], scaled[band])
    return scaled, False


def blend(
    film: NDArray[np.uint8],
    values: NDArray[np.float32],
    table: Table,
    alpha: float,
    *,
    mask: NDArray[np.bool_],
    background: str = "map",
) -> NDArray[np.uint8]:
    """``(1 - alpha) * film + alpha * colour(values)``, uint8 RGB (h, w, 3).

    ``film`` (h, w) grey or (h, w, 3) RGB; ``values`` (h, w) in 0..1. ``alpha`` 0 gives the film's own levels, 1 the
    colours. ``background="film"`` leaves the film bare outside ``mask``; ``"map"`` blends everywhere.
    """
    bare = film if film.ndim == 3 else cv2.cvtColor(film, cv2.COLOR_GRAY2RGB)
    colours = colourise(values, table)
    blended = cv2.addWeighted(bare, 1.0 - alpha, colours, alpha, 0.0)
    if background == "film":
        blended = np.where(mask[..., None], blended, bare)
    return np.asarray(blended, dtype=np.uint8)
