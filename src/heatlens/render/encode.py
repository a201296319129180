"""Pictures and arrays as bytes."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.errors import ItemError
from heatlens.render.png import png

JPEG_QUALITY = 95


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """RGB (h, w, 3) or grey (h, w) as PNG, 8 or 16 bits deep."""
    try:
        return png(pixels)
    except ValueError:
        raise _refusal(pixels, "PNG") from None


def encode_jpg(rgb: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """uint8 RGB (h, w, 3) or grey (h, w) as JPEG of ``quality`` 1..100."""
    try:
        done, data = cv2.imencode(".jpg", _to_bgr(rgb), (cv2.IMWRITE_JPEG_QUALITY, quality))
    except cv2.error:
        done = False
    if not done:
        raise _refusal(rgb, "JPEG")
    return data.tobytes()


def encode_png16(values: NDArray[np.float32]) -> bytes:
    """Values (h, w) in 0..1 as a 16-bit grey PNG: 0..65535."""
    return encode_png(np.rint(np.clip(values, 0.0, 1.0).astype(np.float64) * 65535).astype(np.uint16))


def encode_npy(values: NDArray[np.float32]) -> bytes:
    """An array in NumPy's own format, without pickle."""
    stream = io.BytesIO()
    # C order: equal arrays give equal bytes whatever their layout in memory.
    np.save(stream, np.ascontiguousarray(values, dtype=np.float32), allow_pickle=False)
    return stream.getvalue()


def _to_bgr(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if rgb.ndim == 2 or rgb.size == 0:
        return rgb
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), dtype=np.uint8)


def _refusal(pixels: NDArray[np.generic], form: str) -> ItemError:
    return ItemError("render", f"a {pixels.dtype} picture of shape {pixels.shape} cannot be encoded as {form}")
