"""What a CAM method is: from images and targets to maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from heatlens.cam.batches import BatchRows
from heatlens.cam.capture import Reference, reference_passes
from heatlens.cam.masked import MaskedForwards
from heatlens.cam.protocols import ModelAdapter, PatchGrid, Target
from heatlens.errors import ConfigError


@dataclass(frozen=True)
class MethodOptions:
    """Settings of methods: ``top_k`` channels (gScoreCAM), ``masks`` random masks from ``seed`` (RISE)."""

    top_k: int = 300
    masks: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("top_k", "masks"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name} must be a whole number from 1 on, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class MethodResult:
    """One image's maps (T, h, w), at least 0, its T targets' scores of the whole image, and remarks per target."""

    maps: Tensor
    scores: Tensor
    remarks: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Passes:
    """What a method runs the model with: the masked forwards, and the rows of its reference passes."""

    masked: MaskedForwards
    reference: BatchRows

    @property
    def model(self) -> ModelAdapter:
        return self.masked.model


class CamMethod(ABC):
    """One CAM method. Its paper, formula and needs are in the registry, under ``name``.

    ``needs_live_layer``: does the method say nothing where the target layer's patches have no gradient?
    ``uses_target``: does the map depend on what is asked?
    """

    name: ClassVar[str]
    needs_live_layer: ClassVar[bool] = False
    uses_target: ClassVar[bool] = True

    def __init__(self, options: MethodOptions | None = None) -> None:
        self.options = options or MethodOptions()

    def check(self, model: ModelAdapter) -> None:  # noqa: B027 - most methods work with every model
        """Raise ModelError when the method cannot work on ``model``, before any work is done."""

    def grid(self, model: ModelAdapter) -> PatchGrid:
        """Where the cells of this method's maps lie in the input frame."""
        return model.grid

    def parameters(self) -> dict[str, object]:
        """What changes this method's maps, for the run's fingerprint."""
        return {}

    @abstractmethod
    def explain(self, images: Tensor, targets: Sequence[Sequence[Target]], passes: Passes) -> list[MethodResult]:
        """``images`` (B, 3, H, W) on the model's device, one list of targets per image -> one result per image."""


class LayerMethod(CamMethod):
    """A method that reads the target layer's activations (C, h, w), and perhaps their gradients (T, C, h, w)."""

    needs_gradients: ClassVar[bool] = False

    def explain(self, images: Tensor, targets: Sequence[Sequence[Target]], passes: Passes) -> list[MethodResult]:
        references = reference_passes(
            passes.model, images, targets, gradients=self.needs_gradients, batch=passes.reference
        )
        return self.maps(references, passes)

    @abstractmethod
    def maps(self, references: Sequence[Reference], passes: Passes) -> list[MethodResult]:
        """One result per reference, in order."""


class GradientMethod(LayerMethod):
    """A method whose map of one target needs its gradients at the target layer and nothing else."""

    needs_gradients = True
    needs_live_layer = True

    def maps(self, references: Sequence[Reference], passes: Passes) -> list[MethodResult]:  # noqa: ARG002
        return [
            MethodResult(stack_maps([self.weigh(ref.activations, one) for one in gradients_of(ref)], ref), ref.scores)
            for ref in references
        ]

    @abstractmethod
    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Activations and one target's gradients, (C, h, w) each -> map (h, w), at least 0.

        One target at a time: in joint products the last bits would depend on how many others are asked for.
        """


def weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """``ReLU(sum_c w_c A_c)``: weights (C,) and activations (C, h, w) -> (h, w)."""
    return (weights[None] @ activations.flatten(1)).reshape(activations.shape[1:]).relu()


def stack_maps(maps: Sequence[Tensor], reference: Reference) -> Tensor:
    """T maps (h, w) -> (T, h, w); also for T = 0."""
    return torch.stack(list(maps)) if maps else reference.activations.new_zeros((0, *reference.activations.shape[1:]))


def gradients_of(reference: Reference) -> Tensor:
    """The reference's gradients (T, C, h, w), which were captured because the method asked for them."""
    assert reference.gradients is not None
    return reference.gradients
