"""From a map to boxes: maps made by hand, and what must hold for any map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heatlens.boxes.find import NO_HEAT, NOTHING_ABOVE, TOO_SMALL, BoxRules, find_boxes

HALF = BoxRules("0.5", most=10, min_area=0, padding=0)


def rules(**changes) -> BoxRules:
    return BoxRules(**{"threshold": "0.5", "most": 10, "min_area": 0.0, "padding": 0.0, **changes})


def blank(height: int = 10, width: int = 20) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def found(values, rule=HALF, inside=None, source=None):
    inside = np.ones(values.shape, bool) if inside is None else inside
    return find_boxes(values, inside, rule, source or values.shape[::-1])


def test_one_rectangle_gives_its_own_half_open_box() -> None:
    values = blank()
    values[2:5, 3:9] = 1.0
    result = found(values)
    (box,) = result.boxes
    assert box.xyxy == (3, 2, 9, 5)
    assert (values[2:5, 3:9] == 1).all()
    assert (box.score, box.mass, box.padding) == (1.0, 1.0, (0, 0, 0, 0))
    assert (result.threshold, result.reason) == (0.5, "")


def test_one_pixel_is_one_pixel_wide() -> None:
    values = blank()
    values[9, 19] = 1.0
    assert found(values).boxes[0].xyxy == (19, 9, 20, 10)


def test_boxes_are_ranked_by_the_heat_of_their_regions_and_not_by_its_height() -> None:
    values = blank()
    values[1:3, 1:3] = 1.0  # 4.0 in all, hottest
    values[5:9, 10:14] = 0.6  # 9.6 in all
    values[0, 15] = 0.4  # below the threshold, but part of the whole
    first, second = found(values).boxes
    assert (first.xyxy, second.xyxy) == ((10, 5, 14, 9), (1, 1, 3, 3))
    assert first.mass == pytest.approx(9.6 / 14.0, abs=1e-6)
    assert second.mass == pytest.approx(4.0 / 14.0, abs=1e-6)
    assert (first.score, second.score) == (pytest.approx(0.6), 1.0)
    assert found(values, rules(most=1)).boxes == (first,)


def test_equal_regions_go_from_top_to_bottom_and_left_to_right() -> None:
    values = blank()
    for row, column in ((6, 2), (1, 15), (1, 4)):
        values[row : row + 2, column : column + 2] = 1.0
    assert [box.xyxy[:2] for box in found(values).boxes] == [(4, 1), (15, 1), (2, 6)]


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    values = blank()
    values[2, 2] = values[3, 3] = 1.0
    (box,) = found(values).boxes
    assert box.xyxy == (2, 2, 4, 4)


def test_score_and_mass_are_of_the_region_and_not_of_its_box() -> None:
    values = blank()
    values[2, 2:8] = values[2:8, 2] = 0.8  # an L
    values[6:8, 6:8] = 1.0  # inside the L's box, and a region of its own
    first, second = found(values).boxes
    assert (first.xyxy, second.xyxy) == ((2, 2, 8, 8), (6, 6, 8, 8))
    assert first.score == pytest.approx(0.8)
    assert first.mass == pytest.approx(11 * 0.8 / (11 * 0.8 + 4), abs=1e-6)


def test_a_pixel_at_the_threshold_is_not_above_it() -> None:
    values = blank()
    values[2:4, 2:4] = 0.5
    values[2, 2] = 1.0
    assert found(values).boxes[0].xyxy == (2, 2, 3, 3)


def test_a_share_is_of_the_maximum() -> None:
    values = blank()
    values[2:4, 2:4] = 0.15
    values[3, 3] = 0.4
    assert found(values).threshold == pytest.approx(0.2)
    assert found(values).boxes[0].xyxy == (3, 3, 4, 4)


def test_heat_outside_body_and_view_does_not_count() -> None:
    values, inside = blank(), np.ones((10, 20), bool)
    values[:, :4] = 0.9
    values[4:6, 10:12] = 0.5
    inside[:, :4] = False
    result = found(values, inside=inside)
    assert result.threshold == 0.25
    assert [box.xyxy for box in result.boxes] == [(10, 4, 12, 6)]
    assert result.boxes[0].mass == 1.0


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_map_without_a_place_has_no_box(level) -> None:
    result = found(np.full((6, 7), level, np.float32))
    assert (result.boxes, result.threshold, result.reason) == ((), None, NO_HEAT)


def test_no_body_at_all_has_no_box() -> None:
    values = blank()
    values[2, 2] = 1.0
    assert found(values, inside=np.zeros(values.shape, bool)).reason == NO_HEAT


def test_nothing_above_the_threshold_is_a_reason() -> None:
    values = np.ones((10, 20), np.float32)
    values[0, 0] = 0.0
    result = found(values, rules(threshold="p99"))
    assert (result.boxes, result.threshold, result.reason) == ((), 1.0, NOTHING_ABOVE)


def test_regions_that_are_too_small_are_a_reason() -> None:
    values = blank()
    values[2:4, 2:5] = 1.0  # 6 of 200 pixels
    assert found(values, rules(min_area=0.03)).boxes[0].xyxy == (2, 2, 5, 4)
    assert found(values, rules(min_area=0.0301)).reason == TOO_SMALL
    values[7:9, 7:11] = 0.6
    assert [box.xyxy for box in found(values, rules(min_area=0.035)).boxes] == [(7, 7, 11, 9)]


def test_padding_is_a_share_of_the_sides_and_ends_at_the_border() -> None:
    values = blank(20, 40)
    values[0:10, 1:21] = 1.0
    (box,) = found(values, rules(padding=0.2)).boxes
    assert box.padding == (1, 0, 4, 2)  # left: only one pixel to the border; top: it touches
    assert box.xyxy == (0, 0, 25, 12)


def test_edges_between_two_pixels_of_the_film_move_outwards() -> None:
    values = blank(10, 20)
    values[3:6, 7:9] = 1.0
    assert found(values, source=(51, 25)).boxes[0].xyxy == (17, 7, 23, 15)  # 17.85, 7.5, 22.95, 15.0
    assert found(values, source=(40, 20)).boxes[0].xyxy == (14, 6, 18, 12)


@pytest.mark.parametrize("size", [(2544, 3056), (3056, 2544), (7, 9)])
def test_a_region_at_the_far_corner_ends_with_the_film(size) -> None:
    values = blank(10, 20)
    values[8:, 17:] = 1.0
    assert found(values, rules(padding=1.0), source=size).boxes[0].xyxy[2:] == size


def lower_regions(values: np.ndarray, threshold: float) -> list[set[tuple[int, int]]]:
    """Connected regions by flooding, pixel by pixel: (row, column) sets."""
    left = {(int(row), int(column)) for row, column in np.argwhere(values > threshold)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            region.add((row, column))
            for near in [(row + y, column + x) for y in (-1, 0, 1) for x in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    edge.append(near)
        regions.append(region)
    return regions


MAPS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    elements=st.integers(0, 8).map(lambda level: level / 8),
)
RULES = st.sampled_from(["otsu", "0.3", "0.75", "p50", "p90"])


@given(MAPS, RULES, st.floats(0, 0.3), st.integers(1, 4))
def test_the_boxes_are_those_of_plain_flooding(values, threshold, min_area, most) -> None:
    result = found(values, rules(threshold=threshold, min_area=min_area, most=most))
    if result.threshold is None:
        assert np.ptp(values) == 0
        return
    regions = [one for one in lower_regions(values, result.threshold) if len(one) >= min_area * values.size]
    expected = sorted(
        (-sum(float(values[place]) for place in one), min(r for r, _ in one), min(c for _, c in one),
         max(c for _, c in one) + 1, max(r for r, _ in one) + 1, len(one))
        for one in regions
    )[:most]  # fmt: skip
    assert [box.xyxy for box in result.boxes] == [(x1, y1, x2, y2) for _, y1, x1, x2, y2, _ in expected]
    total = float(values.sum(dtype=np.float64))
    for box, (heat, *_, area) in zip(result.boxes, expected, strict=True):
        assert box.mass == pytest.approx(-heat / total)
        assert box.score == pytest.approx(-heat / area)
    assert bool(result.reason) == (not result.boxes)


@given(MAPS, RULES, st.floats(0, 1), st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_boxes_lie_in_the_film_contain_their_region_and_come_best_first(values, threshold, padding, source) -> None:
    result = found(values, rules(threshold=threshold, padding=padding), source=source)
    height, width = values.shape
    for box in result.boxes:
        x1, y1, x2, y2 = box.xyxy
        assert 0 <= x1 < x2 <= source[0]
        assert 0 <= y1 < y2 <= source[1]
        left, top, right, bottom = box.padding
        assert min(box.padding) >= 0
        assert left + right <= x2 - x1 - 1
        assert top + bottom <= y2 - y1 - 1
        assert 0 < box.mass <= 1
        assert 0 < box.score <= 1
    masses = [box.mass for box in result.boxes]
    assert masses == sorted(masses, reverse=True)
    if result.threshold is not None:
        for region in lower_regions(values, result.threshold):
            rows, columns = np.array(sorted(region)).T
            edges = (
                columns.min() * source[0] / width, rows.min() * source[1] / height,
                (columns.max() + 1) * source[0] / width, (rows.max() + 1) * source[1] / height,
            )  # fmt: skip
            assert len(result.boxes) == 10 or any(_contains(box.xyxy, edges) for box in result.boxes)


def _contains(box, edges) -> bool:
    return box[0] <= edges[0] and box[1] <= edges[1] and box[2] >= edges[2] and box[3] >= edges[3]


@given(MAPS, st.floats(0, 1), st.floats(0, 1))
def test_more_padding_never_makes_a_box_smaller(values, one, other) -> None:
    less, more = sorted((one, other))
    small, large = (found(values, rules(padding=share)).boxes for share in (less, more))
    assert len(small) == len(large)
    for inner, outer in zip(small, large, strict=True):
        assert _contains(outer.xyxy, inner.xyxy)
        assert (outer.score, outer.mass) == (inner.score, inner.mass)
        bare = tuple(
            edge + sign * pad for edge, pad, sign in zip(inner.xyxy, inner.padding, (1, 1, -1, -1), strict=True)
        )
        across, along = bare[2] - bare[0], bare[3] - bare[1]
        assert all(
            pad <= share * side + 0.5
            for pad, side, share in zip(inner.padding, (across, along) * 2, [less] * 4, strict=True)
        )
        # Nothing on a side that touches the border already.
        touches = (bare[0] == 0, bare[1] == 0, bare[2] == values.shape[1], bare[3] == values.shape[0])
        assert all(pad == 0 for pad, at_border in zip(outer.padding, touches, strict=True) if at_border)


@settings(max_examples=50)
@given(MAPS, RULES.filter(lambda rule: rule[0] != "p"), st.integers(0, 6), st.integers(0, 6))
def test_a_map_that_is_moved_moves_its_boxes(values, threshold, across, along) -> None:
    """Inside a frame of cold pixels; without padding, which depends on the border."""
    height, width = values.shape
    boxes = []
    for x, y in ((0, 0), (across, along)):
        canvas = blank(height + 8, width + 8)
        canvas[1 + y : 1 + y + height, 1 + x : 1 + x + width] = values
        boxes.append(found(canvas, rules(threshold=threshold)).boxes)
    moved = [tuple(edge + step for edge, step in zip(box.xyxy, (across, along) * 2, strict=True)) for box in boxes[0]]
    assert [box.xyxy for box in boxes[1]] == moved
    assert [box.mass for box in boxes[1]] == pytest.approx([box.mass for box in boxes[0]])


@given(MAPS, st.integers(2, 5))
def test_a_film_that_is_n_times_larger_has_boxes_that_are_n_times_larger(values, times) -> None:
    height, width = values.shape
    small, large = (found(values, source=(width * n, height * n)).boxes for n in (1, times))
    assert [tuple(edge * times for edge in box.xyxy) for box in small] == [box.xyxy for box in large]
