"""The pointing game's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.evaluate.pointing import centre_baseline, mask_distance, peak, point, random_baseline


def disc(height: int, width: int, row: int, col: int, radius: int) -> np.ndarray:
    rows, cols = np.ogrid[:height, :width]
    return (rows - row) ** 2 + (cols - col) ** 2 <= radius**2


def one_hot(height: int, width: int, row: int, col: int) -> np.ndarray:
    values = np.zeros((height, width), np.float32)
    values[row, col] = 1
    return values


@given(row=st.integers(0, 447), col=st.integers(0, 335))
def test_distances_are_in_pixels_of_224(row, col):
    mask = disc(448, 336, 200, 100, 20)
    outcome = point(one_hot(448, 336, row, col), mask)
    expected = max(0.0, (np.hypot(row - 200, col - 100) - 20) / 2)
    assert outcome.distance == pytest.approx(expected, abs=1.0)
    assert outcome.hit() == bool(mask[row, col])


def test_a_tolerance_of_8_reaches_16_source_pixels_of_a_448_film():
    mask = np.zeros((448, 448), bool)
    mask[100, 100] = True
    assert point(one_hot(448, 448, 100, 116), mask).hit(8)
    assert not point(one_hot(448, 448, 100, 117), mask).hit(8)


def test_a_plateau_points_at_its_middle():
    values = np.zeros((9, 9), np.float32)
    values[2:7, 2:7] = 1
    assert peak(values) == (4, 4)


def test_baselines():
    mask = disc(200, 200, 100, 100, 10)
    assert centre_baseline(mask).hit()
    assert random_baseline(mask) == pytest.approx(mask.mean())
    assert random_baseline(mask, 8) > random_baseline(mask)
    assert not centre_baseline(disc(200, 200, 20, 20, 5)).hit()


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        mask_distance(np.zeros((5, 5), bool))
