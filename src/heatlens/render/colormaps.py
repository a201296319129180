"""Colour tables: 256 RGB triples each, looked up by ``round(value * 255)``. Never squared, never inverted."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.registry import find

Table = NDArray[np.uint8]


def _opencv(code: int) -> Table:
    """One of OpenCV's maps as RGB (256, 3)."""
    ramp = np.arange(256, dtype=np.uint8).reshape(256, 1)
    bgr = np.asarray(cv2.applyColorMap(ramp, code), dtype=np.uint8).reshape(256, 3)
    table = np.ascontiguousarray(bgr[:, ::-1])
    table.setflags(write=False)
    return table


def _through(*stops: tuple[float, tuple[int, int, int]]) -> Table:
    """Straight lines in RGB between (position, colour) stops."""
    positions = np.array([position for position, _ in stops]) * 255
    colours = np.array([colour for _, colour in stops], dtype=float)
    ramp = np.arange(256)
    table = np.stack([np.interp(ramp, positions, colours[:, channel]) for channel in range(3)], axis=1)
    rounded: Table = table.round().astype(np.uint8)
    rounded.setflags(write=False)
    return rounded


JET = _opencv(cv2.COLORMAP_JET)
TURBO = _opencv(cv2.COLORMAP_TURBO)
INFERNO = _opencv(cv2.COLORMAP_INFERNO)
MAGMA = _opencv(cv2.COLORMAP_MAGMA)
PLASMA = _opencv(cv2.COLORMAP_PLASMA)
VIRIDIS = _opencv(cv2.COLORMAP_VIRIDIS)
CIVIDIS = _opencv(cv2.COLORMAP_CIVIDIS)
HOT = _opencv(cv2.COLORMAP_HOT)
BONE = _opencv(cv2.COLORMAP_BONE)
# Lightness rises from end to end, so that the order survives grey print.
CUSTOM_PURPLE_RED = _through(
    (0.0, (24, 4, 48)), (0.35, (98, 20, 130)), (0.65, (188, 28, 96)), (0.85, (232, 60, 40)), (1.0, (255, 120, 90))
)


def colour_table(name: str) -> Table:
    """The table of a registered colour map, uint8 (256, 3) RGB. ConfigError names the nearest otherwise."""
    table: Table = find("colormap", name).load()
    return table


def colourise(values: NDArray[np.float32] | NDArray[np.uint8], table: Table) -> NDArray[np.uint8]:
    """Values (h, w) in 0..1, or their levels, -> uint8 RGB (h, w, 3)."""
    index = values if values.dtype == np.uint8 else levels_of(values.astype(np.float32, copy=False))
    return np.asarray(cv2.applyColorMap(index, table.reshape(256, 1, 3)), dtype=np.uint8)


def levels_of(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values (h, w) in 0..1 -> levels 0..255."""
    _, least = cv2.threshold(values, 0.0, 0.0, cv2.THRESH_TOZERO)  # nothing below 0, faster than NumPy's maximum
    return np.asarray(cv2.convertScaleAbs(least, alpha=255.0), dtype=np.uint8)  # rounds to even and saturates
