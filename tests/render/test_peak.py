"""Where a map is hottest, with one maximum and with many."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from heatlens.render.peak import peak


def expected_first(values, inside):
    row, column = np.argwhere((values == values[inside].max()) & inside)[0]
    return int(column), int(row)


def expected(values, inside):
    """All maxima in reading order: the middle one if the first has a neighbour among them, else the first."""
    equals = [tuple(place) for place in np.argwhere((values == values[inside].max()) & inside)]
    row, column = equals[0]
    neighbours = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} - {(row, column)}
    row, column = equals[len(equals) // 2] if neighbours & set(equals) else equals[0]
    return column, row


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 0.5, 1])))
def test_small_maps(values):
    assert peak(values) == expected(values, np.ones(values.shape, bool))


@given(
    arrays(np.float32, (6, 67), elements=st.sampled_from([0, 0.5, 1, 2])),
    arrays(bool, (6, 67), elements=st.booleans()),
)
def test_only_what_is_inside_counts(values, inside):
    inside[2, 3] = True
    first = expected_first(values, inside)
    assert peak(values, inside) == peak(values, inside, first) == expected(values, inside)


@given(st.integers(0, 999), st.integers(1, 4))
def test_of_single_maxima_the_first_in_reading_order(seed, count):
    """Also in wide arrays, which are searched many pixels at a time."""
    rng = np.random.default_rng(seed)
    values = rng.random((40, 300), dtype=np.float32) / 2
    places = sorted(zip(rng.choice(20, count) * 2, rng.choice(150, count) * 2, strict=True))
    for row, column in places:
        values[row, column] = 1
    assert peak(values) == (places[0][1], places[0][0])


def test_a_single_maximum():
    values = np.zeros((4, 7), np.float32)
    values[3, 6] = 2
    assert peak(values) == (6, 3)
    assert peak(values[:, ::-1]) == (0, 3)


def test_a_plateau_points_at_its_middle_not_its_corner():
    values = np.zeros((40, 30), np.float32)
    values[10:21, 4:15] = 1
    assert peak(values) == (9, 15)
