"""Sanity checks: does a map depend on what was asked, and on what the model has learnt?

A map may look right and depend on neither. Three checks, each with a verdict in words:

* :func:`prompt_sensitivity`: different prompts, different maps;
* :func:`weight_randomisation`: Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018,
  https://arxiv.org/abs/1810.03292: a map must not survive when the weights are replaced by random ones;
* :func:`layers_verdict`: the target layer has a gradient (of :func:`heatlens.evaluate.layers.layer_gradients`).

They can refute a map, never prove it: passing them says nothing about whether it points at the right place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heatlens.cam.engine import CamEngine
from heatlens.cam.protocols import Target
from heatlens.errors import ModelError
from heatlens.evaluate.layers import LayerGradient, depth_stages
from heatlens.models.network import NetworkAdapter

# Conventions of this program, not of the literature; both figures are always printed beside the verdict.
SAME_PROMPT = 0.99  # mean Pearson correlation of different prompts' maps from which on they count as one map
SAME_WEIGHTS = 0.9  # mean Spearman correlation with all weights random from which on they do not matter
MAX_STAGES = 6


@dataclass(frozen=True)
class Verdict:
    """``state`` is "ok", "FAILS" or "left out" (the check says nothing about this method)."""

    state: str
    text: str
    advice: str = ""

    @property
    def failed(self) -> bool:
        """Is there something to mend?"""
        return self.state == "FAILS"

    def __str__(self) -> str:
        return f"{self.state}: {self.text}" + (f"\n  What to do: {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Pair:
    """Two prompts' maps of one image, by position. ``identical``: bit for bit."""

    image: int
    first: int
    second: int
    pearson: float
    spearman: float
    identical: bool


@dataclass(frozen=True)
class PromptSensitivity:
    """``pairs`` of maps with structure; ``constant`` of the ``maps`` have none (or are not finite), and no pair."""

    method: str
    uses_target: bool
    pairs: tuple[Pair, ...] = ()
    maps: int = 0
    constant: int = 0

    def figures(self) -> dict[str, float | int | None]:
        """Mean and maximum over all pairs; None without any."""
        pearson = [pair.pearson for pair in self.pairs]
        spearman = [pair.spearman for pair in self.pairs]
        return {
            "maps": self.maps,
            "constant": self.constant,
            "pairs": len(self.pairs),
            "identical": sum(pair.identical for pair in self.pairs),
            "pearson_mean": mean(pearson),
            "pearson_max": max(pearson, default=None),
            "spearman_mean": mean(spearman),
            "spearman_max": max(spearman, default=None),
        }

    def verdict(self) -> Verdict:
        """FAILS when maps are the same, or when there is nothing to compare."""
        if not self.uses_target:
            return Verdict("left out", f"{self.method} does not look at the prompt: one map per image by design")
        advice = (
            "see whether TARGET_LAYER has a gradient in the table of layers, and whether the prompts differ within "
            "the text that the model reads"
        )
        found = self.figures()
        average = found["pearson_mean"]
        if average is None:
            text = f"{self.constant} of {self.maps} maps are constant; no image has two maps to compare"
            return Verdict("FAILS", text, advice)
        if found["identical"]:
            text = f"{found['identical']} of {found['pairs']} pairs of maps of different prompts are bit-identical"
            return Verdict("FAILS", text, advice)
        if average >= SAME_PROMPT:
            text = f"maps of different prompts are nearly one map (mean Pearson {average:.3f}, limit {SAME_PROMPT})"
            return Verdict("FAILS", text, advice)
        blank = f"; {self.constant} of {self.maps} maps are constant" if self.constant else ""
        return Verdict("ok", f"different prompts give different maps (mean Pearson {average:.2f}){blank}")


def prompt_sensitivity(engine: CamEngine, images: Tensor, targets: Sequence[Sequence[Target]]) -> PromptSensitivity:
    """Compare the maps of different prompts of the same image.

    ``images`` (B, 3, H, W) normalised; ``targets`` one list of *different* targets per image.
    """
    if not engine.method.uses_target:
        return PromptSensitivity(engine.method.name, uses_target=False)
    return compare_prompts(engine.method.name, engine.explain(images, targets))


