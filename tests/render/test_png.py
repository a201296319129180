"""PNG files against other readers, byte for byte where the specification says what the bytes are."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from heatlens.render.png import SIGNATURE, png

SIDES = st.integers(1, 40)
TYPES = st.sampled_from([np.uint8, np.uint16])
SHAPES = st.one_of(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES, st.just(3)))
PIXELS = st.tuples(TYPES, SHAPES).flatmap(lambda one: arrays(*one))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(name, content) of every chunk, each with its checksum right."""
    assert data.startswith(SIGNATURE)
    found, at = [], len(SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(name + content),)
        found.append((name, content))
        at += 12 + length
    return found


@given(PIXELS)
def test_opencv_reads_what_was_written(pixels):
    read = cv2.imdecode(np.frombuffer(png(pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    assert read.dtype == pixels.dtype
    assert np.array_equal(read if read.ndim == 2 else read[..., ::-1], pixels)


@given(PIXELS.filter(lambda pixels: pixels.ndim == 2 or pixels.dtype == np.uint8))
def test_pillow_reads_what_was_written(pixels):
    with Image.open(io.BytesIO(png(pixels))) as image:
        image.verify()
    with Image.open(io.BytesIO(png(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


@given(PIXELS)
def test_the_file_is_what_the_specification_says(pixels):
    (header, about), (body, data), end = chunks(png(pixels))
    height, width = pixels.shape[:2]
    depth, colour = 8 * pixels.itemsize, 2 if pixels.ndim == 3 else 0
    assert (header, about) == (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    assert end == (b"IEND", b"")
    assert body == b"IDAT"
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 2).all()  # the filter Up
    restored = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    assert restored.tobytes() == pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()


def test_layout_in_memory_does_not_matter():
    pixels = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    for other in (np.asfortranarray(pixels), pixels[::-1][::-1], pixels.repeat(2, axis=1)[:, ::2]):
        assert png(other) == png(pixels)
    deep = pixels[..., 0].astype(np.uint16) * 257
    assert png(deep.astype(">u2")) == png(deep.astype("<u2"))


def test_equal_pixels_give_equal_bytes_in_every_thread():
    rng = np.random.default_rng(2)
    pictures = [(rng.normal(0, spread, (300, 200, 3)).cumsum(axis=1) % 256).astype(np.uint8) for spread in (1, 3, 40)]
    first = [png(one) for one in pictures]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(png, pictures * 50))
    assert again == first * 50


@pytest.mark.parametrize(("dtype", "share"), [(np.uint8, 0.25), (np.uint16, 0.75)])
def test_smooth_pictures_shrink(dtype, share):
    y, x = np.mgrid[0:512, 0:512]
    smooth = 0.5 + 0.4 * np.sin(x / 60) * np.cos(y / 80)
    pixels = (smooth * np.iinfo(dtype).max).astype(dtype)
    assert len(png(pixels)) < share * pixels.nbytes


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        (np.zeros((0, 5), np.uint8), "5x0"),
        (np.zeros((5, 0, 3), np.uint8), "0x5"),
        (np.zeros((5, 5, 4), np.uint8), "(5, 5, 4)"),
        (np.zeros(5, np.uint8), "(5,)"),
        (np.zeros((5, 5), np.float32), "float32"),
        (np.zeros((5, 5), np.int16), "int16"),
    ],
)
def test_what_is_no_picture_is_refused(pixels, word):
    with pytest.raises(ValueError) as caught:
        png(pixels)
    assert word in str(caught.value)
