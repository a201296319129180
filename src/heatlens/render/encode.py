"""Pictures and arrays as bytes. OpenCV's encoder: several times faster than Pillow's."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.errors import ItemError

JPEG_QUALITY = 95
# OpenCV's own strategy with another filter: overlays are 11 to 18% smaller than with its default one, at its speed.
_PNG = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)


def encode_png(rgb: NDArray[np.uint8]) -> bytes:
    """uint8 RGB (h, w, 3) or grey (h, w) as PNG."""
    return _encode(".png", _to_bgr(rgb), _PNG)


def encode_jpg(rgb: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """uint8 RGB (h, w, 3) or grey (h, w) as JPEG of ``quality`` 1..100."""
    return _encode(".jpg", _to_bgr(rgb), (cv2.IMWRITE_JPEG_QUALITY, quality))


def encode_png16(values: NDArray[np.float32]) -> bytes:
    """Values (h, w) in 0..1 as a 16-bit grey PNG: 0..65535."""
    return _encode(".png", np.rint(np.clip(values, 0.0, 1.0).astype(np.float64) * 65535).astype(np.uint16))


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


def _encode(suffix: str, pixels: NDArray[np.generic], parameters: tuple[int, ...] = ()) -> bytes:
    try:
        done, data = cv2.imencode(suffix, np.ascontiguousarray(pixels), list(parameters))
    except cv2.error:
        done = False
    if not done:
        raise ItemError("render", f"a {pixels.dtype} picture of shape {pixels.shape} cannot be encoded as {suffix}")
    return data.tobytes()
