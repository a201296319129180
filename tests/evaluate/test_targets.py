"""Targets: boxes and masks are the same area, at every size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.errors import ItemError
from heatlens.evaluate.target import Target, boxes_area, sampled
from heatlens.evaluate.truth.masks import BoxMask, FileMask, RunLengths, Union, outline, run_lengths, together

sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


def by_definition(boxes, size, source):
    """Pixel by pixel: is the centre in a box?"""
    area = np.zeros((size[1], size[0]), dtype=bool)
    for row in range(size[1]):
        for column in range(size[0]):
            x, y = (column + 0.5) * source[0] / size[0], (row + 0.5) * source[1] / size[1]
            area[row, column] = any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in boxes)
    return area


@st.composite
def boxes_in(draw, source):
    edges = [sorted(draw(st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True))) for side in source]
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


@given(st.data(), sizes, sizes)
def test_a_rectangular_mask_and_its_box_are_one_area(data, size, source):
    x1, y1, x2, y2 = data.draw(boxes_in(source))
    pixels = np.zeros((source[1], source[0]), dtype=bool)
    pixels[y1:y2, x1:x2] = True
    box, mask = boxes_area([(x1, y1, x2, y2)], size, source), sampled(pixels, size)
    expected = by_definition([(x1, y1, x2, y2)], size, source)
    assert box.shape == mask.shape == (size[1], size[0])
    if expected.any():
        assert np.array_equal(box, expected)
        assert np.array_equal(mask, expected)
    else:  # thinner than a pixel: the same place, to a pixel
        assert box.any() and mask.any()
        near = np.zeros_like(box)
        for row, column in zip(*np.nonzero(box), strict=True):
            near[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        assert not (mask & ~near).any()


@given(st.data(), sizes, st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_a_box_of_fractions_is_never_empty_and_holds_the_centres_in_it(data, size, source):
    sides = [sorted(data.draw(st.lists(st.floats(0, side), min_size=2, max_size=2, unique=True))) for side in source]
    box = (sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    area = boxes_area([box], size, source)
    assert area.any()
    expected = by_definition([box], size, source)
    if expected.any():
        assert np.array_equal(area, expected)
    else:
        middle = ((box[1] + box[3]) / 2 * size[1] / source[1], (box[0] + box[2]) / 2 * size[0] / source[0])
        row, column = (min(int(at), side - 1) for at, side in zip(middle, area.shape, strict=True))
        assert area[row, column]


def test_half_open_edges_and_the_union_of_boxes():
    target = Target("tube", ((0, 0, 10, 20), (90, 190, 100, 200)))
    area = target.area((100, 200), (100, 200))
    assert area.sum() == 10 * 20 + 10 * 10
    assert area[19, 9] and not area[20, 9] and not area[19, 10]
    assert area[199, 99]
    assert target.area((10, 20), (100, 200)).sum() == 2 + 1


def test_what_is_smaller_than_a_pixel_covers_the_one_it_lies_in():
    source, size = (1000, 1000), (10, 10)
    assert np.argwhere(boxes_area([(510, 220, 520, 230)], size, source)).tolist() == [[2, 5]]
    thin = boxes_area([(510, 0, 520, 1000)], size, source)
    assert thin[:, 5].all() and thin.sum() == 10
    assert boxes_area([(999.5, 999.5, 1000, 1000)], size, source)[9, 9]
    pixels = np.zeros((1000, 1000), dtype=bool)
    pixels[np.arange(1000), np.arange(1000)] = True  # a line that no sample hits where it is shifted
    assert sampled(np.roll(pixels, 3, axis=1), size).sum() >= 10


def test_a_mask_decides_over_its_box(tmp_path):
    pixels = np.zeros((40, 20), dtype=bool)
    pixels[10:20, 5] = True
    target = Target("", ((5, 10, 6, 20),), RunLengths((20, 40), tuple(counts_of(pixels))))
    assert np.array_equal(target.area((20, 40), (200, 400)), pixels)


def counts_of(pixels):
    """Run lengths, columns first, by hand."""
    counts, value = [0], False
    for one in pixels.T.ravel():
        if bool(one) != value:
            counts.append(0)
            value = bool(one)
        counts[-1] += 1
    return counts


# Masks


@given(st.integers(16, 40), st.integers(16, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.5, 0.98]))
def test_run_lengths_are_read_as_pycocotools_writes_them(height, width, seed, share):
    coco = pytest.importorskip("pycocotools.mask")
    pixels = np.random.default_rng(seed).random((height, width)) < share
    encoded = coco.encode(np.asfortranarray(pixels.astype(np.uint8)))
    mask = run_lengths([height, width], encoded["counts"].decode())
    assert np.array_equal(mask.pixels(), pixels)
    assert np.array_equal(run_lengths([height, width], counts_of(pixels)).pixels(), pixels)
    size, box = outline(mask)
    assert size == (width, height)
    if pixels.any():
        x, y, w, h = coco.toBbox(encoded)
        assert box == (x, y, x + w, y + h)
    else:
        assert box is None


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_run_lengths_of_nonsense_are_refused_or_fill_the_mask(text):
    try:
        mask = run_lengths([20, 30], text)
    except ItemError as error:
        assert error.stage == "row"
    else:
        assert mask.pixels().shape == (20, 30)


@pytest.mark.parametrize(
    ("size", "counts", "said"),
    [
        ([20, 30], [600, 1], "601 of 600"),
        ([20, 30], [500], "500 of 600"),
        ([20, 30], [700, -100], "not run lengths"),
        ([20, 30], "0", "0 of 600"),
        ([20, 30], "o", "break off"),
        ([20, 30], None, "not run lengths"),
        ([20], [600], "no size"),
        ([20.0, 30], [600], "no size"),
        ([100_000, 100_000], [10**10], "megapixels"),
        ([2, 2], [4], "too small"),
    ],
)
def test_run_lengths_that_cannot_be_right(size, counts, said):
    with pytest.raises(ItemError, match=said):
        run_lengths(size, counts)


@pytest.mark.parametrize("white", [255, 1])
def test_a_mask_file_is_read_with_any_white(tmp_path, white):
    import cv2

    pixels = np.zeros((60, 50), np.uint8)
    pixels[20:30, 10:40] = white
    cv2.imwrite(str(tmp_path / "m.png"), pixels)
    mask = FileMask(tmp_path / "m.png")
    assert np.array_equal(mask.pixels(), pixels > 0)
    assert outline(mask) == ((50, 60), (10, 20, 40, 30))
    assert mask.at((25, 30)).sum() == 5 * 15


def test_an_empty_and_a_broken_mask_file(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((60, 50), np.uint8))
    assert outline(FileMask(tmp_path / "empty.png")) == ((50, 60), None)
    (tmp_path / "broken.png").write_bytes((tmp_path / "empty.png").read_bytes()[:40])
    for name in ("broken.png", "gone.png"):
        with pytest.raises(ItemError):
            outline(FileMask(tmp_path / name))


def test_masks_and_boxes_together_and_sent_to_another_process():
    import pickle

    boxes = BoxMask(((0, 0, 10, 10),), (100, 50))
    lengths = RunLengths((100, 50), (0, 50, 4950))
    both = together([boxes, lengths])
    assert isinstance(both, Union)
    expected = boxes.at((100, 50)) | lengths.at((100, 50))
    assert expected[:, 0].all() and expected.sum() == 50 + 90
    assert np.array_equal(pickle.loads(pickle.dumps(Target("a", (), both))).area((100, 50), (100, 50)), expected)
    assert together([boxes]) is boxes
