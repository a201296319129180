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

WORK_SIDE = 512
OPENING_RADIUS = 6
STROKE_RADIUS = 2
CENTRE = 0.6
CENTRE_BODY = 0.99


@dataclass(frozen=True)
class BodyMask:
    """``small`` bool (h, w), True on the body, of a film of ``size`` (width, height).

    ``whole_film``: no body was cut out, for the ``reason`` given.
    """

    small: NDArray[np.bool_]
    size: tuple[int, int]
    whole_film: bool
    reason: str = ""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """At the film's own size, (H, W)."""
        return self.at(self.size)

    @property
    def fraction(self) -> float:
        """The body's share of the film."""
        return float(self.small.mean())

    def at(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """At ``size`` (width, height): what is nearer to body than to background, between the small pixels' centres."""
        if self.small.all():
            return np.ones((size[1], size[0]), dtype=bool)
        return cv2.resize(self.small.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5


def body_mask(pixels: NDArray[np.uint8]) -> BodyMask:
    """The body on a film, uint8 (H, W) or (H, W, 3).

    Works on a copy of at most 512 pixels. A film that fills its frame is not cut. When the middle 60% of the
    film is not at least 99% body the mask cannot be right (lungs that reach the film's edge, an inverted grey
    scale, an odd view), and the whole film is kept with the reason on record.
    """
    small = _small_grey(pixels)
    size = pixels.shape[1], pixels.shape[0]
    if int(small.min()) == int(small.max()):
        return _whole(size, "the film is blank")
    body = _body(small)
    share = float(_centre(body).mean())
    if share < CENTRE_BODY:
        return _whole(size, f"only {100 * share:.1f}% of the film's middle would be body")
    return BodyMask(body, size, whole_film=False)


def pixels_needed(longest: int | None, *, mask_body: bool) -> int | None:
    """How many pixels along the film's longer side are needed for a picture of ``longest`` (None: the film's own size)
    and, where one is made, for the body mask; None for all."""
    return max(longest, WORK_SIDE if mask_body else 0) if longest else None


def _body(small: NDArray[np.uint8]) -> NDArray[np.bool_]:
    scale = max(small.shape) / WORK_SIDE
    plain = cv2.morphologyEx(small, cv2.MORPH_OPEN, _disk(max(1, round(STROKE_RADIUS * scale))))
    dark = plain <= _otsu(small) / 2
    radius = max(1, round(OPENING_RADIUS * scale))
    # The edge goes on outside: a dark strip along it, thinner than the disk, is background all the same.
    padded = np.pad(dark, radius, mode="edge").astype(np.uint8)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, _disk(radius))[radius:-radius, radius:-radius].astype(bool)
    largest = _largest_part(~_at_the_border(opened, connectivity=8))
    if not largest.any():
        return largest
    # With its holes filled: all that is not around it.
    return ~_at_the_border(~largest, connectivity=4)


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part (four neighbours) of ``mask`` (h, w); nothing of an empty one."""
    height, width = mask.shape
    if mask[height // 2, width // 2]:  # nearly always the body: one flood is ten times cheaper than labels for all
        part = mask.astype(np.uint8)
        area, *_ = cv2.floodFill(part, None, (width // 2, height // 2), 2, flags=4)
        if 2 * area > np.count_nonzero(mask):
            return part == 2
    _, parts, numbers, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    areas = numbers[1:, cv2.CC_STAT_AREA]
    return parts == 1 + int(areas.argmax()) if len(areas) else np.zeros_like(mask)


def _at_the_border(mask: NDArray[np.bool_], connectivity: int) -> NDArray[np.bool_]:
    """Those parts of ``mask`` (h, w) that touch its border: what a flood from a rim around it reaches."""
    rim = np.pad(mask, 1, constant_values=True).view(np.uint8)
    cv2.floodFill(rim, None, (0, 0), 2, flags=connectivity)
    return rim[1:-1, 1:-1] == 2


def _otsu(small: NDArray[np.uint8]) -> float:
    """Otsu's threshold, in the middle of the gap where several thresholds split the levels alike."""
    levels = np.arange(256)
    counts = cv2.calcHist([small], [0], None, [256], [0, 256]).ravel().astype(np.int64)  # 512 x 512 fits in float32
    below, sums = np.cumsum(counts), np.cumsum(counts * levels)
    above = below[-1] - below
    with np.errstate(invalid="ignore"):
        # Weights in single precision: near ties are then decided as scikit-image decides them.
        weights = below.astype(np.float32) * above.astype(np.float32)
        between = weights * (sums / below - (sums[-1] - sums) / above) ** 2
    low = int(np.nanargmax(between))
    # The lowest of equals: on a clean film half of that lies within the noise of the air.
    return (low + int(levels[(levels > low) & (counts > 0)].min())) / 2


def _disk(radius: int) -> NDArray[np.uint8]:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(kernel, dtype=np.uint8)


def _small_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    while max(grey.shape) >= 2 * WORK_SIDE:  # halves are many times faster than odd scales
        half = (max(1, grey.shape[1] // 2), max(1, grey.shape[0] // 2))
        grey = cv2.resize(grey, half, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    scale = WORK_SIDE / max(grey.shape)
    if scale >= 1:
        return grey
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    height, width = mask.shape
    top, left = round(height * (1 - CENTRE) / 2), round(width * (1 - CENTRE) / 2)
    return mask[top : max(height - top, top + 1), left : max(width - left, left + 1)]


def _whole(size: tuple[int, int], reason: str) -> BodyMask:
    return BodyMask(np.ones((1, 1), dtype=bool), size, whole_film=True, reason=reason)
