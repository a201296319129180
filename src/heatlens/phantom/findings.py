"""Findings: what is sampled, how it is drawn, and the exact mask of each.

A mask holds the pixels whose attenuation the finding itself changes:

=================== ==========================================================================================
endotracheal tube   the tube, from the film's upper edge to its tip above the carina
nasogastric tube    the tube, from the neck to the stomach
pacemaker           the generator only. Its lead is drawn too but is not part of the mask: a lead runs to
                    the heart, and "where is the pacemaker" asks for the box under the clavicle
nodule              the round shadow, out to half its contrast
consolidation       the opacity, out to half its strength, inside the lung and beside the heart
pleural effusion    the fluid inside the lung field: from the meniscus to the diaphragm
pneumothorax        the air between the chest wall and the edge of the lung
enlarged heart      the whole heart
=================== ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from heatlens.phantom.anatomy import SIDES, ZONES, Anatomy
from heatlens.phantom.canvas import Array, Canvas, Points, curve, ellipse
from heatlens.phantom.layers import Layers

NAMES = (
    "endotracheal tube", "nasogastric tube", "pacemaker", "nodule",
    "consolidation", "pleural effusion", "pneumothorax", "enlarged heart",
)  # fmt: skip
SINGLE = {"endotracheal tube", "nasogastric tube", "pacemaker", "enlarged heart"}
"""at most one of these on a film"""
COUNTS = (0.12, 0.36, 0.32, 0.20)
"""chance of 0, 1, 2, 3 findings on a film"""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Spec:
    """What is to be drawn: name, side ("right", "left", ""), zone ("upper", "mid", "lower", ""), and a seed
    for its shape."""

    name: str
    side: str
    zone: str
    seed: int


def sample_specs(rng: np.random.Generator, names: Sequence[str] | None = None) -> list[Spec]:
    """0 to 3 findings (or the given names) that do not hide one another: never two in one zone of one lung."""
    if names is None:
        names = [str(n) for n in rng.choice(NAMES, rng.choice(4, p=COUNTS))]
    specs: list[Spec] = []
    for name in names:
        if name in SINGLE and any(s.name == name for s in specs):
            continue
        for _ in range(8):
            spec = Spec(name, *_place(rng, name), seed=int(rng.integers(2**31)))
            if not any(_clash(spec, other) for other in specs):
                specs.append(spec)
                break
    return specs


def _place(rng: np.random.Generator, name: str) -> tuple[str, str]:
    side = str(rng.choice(list(SIDES)))
    if name in ("nodule", "consolidation"):
        return side, str(rng.choice(ZONES))
    if name == "pacemaker":
        return ("left" if rng.random() < 0.8 else "right"), "upper"
    return {"pleural effusion": (side, "lower"), "pneumothorax": (side, "upper")}.get(name, ("", ""))


def _clash(one: Spec, other: Spec) -> bool:
    """Do two findings share a place? A pneumothorax also rules out fluid and other opacities high in that
    lung."""
    if not one.side or one.side != other.side:
        return False
    names = {one.name, other.name}
    if "pneumothorax" in names and names & {"pleural effusion", "pacemaker", "pneumothorax"} - {"pneumothorax"}:
        return True
    return one.zone == other.zone


def draw(canvas: Canvas, anatomy: Anatomy, layers: Layers, spec: Spec) -> Mask:
    """Draw one finding onto the layers (in place) and return its mask, bool (H, W)."""
    return _DRAW[spec.name](canvas, anatomy, layers, spec, np.random.default_rng(spec.seed))


def _lung(canvas: Canvas, anatomy: Anatomy, side: str, heart: Points) -> npt.NDArray[np.uint8]:
    """The part of a lung that is not behind heart or great vessels, 0..255."""
    layer = canvas.fill(anatomy.lungs[side])
    return canvas.fill(anatomy.mediastinum, 0, canvas.fill(heart, 0, layer))


def _tube(canvas: Canvas, layers: Layers, line: Points, rng: np.random.Generator) -> Mask:
    """A plastic tube with an opaque stripe: 2 to 3 pixels of a 224-pixel frame."""
    width, strength = rng.uniform(0.021, 0.032), rng.uniform(0.20, 0.36)
    layer = canvas.stroke(line, width)
    layers.dense += strength * canvas.soft(layer, 0.002)
    return layer > 127


def _endotracheal(canvas: Canvas, anatomy: Anatomy, layers: Layers, _spec: Spec, rng: np.random.Generator) -> Mask:
    line = anatomy.trachea + np.array([rng.normal(0, 0.008), 0])
    tip = anatomy.carina[1] - rng.uniform(0.06, 0.26)
    line = line[line[:, 1] < tip]
    sway = 0.012 * np.sin(np.linspace(0, rng.uniform(2, 5), len(line)))
    return _tube(canvas, layers, line + np.stack([sway, 0 * sway], 1), rng)


def _nasogastric(canvas: Canvas, anatomy: Anatomy, layers: Layers, _spec: Spec, rng: np.random.Generator) -> Mask:
    x, y = anatomy.stomach
    hiatus = (rng.uniform(0.02, 0.08), anatomy.dome["left"] + 0.06)
    away = rng.choice([-1, 1]) * rng.uniform(0.025, 0.05)
    end = [(x, y + 0.05), (x + rng.uniform(-0.16, 0.12), y + rng.uniform(0.1, 0.25))]
    points = [
        (away * 1.5, -1.6),
        (away, -0.9),
        (0.03 + rng.normal(0, 0.012), -0.3),
        (rng.uniform(0.0, 0.06), 0.15),
        hiatus,
    ]
    return _tube(canvas, layers, curve(points + end, 10), rng)


def _pacemaker(canvas: Canvas, anatomy: Anatomy, layers: Layers, spec: Spec, rng: np.random.Generator) -> Mask:
    sign = SIDES[spec.side]
    centre = np.array([sign * rng.uniform(0.46, 0.62) * anatomy.width, rng.uniform(-0.56, -0.36)])
    half = np.array([rng.uniform(0.075, 0.10), rng.uniform(0.065, 0.09)])
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    box = (
        np.stack([np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.6, np.sign(np.sin(t)) * np.abs(np.sin(t)) ** 0.6], 1)
        * half
    )
    angle = rng.uniform(-0.5, 0.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    can = canvas.fill(box @ turn.T + centre)
    inside = canvas.fill(box @ turn.T * 0.7 + centre)
    tip = (rng.uniform(0.12, 0.26), rng.uniform(0.42, 0.55))
    veins = [(sign * 0.34, -0.60), (sign * 0.12, -0.50), (-0.09, -0.25), (-0.12, 0.2), (0.0, 0.42)]
    lead = curve([tuple(centre - [0, half[1]]), *veins, tip], 10)
    wire = canvas.soft(canvas.stroke(lead, 0.014), 0.002)
    layers.dense += rng.uniform(0.45, 0.8) * canvas.soft(can, 0.003) + 0.2 * canvas.soft(inside, 0.003) + 0.35 * wire
    return can > 127


def _spot(anatomy: Anatomy, spec: Spec, rng: np.random.Generator, margin: float, heart: Points) -> tuple[float, float]:
    """A point in the lung's zone at least `margin` from the lung's edge and clear of the heart (the best of 40
    tries)."""
    lung = anatomy.lungs[spec.side].astype(np.float32)
    solid = [heart.astype(np.float32), anatomy.mediastinum.astype(np.float32)]
    low, high = anatomy.zone_limits(spec.zone)
    best, depth = (0.0, 0.0), -np.inf
    for _ in range(40):
        point = (float(SIDES[spec.side] * rng.uniform(0.14, 0.64) * anatomy.width), float(rng.uniform(low, high)))
        inside = cv2.pointPolygonTest(lung, point, True)
        inside = min([inside, *(-cv2.pointPolygonTest(part, point, True) for part in solid)])
        if inside > depth:
            best, depth = point, inside
        if depth >= margin:
            break
    return best


def _blob(centre: tuple[float, float], radii: tuple[float, float], rough: float, rng: np.random.Generator) -> Points:
    """An irregular round outline (64, 2)."""
    points = ellipse(centre, radii, rng.uniform(0, np.pi), 64) - centre
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = sum(rng.normal(0, rough / n) * np.cos(n * t + rng.uniform(0, 6.3)) for n in range(2, 7))
    return points * (1 + np.clip(waves, -0.45, 0.6))[:, None] + centre


def _nodule(canvas: Canvas, anatomy: Anatomy, layers: Layers, spec: Spec, rng: np.random.Generator) -> Mask:
    radius = rng.uniform(0.043, 0.095)  # 4 to 9 pixels of a 224-pixel frame
    centre = _spot(anatomy, spec, rng, radius + 0.01, anatomy.heart)
    layer = canvas.fill(_blob(centre, (radius, radius * rng.uniform(0.85, 1.1)), 0.06, rng))
    layers.dense += rng.uniform(0.15, 0.30) * canvas.soft(layer, 0.012)
    return layer > 127


def _consolidation(canvas: Canvas, anatomy: Anatomy, layers: Layers, spec: Spec, rng: np.random.Generator) -> Mask:
    radii = (rng.uniform(0.10, 0.20), rng.uniform(0.10, 0.18))
    centre = _spot(anatomy, spec, rng, 0.08, anatomy.heart)
    patch = canvas.fill(_blob(centre, radii, 0.22, rng))
    lung = _lung(canvas, anatomy, spec.side, anatomy.heart)
    mask = (patch > 127) & (lung > 127)
    cloud = 0.8 + 0.2 * np.clip(canvas.noise(rng, 34), -2, 1.2)
    layers.air *= 1 - rng.uniform(0.40, 0.80) * canvas.soft(cv2.min(patch, lung), 0.022) * cloud
    return mask


def _effusion(canvas: Canvas, anatomy: Anatomy, layers: Layers, spec: Spec, rng: np.random.Generator) -> Mask:
    sign = SIDES[spec.side]
    level = anatomy.base - rng.uniform(0.20, 0.52)
    sag = rng.uniform(0.06, 0.20)
    t = np.linspace(0, 1, 20)
    surface = np.stack(
        [sign * (0.95 - 0.95 * t), level + sag * np.sin(0.5 * np.pi * np.clip(1.25 * t - 0.25, 0, 1)) ** 1.5], 1
    )
    pool = np.concatenate([surface, [(0.0, 1.4), (sign * 0.95, 1.4)]])
    layer = cv2.min(canvas.fill(pool), _lung(canvas, anatomy, spec.side, anatomy.heart))
    layers.air *= 1 - rng.uniform(0.82, 1.0) * canvas.soft(layer, 0.012)
    return layer > 127


def _pneumothorax(canvas: Canvas, anatomy: Anatomy, layers: Layers, spec: Spec, rng: np.random.Generator) -> Mask:
    sign = SIDES[spec.side]
    hilum = np.array([sign * 0.14, 0.05])
    lung = anatomy.lungs[spec.side]
    end = anatomy.apex + rng.uniform(0.5, 0.8) * (anatomy.base - anatomy.apex)
    high = np.clip((end - lung[:, 1]) / (end - anatomy.apex), 0, 1) ** 0.6
    outer = np.clip((np.abs(lung[:, 0]) - 0.13) / 0.12, 0, 1)
    share = high * outer  # how far each point of the lung's outline falls back
    edge = hilum + (lung - hilum) * (1 - rng.uniform(0.14, 0.36) * share)[:, None]
    upwards = np.roll(np.arange(len(lung)), -int(lung[:, 1].argmax()))  # from the base round the lung's outline
    pleura = edge[upwards[share[upwards] > 0.05]]
    field = _lung(canvas, anatomy, spec.side, anatomy.heart)
    chest = np.array([(-2, -2), (2, -2), (2, end), (-2, end)])
    layer = cv2.min(canvas.fill(edge, 0, field.copy()), canvas.fill(chest))
    weight = canvas.soft(layer, 0.004)
    line = canvas.stroke(pleura, 0.010)
    layers.air += rng.uniform(0.08, 0.20) * weight
    layers.vessels *= 1 - weight
    layers.dense += rng.uniform(0.08, 0.16) * canvas.soft(cv2.min(line, field), 0.003)
    return layer > 127


def _enlarged_heart(canvas: Canvas, anatomy: Anatomy, _layers: Layers, _spec: Spec, _rng: np.random.Generator) -> Mask:
    """Drawn with the anatomy (the heart's outline itself differs): only the mask is made here."""
    return canvas.fill(anatomy.heart_big) > 127


_DRAW = dict(
    zip(
        NAMES,
        (_endotracheal, _nasogastric, _pacemaker, _nodule, _consolidation, _effusion, _pneumothorax, _enlarged_heart),
        strict=True,
    )
)
__all__ = ["NAMES", "Array", "Mask", "Spec", "draw", "sample_specs"]
