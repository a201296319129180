"""Frames and labels over a film: where their pixels are, and that labels keep clear of one another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatlens.render.boxes import ANNOTATED, FOUND, Frame, draw_frames

GREY = np.full((300, 400), 90, np.uint8)


def coloured(drawn: np.ndarray, colour) -> tuple[int, int, int, int]:
    """The half-open box of all pixels of a colour."""
    rows, columns = np.nonzero((drawn == np.array(colour, np.uint8)).all(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("box", [(50, 60, 120, 200), (0, 0, 400, 300), (10, 10, 11, 11), (399, 299, 400, 300)])
def test_a_frame_covers_exactly_its_box(box) -> None:
    drawn = draw_frames(GREY, [Frame(box, FOUND)])
    assert coloured(drawn, FOUND) == box
    outside = np.ones(GREY.shape, bool)
    outside[box[1] : box[3], box[0] : box[2]] = False
    assert (drawn[outside] == 90).all()
    assert (GREY == 90).all()


def test_fractions_of_pixels_belong_to_the_box() -> None:
    assert coloured(draw_frames(GREY, [Frame((50.7, 60.2, 119.1, 199.5), FOUND)]), FOUND) == (50, 60, 120, 200)


def test_the_inside_stays_bare_and_the_first_frame_lies_on_top() -> None:
    box = (50, 60, 120, 200)
    drawn = draw_frames(np.repeat(GREY[..., None], 3, axis=2), [Frame(box, FOUND), Frame(box, ANNOTATED)])
    assert (drawn[70:190, 60:110] == 90).all()
    assert coloured(drawn, FOUND) == box
    assert not (drawn == np.array(ANNOTATED, np.uint8)).all(axis=2).any()


def labels(drawn: np.ndarray, plain: np.ndarray) -> int:
    return int((drawn != plain).any(axis=2).sum())


@pytest.mark.parametrize("box", [(50, 60, 120, 200), (300, 0, 400, 40), (0, 250, 60, 300), (0, 0, 400, 300)])
def test_a_label_lies_in_the_picture_beside_its_frame(box) -> None:
    bare = draw_frames(GREY, [Frame(box, FOUND)])
    drawn = draw_frames(GREY, [Frame(box, FOUND, "cardiac region", "0.71")])
    assert labels(drawn, bare) > 12 * 60  # as high as its letters, wider than the figure


def test_a_long_text_is_cut_and_its_figure_kept() -> None:
    short = draw_frames(GREY, [Frame((50, 60, 120, 200), FOUND, "", "0.71")])
    long = draw_frames(GREY, [Frame((50, 60, 120, 200), FOUND, "region " * 100, "0.71")])
    other = draw_frames(GREY, [Frame((50, 60, 120, 200), FOUND, "region " * 100, "0.72")])
    assert labels(long, short) > 12 * 200
    assert labels(long, other) > 0


@pytest.mark.parametrize("shape", [(1, 1), (30, 24), (90, 400), (72, 60)])
def test_a_picture_too_small_for_letters_has_frames_only(shape) -> None:
    film = np.full(shape, 90, np.uint8)
    box = (0, 0, shape[1], shape[0])
    assert np.array_equal(
        draw_frames(film, [Frame(box, FOUND, "heart", "0.71")]), draw_frames(film, [Frame(box, FOUND)])
    )


EDGES = st.tuples(*(st.floats(-50, 450) for _ in range(4)))


@settings(max_examples=60, deadline=None)
@given(st.lists(EDGES, max_size=5), st.text(max_size=30))
def test_anything_can_be_drawn(boxes, text) -> None:
    frames = [Frame((min(a, c), min(b, d), max(a, c), max(b, d)), FOUND, text, "0.50") for a, b, c, d in boxes]
    drawn = draw_frames(GREY, frames)
    assert (drawn.shape, drawn.dtype) == ((300, 400, 3), np.uint8)
    assert np.array_equal(drawn, draw_frames(GREY, frames))


def test_labels_of_equal_boxes_keep_clear_of_one_another() -> None:
    box = (100, 100, 300, 200)
    one = draw_frames(GREY, [Frame(box, FOUND, "first", "0.71")])
    both = draw_frames(GREY, [Frame(box, FOUND, "first", "0.71"), Frame(box, ANNOTATED, "annotated")])
    changed = (one != both).any(axis=2)
    assert changed.any()
    assert (both[changed] == np.array(ANNOTATED, np.uint8)).all(axis=1).sum() > 200
    rows = np.nonzero(changed)[0]
    assert rows.min() >= 200  # below the box: above is taken
