"""Ordinary files of every kind: the right pixels, depth and notes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heatlens.images.decode import read_film
from heatlens.images.film import depth_of, to_eight_bits

from .pictures import chunk, encoded, grey_picture, png

GREY = grey_picture()


def film_of(folder: Path, data: bytes, name: str = "film.png"):
    path = folder / name
    path.write_bytes(data)
    return read_film(path)


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF"])
def test_grey_levels_arrive_unchanged(tmp_path, name):
    film = film_of(tmp_path, encoded(GREY, name))
    assert np.array_equal(film.pixels, GREY)
    assert (film.format, film.bits, film.size, film.notes) == (name.lower(), 8, (64, 48), ())


def test_compressed_tiff_and_lossless_webp(tmp_path):
    assert np.array_equal(film_of(tmp_path, encoded(GREY, "TIFF", compression="tiff_lzw")).pixels, GREY)
    webp = film_of(tmp_path, encoded(GREY, "WEBP", lossless=True))
    assert webp.format == "webp"
    assert np.array_equal(webp.pixels, GREY)


@pytest.mark.parametrize("progressive", [False, True])
def test_grey_jpeg_is_what_the_decoder_says(tmp_path, progressive):
    data = encoded(GREY, "JPEG", quality=95, progressive=progressive)
    film = film_of(tmp_path, data, "film.jpg")
    with Image.open(tmp_path / "film.jpg") as image:
        assert np.array_equal(film.pixels, np.asarray(image))
    assert film.pixels.ndim == 2
    assert film.format == "jpeg"


def test_colour_jpeg_of_a_grey_film_is_grey(tmp_path):
    film = film_of(tmp_path, encoded(np.repeat(GREY[..., None], 3, 2), "JPEG", quality=95))
    assert film.pixels.ndim == 2


def test_content_decides_not_the_name(tmp_path):
    assert film_of(tmp_path, encoded(GREY, "PNG"), "film.dcm").format == "png"
    assert film_of(tmp_path, encoded(GREY, "JPEG"), "film.png").format == "jpeg"


def test_rgb_stays_rgb_and_equal_channels_become_grey(tmp_path):
    colour = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)
    assert np.array_equal(film_of(tmp_path, encoded(colour, "PNG")).pixels, colour)
    assert np.array_equal(film_of(tmp_path, encoded(np.repeat(GREY[..., None], 3, 2), "PNG")).pixels, GREY)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_on_black(tmp_path, channels):
    alpha = np.full_like(GREY, 255)
    alpha[:10], alpha[10:20] = 0, 128
    film = film_of(tmp_path, encoded(np.dstack([GREY] * (channels - 1) + [alpha]), "PNG"))
    assert np.array_equal(film.pixels, np.rint(GREY.astype(float) * alpha / 255))
    assert film.notes == ("transparent parts composited on black",)


def test_opaque_alpha_is_not_worth_a_note(tmp_path):
    film = film_of(tmp_path, encoded(np.dstack([GREY, np.full_like(GREY, 255)]), "PNG"))
    assert np.array_equal(film.pixels, GREY)
    assert film.notes == ()


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(GREY // 64).convert("P")
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 90, 90, 90])
    image.save(tmp_path / "p.png", transparency=bytes([255, 0, 255, 255]))
    expected = np.array([[200, 10, 10], [0, 0, 0], [10, 10, 200], [90, 90, 90]], dtype=np.uint8)[GREY // 64]
    assert np.array_equal(read_film(tmp_path / "p.png").pixels, expected)


def test_one_transparent_grey_level(tmp_path):
    film = film_of(tmp_path, png(GREY, colour=0, depth=8, extra=chunk(b"tRNS", struct.pack(">H", int(GREY[5, 5])))))
    same = np.equal(GREY, GREY[5, 5])
    assert np.array_equal(film.pixels, np.where(same, 0, GREY))


def test_one_bit(tmp_path):
    film = film_of(tmp_path, encoded(GREY > 99, "PNG"))
    assert np.array_equal(film.pixels, np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize(("bits", "largest"), [(16, 65535), (12, 4095), (12, 2048), (10, 1000), (8, 255), (8, 3)])
def test_sixteen_bit_files_are_scaled_by_their_own_depth(tmp_path, bits, largest):
    values = np.linspace(0, largest, 64 * 48).round().astype(np.uint16).reshape(48, 64)
    film = film_of(tmp_path, encoded(values, "PNG"))
    assert film.bits == bits
    assert np.array_equal(film.pixels, np.floor(values * 255.0 / (2**bits - 1) + 0.5))
    assert film.notes == (f"16-bit file with {bits}-bit grey levels, scaled by 255/{2**bits - 1}",)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_and_alpha_keep_their_depth(tmp_path, colour, channels):
    values = np.repeat((GREY.astype(np.uint16) * 16)[..., None], channels, 2)  # 12 bits
    if channels in (2, 4):
        values[..., -1] = 65535
        values[:8, :, -1] = 0
    film = film_of(tmp_path, png(values, colour=colour))
    expected = np.rint(GREY * 16.0 * 255 / 4095)
    if channels in (2, 4):
        expected[:8] = 0
    assert film.bits == 12
    assert np.array_equal(film.pixels, expected)


def test_sixteen_bit_transparent_level(tmp_path):
    values = GREY.astype(np.uint16) * 257
    film = film_of(tmp_path, png(values, colour=0, extra=chunk(b"tRNS", struct.pack(">H", int(values[5, 5])))))
    same = np.equal(GREY, GREY[5, 5])
    assert np.array_equal(film.pixels, np.where(same, 0, GREY))


def test_sixteen_bit_tiff_with_white_at_zero(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "t.tif", tiffinfo={262: 0})
    assert np.array_equal(read_film(tmp_path / "t.tif").pixels, 255 - GREY)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_sets_the_film_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "film"
    path.write_bytes(encoded(GREY, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {})))
    film = read_film(path)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]  # Image.Transpose
    with Image.open(path) as image:
        stored = Image.fromarray(np.asarray(image)) if kind != "TIFF" else Image.fromarray(GREY)
    expected = stored if undo is None else stored.transpose(Image.Transpose(undo))
    assert np.array_equal(film.pixels, np.asarray(expected))
    assert bool(film.notes) == (orientation != 1)


def test_first_frame_of_many_is_noted(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    frames[0].save(tmp_path / "t.tif", save_all=True, append_images=frames[1:])
    film = read_film(tmp_path / "t.tif")
    assert film.notes == ("frame 1 of 2",)
    assert np.array_equal(film.pixels, GREY)


def test_depth_and_scale():
    assert [depth_of(value) for value in (0, 255, 256, 4095, 4096, 65535)] == [8, 8, 9, 12, 13, 16]
    for bits in range(8, 17):
        values = np.arange(2**bits, dtype=np.uint16)
        eight = to_eight_bits(values, bits)
        assert eight[0] == 0
        assert eight[-1] == 255
        assert (np.diff(eight.astype(int)) >= 0).all()


def test_real_films_are_read_as_they_are(real_films):
    for path in real_films:
        with Image.open(path) as image:
            assert np.array_equal(read_film(path).pixels, np.asarray(image.convert("L")))
