"""Files that hold what they were given, the same bytes every time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from heatlens.errors import ItemError
from heatlens.render.encode import encode_jpg, encode_npy, encode_png, encode_png16

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_png_is_lossless_rgb_and_deterministic():
    data = encode_png(RGB)
    assert np.array_equal(opened(data), RGB)
    assert encode_png(RGB.copy()) == data
    assert np.array_equal(opened(encode_png(RGB[..., 0])), RGB[..., 0])


def test_jpg_is_close_and_deterministic():
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:50, 0:70], 90), axis=2).astype(np.uint8)
    data = encode_jpg(smooth)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image).astype(int) - smooth).mean() < 2
    assert encode_jpg(smooth) == data
    assert len(encode_jpg(RGB, quality=50)) < len(encode_jpg(RGB))


def test_png16_is_the_map_in_65536_steps():
    values = np.linspace(0, 1, 60 * 40, dtype=np.float32).reshape(40, 60)
    levels = opened(encode_png16(values))
    assert levels.dtype == np.uint16
    assert levels.min() == 0
    assert levels.max() == 65535
    assert np.abs(levels / 65535 - values).max() <= 0.5001 / 65535
    assert encode_png16(values) == encode_png16(values.copy())


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_bit_for_bit(order):
    values = np.asarray(RNG.normal(size=(14, 14)), dtype=np.float32, order=order)
    data = encode_npy(values)
    again = np.load(io.BytesIO(data), allow_pickle=False)
    assert again.dtype == np.float32
    assert np.array_equal(again, values)
    assert encode_npy(values.copy()) == data


def test_what_cannot_be_encoded_is_one_line():
    with pytest.raises(ItemError) as caught:
        encode_png(np.zeros((0, 5), np.uint8))
    assert caught.value.stage == "render"
