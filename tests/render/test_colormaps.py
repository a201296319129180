"""Ten tables, each the colours its name promises; colour is monotone in the stored value."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.color import rgb2lab

from heatlens.errors import ConfigError
from heatlens.registry import COLORMAPS
from heatlens.render import colormaps
from heatlens.render.colormaps import CUSTOM_PURPLE_RED, HOT, JET, colour_table, colourise


@pytest.mark.parametrize("name", COLORMAPS)
def test_every_registered_name_has_a_table(name):
    table = colour_table(name)
    assert table is getattr(colormaps, name.upper())
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    assert len(np.unique(table, axis=0)) > 240
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 1


def test_known_colours():
    assert JET[0].tolist() == [0, 0, 128]
    assert JET[255].tolist() == [128, 0, 0]
    assert JET[128].argmax() == 1  # green in the middle
    assert HOT[[0, 255]].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert HOT[80, 0] > 150  # red comes first
    assert HOT[80, 1:].tolist() == [0, 0]
    red, green, blue = CUSTOM_PURPLE_RED[0].tolist()
    assert red < blue < 60  # deep purple
    assert green < 20
    red, green, blue = CUSTOM_PURPLE_RED[255].tolist()
    assert red == 255  # red
    assert max(green, blue) < 130


@pytest.mark.parametrize(
    "name", ["custom_purple_red", "inferno", "magma", "plasma", "viridis", "cividis", "hot", "bone"]
)
def test_lightness_rises_all_the_way(name):
    lightness = rgb2lab(colour_table(name)[None] / 255)[0, :, 0]
    assert (np.diff(lightness) > -0.35).all()  # rounding to eight bits
    assert (np.diff(lightness[::4]) > 0).all()


def test_index_is_the_rounded_value_and_monotone():
    values = np.linspace(0, 1, 100_001, dtype=np.float32).reshape(1, -1)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    index = colourise(values, ramp)[0, :, 0].astype(int)
    assert (np.diff(index) >= 0).all()
    assert set(index) == set(range(256))
    assert np.array_equal(index, np.rint(values[0] * np.float32(255)))


def test_each_stored_level_gets_its_own_colour():
    levels = (np.arange(256, dtype=np.float32) / 255).reshape(16, 16)
    assert np.array_equal(colourise(levels, JET).reshape(256, 3), JET)


def test_values_outside_are_clipped():
    assert np.array_equal(colourise(np.array([[-3.0, 7.0]], np.float32), JET)[0], JET[[0, 255]])


def test_unknown_names_get_a_hint():
    with pytest.raises(ConfigError, match="did you mean jet"):
        colour_table("jett")


def test_opencv_agrees_about_the_colours():
    """What OpenCV itself draws for a two-dimensional map, so that a change of its API cannot go unseen."""
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    drawn = cv2.applyColorMap(picture, cv2.COLORMAP_TURBO)[..., ::-1]
    assert np.array_equal(drawn.reshape(256, 3), colour_table("turbo"))
