"""The blend for any alpha, and where a hot patch ends up on a picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.cam.protocols import PatchGrid
from heatlens.images.geometry import FrameGeometry
from heatlens.render.colormaps import INFERNO, JET, colour_table, colourise
from heatlens.render.overlay import blend, normalise, output_size, resize_film

RNG = np.random.default_rng(7)
FILM = RNG.integers(0, 256, (40, 50), dtype=np.uint8)
VALUES = RNG.random((40, 50), dtype=np.float32)
MASK = RNG.random((40, 50)) > 0.4
VIT = PatchGrid(14, 14, (16.0, 16.0))


@given(alpha=st.floats(0, 1), background=st.sampled_from(["map", "film"]))
def test_any_alpha_is_the_formula_to_half_a_grey_level(alpha, background):
    film = np.repeat(FILM[..., None], 3, axis=2)
    wanted = (1 - alpha) * film + alpha * colourise(VALUES, JET)
    if background == "film":
        wanted[~MASK] = film[~MASK]
    assert np.abs(blend(FILM, VALUES, JET, alpha, mask=MASK, background=background) - wanted).max() <= 0.51


@pytest.mark.parametrize("name", ["jet", "turbo", "inferno", "magma", "plasma", "viridis", "cividis", "hot", "bone"])
def test_tables_are_what_opencv_draws(name):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    drawn = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}"))[..., ::-1]
    assert np.array_equal(drawn.reshape(256, 3), colour_table(name))


@pytest.mark.parametrize("mode", ["letterbox", "crop", "squash"])
@pytest.mark.parametrize("size", [(636, 764), (764, 636)])
@pytest.mark.parametrize("cell", [(3, 4), (10, 9), (4, 10)])
def test_a_hot_patch_is_drawn_on_its_patch(mode, size, cell):
    """The film is placed with one bright patch; the overlay's hottest pixels lie on that patch of the film."""
    geometry = FrameGeometry.fit(mode, size, (224, 224))
    corners = [(16 * cell[1], 16 * cell[0]), (16 * cell[1] + 16, 16 * cell[0] + 16)]
    (left, top), (right, bottom) = geometry.frame_to_source(corners).round().astype(int)
    film = np.zeros(size[::-1], np.uint8)
    film[top:bottom, left:right] = 255
    placed = geometry.place(film)[..., 0].astype(float)
    # The model sees the patch of the film in that cell, and nowhere else.
    by_cell = placed.reshape(14, 16, 14, 16).mean((1, 3))
    assert by_cell[cell] > 230
    assert np.delete(by_cell.ravel(), cell[0] * 14 + cell[1]).max() < 25
    values = np.zeros((14, 14), np.float32)
    values[cell] = 1
    output = output_size(size, 382)
    heat, seen = geometry.map_to_source(values, VIT, output)
    heat, constant = normalise(heat, seen)
    assert not constant
    drawn = blend(resize_film(film, output), heat, INFERNO, 1.0, mask=seen).sum(axis=2)
    ys, xs = np.nonzero(drawn > 0.95 * drawn.max())
    middle = np.array([left + right, top + bottom]) / 2 * output[0] / size[0]
    frame_pixel = np.array(size) / geometry.content * output[0] / size[0]
    assert (np.abs([xs.mean() + 0.5 - middle[0], ys.mean() + 0.5 - middle[1]]) <= frame_pixel).all()
