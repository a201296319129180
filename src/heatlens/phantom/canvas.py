"""Drawing in body coordinates.

Anatomy is described in *body units*: the origin is the middle of the chest, x grows towards image right (the
patient's left), y grows downwards, and one unit is half the film's shorter side at zoom 1. A `Canvas` turns
body units into pixels of one film size, so the same anatomy can be drawn at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Points = npt.NDArray[np.float64]

_SHIFT = 4  # cv2 takes fixed-point vertices: 1/16 pixel


@dataclass(frozen=True)
class Placement:
    """How the patient stands before the detector: zoom (about 1), tilt in radians, shift (x, y) in body
    units."""

    zoom: float = 1.0
    tilt: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)


class Canvas:
    """A film of `width` x `height` pixels with a placement; draws anti-aliased shapes given in body units."""

    def __init__(self, width: int, height: int, placement: Placement) -> None:
        self.width, self.height, self.placement = width, height, placement
        self.scale = 0.5 * min(width, height) * placement.zoom
        """pixels per body unit"""
        cos, sin = np.cos(placement.tilt), np.sin(placement.tilt)
        self._rotation = np.array([[cos, -sin], [sin, cos]])
        self._centre = np.array([width, height]) / 2 - 0.5  # pixel centres lie on integers

    def pixels(self, points: Points) -> Points:
        """Body units (N, 2) -> pixel coordinates (N, 2), x then y, pixel centres on integers."""
        return (np.asarray(points) @ self._rotation.T + self.placement.shift) * self.scale + self._centre

    def empty(self) -> npt.NDArray[np.uint8]:
        """A black layer, uint8 (H, W)."""
        return np.zeros((self.height, self.width), np.uint8)

    def fill(
        self, points: Points, value: int = 255, layer: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Fill a closed polygon (N, 2) with `value` 0..255 on `layer` (a new one by default), anti-aliased."""
        layer = self.empty() if layer is None else layer
        vertices = np.round(self.pixels(points) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(layer, [vertices], value, lineType=cv2.LINE_AA, shift=_SHIFT)
        return layer

    def stroke(
        self, points: Points, width: float | Points, value: int = 255, layer: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Draw a curve (N, 2) as a ribbon; `width` in body units, one number or one per point."""
        return self.fill(ribbon(points, width), value, layer)

    def soft(self, layer: Array, sigma: float) -> Array:
        """A layer as float32 0..1, blurred by `sigma` body units."""
        out = layer.astype(np.float32) * np.float32(1 / 255)
        pixels = sigma * self.scale
        return cv2.GaussianBlur(out, (0, 0), pixels) if pixels > 0.3 else out

    def lattice(self, long_side: int) -> Canvas:
        """The same film on a coarse pixel grid: very smooth layers are drawn there and enlarged."""
        factor = long_side / max(self.width, self.height)
        return Canvas(max(2, round(self.width * factor)), max(2, round(self.height * factor)), self.placement)

    def enlarge(self, layer: Array) -> Array:
        """Resize a layer of any grid to this canvas (half-pixel centres), float32 (H, W)."""
        shrink = layer.shape[0] > self.height
        return cv2.resize(
            layer, (self.width, self.height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        )

    def noise(self, rng: np.random.Generator, cells: int) -> Array:
        """Smooth noise with `cells` cells along the long side, the same pattern at every resolution, about
        N(0, 1)."""
        grid = self.lattice(cells)
        return self.enlarge(rng.standard_normal((grid.height, grid.width), dtype=np.float32))


def ribbon(points: Points, width: float | Points) -> Points:
    """The outline (2N, 2) of a curve (N, 2) of the given width."""
    points = np.asarray(points, float)
    along = np.gradient(points, axis=0)
    length = np.hypot(along[:, 0], along[:, 1]) + 1e-9
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / length[:, None]
    half = normal * (np.broadcast_to(np.asarray(width, float), len(points))[:, None] / 2)
    return np.concatenate([points + half, (points - half)[::-1]])


def curve(points: object, steps: int = 8, closed: bool = False) -> Points:
    """A Catmull-Rom curve through points (N, 2): `steps` points per segment."""
    p = np.asarray(points, float)
    before, after = (p[-1:], p[:2]) if closed else (p[:1], p[-1:])
    q = np.concatenate([before, p, after])
    a, b, c, d = (q[i : len(q) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    out = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    out = out.reshape(-1, 2)
    return out if closed else np.concatenate([out, p[-1:]])


def ellipse(centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0, steps: int = 40) -> Points:
    """The outline (steps, 2) of an ellipse; radii in body units, angle in radians."""
    t = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    x, y = radii[0] * np.cos(t), radii[1] * np.sin(t)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos], 1)
