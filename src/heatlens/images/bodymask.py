"""The body mask: what of a film is patient, and not air, marker or burned-in text.

"Otsu, largest component, fill" deletes lungs: they are as dark as air. Here the *background* is looked for:
pixels at or below half the Otsu threshold, opened, and connected to the border. Lungs are enclosed by the body
and stay. The largest connected rest, with its holes filled, is the body; large letters in the background are
islands and go. Thin bright strokes (a line of burned-in text that fences the background off from the border) are
removed before the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.segmentation import clear_border

WORK_SIDE = 512
OPENING_RADIUS = 6
STROKE_RADIUS = 2
CENTRE = 0.6
CENTRE_BODY = 0.99


@dataclass(frozen=True)
class BodyMask:
    """``mask`` bool (H, W), True on the body. ``whole_film``: no body was cut out, for the ``reason`` given."""

    mask: NDArray[np.bool_]
    whole_film: bool
    reason: str = ""


def body_mask(pixels: NDArray[np.uint8]) -> BodyMask:
    """The body on a film, uint8 (H, W) or (H, W, 3).

    Works on a copy of at most 512 pixels. A film that fills its frame is not cut. When the middle 60% of the
    film is not at least 99% body the mask cannot be right (lungs that reach the film's edge, an inverted grey
    scale, an odd view), and the whole film is kept with the reason on record.
    """
    small = _small_grey(pixels)
    if int(small.min()) == int(small.max()):
        return _whole(pixels, "the film is blank")
    body = _body(small)
    share = float(_centre(body).mean())
    if share < CENTRE_BODY:
        return _whole(pixels, f"only {100 * share:.1f}% of the film's middle would be body")
    height, width = pixels.shape[:2]
    full = cv2.resize(body.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return BodyMask(full >= 0.5, whole_film=False)


def _body(small: NDArray[np.uint8]) -> NDArray[np.bool_]:
    scale = max(small.shape) / WORK_SIDE
    plain = cv2.morphologyEx(small, cv2.MORPH_OPEN, _disk(max(1, round(STROKE_RADIUS * scale))))
    dark = plain <= _otsu(small) / 2
    radius = max(1, round(OPENING_RADIUS * scale))
    # The edge goes on outside: a dark strip along it, thinner than the disk, is background all the same.
    padded = np.pad(dark, radius, mode="edge").astype(np.uint8)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, _disk(radius))[radius:-radius, radius:-radius].astype(bool)
    background = opened & ~clear_border(opened)
    parts = label(~background, connectivity=1)
    if not parts.any():
        return np.zeros_like(dark)
    largest = int(np.bincount(parts[parts > 0]).argmax())
    filled: NDArray[np.bool_] = binary_fill_holes(parts == largest)
    return filled


def _otsu(small: NDArray[np.uint8]) -> float:
    """Otsu's threshold, in the middle of the gap where several thresholds split the levels alike.

    scikit-image returns the lowest of them; on a clean film half of that lies within the noise of the air.
    """
    low = int(threshold_otsu(small))
    above = small[small > low]
    return (low + int(above.min())) / 2 if above.size else float(low)


def _disk(radius: int) -> NDArray[np.uint8]:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(kernel, dtype=np.uint8)


def _small_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    scale = WORK_SIDE / max(grey.shape)
    if scale >= 1:
        return grey
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    height, width = mask.shape
    top, left = round(height * (1 - CENTRE) / 2), round(width * (1 - CENTRE) / 2)
    return mask[top : max(height - top, top + 1), left : max(width - left, left + 1)]


def _whole(pixels: NDArray[np.uint8], reason: str) -> BodyMask:
    return BodyMask(np.ones(pixels.shape[:2], dtype=bool), whole_film=True, reason=reason)
