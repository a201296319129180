"""Where a map is hottest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def peak(
    values: NDArray[np.float32], inside: NDArray[np.bool_] | None = None, highest: float | None = None
) -> tuple[int, int]:
    """(x, y) of the maximum of (h, w), of the pixels ``inside`` where that is given (with one at least); of the middle
    pixel among equals: a plateau does not point at its corner. ``highest`` is the maximum, where it is known."""
    flat = values.ravel()
    if highest is None:
        highest = values.max() if inside is None else values[inside].max()
    equals = np.flatnonzero(flat == flat.dtype.type(highest))
    if inside is not None:
        equals = equals[inside.ravel()[equals]]
    row, column = divmod(int(equals[len(equals) // 2]), values.shape[1])
    return column, row
