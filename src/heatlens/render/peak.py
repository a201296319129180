"""Where a map is hottest."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def peak(
    values: NDArray[np.float32], inside: NDArray[np.bool_] | None = None, first: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(x, y) of the maximum of (h, w), of the pixels ``inside`` where that is given (with one at least).

    Where several pixels are the maximum, the first in reading order, or, if one of its neighbours is another, the
    middle one of all: a plateau does not point at its corner. ``first``: the first, where it is known.
    """
    if inside is None:
        inside = np.ones(values.shape, dtype=bool)
    x, y = first or cv2.minMaxLoc(values, np.ascontiguousarray(inside).view(np.uint8))[3]
    around = slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2)
    if np.count_nonzero((values[around] == values[y, x]) & inside[around]) == 1:
        return x, y  # nearly always; nothing has to be listed
    equals = np.flatnonzero(values == values[y, x])
    equals = equals[inside.ravel()[equals]]
    row, column = divmod(int(equals[len(equals) // 2]), values.shape[1])
    return column, row
