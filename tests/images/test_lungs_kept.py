"""Lung points read off three real films, and markers: what the body mask must keep and what it must drop."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from skimage.exposure import equalize_hist
from skimage.filters import threshold_otsu
from skimage.measure import label

from heatlens.images.bodymask import body_mask
from heatlens.images.decode import read_film
from heatlens.phantom.film import make_film

# (x, y) in shares of the sides: mid zone, apex and base of the right lung, then of the left.
LUNGS = {
    "00000001_000.png": [(0.31, 0.38), (0.34, 0.18), (0.23, 0.62), (0.72, 0.38), (0.63, 0.18), (0.77, 0.64)],
    "00027426_000.png": [(0.34, 0.38), (0.42, 0.17), (0.29, 0.58), (0.82, 0.38), (0.69, 0.17), (0.85, 0.63)],
    "RG1_UNCR.dcm": [(0.27, 0.36), (0.29, 0.16), (0.16, 0.66), (0.76, 0.36), (0.63, 0.17), (0.86, 0.70)],
}
# Air at the upper left, where text is burned in below: its lower left corner.
CORNERS = {"00000001_000.png": (0.03, 0.06), "00027426_000.png": (0.03, 0.06), "RG1_UNCR.dcm": (0.01, 0.055)}


def equalised(pixels):
    return np.rint(equalize_hist(pixels) * 255).astype(np.uint8)


@pytest.fixture(params=LUNGS)
def named_film(request):
    """(name, pixels) of each film; only those are skipped that are not there."""
    if request.param.endswith(".dcm"):
        return request.param, read_film(request.getfixturevalue("package_file")(request.param)).pixels
    found = [path for path in request.getfixturevalue("real_films") if path.name == request.param]
    if not found:
        pytest.skip(f"no {request.param}")
    return request.param, read_film(found[0]).pixels


def lungs_in(mask, name):
    height, width = mask.shape
    return [bool(mask[round(y * height), round(x * width)]) for x, y in LUNGS[name]]


@pytest.mark.parametrize("change", [lambda film: film, equalised], ids=["as it is", "equalised"])
def test_lungs_stay_and_burned_in_text_goes(named_film, change):
    name, film = named_film
    film = change(film)
    height, width = film.shape
    text = np.zeros_like(film)
    place = round(CORNERS[name][0] * width), round(CORNERS[name][1] * height)
    cv2.putText(text, "AP", place, cv2.FONT_HERSHEY_SIMPLEX, width / 900, 255, max(1, round(width / 400)))
    for pixels in (film, np.maximum(film, text)):
        found = body_mask(pixels)
        assert not found.whole_film
        assert all(lungs_in(found.mask, name))
        assert not found.mask[text > 127].any()


def textbook(pixels):
    """Otsu, largest component, holes filled."""
    parts = label(pixels > threshold_otsu(pixels))
    return binary_fill_holes(parts == np.bincount(parts[parts > 0]).argmax())


def test_the_textbook_recipe_loses_lungs_once_equalised(named_film):
    """So that the test above can fail: on every one of these films it would, with the recipe that is in textbooks."""
    name, film = named_film
    assert not all(lungs_in(textbook(equalised(film)), name))


def letters_in_air(film):
    """The strokes of the marker around which the film is dark: those that are not written over the body."""
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (25, 25))
    parts = label(cv2.dilate(film.marker_mask.astype(np.uint8), disk))
    inside = cv2.dilate(film.marker_mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    found = np.zeros_like(film.marker_mask)
    for number in range(1, parts.max() + 1):
        part = parts == number
        if film.pixels[part & ~inside].max() < 30:
            found |= part & film.marker_mask
    return found


def test_markers_beside_the_phantoms_are_dropped():
    seen = 0
    for seed in range(2_000_100, 2_000_130):
        film = make_film(seed, long_side=420)
        letters = letters_in_air(film)
        for pixels in (film.pixels, equalised(film.pixels)):
            found = body_mask(pixels)
            if letters.any() and not found.whole_film:
                seen += 1
                assert not found.mask[letters].any(), seed
    assert seen >= 20
