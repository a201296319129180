"""The body mask keeps lungs, drops text, and gives up rather than cut into the middle of a film."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes
from skimage.exposure import equalize_hist
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.segmentation import clear_border

from heatlens.images.bodymask import _largest_part, body_mask
from heatlens.images.decode import read_film
from heatlens.phantom.film import make_film

from .pictures import chest


@given(st.integers(0, 9999), st.sampled_from([0.3, 0.5, 0.6, 0.8]))
def test_the_largest_part_wherever_it_lies(seed, density):
    """Also where the middle belongs to a smaller one, or to none."""
    mask = np.random.default_rng(seed).random((17, 23)) < density
    parts = label(mask, connectivity=1)
    areas = np.bincount(parts.ravel())[1:]
    found = _largest_part(mask)
    (number,) = np.unique(parts[found])
    assert areas[number - 1] == areas.max()
    assert np.array_equal(found, parts == number)


def test_nothing_has_no_largest_part():
    assert not _largest_part(np.zeros((5, 6), bool)).any()


def equalised(pixels: np.ndarray) -> np.ndarray:
    """As MIMIC-CXR-JPG's films are."""
    return np.rint(equalize_hist(pixels) * 255).astype(np.uint8)


def box(mask: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Part of a mask, in shares of its sides."""
    height, width = mask.shape
    return mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


@pytest.mark.parametrize("size", [(300, 360), (360, 300), (1200, 1440), (100, 120)])
def test_lungs_as_dark_as_air_are_kept(size):
    film = chest(*size)
    found = body_mask(film)
    assert not found.whole_film
    assert found.reason == ""
    assert found.mask.shape == film.shape
    assert box(found.mask, 0.2, 0.28, 0.8, 0.82).all()
    assert not box(found.mask, 0, 0, 0.37, 0.12).any()
    assert not box(found.mask, 0, 0, 0.07, 1).any()


def test_the_textbook_recipe_would_have_lost_them():
    """Keeps the test above honest: its lungs are dark and would go with Otsu's threshold."""
    film = chest()
    assert (box(film, 0.28, 0.4, 0.38, 0.7) <= threshold_otsu(film)).mean() > 0.99


def test_a_narrow_gap_in_the_chest_wall_lets_no_background_in():
    found = body_mask(chest(512, 600, gap=8))
    assert not found.whole_film
    # At most the gap itself and a little beside it.
    lung = box(found.mask, 0.25, 0.35, 0.42, 0.75)
    assert lung.mean() > 0.97


def test_text_and_markers_in_the_background_are_dropped():
    film = chest(512, 600)
    cv2.putText(film, "PORTABLE", (60, 50), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    cv2.putText(film, "R", (8, 300), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 3)
    found = body_mask(film)
    assert not found.whole_film
    assert not found.mask[:80, :195].any()
    assert not found.mask[:, :44].any()


def test_strokes_that_hang_on_the_body_are_cut_off():
    film = chest(512, 600)
    cv2.putText(film, "I T I", (90, 92), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 255, 1)  # stands on the body's edge at 90
    found = body_mask(film)
    assert (film[70:79, :195] > 200).sum() > 50  # the text is there
    assert not found.mask[:79, :195].any()
    assert box(found.mask, 0.12, 0.17, 0.88, 0.98).all()


def test_a_film_that_the_body_fills_is_not_cut():
    film = np.clip(np.random.default_rng(0).normal(150, 15, (300, 250)), 90, 255).astype(np.uint8)
    assert body_mask(film).mask.all()


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_blank_film_is_kept_whole(level):
    found = body_mask(np.full((40, 60), level, np.uint8))
    assert (found.whole_film, found.reason) == (True, "the film is blank")
    assert found.mask.all()


def test_a_mask_that_would_cut_the_middle_is_refused():
    film = np.zeros((300, 300), np.uint8)
    film[:, :120] = 200
    found = body_mask(film)
    assert found.whole_film
    assert found.mask.all()
    assert "of the film's middle would be body" in found.reason


def test_colour_and_small_films():
    film = chest()
    assert np.array_equal(body_mask(np.repeat(film[..., None], 3, 2)).mask, body_mask(film).mask)
    assert body_mask(chest(16, 20)).mask.shape == (20, 16)


@pytest.mark.parametrize("seed", range(2_000_200, 2_000_212))
def test_phantoms_keep_every_finding(seed):
    film = make_film(seed, long_side=420)
    for pixels in (film.pixels, equalised(film.pixels)):
        found = body_mask(pixels)
        for finding in film.findings:
            assert found.mask[finding.mask].all(), finding.name


@pytest.mark.parametrize("seed", range(8))
def test_against_scikit_image_and_scipy(seed):
    """The same steps with the functions of other libraries: threshold, border, largest part, holes."""
    pixels = make_film(2_000_300 + seed, long_side=380).pixels if seed < 5 else noise(seed)
    plain = cv2.morphologyEx(pixels, cv2.MORPH_OPEN, disk(max(1, round(2 * max(pixels.shape) / 512))))
    low = int(threshold_otsu(pixels))
    dark = plain <= (low + int(pixels[pixels > low].min())) / 4
    radius = max(1, round(6 * max(pixels.shape) / 512))
    padded = np.pad(dark, radius, mode="edge").astype(np.uint8)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, disk(radius))[radius:-radius, radius:-radius].astype(bool)
    parts = label(~(opened & ~clear_border(opened)), connectivity=1)
    expected = binary_fill_holes(parts == np.bincount(parts[parts > 0]).argmax())
    found = body_mask(pixels)
    if not found.whole_film:
        assert np.array_equal(found.mask, expected)
    else:
        assert box(expected, 0.2, 0.2, 0.8, 0.8).mean() < 0.99


def noise(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (17, 13), dtype=np.uint8)
    return cv2.resize(coarse, (310, 400), interpolation=cv2.INTER_CUBIC)


def disk(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


@pytest.mark.parametrize("size", [(75, 90), (300, 360), (500, 333)])
def test_the_mask_at_another_size_is_the_same_region(size):
    found = body_mask(chest(300, 360))
    mask = found.at(size)
    assert mask.shape == size[::-1]
    assert abs(mask.mean() - found.fraction) < 0.01
    assert box(mask, 0.2, 0.28, 0.8, 0.82).all()
    assert not box(mask, 0, 0, 0.36, 0.12).any()
    assert body_mask(np.zeros((40, 60), np.uint8)).at(size).all()


# Lungs and mediastinum on the real films, in shares of the sides, and air beside the neck, read off the films.
CHESTS = {
    "00000001_000.png": [(0.16, 0.18, 0.44, 0.66), (0.58, 0.18, 0.80, 0.70), (0.4, 0.1, 0.6, 0.95)],
    "00027426_000.png": [(0.18, 0.22, 0.46, 0.62), (0.66, 0.22, 0.94, 0.66), (0.5, 0.1, 0.62, 0.95)],
}
AIR = {"00000001_000.png": (0.05, 0.01, 0.25, 0.1), "00027426_000.png": (0.05, 0.01, 0.3, 0.08)}


@pytest.mark.parametrize("name", CHESTS)
@pytest.mark.parametrize("change", ["", "equalised", "bordered"])
def test_real_films(real_films, name, change):
    (path,) = [path for path in real_films if path.name == name]
    film = read_film(path).pixels
    if change == "equalised":
        film = equalised(film)
    border = 60 if change == "bordered" else 0
    if border:
        film = cv2.copyMakeBorder(film, border, border, border, border, cv2.BORDER_CONSTANT, value=0)
        cv2.putText(film, "AP PORTABLE", (10, 35), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    found = body_mask(film)
    assert not found.whole_film
    inside = found.mask[border : film.shape[0] - border, border : film.shape[1] - border]
    for part in CHESTS[name]:
        assert box(inside, *part).all()
    assert not box(inside, *AIR[name]).any()
    assert 0.8 < inside.mean() < 0.93
    if border:
        assert not found.mask[: border - 2].any()


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KI.dcm"])
def test_the_real_radiograph(name, package_file):
    film = read_film(package_file(name)).pixels
    for pixels in (film, equalised(film)):
        found = body_mask(pixels)
        assert not found.whole_film
        for part in [(0.16, 0.14, 0.45, 0.75), (0.55, 0.14, 0.84, 0.75), (0.4, 0.1, 0.6, 0.97)]:
            assert box(found.mask, *part).all()
        assert not box(found.mask, 0.005, 0.025, 0.05, 0.05).any()
