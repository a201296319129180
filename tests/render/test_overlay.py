"""Range, size and blend: the film is unharmed where it should be, the formula holds where it is blended."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.registry import COLORMAPS
from heatlens.render.colormaps import JET, colour_table, colourise, levels_of
from heatlens.render.overlay import (
    blend,
    levels_between,
    normalise,
    output_size,
    resize_film,
    stretched,
    value_range,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (64, 80), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8)
MASK = np.zeros((64, 80), bool)
MASK[10:50, 20:70] = True
VALUES = np.where(MASK, RNG.random((64, 80), dtype=np.float32), 0).astype(np.float32)


def as_rgb(film):
    return film if film.ndim == 3 else np.repeat(film[..., None], 3, axis=2)


@pytest.mark.parametrize("film", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.25, 0.5, 0.7, 0.999, 1.0])
@pytest.mark.parametrize("background", ["map", "film"])
def test_blend_is_the_formula(film, alpha, background):
    blended = blend(film, VALUES, JET, alpha, mask=MASK, background=background)
    wanted = (1 - alpha) * as_rgb(film) + alpha * colourise(VALUES, JET)
    inside = np.ones_like(MASK) if background == "map" else MASK
    assert blended.dtype == np.uint8
    assert blended.shape == (64, 80, 3)
    assert np.abs(blended - wanted)[inside].max() <= 0.5001
    assert np.array_equal(blended[~inside], as_rgb(film)[~inside])


@pytest.mark.parametrize("film", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", COLORMAPS)
def test_the_ends_of_alpha_are_exact(film, name):
    table = colour_table(name)
    before = film.copy()
    assert np.array_equal(blend(film, VALUES, table, 0.0, mask=MASK), as_rgb(film))
    assert np.array_equal(blend(film, VALUES, table, 1.0, mask=MASK), colourise(VALUES, table))
    assert np.array_equal(film, before)


def test_outside_the_body_is_the_coldest_colour():
    blended = blend(GREY, VALUES, JET, 1.0, mask=MASK, background="map")
    assert (blended[~MASK] == JET[0]).all()


def test_normalise_uses_the_range_inside_the_mask():
    values = RNG.normal(size=(64, 80)).astype(np.float32)
    values[0, 0] = 1e6  # outside
    scaled, constant = normalise(values, MASK)
    inside = values[MASK]
    assert not constant
    assert scaled.dtype == np.float32
    assert np.allclose(scaled[MASK], (inside - inside.min()) / (inside.max() - inside.min()), atol=1e-6)
    assert scaled[MASK].min() == 0
    assert scaled.max() == 1
    assert (scaled[~MASK] == 0).all()


@pytest.mark.parametrize("value", [0.0, 3.7, -2e-8, 1e20])
def test_a_constant_map_is_all_cold(value):
    values = np.full((64, 80), value, np.float32)
    values[~MASK] = 99
    scaled, constant = normalise(values, MASK)
    assert constant
    assert (scaled == 0).all()
    noisy = values * (1 + np.float32(1e-7) * RNG.integers(-2, 3, values.shape).astype(np.float32))
    assert normalise(noisy.astype(np.float32), MASK)[1]


def test_a_small_map_is_not_a_constant_one():
    scaled, constant = normalise(VALUES * np.float32(1e-20), MASK)
    assert not constant
    assert scaled.max() == 1


@given(
    low=st.floats(-1e3, 1e3), span=st.floats(1e-2, 1e4), seed=st.integers(0, 99), share=st.sampled_from([0.02, 0.5, 1])
)
def test_levels_are_those_of_the_stretched_map(low, span, seed, share):
    rng = np.random.default_rng(seed)
    values = (low + span * rng.random((20, 30))).astype(np.float32)
    mask = rng.random((20, 30)) < share
    mask[3, 4:6] = True
    found = value_range(values, mask)
    assert found[:2] == (values[mask].min(), values[mask].max())
    assert values[found.hottest[::-1]] == found.high
    levels = levels_between(values, mask, found)
    assert levels.dtype == np.uint8
    assert np.abs(levels - 255 * stretched(values, mask, found).astype(float)).max() <= 0.502
    assert (levels[~mask] == 0).all()
    assert (levels[mask].min(), levels.max()) == (0, 255)


def test_levels_far_from_zero_keep_their_order():
    """A small range on a high base: what single precision leaves of it is used, not multiplied away."""
    values = (1000 + np.linspace(0, 0.01, 600).reshape(20, 30)).astype(np.float32)
    mask = np.ones((20, 30), bool)
    found = value_range(values, mask)
    assert np.array_equal(levels_between(values, mask, found), levels_of(stretched(values, mask, found)))


def test_an_empty_mask_is_constant():
    scaled, constant = normalise(VALUES, np.zeros_like(MASK))
    assert constant
    assert (scaled == 0).all()


@given(width=st.integers(1, 6000), height=st.integers(1, 6000), longest=st.one_of(st.none(), st.integers(16, 6000)))
def test_output_size(width, height, longest):
    size = output_size((width, height), longest)
    assert size[0] <= width
    assert size[1] <= height
    if longest is None or max(width, height) <= longest:
        assert size == (width, height)
    else:
        assert max(size) == longest
        assert min(size) >= 1
        exact = min(width, height) * longest / max(width, height)
        assert abs(min(size) - max(exact, 1)) <= 0.5 + 1e-9


def test_output_size_of_a_common_film():
    assert output_size((2544, 3056), 1024) == (852, 1024)


def test_resize_film_is_the_mean_over_each_area():
    film = RNG.integers(0, 256, (60, 40), dtype=np.uint8)
    assert resize_film(film, (40, 60)) is film
    expected = film.reshape(15, 4, 10, 4).mean((1, 3))
    assert np.abs(resize_film(film, (10, 15)) - expected).max() <= 0.5001
    assert resize_film(np.dstack([film] * 3), (13, 20)).shape == (20, 13, 3)
