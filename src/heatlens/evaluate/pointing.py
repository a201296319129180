"""The pointing game: does the map's maximum lie on the finding?

Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016, https://arxiv.org/abs/1608.00507.
A map counts as a hit when its maximum is on the mask, or within a tolerance that is always named beside the
figure: a patch of a ViT is 16 pixels wide, so patch centres alone miss thin tubes that the patch does cover.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.render.peak import peak

FRAME = 224  # tolerances are in pixels of a film scaled so that its longer side is this


@dataclass(frozen=True)
class Outcome:
    """Distance from the pointed-at pixel to the mask, in pixels of a 224 frame; 0 = on the mask."""

    distance: float

    def hit(self, tolerance: float = 0.0) -> bool:
        """On the mask, or at most ``tolerance`` pixels (of 224) away from it."""
        return self.distance <= tolerance


def mask_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """For every pixel of ``mask`` (H, W) the distance to the nearest mask pixel, in pixels of a 224 frame."""
    if not mask.any():
        raise ValueError("the mask is empty: nothing can be pointed at")
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return (outside * (FRAME / max(mask.shape))).astype(np.float32)


def point(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> Outcome:
    """The outcome of a map (H, W) in the film's own pixels against the finding's mask (H, W)."""
    x, y = peak(values)
    return Outcome(float(mask_distance(mask)[y, x]))


def centre_baseline(mask: NDArray[np.bool_]) -> Outcome:
    """Always pointing at the middle of the film."""
    height, width = mask.shape
    return Outcome(float(mask_distance(mask)[height // 2, width // 2]))


def random_baseline(mask: NDArray[np.bool_], tolerance: float = 0.0) -> float:
    """The exact chance that a uniformly random pixel of the film is a hit: the share of pixels that would be."""
    return float((mask_distance(mask) <= tolerance).mean())
