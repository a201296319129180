"""Deletion and insertion on a model whose answers can be worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatlens.cam.protocols import PatchGrid
from heatlens.evaluate.curve_sums import KINDS, ORDERS, Means, area, normalised, summed
from heatlens.evaluate.curves import STEPS, blur_of, curve_scores, drawn, film_of, map_in_frame, ranks_of
from heatlens.images.geometry import FrameGeometry

SIDE = 32
SQUARE = FrameGeometry.fit("letterbox", source=(SIDE, SIDE), frame=(SIDE, SIDE))
MAP, RANDOM, CENTRE = range(3)
DELETION, INSERTION = range(2)


class QuadrantModel:
    """Its output is the mean of the picture's upper left quadrant, all channels."""

    def __init__(self, side: int = SIDE) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.device, self.dtype, self.frame = torch.device("cpu"), torch.float32, (side, side)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        half = self.frame[0] // 2
        return images[:, :, :half, :half].mean(dim=(1, 2, 3))[:, None]


def first(output):
    return output[:, 0]


def scores_of(values, whole=None, model=None, geometry=SQUARE):
    model = model or QuadrantModel(geometry.frame[0])
    whole = torch.ones((3, *geometry.frame[::-1])) if whole is None else whole
    film = film_of(whole, values.astype(np.float32), geometry, seed=3)
    return curve_scores(model, [film], [first], batch_size=7)[0]


def quadrant(hot=1.0, cold=0.0):
    values = np.full((SIDE, SIDE), cold)
    values[: SIDE // 2, : SIDE // 2] = hot
    return values


def test_deletion_of_the_quadrant_first_is_a_triangle():
    """A quarter of the pixels holds the whole score: it falls in a line from 1 to 0 on the first 8 of 32 steps."""
    found = scores_of(quadrant())
    by_hand = np.clip(1 - np.arange(STEPS + 1) / 8, 0, 1)
    np.testing.assert_allclose(found[DELETION, MAP], by_hand, atol=1e-6)
    assert area(found[DELETION, MAP]) == pytest.approx(0.125, abs=1e-6)


def test_deletion_of_the_quadrant_last_keeps_the_score_for_three_quarters():
    found = scores_of(quadrant(hot=0.0, cold=1.0))
    assert area(found[DELETION, MAP]) == pytest.approx(0.875, abs=1e-6)


def test_insertion_mirrors_deletion_when_the_blurred_film_scores_nothing():
    values = quadrant().astype(np.float32)
    film = film_of(torch.ones((3, SIDE, SIDE)), values, SQUARE, seed=3)
    emptied_start = type(film)(film.whole, film.emptied, film.emptied, film.ranks, film.pixels)
    found = curve_scores(QuadrantModel(), [emptied_start], [first], batch_size=5)[0]
    np.testing.assert_allclose(found[INSERTION, MAP], np.clip(np.arange(STEPS + 1) / 8, 0, 1), atol=1e-6)
    assert area(found[INSERTION, MAP]) == pytest.approx(0.875, abs=1e-6)


def test_random_order_falls_in_a_line_and_the_orders_share_their_ends():
    found = scores_of(quadrant())
    assert area(found[DELETION, RANDOM]) == pytest.approx(0.5, abs=0.03)
    assert not np.array_equal(found[DELETION, RANDOM], found[DELETION, CENTRE])
    for end in (0, STEPS):
        assert len(set(found[DELETION, :, end])) == 1
    assert found[DELETION, 0, 0] == found[INSERTION, 2, STEPS] == pytest.approx(1)


def test_every_forward_has_batch_size_rows_and_rows_do_not_depend_on_the_batch():
    models = [QuadrantModel(), QuadrantModel()]
    film = film_of(torch.rand((3, SIDE, SIDE)), quadrant().astype(np.float32), SQUARE, seed=1)
    one = curve_scores(models[0], [film, film], [first, first], batch_size=7)
    other = curve_scores(models[1], [film], [first], batch_size=1)
    assert {shape[0] for shape in models[0].shapes} == {7}
    # 31 inner steps of two kinds and three orders, and three ends: each picture is scored once.
    assert len(models[1].shapes) == 31 * 2 * 3 + 3
    np.testing.assert_allclose(one[0], other[0], atol=1e-6)
    np.testing.assert_array_equal(one[0], one[1])


def test_a_constant_map_is_the_random_order_and_always_the_same():
    found = [scores_of(np.zeros((SIDE, SIDE))) for _ in range(2)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0][DELETION, MAP], found[0][DELETION, RANDOM])