def compare_prompts(method: str, maps: Sequence[Tensor]) -> PromptSensitivity:
    """The same for finished maps: per image one (T, h, w) tensor."""
    pairs = []
    constant = 0
    for image, stack in enumerate(maps):
        flat = [one.numpy() for one in stack]
        usable = [number for number, one in enumerate(flat) if has_structure(one)]
        constant += len(flat) - len(usable)
        for first, second in combinations(usable, 2):
            one, other = flat[first], flat[second]
            same = bool(np.array_equal(one, other))
            pairs.append(Pair(image, first, second, pearson(one, other), spearman(one, other), same))
    return PromptSensitivity(method, True, tuple(pairs), sum(map(len, maps)), constant)


@dataclass(frozen=True)
class Likeness:
    """A map with (partly) random weights against the original; None where it became constant or not finite."""

    image: int
    target: int
    spearman: float | None
    pearson: float | None
    ssim: float | None


@dataclass(frozen=True)
class RandomisedStage:
    """After this stage, too, was randomised: ``weights`` numbers are random by now."""

    stage: str
    weights: int
    likeness: tuple[Likeness, ...]

    def figures(self) -> dict[str, float | int | None]:
        """Means over the maps that could be compared, the largest rank correlation, and how many could not."""
        ranks = [one.spearman for one in self.likeness if one.spearman is not None]
        return {
            "weights": self.weights,
            "spearman_mean": mean(ranks),
            "spearman_max": max(ranks, default=None),
            "pearson_mean": mean([one.pearson for one in self.likeness if one.pearson is not None]),
            "ssim_mean": mean([one.ssim for one in self.likeness if one.ssim is not None]),
            "constant": len(self.likeness) - len(ranks),
        }


@dataclass(frozen=True)
class WeightRandomisation:
    """The cascade, from the output to the input; ``maps`` originals had structure and were compared."""

    method: str
    seed: int
    maps: int
    stages: tuple[RandomisedStage, ...]

    def verdict(self) -> Verdict:
        """FAILS when the maps of the fully random model are those of the trained one, or their inverse."""
        if not self.maps:
            return Verdict("FAILS", "every original map is constant: nothing to compare", "try another TARGET_LAYER")
        found = self.stages[-1].figures()
        last = found["spearman_mean"]
        if last is None:
            return Verdict("ok", "with all weights random every map is constant: the maps depend on the weights")
        figure = f"mean Spearman {last:.2f} with all weights random"
        if abs(last) >= SAME_WEIGHTS:  # an inverted map shows the same places: EigenCAM's sign is arbitrary
            text = f"the maps do not depend on the weights ({figure}, limit {SAME_WEIGHTS} either way)"
            return Verdict("FAILS", text, f"do not read {self.method}'s maps as what the model has learnt")
        return Verdict("ok", f"the maps depend on the weights ({figure})")


def weight_randomisation(
    engine: CamEngine,
    images: Tensor,
    targets: Sequence[Sequence[Target]],
    *,
    seed: int = 0,
    limit: int = MAX_STAGES,
    originals: Sequence[Tensor] | None = None,
) -> WeightRandomisation:
    """Replace the image tower's weights by random ones, stage by stage from the output to the input, and compare.

    ``targets`` stay as they are: the text side is not touched. Maps are compared on the patch grid, SSIM after
    min-max. ``originals`` are the trained model's maps, if there already. The weights are as before afterwards,
    bit for bit, on an error too.
    """
    if not isinstance(engine.model, NetworkAdapter):
        raise ModelError("weight randomisation needs a model whose layers can be walked (a NetworkAdapter)")
    before = engine.explain(images, targets) if originals is None else originals
    usable = [
        (row, t) for row, stack in enumerate(before) for t in range(len(stack)) if has_structure(stack[t].numpy())
    ]
    steps: list[RandomisedStage] = []
    weights = 0
    with randomised_weights(seed) as randomise:
        for stage in depth_stages(engine.model, limit) if usable else []:
            randomise(stage.parameters)
            weights += sum(parameter.numel() for parameter in stage.parameters)
            after = engine.explain(images, targets)
            likeness = tuple(_likeness(row, t, before[row][t], after[row][t]) for row, t in usable)
            steps.append(RandomisedStage(stage.name, weights, likeness))
    return WeightRandomisation(engine.method.name, seed, len(usable), tuple(steps))


