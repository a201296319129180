"""The anatomy of one patient: outlines in body units, sampled from a random generator.

Image left is the patient's right, as on every frontal film. Side factors: right = -1 (negative x), left = +1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heatlens.phantom.canvas import Points, curve, ellipse

SIDES = {"right": -1, "left": 1}
ZONES = ("upper", "mid", "lower")

# Right lung (x mirrored to positive), from the apex along the chest wall, the dome and back up the mediastinum.
_LUNG = [
    (0.27, -0.79), (0.42, -0.69), (0.54, -0.43), (0.62, -0.10), (0.665, 0.25), (0.68, 0.50), (0.675, 0.64),
    (0.66, 0.67), (0.57, 0.55), (0.39, 0.47), (0.22, 0.51), (0.13, 0.60), (0.10, 0.30), (0.09, 0.0),
    (0.09, -0.30), (0.11, -0.60), (0.17, -0.75),
]  # fmt: skip
_DOME = slice(6, 12)  # those of the points above that breathe with the diaphragm


@dataclass(frozen=True)
class Anatomy:
    """One patient. Lengths in body units; polygons as arrays (N, 2)."""

    lungs: dict[str, Points]
    heart: Points
    heart_big: Points
    """the same heart with a cardiothoracic ratio of 0.56 to 0.66 instead of 0.36 to 0.49"""
    trachea: Points
    carina: tuple[float, float]
    body: Points
    arms: list[Points]
    mediastinum: Points
    width: float
    height: float
    """factors on the standard chest, about 0.9 to 1.1"""
    dome: dict[str, float]
    """y of the top of each half of the diaphragm"""
    apex: float
    base: float
    """y of the lungs' top and of the costophrenic angles"""
    bubble: Points
    """gas in the stomach, under the left dome"""
    stomach: tuple[float, float]

    def zone_limits(self, zone: str) -> tuple[float, float]:
        """The y range of a lung zone: thirds of the lung's height."""
        third = (self.base - self.apex) / 3
        index = ZONES.index(zone)
        return self.apex + index * third, self.apex + (index + 1) * third


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient within normal variation."""
    width, height = rng.uniform(0.9, 1.08), rng.uniform(0.88, 1.1)
    breath = rng.uniform(-0.05, 0.06)
    drop = {"right": breath, "left": breath + rng.uniform(0.0, 0.07)}
    size = np.array([width, height])
    lungs, dome = {}, {}
    for side, sign in SIDES.items():
        points = np.array(_LUNG) + rng.normal(0, 0.008, (len(_LUNG), 2))
        points[_DOME, 1] += drop[side]
        dome[side] = float(points[9, 1] * height)
        lungs[side] = curve(points * size * [sign, 1], 6, closed=True)
    apex = float(min(lung[:, 1].min() for lung in lungs.values()))
    base = float(max(lung[:, 1].max() for lung in lungs.values()))
    bend = rng.uniform(-0.02, 0.03)
    carina = (bend, (-0.16 + rng.uniform(-0.03, 0.04)) * height)
    shape = rng.normal(0, 0.006, (9, 2))
    ratio, big = rng.uniform(0.36, 0.49), rng.uniform(0.56, 0.66)
    stomach = (rng.uniform(0.28, 0.42) * width, dome["left"] + rng.uniform(0.12, 0.2))
    return Anatomy(
        lungs=lungs,
        heart=_heart(ratio, shape, width, height, drop["right"]),
        heart_big=_heart(big, shape, width, height, drop["right"]),
        trachea=curve([(0.0, -1.6), (0.3 * bend, -0.9 * height), (bend, -0.5 * height), carina]),
        carina=carina,
        body=_body(rng, width),
        arms=[_arm(rng, sign, width) for sign in SIDES.values()],
        mediastinum=_mediastinum(rng, width, height),
        width=width,
        height=height,
        dome=dome,
        apex=apex,
        base=base,
        bubble=ellipse(
            (stomach[0], dome["left"] + rng.uniform(0.06, 0.11)),
            (rng.uniform(0.05, 0.15), rng.uniform(0.03, 0.06)),
            rng.uniform(-0.3, 0.3),
        ),
        stomach=stomach,
    )


def _heart(ratio: float, shape: Points, width: float, height: float, drop: float) -> Points:
    """The heart's outline for a cardiothoracic ratio (heart width over the lungs' outer width 1.34)."""
    total = ratio * 1.34
    right, left = 0.32 * total, 0.68 * total
    long = 1 + 0.35 * max(0.0, ratio - 0.5)
    top, bottom = -0.06 - 0.1 * max(0.0, ratio - 0.5), 0.64 + drop
    points = np.array([
        (-0.06, top), (-0.85 * right, 0.12 / long), (-right, 0.32), (-0.8 * right, 0.52 + drop), (0.02, bottom),
        (0.65 * left, bottom - 0.03), (left, 0.50 + drop), (0.78 * left, 0.22 / long), (0.10 + 0.1 * left, top),
    ])  # fmt: skip
    return curve((points + shape) * [width, height], 6, closed=True)


def _mediastinum(rng: np.random.Generator, width: float, height: float) -> Points:
    """Great vessels with the aortic knob on the patient's left."""
    knob = rng.uniform(0.14, 0.19)
    vena = -rng.uniform(0.10, 0.135)
    points = [
        (-0.09, -1.0), (vena, -0.62), (vena, -0.3), (vena, 0.05), (-0.1, 0.7), (0.21, 0.80), (0.13, 0.1),
        (0.15, -0.06), (0.105, -0.16), (knob, -0.28), (0.85 * knob, -0.38), (0.105, -0.46), (0.1, -0.7),
        (0.08, -1.0),
    ]  # fmt: skip
    return curve(np.array(points) * [width, height], 5, closed=True)


def _body(rng: np.random.Generator, width: float) -> Points:
    """Neck, shoulders and trunk."""
    neck, shoulder = rng.uniform(0.22, 0.30), rng.uniform(-0.86, -0.76)
    wall = rng.uniform(0.80, 0.92) * width
    half = [
        (neck, -1.7), (neck, -1.12), (neck + 0.06, -1.02), (0.55, shoulder - 0.05), (0.86, shoulder + 0.06),
        (wall + 0.10, -0.45), (wall, -0.15), (wall, 0.4), (wall - 0.02, 1.0), (wall, 1.8),
    ]  # fmt: skip
    right = [(-x, y) for x, y in half]
    return curve(half + right[::-1], 6, closed=True)


def _arm(rng: np.random.Generator, sign: int, width: float) -> Points:
    """An upper arm hanging away from the trunk, often cut off by the film's edge."""
    away = rng.uniform(1.0, 1.3) * width
    return curve(
        [(sign * 0.84, -0.62), (sign * (away + 0.02), -0.35), (sign * (away + 0.1), 0.3), (sign * (away + 0.16), 1.2)]
    )
