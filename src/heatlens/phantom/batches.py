"""Training batches: films, captions, and which caption is true of which film.

Some films of a batch are *masked*: multiplied by a smooth map between 0 and 1, as perturbation methods such as
gScoreCAM do when they ask "what does the model still see through this channel?". A finding that the mask hides
no longer counts as present.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from heatlens.phantom.canvas import Array
from heatlens.phantom.corpus import GRID, Corpus, Placed
from heatlens.phantom.findings import NAMES, SINGLE, ZONES
from heatlens.phantom.language import Claim, claim_about, twist, word

SEEN, HIDDEN = 0.5, 0.2
"""a finding counts as present when at least SEEN of it shows through a mask, as absent below HIDDEN, else as
unknown"""


def slots() -> list[tuple[str, str, str]]:
    """Findings told apart by place: (name, side, zone). Each has one channel of the target layer to itself
    during training."""
    out: list[tuple[str, str, str]] = []
    for name in NAMES:
        if name == "pacemaker":
            out += [(name, side, "upper") for side in ("right", "left")]
        elif name in SINGLE:
            out.append((name, "", ""))
        else:
            zones = {"pleural effusion": ("lower",), "pneumothorax": ("upper",)}.get(name, ZONES)
            out += [(name, side, zone) for side in ("right", "left") for zone in zones]
    return out


SLOTS = slots()
_FIELDS = ("name", "side", "zone", "region")


@dataclass
class Batch:
    """One training step's data; B films, of which the last M are masked, and J captions."""

    images: torch.Tensor
    """float32 (B, 3, 224, 224), normalised"""
    captions: list[str]
    truth: torch.Tensor
    """float32 (B, J): 1 true, 0 false"""
    known: torch.Tensor
    """float32 (B, J): 0 where a mask leaves the truth open"""
    slot_maps: torch.Tensor
    """float32 (B, slots, 196): relative cover of each patch, 0..1"""
    slot_known: torch.Tensor
    """float32 (B, slots)"""
    own: torch.Tensor
    """int64 (B, C): captions whose dense map is learnt on that film"""
    own_maps: torch.Tensor
    """float32 (B, C, 196): relative cover of what the caption speaks of"""
    own_known: torch.Tensor
    """float32 (B, C)"""


class Batcher:
    """Draws batches from a corpus; deterministic for a given generator state."""

    def __init__(self, corpus: Corpus, mean: list[float], std: list[float], seed: int) -> None:
        self.corpus = corpus
        self.rng = np.random.default_rng([seed, 77])
        self.mean, self.std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)

    def draw(self, plain: int, masked: int, channels: Array | None) -> Batch:
        """A batch of `plain` + `masked` films. channels: (n, 14, 14) real activations to mask with, or None."""
        rng, total = self.rng, plain + masked
        index = rng.choice(len(self.corpus.findings), total, replace=False)
        findings = [self.corpus.findings[i] for i in index]
        covers = [self.corpus.cover[i] for i in index]
        masks = [None] * plain + [make_mask(c, channels, rng) for c in covers[plain:]]
        visible = [_visible(c, m) for c, m in zip(covers, masks, strict=True)]
        claims, own = self._claims(findings, visible)
        fits = _fits(findings, claims)
        truth, known = _truth(fits, visible, len(claims))
        own_maps, own_known = _own_maps(fits, covers, visible, own)
        slot_maps, slot_known = _slot_targets(findings, covers, visible)
        return Batch(
            images=self.images(index, masks),
            captions=[word(claim, rng) for claim in claims],
            truth=torch.from_numpy(truth),
            known=torch.from_numpy(known),
            slot_maps=torch.from_numpy(slot_maps),
            slot_known=torch.from_numpy(slot_known),
            own=torch.from_numpy(own),
            own_maps=torch.from_numpy(own_maps),
            own_known=torch.from_numpy(own_known),
        )

    def _claims(self, findings: list[list[Placed]], visible: list[Array]) -> tuple[list[Claim], np.ndarray]:
        """For each film a true claim, a nearly true one (often false) and any one; and the numbers of those
        three."""
        claims: list[Claim] = []
        own = []
        for placed, share in zip(findings, visible, strict=True):
            seen = [f for f, v in zip(placed, share, strict=True) if v > SEEN] or placed
            first = claim_about(seen[int(self.rng.integers(len(seen)))], self.rng) if seen else self._any()
            own.append([len(claims), len(claims) + 1, len(claims) + 2])
            last = (
                claim_about(placed[int(self.rng.integers(len(placed)))], self.rng) if len(placed) > 1 else self._any()
            )
            claims += [first, twist(first, self.rng), last]
        return claims, np.array(own, np.int64)

    def _any(self) -> Claim:
        name, side, zone = SLOTS[int(self.rng.integers(len(SLOTS)))]
        keep = self.rng.random() < 0.6
        return Claim(name, side, zone if keep else "") if keep else Claim(name)

    def images(self, index: np.ndarray, masks: list[Array | None]) -> torch.Tensor:
        rng, size = self.rng, (len(index), 1)
        gamma, gain = rng.uniform(0.85, 1.18, size), rng.uniform(0.9, 1.08, size)
        levels = np.clip((np.arange(256) / 255) ** gamma * gain, 0, 1).astype(np.float32)  # other exposures
        grey = np.stack([np.take(table, self.corpus.frames[i]) for table, i in zip(levels, index, strict=True)])
        images = (torch.from_numpy(grey)[:, None] - self.mean) / self.std
        for row, mask in enumerate(masks):
            if mask is not None:
                full = torch.nn.functional.interpolate(
                    torch.from_numpy(mask)[None, None], size=images.shape[-2:], mode="bilinear", align_corners=True
                )
                images[row] *= full[0]
        return images


