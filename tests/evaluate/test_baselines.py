"""Maps that know nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatlens.boxes.find import BoxRules, find_boxes
from heatlens.cam.protocols import PatchGrid
from heatlens.evaluate.baselines import (
    BOX_SIDE,
    Model,
    _boxes,
    body_numbers,
    centre_numbers,
    gaussian,
    noise_for,
    random_numbers,
)
from heatlens.evaluate.metrics import KEYS, Aim, box_iou
from heatlens.evaluate.pointing import centre_baseline, random_baseline

RULES = BoxRules("otsu", 5, 0.001, 0.0)


def aim_at(size, box):
    area = np.zeros((size[1], size[0]), dtype=bool)
    area[box[1] : box[3], box[0] : box[2]] = True
    return Aim(area, (tuple(map(float, box)),))


@given(st.integers(3, 90), st.integers(3, 90))
@settings(max_examples=30)
def test_the_gaussian_is_round_and_in_the_middle(width, height):
    values = gaussian((width, height))
    assert (values.min(), values.max()) == (0, 1)
    np.testing.assert_allclose(values, values[::-1, ::-1], atol=1e-6)
    np.testing.assert_allclose(values, gaussian((height, width)).T, atol=1e-6)
    assert values[height // 2, width // 2] == 1


def test_the_gaussian_has_a_quarter_of_the_longer_side():
    values = gaussian((401, 201)).astype(np.float64)
    low = np.exp(-((200 / 100.25) ** 2) / 2 - ((100 / 100.25) ** 2) / 2)
    one_sigma = np.exp(-((100 / 100.25) ** 2) / 2)
    assert values[100, 300] == pytest.approx((one_sigma - low) / (1 - low), abs=1e-5)
    assert values[200, 200] == pytest.approx(values[100, 300], abs=1e-5)  # the same way down


def test_the_centre_points_at_the_middle_pixel():
    for box in [(40, 40, 60, 60), (0, 0, 10, 10), (60, 40, 80, 60), (51, 51, 52, 52)]:
        aim = aim_at((100, 100), box)
        outcome = centre_baseline(aim.area)
        numbers = centre_numbers(aim, RULES, (1000, 1000))
        assert (numbers["pointing"], numbers["pointing_8"]) == (outcome.hit(), outcome.hit(8))
    wide = centre_numbers(aim_at((100, 40), (45, 15, 55, 25)), RULES, (100, 40))
    assert wide["pointing"] == 1


def test_a_central_target_suits_the_centre_and_a_corner_does_not():
    middle = centre_numbers(aim_at((100, 80), (25, 15, 75, 65)), RULES, (100, 80))
    corner = centre_numbers(aim_at((100, 80), (0, 0, 20, 20)), RULES, (100, 80))
    for key in KEYS:
        assert middle[key] > corner[key], key
    assert middle["iou"] > 0.5 and middle["box_iou"] > 0.5


def test_the_centre_of_another_film_size_is_another_one():
    small = centre_numbers(aim_at((100, 100), (25, 25, 75, 75)), RULES, (100, 100))
    large = centre_numbers(Aim(aim_at((100, 100), (25, 25, 75, 75)).area, ((250, 250, 750, 750),)), RULES, (1000, 1000))
    assert small["box_iou"] == pytest.approx(large["box_iou"], abs=0.03)
    assert small["box_iou"] > 0.5


def test_random_pointing_is_the_exact_chance():
    aim = aim_at((64, 48), (10, 10, 30, 20))
    numbers = random_numbers(aim, RULES, (640, 480), noise_for("a.jpg", 0, Model().grid, 0), Model())
    assert numbers["pointing"] == pytest.approx(random_baseline(aim.area))
    assert numbers["pointing_8"] == pytest.approx(random_baseline(aim.area, 8))


def test_noise_depends_on_image_row_and_seed_only():
    grid = Model().grid
    one = noise_for("a.jpg", 3, grid, 0)
    np.testing.assert_array_equal(one, noise_for("a.jpg", 3, grid, 0))
    for other in (noise_for("b.jpg", 3, grid, 0), noise_for("a.jpg", 4, grid, 0), noise_for("a.jpg", 3, grid, 1)):
        assert not np.array_equal(one, other)
    assert one.shape == (14, 14) and 0 <= one.min() < one.max() < 1


def test_random_maps_have_no_preference():
    """On average the contrast is nothing, and the heat on the target its share of the film."""
    aim = aim_at((56, 56), (10, 10, 30, 40))
    made = [random_numbers(aim, RULES, (56, 56), noise_for("a", row, Model().grid, 0), Model()) for row in range(300)]
    assert np.mean([one["cnr"] for one in made]) == pytest.approx(0, abs=0.05)
    assert np.mean([one["energy"] for one in made]) == pytest.approx(aim.share, abs=0.01)


def test_what_a_crop_does_not_show_has_no_heat():
    crop = Model("crop")
    bottom = aim_at((100, 200), (0, 180, 100, 200))  # outside the square in the middle
    numbers = random_numbers(bottom, RULES, (100, 200), noise_for("a", 0, crop.grid, 0), crop)
    assert (numbers["energy"], numbers["iou"]) == (0, 0)


def test_noise_lies_on_the_grid_that_the_model_has():
    coarse = Model(grid=PatchGrid(1, 2, (224.0, 112.0)))
    left = aim_at((80, 80), (0, 0, 20, 80))
    numbers = random_numbers(left, RULES, (80, 80), np.array([[1.0, 0.0]], dtype=np.float32), coarse)
    assert numbers["cnr"] > 1 and numbers["energy"] == pytest.approx(0.5, abs=0.01)


@given(st.integers(0, 1000), st.integers(300, 900), st.integers(300, 900))
@settings(max_examples=20, deadline=None)
def test_boxes_of_the_small_copy_are_those_of_the_map_but_for_its_pixels(seed, width, height):
    source = (width * 3, height * 3)
    values = gaussian((width, height)) ** (1 + seed / 500)
    ours = _boxes(values, RULES, source)
    exact = find_boxes(values, np.ones(values.shape, dtype=bool), RULES, source).boxes
    assert len(ours) == len(exact) == 1
    pixel = max(source) / BOX_SIDE
    assert np.abs(np.subtract(ours[0], exact[0].xyxy)).max() <= 2.5 * pixel
    assert box_iou(ours[0], exact[0].xyxy) > 0.95


def test_the_body_as_a_map():
    body = np.zeros((40, 60), dtype=bool)
    body[10:30, 20:50] = True
    aim = Aim(aim_at((60, 40), (20, 10, 35, 30)).area, ((200.0, 100.0, 350.0, 300.0),))
    numbers = body_numbers(aim, body, (600, 400))
    assert numbers["iou"] == numbers["miou"] == numbers["energy"] == numbers["pointing"] == pytest.approx(0.5)
    assert numbers["box_iou"] == numbers["any_box_iou"] == pytest.approx(0.5)  # its box is 200, 100, 500, 300
    assert numbers["dice"] == pytest.approx(2 * 300 / 900)
    assert numbers["cnr"] > 0


def test_the_bodys_box_goes_outwards_to_whole_pixels_of_the_film():
    body = np.zeros((7, 7), dtype=bool)
    body[1:3, 2:5] = True
    aim = Aim(aim_at((7, 7), (2, 1, 5, 3)).area, ((2.0, 1.0, 8.0, 5.0),))  # of 10 pixels: 2.86, 1.43, 7.14, 4.29
    assert body_numbers(aim, body, (10, 10))["box_iou"] == 1


def test_a_body_that_fills_the_film_has_no_contrast():
    aim = aim_at((20, 10), (0, 0, 10, 10))
    numbers = body_numbers(aim, np.ones((10, 20), dtype=bool), (21, 11))
    assert numbers["cnr"] == 0
    assert numbers["iou"] == numbers["pointing"] == 0.5
