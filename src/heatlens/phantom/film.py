"""One phantom film: a frontal chest radiograph synthesised from a seed, with the exact mask of every finding.

    film = make_film(7, long_side=1200)
    film.pixels            uint8 (H, W), 0 = black (air), 255 = white
    film.findings[0].mask  bool (H, W)

A film is a pure function of its arguments. The anatomy does not depend on the size: a seed shows the same
patient at 320 and 1400 pixels. Seeds are kept apart by purpose (see `SEEDS`), so nothing that was trained or
tuned on is ever used to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from heatlens.images.geometry import FrameGeometry
from heatlens.phantom.anatomy import Anatomy, sample_anatomy
from heatlens.phantom.canvas import Array, Canvas, Placement, curve
from heatlens.phantom.findings import Mask, Spec, draw, sample_specs
from heatlens.phantom.layers import Layers, render_anatomy

SEEDS = {
    "training": range(500_000),
    "validation": range(500_000, 600_000),
    "held out": range(1_000_000, 2_000_000),
    "demo": range(2_000_000, 3_000_000),
}
FRAME = 224
"""side of the model's square frame in pixels"""
_ASPECTS = (0.832, 0.832, 1.0, 1.2, 1.2)  # width over height; 2544 x 3056 and its landscape twin are the common ones
_LUNG_AIR = 0.62  # share of the chest's attenuation that a fully aerated lung lacks


@dataclass(frozen=True)
class Finding:
    """A finding on a film: its name, where it is, and exactly which pixels it covers."""

    name: str
    side: str
    """of the patient: "right" (image left), "left" or "" where a side has no meaning"""
    zone: str
    """"upper", "mid", "lower" lung zone or "" """
    region: str
    """anatomical region in GEMeX's words"""
    mask: Mask
    """bool (H, W)"""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box x1, y1, x2, y2 in film pixels; x2 and y2 are exclusive."""
        x, y = np.flatnonzero(self.mask.any(0)), np.flatnonzero(self.mask.any(1))
        return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


@dataclass(frozen=True)
class PhantomFilm:
    """A film, what is on it, and who it is of."""

    seed: int
    pixels: npt.NDArray[np.uint8]
    """(H, W), 0..255"""
    findings: list[Finding]
    marker_mask: Mask
    """bool (H, W): the burned-in side marker and text"""
    anatomy: Anatomy
    canvas: Canvas


def film_size(seed: int, long_side: int) -> tuple[int, int]:
    """Width and height of a seed's film: portrait, square or landscape."""
    aspect = float(np.random.default_rng([seed, 0]).choice(_ASPECTS))
    short = round(long_side * min(aspect, 1 / aspect))
    return (short, long_side) if aspect < 1 else (long_side, short)


def make_film(
    seed: int,
    size: tuple[int, int] | None = None,
    *,
    long_side: int = 1200,
    names: Sequence[str] | None = None,
    show: bool = True,
) -> PhantomFilm:
    """Synthesise the film of a seed.

    size: (width, height) in pixels; by default the seed's own aspect ratio with `long_side` pixels.
    names: the findings to draw, instead of 0 to 3 that the seed chooses.
    show: False draws the same patient without the findings (their masks are still returned): for exactness
    tests.
    """
    width, height = size or film_size(seed, long_side)
    streams = [np.random.default_rng([seed, n]) for n in range(1, 6)]
    canvas = Canvas(width, height, _placement(streams[0]))
    anatomy = sample_anatomy(streams[1])
    specs = sample_specs(streams[2], names)
    big = any(spec.name == "enlarged heart" for spec in specs)
    if big:  # fluid and opacities lie beside the heart that is really there
        anatomy = replace(anatomy, heart=anatomy.heart_big)
    layers = render_anatomy(canvas, anatomy, streams[3], anatomy.heart)
    untouched = replace(layers, air=layers.air.copy(), dense=layers.dense.copy(), vessels=layers.vessels.copy())
    findings = [_finding(spec, draw(canvas, anatomy, layers, spec)) for spec in specs]
    pixels, marker = _expose(canvas, layers if show else untouched, streams[4])
    return PhantomFilm(seed, pixels, [f for f in findings if f.mask.any()], marker, anatomy, canvas)


def _placement(rng: np.random.Generator) -> Placement:
    return Placement(rng.uniform(0.9, 1.06), rng.normal(0, 0.02), (rng.normal(0, 0.025), rng.normal(0, 0.025)))


