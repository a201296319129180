"""The decoded film and the limits every file has to keep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heatlens.errors import ItemError

SMALLEST_SIDE = 16
"""pixels; below this there is nothing to look at, and a resize kernel has no support"""
LARGEST_AREA = 120_000_000
"""pixels; four times the largest radiography detector. Above it a file is a decompression bomb or a slide scan"""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Film:
    """A decoded image.

    ``pixels`` is uint8, (H, W) for grey and (H, W, 3) RGB for colour: the whole film, in fewer pixels where it was
    decoded at a smaller scale. ``size`` stays the film's own. ``format`` is what the file's content is
    (``jpeg``, ``png``, ``bmp``, ``tiff``, ``webp``, ``dicom``), whatever its name says. ``bits`` is the depth
    of the grey scale in the file: 8, or that of a deeper file's values (a 12-bit film in a 16-bit file has 12).
    ``notes`` says in words what decoding changed (scaled, inverted, turned, composited, first frame of many).
    ``source`` is the (width, height) of the file where ``pixels`` are fewer, else None.
    """

    pixels: Pixels
    format: str
    bits: int
    notes: tuple[str, ...] = ()
    source: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the film as it is in the file, upright; ``pixels`` may be fewer."""
        return self.source or (self.pixels.shape[1], self.pixels.shape[0])


def check_size(width: int, height: int) -> None:
    """Refuse a picture by the size its header claims, before a pixel is decoded. Raises ItemError."""
    if width < 1 or height < 1:
        raise ItemError("decode", f"the header claims {width}x{height} pixels")
    if min(width, height) < SMALLEST_SIDE:
        raise ItemError("decode", f"{width}x{height} pixels is too small (at least {SMALLEST_SIDE} a side)")
    if width * height > LARGEST_AREA:
        limit = LARGEST_AREA // 1_000_000
        raise ItemError("decode", f"the header claims {width}x{height} pixels (at most {limit} megapixels)")


def depth_of(largest: int) -> int:
    """Bits of the smallest grey scale, 8 to 16, that holds the value ``largest``."""
    return min(16, max(8, int(largest).bit_length()))


def to_eight_bits(values: npt.NDArray[np.integer], bits: int) -> Pixels:
    """Grey levels 0..2^bits-1 as uint8 0..255, rounded; nothing is stretched and the order is kept."""
    full = (1 << bits) - 1
    table = (np.arange(full + 1, dtype=np.uint32) * 510 + full) // (2 * full)
    return np.take(table.astype(np.uint8), values, mode="clip")


def grey_if_equal(pixels: Pixels) -> Pixels:
    """(H, W) when the three channels of an (H, W, 3) picture are the same, else the picture unchanged."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return np.ascontiguousarray(red)
    return pixels
