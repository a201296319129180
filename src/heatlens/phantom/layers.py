"""What an x-ray meets on its way: the aerated share of the chest and everything denser than soft tissue.

`render_anatomy` returns three float32 maps (H, W): `thick` (soft tissue thickness, 0 outside the body, about 1
in the chest), `air` (aerated share, 0..1) and `dense` (attenuation added by bone, vessels and the like).
Findings then change `air` and `dense`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from heatlens.phantom.anatomy import SIDES, Anatomy
from heatlens.phantom.canvas import Array, Canvas, Points, curve, ellipse, ribbon


@dataclass
class Layers:
    """The attenuation maps of one film, float32 (H, W) each."""

    thick: Array
    air: Array
    dense: Array
    vessels: Array
    """lung markings, apart from `dense` because a pneumothorax has none"""


def render_anatomy(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator, heart: Points) -> Layers:
    """Draw the patient. The order of the random draws is fixed: the same generator state gives the same film
    at any size."""
    vessels = _vessels(canvas, anatomy, rng)
    return Layers(
        thick=_thickness(canvas, anatomy, rng),
        air=_aeration(canvas, anatomy, rng, heart),
        dense=_bones(canvas, anatomy, rng) + _soft_shadows(canvas, rng),
        vessels=vessels,
    )


def _thickness(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> Array:
    outline = canvas.fill(anatomy.body)
    coarse = canvas.lattice(96)
    trunk = coarse.soft(coarse.fill(anatomy.body), 0.10)
    rows = (np.arange(coarse.height) - coarse.height / 2) / coarse.scale
    belly = rng.uniform(0.15, 0.4) / (1 + np.exp(-(rows - 0.55) / 0.12))
    neck = -rng.uniform(0.1, 0.25) / (1 + np.exp((rows + 0.85) / 0.08))
    profile = (0.45 + 0.55 * trunk) * (1 + belly + neck)[:, None].astype(np.float32)
    wide = rng.uniform(0.20, 0.26, 2)
    for arm, width in zip(anatomy.arms, wide, strict=True):
        outline = np.maximum(outline, canvas.stroke(arm, width))
    uneven = 1 + 0.05 * coarse.noise(rng, 5)
    return canvas.soft(outline, 0.007) * canvas.enlarge((profile * uneven).astype(np.float32))


def _aeration(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator, heart: Points) -> Array:
    lungs = canvas.empty()
    for lung in anatomy.lungs.values():
        canvas.fill(lung, layer=lungs)
    solid = canvas.soft(canvas.fill(heart, layer=canvas.fill(anatomy.mediastinum)), 0.010)
    behind = rng.uniform(0.06, 0.16)  # lung in front of and behind the heart
    air = canvas.soft(lungs, 0.008) * (1 - (1 - behind) * solid)
    windpipe = canvas.soft(canvas.stroke(anatomy.trachea, rng.uniform(0.075, 0.095)), 0.008)
    x, y = anatomy.carina
    bronchi = canvas.empty()
    for sign, reach, down in ((-1, 0.13, 0.12), (1, 0.17, 0.10)):
        canvas.stroke(curve([(x, y - 0.02), (x + sign * 0.5 * reach, y + 0.5 * down), (x + sign * reach, y + down)]),
                      np.linspace(0.06, 0.035, 17), layer=bronchi)  # fmt: skip
    air = np.maximum(air, rng.uniform(0.26, 0.42) * np.maximum(windpipe, 0.75 * canvas.soft(bronchi, 0.008)))
    gas = canvas.soft(canvas.fill(anatomy.bubble), 0.012) * rng.uniform(0.0, 0.6)
    haze = 1 + 0.07 * canvas.lattice(96).noise(rng, 7) + 0.05 * canvas.lattice(96).noise(rng, 22)
    return np.maximum(air, gas) * canvas.enlarge(haze.astype(np.float32))


def _bones(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> Array:
    back, front, collar = canvas.empty(), canvas.empty(), canvas.empty()
    for sign in SIDES.values():
        _ribs(canvas, anatomy, rng, sign, back, front)
        dy = rng.normal(0, 0.02)
        clavicle = curve(np.array([(0.06, -0.52 + dy), (0.25, -0.60 + dy), (0.5, -0.66 + dy), (0.82, -0.82)])
                         * [sign * anatomy.width, anatomy.height])  # fmt: skip
        _bone(canvas, clavicle, rng.uniform(0.05, 0.065), collar)
        blade = curve(
            [(sign * 0.80, -0.72), (sign * 0.66, -0.5), (sign * 0.70, -0.05), (sign * 0.86, -0.5)], closed=True
        )
        canvas.fill(blade * [anatomy.width, 1], 90, collar)
        canvas.fill(ellipse((sign * 0.93 * anatomy.width, -0.66), (0.10, 0.11)), 200, collar)
        _bone(canvas, anatomy.arms[max(sign, 0)], 0.09, collar)
    spine = _spine(canvas, anatomy, rng)
    strength = rng.uniform(0.8, 1.25)
    bone = 0.115 * canvas.soft(back, 0.005) + 0.08 * canvas.soft(front, 0.007) + 0.17 * canvas.soft(collar, 0.005)
    return strength * (bone + rng.uniform(0.10, 0.18) * spine)


def _ribs(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator, sign: int, back: object, front: object) -> None:
    count, gap = int(rng.integers(9, 12)), rng.uniform(0.128, 0.146)
    t = np.linspace(0, 1, 24)
    slope = rng.uniform(0.16, 0.26)
    thick = rng.uniform(0.042, 0.052)
    for number in range(count):
        top = -0.82 + number * gap + rng.normal(0, 0.006)
        wall = float(np.interp(top + slope, [-0.8, -0.6, -0.35, 0.0, 0.4, 0.8], [0.30, 0.50, 0.61, 0.67, 0.69, 0.66]))
        x = 0.07 + (wall - 0.07) * np.sin(0.5 * np.pi * t)
        y = top - 0.035 * np.sin(np.pi * t) + slope * (1 - np.cos(0.5 * np.pi * t)) ** 1.2
        scale = [sign * anatomy.width, anatomy.height]
        _bone(canvas, np.stack([x, y], 1) * scale, thick, back)
        if 1 <= number <= 7:  # the front ends run down and inwards, and stop where cartilage begins
            end = wall - rng.uniform(0.22, 0.34)
            fx = wall - 0.012 - (wall - end) * (1 - np.cos(0.5 * np.pi * t))
            fy = top + slope + rng.uniform(0.14, 0.2) * np.sin(0.5 * np.pi * t)
            _bone(canvas, np.stack([fx, fy], 1) * scale, thick * np.linspace(0.9, 1.25, 24), front)


def _bone(canvas: Canvas, line: Points, width: float | Points, layer: object) -> None:
    """A bone is brightest at its edges, where the cortex is seen side-on."""
    canvas.stroke(line, width, 255, layer)  # type: ignore[arg-type]
    canvas.stroke(line, np.asarray(width) * 0.62, 170, layer)  # type: ignore[arg-type]


def _spine(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> Array:
    layer = canvas.empty()
    y, x = -1.15, rng.normal(0, 0.01)
    half, tall = rng.uniform(0.062, 0.078), rng.uniform(0.10, 0.118)
    while y < 1.7:
        waist, low = 0.88 * half, 0.82 * tall
        body = np.array([(-half, 0), (half, 0), (waist, 0.4 * tall), (half, low), (-half, low), (-waist, 0.4 * tall)])
        canvas.fill((body + np.array([x, y])) * [1, anatomy.height], 190, layer)
        canvas.fill(ellipse((x, (y + 0.5 * tall) * anatomy.height), (0.014, 0.035), steps=12), 255, layer)
        y, x, tall = y + tall, x + rng.normal(0, 0.003), tall * 1.012
    return canvas.soft(layer, 0.007)


def _vessels(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> Array:
    """Branching lung markings from each hilum, with a few vessels seen end-on: small round distractors."""
    layer, dots = canvas.empty(), canvas.empty()
    size = np.array([anatomy.width, anatomy.height])
    for sign in SIDES.values():
        root = np.array([sign * 0.12, -0.06 if sign > 0 else -0.02])
        for angle in np.linspace(-1.35, 1.35, 9) + rng.normal(0, 0.08, 9):
            length = rng.uniform(0.3, 0.62) * (0.75 + 0.25 * abs(np.sin(angle)))
            stem = _branch(rng, root, sign, angle, length)
            canvas.fill(ribbon(stem * size, np.linspace(rng.uniform(0.022, 0.042), 0.004, len(stem))), 255, layer)
            for start in (7, 13):
                twig = _branch(
                    rng, stem[start], sign, angle + rng.choice([-1, 1]) * rng.uniform(0.3, 0.7), 0.45 * length
                )
                canvas.fill(ribbon(twig * size, np.linspace(0.014, 0.003, len(twig))), 190, layer)
        for _ in range(int(rng.integers(1, 5))):
            spot = (root + rng.uniform(0.05, 0.3) * np.array([sign * rng.uniform(0.4, 1), rng.uniform(-1, 1)])) * size
            canvas.fill(ellipse((spot[0], spot[1]), (rng.uniform(0.012, 0.022),) * 2, steps=14), 255, dots)
        hilum = ellipse(tuple(root * size), (rng.uniform(0.05, 0.075), rng.uniform(0.09, 0.13)), 0.25 * sign)
        canvas.fill(hilum, 150, layer)
    strength = rng.uniform(0.7, 1.3)
    return strength * (0.16 * canvas.soft(layer, 0.008) + 0.10 * canvas.soft(dots, 0.005))


def _branch(rng: np.random.Generator, start: Points, sign: int, angle: float, length: float) -> Points:
    """A gently bending line (21, 2) from `start`; angle 0 points away from the midline."""
    t = np.linspace(0, 1, 21)[:, None]
    way = np.array([[sign * np.cos(angle), np.sin(angle)]])
    across = np.array([[-way[0, 1], way[0, 0]]])
    return start + way * (t * length) + across * (rng.normal(0, 0.12) * length * t**2)


def _soft_shadows(canvas: Canvas, rng: np.random.Generator) -> Array:
    """Breasts, muscle and skin folds: smooth, large, and normal."""
    coarse = canvas.lattice(160)
    layer = np.zeros((coarse.height, coarse.width), np.float32)
    breasts, strength = rng.random() < 0.45, rng.uniform(0.05, 0.16)
    for sign in SIDES.values():
        middle = (sign * rng.uniform(0.36, 0.46), rng.uniform(0.18, 0.42))
        shape = coarse.fill(ellipse(middle, (rng.uniform(0.26, 0.36), rng.uniform(0.22, 0.34))))
        pectoral = coarse.fill(ellipse((sign * 0.6, -0.45), (0.25, 0.3), sign * 0.6))
        layer += strength * coarse.soft(shape, 0.02) * breasts + rng.uniform(0, 0.07) * coarse.soft(pectoral, 0.04)
    fine = 0.018 * canvas.enlarge(cv2.GaussianBlur(coarse.noise(rng, 80), (0, 0), 0.8))
    return canvas.enlarge(layer) + fine