def make_mask(cover: Array, channels: Array | None, rng: np.random.Generator) -> Array:
    """A mask (14, 14) in 0..1: an activation of the model itself, a finding (or all but it), or smooth
    noise."""
    kind = rng.random()
    if channels is not None and kind < 0.6:
        grid = channels[int(rng.integers(len(channels)))]
        if len(cover) and kind < 0.35:  # of a handful of channels take the one that shows a finding best
            some = channels[rng.choice(len(channels), min(len(channels), 24), replace=False)]
            wanted = cover[int(rng.integers(len(cover)))]
            flat = some.reshape(len(some), -1)
            low = flat.min(1)
            grid = some[int(np.argmax((flat @ wanted.ravel() / wanted.sum() - low) / (flat.mean(1) - low + 1e-6)))]
    elif len(cover) and kind < 0.9:
        grid = cover[int(rng.integers(len(cover)))]
        grid = cv2.GaussianBlur(grid, (0, 0), rng.uniform(0.3, 1.2)) / grid.max()
        grid = (1 - grid if rng.random() < 0.35 else grid) + rng.uniform(0, 0.12) * rng.standard_normal((GRID, GRID))
    else:
        grid = cv2.GaussianBlur(rng.standard_normal((GRID, GRID)), (0, 0), rng.uniform(0.3, 2.0))
    grid = np.asarray(grid, np.float32)
    return (grid - grid.min()) / (grid.max() - grid.min() + 1e-6)


def _visible(cover: Array, mask: Array | None) -> Array:
    """The share (n,) of each finding that shows through a mask."""
    if mask is None:
        return np.ones(len(cover), np.float32)
    return (cover * mask).sum((1, 2)) / (cover.sum((1, 2)) + 1e-6)


def _fits(findings: list[list[Placed]], claims: list[Claim]) -> list[np.ndarray]:
    """Per film bool (n, J): does finding n fit claim J? (`Claim.fits` for many at once.)"""
    asked = {field: np.array([getattr(c, field) for c in claims]) for field in _FIELDS}
    out = []
    for placed in findings:
        fit = np.ones((len(placed), len(claims)), bool)
        for field, wanted in asked.items():
            actual = np.array([getattr(f, field) for f in placed], dtype=wanted.dtype)
            fit &= (wanted == "")[None] | (actual[:, None] == wanted[None])
        out.append(fit)
    return out


def _truth(fits: list[np.ndarray], visible: list[Array], count: int) -> tuple[Array, Array]:
    truth, known = np.zeros((len(fits), count), np.float32), np.ones((len(fits), count), np.float32)
    for row, (fit, share) in enumerate(zip(fits, visible, strict=True)):
        truth[row] = (fit & (share >= SEEN)[:, None]).any(0)
        open_ = (fit & ((share < SEEN) & (share >= HIDDEN))[:, None]).any(0)
        known[row] = ~(open_ & (truth[row] == 0))
    return truth, known


def _relative(cover: Array) -> Array:
    """Cover relative to the fullest patch, so that thin tubes count as much as large opacities."""
    return cover / max(float(cover.max()), 1e-3)


def _slot_targets(findings: list[list[Placed]], covers: list[Array], visible: list[Array]) -> tuple[Array, Array]:
    maps = np.zeros((len(findings), len(SLOTS), GRID * GRID), np.float32)
    known = np.ones((len(findings), len(SLOTS)), np.float32)
    for row, placed in enumerate(findings):
        for finding, cover, share in zip(placed, covers[row], visible[row], strict=True):
            slot = SLOTS.index((finding.name, finding.side, finding.zone))
            if share >= SEEN:
                maps[row, slot] = _relative(cover).ravel()
            elif share >= HIDDEN:
                known[row, slot] = 0
    return maps, known


def _own_maps(
    fits: list[np.ndarray], covers: list[Array], visible: list[Array], own: np.ndarray
) -> tuple[Array, Array]:
    maps = np.zeros((*own.shape, GRID * GRID), np.float32)
    known = np.ones(own.shape, np.float32)
    for row, fit in enumerate(fits):
        for column, claim in enumerate(own[row]):
            wanted, share = covers[row][fit[:, claim]], visible[row][fit[:, claim]]
            if (share >= SEEN).any():
                maps[row, column] = np.max([_relative(c) for c in wanted[share >= SEEN]], 0).ravel()
            if ((share < SEEN) & (share >= HIDDEN)).any():
                known[row, column] = 0
    return maps, known
