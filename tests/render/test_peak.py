"""Where a map is hottest, with one maximum and with many."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from heatlens.render.peak import peak


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 0.5, 1])))
def test_the_middle_one_of_all_maxima_in_reading_order(values):
    equals = np.argwhere(values == values.max())
    row, column = equals[len(equals) // 2]
    assert peak(values) == (column, row)


@given(
    arrays(np.float32, (6, 7), elements=st.sampled_from([0, 0.5, 1, 2])),
    arrays(bool, (6, 7), elements=st.booleans()),
)
def test_only_what_is_inside_counts(values, inside):
    inside[2, 3] = True
    highest = values[inside].max()
    equals = np.argwhere((values == highest) & inside)
    row, column = equals[len(equals) // 2]
    assert peak(values, inside) == peak(values, inside, float(highest)) == (column, row)


def test_a_single_maximum():
    values = np.zeros((4, 7), np.float32)
    values[3, 6] = 2
    assert peak(values) == (6, 3)
    assert peak(values[:, ::-1]) == (0, 3)


def test_a_plateau_points_at_its_middle_not_its_corner():
    values = np.zeros((40, 30), np.float32)
    values[10:21, 4:15] = 1
    assert peak(values) == (9, 15)
