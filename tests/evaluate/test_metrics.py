"""Each number against another program's, or by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco
from sklearn.metrics import f1_score, jaccard_score

from heatlens.evaluate.metrics import (
    KEYS,
    METRICS,
    MIOU_THRESHOLDS,
    TOLERANCE,
    Aim,
    best_box_iou,
    box_iou,
    contrast,
    mean_iou,
    measure,
    nowhere,
    overlap,
)
from heatlens.evaluate.pointing import peak, point, random_baseline
from heatlens.evaluate.target import Target


@st.composite
def scenes(draw, least=1):
    """A map in 0..1 that is not constant, and an area with at least one pixel set and one bare."""
    shape = draw(st.tuples(st.integers(least, 40), st.integers(least, 40)).filter(lambda s: s[0] * s[1] > 1))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    values = generator.random(shape, dtype=np.float32) ** draw(st.sampled_from([0.3, 1.0, 4.0]))
    values = np.round(values, draw(st.sampled_from([1, 7])))
    values.flat[0], values.flat[-1] = draw(st.sampled_from([(0, 1), (1, 0)]))
    area = generator.random(shape) < draw(st.sampled_from([0.01, 0.3, 0.9]))
    area.flat[0] = True
    area.flat[-1] = False
    return values.astype(np.float32), area


def boxes_of(area, count=1):
    rows, columns = np.nonzero(area)
    box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
    return (box,) * count


def all_of(values, area, threshold=0.5):
    aim = Aim(area, boxes_of(area))
    above = values > threshold
    found = boxes_of(above) if above.any() else ()
    return measure(values, above, found, aim.hit(*peak(values)), aim)


def test_the_table_describes_every_number_in_its_order():
    assert tuple(all_of(np.eye(4, dtype=np.float32), np.eye(4, dtype=bool))) == KEYS == tuple(METRICS)
    assert set(nowhere()) == set(KEYS)
    for metric in METRICS.values():
        assert metric.label and metric.definition and metric.source and metric.better == "higher"


@given(scenes(), st.floats(0, 0.999))
def test_iou_and_dice_are_those_of_scikit_learn(scene, threshold):
    values, area = scene
    above = values > threshold
    iou, dice = overlap(above, Aim(area, ()))
    assert iou == pytest.approx(jaccard_score(area.ravel(), above.ravel()))
    assert dice == pytest.approx(f1_score(area.ravel(), above.ravel()))


@given(scenes())
def test_miou_is_the_mean_over_its_thresholds(scene):
    values, area = scene
    each = [jaccard_score(area.ravel(), (values > t).ravel()) for t in MIOU_THRESHOLDS]
    assert MIOU_THRESHOLDS == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert mean_iou(values, Aim(area, ())) == pytest.approx(sum(each) / 5)


def test_a_level_that_is_the_threshold_is_not_above_it():
    values = (np.array([[13107, 13108]], dtype=np.float32) / np.float32(65535)).astype(
        np.float32
    )  # 0.2, and a bit more
    one, other = np.array([[True, False]]), np.array([[False, True]])
    # Above 0.1 lie both, above 0.2 the second only, above 0.3 neither.
    assert mean_iou(values, Aim(one, ())) == pytest.approx((0.5 + 0) / 5)
    assert mean_iou(values, Aim(other, ())) == pytest.approx((0.5 + 1) / 5)


def test_cnr_and_energy_by_hand():
    values = np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 0.5]], dtype=np.float32)
    area = np.array([[True, True, False], [False, False, False]])
    # Inside 1, 0.5: mean 0.75, variance 0.0625. Outside 0, 0, 0, 0.5: mean 0.125, variance 0.046875.
    cnr, energy = contrast(values, Aim(area, ()))
    assert cnr == pytest.approx(0.625 / np.sqrt(0.0625 + 0.046875))
    assert energy == pytest.approx(1.5 / 2.0)


@given(scenes())
def test_cnr_and_energy_are_those_of_double_precision(scene):
    values, area = scene
    exact = values.astype(np.float64)
    cnr, energy = contrast(values, Aim(area, ()))
    spread = np.sqrt(exact[area].var() + exact[~area].var())
    if spread > 1e-5:
        assert cnr == pytest.approx((exact[area].mean() - exact[~area].mean()) / spread, abs=1e-6)
    assert energy == pytest.approx(exact[area].sum() / exact.sum(), abs=1e-9)


def test_cnr_is_signed():
    values = np.array([[0.0, 0.1, 1.0, 0.9]], dtype=np.float32)
    cold = np.array([[True, True, False, False]])
    assert contrast(values, Aim(cold, ()))[0] == pytest.approx(-contrast(values, Aim(~cold, ()))[0])
    assert contrast(values, Aim(cold, ()))[0] < -5


def test_a_target_that_is_the_whole_film_has_no_cnr():
    values = np.array([[0.0, 1.0]], dtype=np.float32)
    cnr, energy = contrast(values, Aim(np.ones((1, 2), dtype=bool), ()))
    assert np.isnan(cnr) and energy == 1.0


def test_flat_inside_and_outside_has_no_cnr_unless_both_are_alike():
    area = np.array([[True, True, False]])
    assert np.isnan(contrast(area.astype(np.float32), Aim(area, ()))[0])
    assert contrast(np.full((1, 3), 0.1, dtype=np.float32), Aim(area, ()))[0] == 0.0


whole_boxes = st.tuples(*[st.integers(0, 30)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1)
)


@given(st.lists(whole_boxes, min_size=1, max_size=4), st.lists(whole_boxes, min_size=1, max_size=4))
def test_box_iou_is_that_of_pycocotools(found, wanted):
    def wide(boxes):
        return np.array([(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes], dtype=np.float64)

    theirs = coco.iou(wide(found), wide(wanted), [0] * len(wanted))
    ours = [[box_iou(one, other) for other in wanted] for one in found]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert best_box_iou(found, wanted) == pytest.approx(theirs.max())
    assert best_box_iou(found[:1], wanted) == pytest.approx(theirs[0].max())


def test_boxes_without_area_or_partner_give_nothing():
    assert box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0
    assert box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0.0
    assert best_box_iou((), ((0, 0, 1, 1),)) == 0.0


def test_the_best_box_is_the_first_one():
    area = np.zeros((10, 10), dtype=bool)
    area[:4, :4] = True
    aim = Aim(area, ((0, 0, 4, 4), (8, 8, 10, 10)))
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    numbers = measure(values, values > 0.5, [(0, 0, 4, 8), (8, 8, 10, 10)], (0.0, 0.0), aim)
    assert (numbers["box_iou"], numbers["any_box_iou"]) == (0.5, 1.0)


@given(scenes(), st.sampled_from([1, 20, 60]))
@settings(max_examples=60)
def test_pointing_is_that_of_the_pointing_game(scene, grown):
    values, area = (np.kron(part, np.ones((grown, grown), dtype=part.dtype)) for part in scene)
    aim = Aim(area, ())
    outcome = point(values, area)
    assert aim.hit(*peak(values)) == (outcome.hit(), outcome.hit(TOLERANCE))
    assert aim.chance() == pytest.approx((random_baseline(area), random_baseline(area, TOLERANCE)))


def test_the_tolerance_is_in_pixels_of_224():
    area = np.zeros((448, 448), dtype=bool)
    area[200:210, 200:210] = True
    aim = Aim(area, ())
    assert aim.hit(209, 205) == (1, 1)
    assert aim.hit(209 + 16, 205) == (0, 1)  # 8 pixels of 224
    assert aim.hit(209 + 17, 205) == (0, 0)
    assert aim.hit(0, 0) == (0, 0)


def test_the_chance_inside_a_part_of_the_film():
    area = np.zeros((4, 4), dtype=bool)
    area[0] = True
    body = np.zeros((4, 4), dtype=bool)
    body[:2, :2] = True
    assert Aim(area, ()).chance(body)[0] == 0.5


@given(scenes(), st.sampled_from([0.0, 0.3, 0.9]))
def test_every_number_is_in_its_range(scene, threshold):
    for key, value in all_of(*scene, threshold).items():
        assert key == "cnr" or 0 <= value <= 1, key


@given(scenes(), st.booleans(), st.booleans())
def test_flipping_map_and_target_together_changes_nothing(scene, upside_down, mirrored):
    values, area = scene
    step = (slice(None, None, -1 if upside_down else 1), slice(None, None, -1 if mirrored else 1))
    plain, flipped = all_of(values, area), all_of(values[step], np.ascontiguousarray(area[step]))
    # Which of equal maxima is pointed at depends on their order.
    once = np.count_nonzero(values == values.max()) == 1
    for key in KEYS:
        if once or not key.startswith("pointing"):
            assert flipped[key] == pytest.approx(plain[key], abs=1e-6, nan_ok=True), key


@given(arrays(bool, (12, 9)).filter(lambda area: area.any() and not area.all()))
def test_a_map_that_is_the_target_is_perfect(area):
    numbers = all_of(area.astype(np.float32), area)
    assert np.isnan(numbers.pop("cnr"))
    assert set(numbers.values()) == {1.0}


def test_a_target_smaller_than_a_pixel_can_be_hit():
    aim = Aim.at(Target("nodule", ((501.0, 301.0, 502.0, 302.0),)), (100, 100), (1000, 1000))
    assert aim.pixels == 1
    assert aim.hit(50, 30) == (1, 1)
    assert aim.hit(50 + 5, 30) == (0, 0)


def test_an_empty_target_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Aim(np.zeros((3, 3), dtype=bool), ())
