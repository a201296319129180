"""From which heat on does a pixel belong to a box?"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

OTSU = "otsu"
PERCENTILE = "p"

_LEVELS = 255


def threshold_of(rule: str, values: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """The value of BOX_THRESHOLD ``rule`` for a map: pixels *above* it belong to a box.

    ``values`` (h, w) in 0..1; ``inside`` (h, w): body and view, with at least one pixel. ``otsu``: Otsu's threshold of
    the pixels inside; ``p95``: their 95th percentile, interpolated; ``0.5``: this share of their maximum.
    """
    heat = values[inside]
    word = rule.strip().casefold()
    if word == OTSU:
        return _otsu(heat)
    if word.startswith(PERCENTILE):
        return float(np.percentile(heat, float(word.removeprefix(PERCENTILE))))
    return float(word) * float(heat.max())


def _otsu(heat: NDArray[np.float32]) -> float:
    """Otsu's threshold of values in 0..1, on 256 levels: half-way between the last cold level and the first hot one."""
    levels = cv2.convertScaleAbs(heat.reshape(-1, 1), alpha=_LEVELS)
    cold, _ = cv2.threshold(levels, 0, _LEVELS, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return (float(cold) + 0.5) / _LEVELS
