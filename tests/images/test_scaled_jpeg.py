"""A JPEG decoded at a smaller scale: the same film, the same places, and no damaged file slips through."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from heatlens.errors import ItemError
from heatlens.images.bodymask import body_mask
from heatlens.images.decode import read_film
from heatlens.images.geometry import FrameGeometry

from .pictures import chest, encoded, grey_picture

FRAME = (224, 224)


def saved(folder, pixels, **options):
    path = folder / "film.jpg"
    path.write_bytes(encoded(pixels, "JPEG", **{"quality": 95, **options}))
    return path


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((800, 640), None, (800, 640)),
        ((800, 640), 801, (800, 640)),
        ((800, 640), 800, (800, 640)),
        ((800, 640), 401, (800, 640)),
        ((800, 640), 400, (400, 320)),
        ((640, 800), 201, (320, 400)),
        ((640, 800), 200, (160, 200)),
        ((800, 640), 100, (100, 80)),
        ((800, 640), 1, (100, 80)),
        ((801, 643), 401, (401, 322)),
        ((801, 643), 101, (101, 81)),
        ((801, 643), 102, (201, 161)),
        ((1601, 17), 150, (201, 3)),
    ],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_the_smallest_scale_that_suffices(tmp_path, size, longest, expected, progressive):
    film = read_film(saved(tmp_path, grey_picture(*size), progressive=progressive), longest)
    assert (film.pixels.shape[1], film.pixels.shape[0]) == expected
    assert film.size == size
    assert (film.source is None) == (expected == size)
    assert film.notes == ()


@pytest.mark.parametrize("longest", [400, 200, 100])
@pytest.mark.parametrize("colour", [False, True])
def test_pixels_are_means_of_the_films_own(tmp_path, longest, colour):
    pixels = grey_picture(640, 800)
    pixels = np.dstack([pixels, pixels[::-1], pixels]) if colour else pixels
    path = saved(tmp_path, pixels, **({"subsampling": 0} if colour else {}))
    whole, small = read_film(path).pixels, read_film(path, longest).pixels
    mean = cv2.resize(whole, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert small.ndim == whole.ndim
    assert np.abs(small.astype(int) - mean).mean() < 1


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_other_files_are_read_in_full(tmp_path, kind):
    path = tmp_path / "film"
    path.write_bytes(encoded(grey_picture(160, 120), kind))
    assert np.array_equal(read_film(path, 20).pixels, read_film(path).pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("longest", [400, 100])
def test_turns_are_right_at_every_scale(tmp_path, orientation, longest):
    """Against the whole film turned: with rows and columns, and the size of the file, exchanged alike."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = grey_picture(640, 800)
    pixels[:200, :160] = 255  # one corner can be told from the others
    path = saved(tmp_path, pixels, exif=exif)
    whole, small = read_film(path), read_film(path, longest)
    assert small.size == whole.size == ((640, 800) if orientation < 5 else (800, 640))
    assert small.notes == whole.notes
    mean = cv2.resize(whole.pixels, small.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.pixels.astype(int) - mean).mean() < 2


spots = st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9))


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(460, 1500),
    height=st.integers(460, 1500),
    spot=spots,
    mode=st.sampled_from(["letterbox", "crop", "squash"]),
)
def test_bright_spots_land_on_the_same_place_at_every_scale(tmp_path_factory, width, height, spot, mode):
    """Of the model's frame, to half a pixel of it; and as computed for the spot's place on the film, to one."""
    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    x, y = spot[0] * width, spot[1] * height
    radius = max(width, height) / 40
    pixels = (230 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2))).astype(np.uint8)
    path = saved(tmp_path_factory.mktemp("spot"), pixels)
    geometry = FrameGeometry.fit(mode, (width, height), FRAME)
    (wanted,) = geometry.source_to_frame([(x, y)])
    margin = 4 * radius * 224 / min(width, height)
    if (wanted < margin).any() or (wanted > 224 - margin).any():
        return  # partly outside what a crop shows
    centres = []
    for longest in (None, 448):
        film = read_film(path, longest)
        assert film.size == (width, height)
        placed = geometry.place(film.pixels)[..., 0].astype(float)
        v, u = np.mgrid[0:224, 0:224] + 0.5
        centres.append(np.array([(placed * u).sum(), (placed * v).sum()]) / placed.sum())
        assert np.abs(centres[-1] - wanted).max() <= 1
    assert np.abs(centres[0] - centres[1]).max() <= 0.5


@pytest.mark.parametrize("size", [(1500, 1800), (1503, 1801), (1801, 1503)])
def test_the_body_is_the_same(tmp_path, size):
    path = saved(tmp_path, chest(*size))
    whole, small = read_film(path), read_film(path, 512)
    assert max(small.pixels.shape) < 1000
    output = (size[0] // 4, size[1] // 4)
    one, other = body_mask(whole.pixels), body_mask(small.pixels)
    assert not one.whole_film
    assert not other.whole_film
    unlike = one.at(output) != other.at(output)
    edge = cv2.morphologyEx(one.at(output).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    assert not unlike[~edge].any()
    assert abs(one.fraction - other.fraction) < 0.005


def test_real_films_are_placed_alike(tmp_path, real_films):
    for number, path in enumerate(real_films):
        film = cv2.resize(read_film(path).pixels, (2544, 3056), interpolation=cv2.INTER_CUBIC)
        geometry = FrameGeometry.fit("letterbox", (2544, 3056), FRAME)
        folder = tmp_path / str(number)
        folder.mkdir()
        jpeg = saved(folder, film)
        whole, small = read_film(jpeg), read_film(jpeg, 1024)
        assert small.pixels.shape == (1528, 1272)
        difference = geometry.place(whole.pixels).astype(int) - geometry.place(small.pixels)
        assert np.abs(difference).max() <= 3
        assert np.abs(difference).mean() < 0.5


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("longest", [300, 75])
def test_cut_files_are_found_out_at_every_scale(tmp_path, options, longest):
    stream = io.BytesIO()
    Image.fromarray(grey_picture(500, 600)).save(stream, "JPEG", **options)
    whole, path = stream.getvalue(), tmp_path / "film.jpg"
    for cut in np.linspace(1, len(whole) - 1, 40).astype(int):
        for tail in (b"", bytes(len(whole) - cut)):
            path.write_bytes(whole[:cut] + tail)
            with pytest.raises(ItemError):
                read_film(path, longest)
    path.write_bytes(whole)
    assert read_film(path, longest).size == (500, 600)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_damage_never_raises_anything_else(tmp_path_factory, data):
    damaged = bytearray(encoded(grey_picture(160, 120), "JPEG"))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "film.jpg"
    path.write_bytes(bytes(damaged))
    try:
        film = read_film(path, 40)
    except ItemError as error:
        assert error.stage == "decode"
    else:
        assert film.pixels.dtype == np.uint8
        assert max(film.size) >= max(film.pixels.shape[:2])


def test_geometry_takes_no_other_shapes():
    geometry = FrameGeometry.fit("letterbox", (2544, 3056), FRAME)
    for height, width in ((3056, 2544), (1528, 1272), (382, 318)):
        assert geometry.place(np.zeros((height, width), np.uint8)).shape == (224, 224, 3)
    for height, width in ((2544, 3056), (1528, 1274), (1530, 1272), (6112, 5088)):
        with pytest.raises(ValueError, match="the geometry is for"):
            geometry.place(np.zeros((height, width), np.uint8))