def test_padding_is_neither_deleted_nor_put_back():
    geometry = FrameGeometry.fit("letterbox", source=(20, 40), frame=(40, 40))
    whole = torch.full((3, 40, 40), -2.0)
    whole[:, :, 10:30] = 1.0
    film = film_of(whole, np.ones((40, 20), np.float32), geometry, seed=0)
    assert film.pixels == 20 * 40
    for key in range(2 * 3 * (STEPS + 1)):
        variant = film.variant(key, STEPS)
        assert bool((variant[:, :, :10] == -2).all())
        assert bool((variant[:, :, 30:] == -2).all())
    np.testing.assert_allclose(film.blurred[:, :, 10:30].numpy(), 1.0, atol=1e-6)  # no black creeps in
    assert bool((film.emptied[:, :, 10:30] == 0).all())


@pytest.mark.parametrize("mode", ["letterbox", "crop", "squash"])
@pytest.mark.parametrize("source", [(300, 200), (200, 300)])
def test_a_map_comes_back_to_where_the_grid_put_it(mode, source):
    """Grid -> film -> frame: a hot cell's peak lies at that cell's centre in the frame."""
    grid = PatchGrid(14, 14, (16.0, 16.0))
    geometry = FrameGeometry.fit(mode, source=source, frame=(224, 224))
    values = np.zeros((14, 14), np.float32)
    values[6, 8] = 1
    film, _ = geometry.map_to_source(values, grid, (source[0] // 2, source[1] // 2))
    framed, seen = map_in_frame(film, geometry)
    y, x = np.unravel_index(framed.argmax(), framed.shape)
    assert abs(y + 0.5 - 6.5 * 16) <= 2
    assert abs(x + 0.5 - 8.5 * 16) <= 2
    assert seen.all() == (mode != "letterbox")


def test_the_blur_is_the_papers_at_224_and_grows_with_the_frame():
    assert blur_of((224, 224)) == (11, 5.0)
    kernel, sigma = blur_of((448, 448))
    assert kernel % 2 == 1
    assert 21 <= kernel <= 23
    assert sigma == 10


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=6, max_size=6), st.integers(0, 5), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_ranks_are_a_permutation_that_follows_the_values(values, hidden, seed):
    grid = np.array(values, np.float32).reshape(2, 3)
    seen = np.ones((2, 3), bool)
    seen.ravel()[hidden] = False
    ranks = ranks_of(grid, seen, seed)
    assert sorted(ranks[seen]) == list(range(5))
    assert ranks.ravel()[hidden] == 5
    by_rank = grid[seen][np.argsort(ranks[seen])]
    assert (np.diff(by_rank) <= 0).all()
    np.testing.assert_array_equal(ranks, ranks_of(grid, seen, seed))


def cases(*patients):
    return [SimpleNamespace(output=f"{n}.png", source_image=f"{n}", patient=name) for n, name in enumerate(patients)]


def test_the_sums_of_two_patients_by_hand():
    """Two films of patient a (score 1 -> 0 in a line) and one of b, whose emptied film scores higher: no share."""
    down, up = np.linspace(1, 0, STEPS + 1), np.linspace(0, 1, STEPS + 1)
    good, bad = np.stack([np.stack([down] * 3), np.stack([up] * 3)]), np.stack([np.stack([up] * 3)] * 2)
    found = summed(np.stack([good, good, bad]), cases("a", "a", "b"), seed=0)
    assert found["cases"] == 3
    assert found["patients"] == 2
    assert found["auc"]["deletion"]["map"]["mean"] == 0.5
    assert found["normalised_cases"] == {"deletion": 2, "insertion": 2}
    assert found["auc_normalised"]["deletion"]["map"] == {"n": 2, "mean": 0.5, "low": None, "high": None}
    assert found["difference"]["insertion"]["random"]["mean"] == 0
    assert found["ends"]["whole"]["mean"] == round(2 / 3, 4)
    assert len(found["curve"]["insertion"]["centre"]["low"]) == STEPS + 1
    assert [one["deletion"]["map"] for one in found["each"]] == [0.5, 0.5, 0.5]


def test_normalised_areas_are_shares_of_the_range():
    np.testing.assert_allclose(normalised(np.array([0.3]), np.array([0.2]), np.array([0.4])), [0.5])
    assert np.isnan(normalised(np.array([0.3]), np.array([0.2]), np.array([0.205]))).all()


def test_the_bootstrap_draws_patients_and_not_films():
    """Fifty films of one patient are one observation: the interval spans both patients' values."""
    values = np.array([0.0] * 50 + [1.0])
    one = Means(["a"] * 50 + ["b"], seed=0).figure(values)
    assert (one["low"], one["high"]) == (0.0, 1.0)
    assert one["mean"] == round(1 / 51, 4)
    alone = Means([str(n) for n in range(51)], seed=0).figure(values)
    assert alone["high"] < 0.1


def test_cases_are_drawn_by_the_seed_alone():
    some = cases(*"abcdefgh")
    assert drawn(some, 3, 1) == drawn(some[::-1], 3, 1)
    assert drawn(some, 8, 1) != drawn(some, 8, 2)
    assert ORDERS[0] == "map"
    assert KINDS == ("deletion", "insertion")