@contextmanager
def randomised_weights(seed: int) -> Iterator[Callable[[Sequence[nn.Parameter]], None]]:
    """Gives a function that fills parameters with random numbers; on exit all of them are as they were.

    Each tensor gets normal numbers of its own mean and standard deviation. That asks nothing of the
    architecture, unlike a library's initialisation, and keeps activations in their range, so that a changed map
    is due to the lost order and not to scale. A constant tensor (an untrained norm, one number) stays as it is.
    Buffers (BatchNorm's statistics) stay. The originals are kept on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[nn.Parameter, Tensor]] = []

    def randomise(parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            original = parameter.detach().to("cpu", copy=True)
            kept.append((parameter, original))
            exact = original.double()
            noise = torch.randn(original.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                parameter.copy_(noise * exact.std(correction=0) + exact.mean())

    try:
        yield randomise
    finally:
        with torch.no_grad():
            for parameter, original in reversed(kept):
                parameter.copy_(original)


def layers_verdict(rows: Sequence[LayerGradient], chosen: str, advice: str, *, needed: bool = True) -> Verdict:
    """Has the target layer ``chosen`` a gradient? ``advice`` is a layer that has; ``needed``: by the method."""
    dead = [row.name for row in rows if not row.usable]
    counted = f"{len(rows) - len(dead)} of {len(rows)} layers have a gradient at the patches"
    row = next((row for row in rows if row.chosen), None)
    if len(dead) == len(rows):
        text = "no layer has a gradient at any patch: the output does not depend on the image"
        return Verdict("FAILS", text, "look at the weights of the model's head")
    if row is None:
        return Verdict("FAILS", f"TARGET_LAYER={chosen} gives no patch grid", f"set TARGET_LAYER={advice}")
    if row.usable:
        return Verdict("ok", f"{counted}, TARGET_LAYER={chosen} among them")
    if not needed:
        return Verdict("left out", f"TARGET_LAYER={chosen} has no gradient, and none is needed")
    text = f"TARGET_LAYER={chosen} has no gradient at any patch, so its channels cannot be told apart"
    return Verdict("FAILS", text, f"set TARGET_LAYER={advice}")


def has_structure(values: NDArray[np.float32]) -> bool:
    """Finite and not constant: something that can be correlated."""
    return bool(np.isfinite(values).all()) and float(values.max()) > float(values.min())


def pearson(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Correlation of two maps with structure."""
    return float(np.corrcoef(one.ravel().astype(np.float64), other.ravel().astype(np.float64))[0, 1])


def spearman(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Correlation of the ranks; equal values share their mean rank (a ReLU makes many equal zeros)."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def ssim(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Structural similarity of two maps, each scaled to 0..1; None on a grid of less than 3 x 3."""
    from skimage.metrics import structural_similarity

    window = min(7, *one.shape)
    window -= 1 - window % 2
    if window < 3:
        return None
    return float(structural_similarity(_scaled(one), _scaled(other), win_size=window, data_range=1.0))


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return float(np.mean(values)) if values else None


def _likeness(row: int, target: int, before: Tensor, after: Tensor) -> Likeness:
    one, other = before.numpy(), after.numpy()
    if not has_structure(other):
        return Likeness(row, target, None, None, None)
    return Likeness(row, target, spearman(one, other), pearson(one, other), ssim(one, other))


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    _, place, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]  # type: ignore[no-any-return]


def _scaled(values: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = values.astype(np.float64)
    return (exact - exact.min()) / (exact.max() - exact.min())  # type: ignore[no-any-return]