def _finding(spec: Spec, mask: Mask) -> Finding:
    region = {
        "endotracheal tube": "trachea",
        "nasogastric tube": "mediastinum",
        "pacemaker": f"{spec.side} clavicle",
        "enlarged heart": "cardiac region",
    }.get(spec.name, f"{spec.side} {spec.zone} lung zone")
    return Finding(spec.name, spec.side, spec.zone, region, mask)


def _expose(canvas: Canvas, layers: Layers, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], Mask]:
    """From attenuation to grey levels: display curve, noise, wires on the skin, marker."""
    total = layers.thick * (1 - _LUNG_AIR * layers.air) + (layers.dense + layers.vessels) * np.minimum(
        1, 3 * layers.thick
    )
    total += _wires(canvas, rng)
    steep, toe, white = rng.uniform(1.3, 1.9), rng.uniform(1.0, 1.5), rng.uniform(1.5, 1.9)
    grey = (1 - np.exp(-steep * np.maximum(total, 0))) ** toe
    grey *= 250 / (1 - np.exp(-steep * white)) ** toe
    grain = rng.uniform(1.0, 3.2)
    grey += grain * canvas.noise(rng, 512) * (0.5 + 0.5 * np.minimum(1, layers.thick)) + rng.uniform(0, 8)
    label, brightness = _marker(canvas, rng)
    grey += label.astype(np.float32) * ((brightness - grey) / 255)
    return np.clip(np.round(grey), 0, 255).astype(np.uint8), label > 127


def _wires(canvas: Canvas, rng: np.random.Generator) -> Array:
    """ECG wires and other lines on the skin: normal on ward films, and easily taken for tubes."""
    layer = canvas.empty()
    wires = int(rng.integers(1, 4)) if rng.random() < 0.3 else 0
    for _ in range(wires):
        start, end = rng.uniform(-0.85, 0.85, 2), rng.uniform(-0.9, 0.9, 2)
        line = start + (end - start) * np.linspace(0, 1, 4)[:, None] + rng.normal(0, 0.06, (4, 2))
        canvas.stroke(curve(line, 10), rng.uniform(0.010, 0.018), layer=layer)
    return rng.uniform(0.12, 0.3) * canvas.soft(layer, 0.002)


def _marker(canvas: Canvas, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], float]:
    """The side marker in the dark beside the neck, at times with a line of text. Returns a layer 0..255 and
    its grey level."""
    layer = canvas.empty()
    letter = str(rng.choice(["L", "R"]))
    half = np.array([canvas.width, canvas.height]) / min(canvas.width, canvas.height)
    across = 1 if letter == "L" else -1
    corner = np.array([across * (half[0] - rng.uniform(0.10, 0.2)), -half[1] + rng.uniform(0.12, 0.26)])
    _text(canvas, letter, corner, rng.uniform(0.08, 0.11), layer)
    words = ["", "", "PORTABLE", "AP ERECT", "PA", "AP", "SUPINE"][int(rng.integers(7))]
    if words:
        tall = rng.uniform(0.035, 0.05)
        _text(canvas, words, corner * [-1, 1] - [0.03 + 0.5 * tall * len(words) * (across < 0), 0.0], tall, layer)
    return layer, float(rng.uniform(170, 255))


def _text(
    canvas: Canvas, words: str, place: npt.NDArray[np.float64], tall: float, layer: npt.NDArray[np.uint8]
) -> None:
    """Write `words` with their lower left corner near `place` (film units: not tilted with the patient)."""
    pixel = min(canvas.width, canvas.height) / 2
    x, y = place * pixel + [canvas.width / 2, canvas.height / 2]
    size = tall * pixel / 22  # the font's capitals are about 22 pixels tall at scale 1
    cv2.putText(
        layer, words, (int(x), int(y)), cv2.FONT_HERSHEY_SIMPLEX, size, 255, max(1, round(2.6 * size)), cv2.LINE_AA
    )


def to_frame(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Letterbox a film into the model's 224 x 224 frame: bicubic with anti-aliasing, centred, black padding."""
    height, width = pixels.shape
    frame = FrameGeometry.fit("letterbox", (width, height), (FRAME, FRAME)).place(pixels)
    return np.ascontiguousarray(frame[..., 0])  # grey: three equal channels


def mask_to_frame(mask: Mask) -> Array:
    """Letterbox a mask into the model's frame: float32 (224, 224), the covered share of each pixel, 0..1."""
    return to_frame(mask.astype(np.uint8) * 255).astype(np.float32) / 255
