"""What a CAM method is: from reference passes to maps on the patch grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from heatlens.cam.capture import Reference
from heatlens.cam.masked import MaskedForwards


@dataclass(frozen=True)
class MethodResult:
    """Maps (T, h, w) of one image's T targets, at least 0, and remarks per target for the record."""

    maps: Tensor
    remarks: list[tuple[str, ...]] = field(default_factory=list)


class CamMethod(ABC):
    """One CAM method. A subclass states the paper, the formula and what it needs."""

    name: ClassVar[str]
    needs_gradients: ClassVar[bool]

    def __init__(self, *, top_k: int = 300) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.top_k = top_k

    @abstractmethod
    def maps(self, references: Sequence[Reference], masked: MaskedForwards) -> list[MethodResult]:
        """One result per reference, in order."""

    def parameters(self) -> dict[str, object]:
        """What changes this method's maps, for the run's fingerprint."""
        return {}


def weighted_activations(weights: Tensor, activations: Tensor) -> Tensor:
    """``ReLU(sum_c w_c A_c)``: weights (T, C) and activations (C, h, w) -> (T, h, w).

    One product per target: in a joint one the last bits of a map would depend on how many others are asked for.
    """
    flat = activations.flatten(1)
    maps = [(row[None] @ flat).reshape(activations.shape[1:]).relu() for row in weights]
    return torch.stack(maps) if maps else activations.new_zeros((0, *activations.shape[1:]))


def required_gradients(reference: Reference) -> Tensor:
    """The reference's gradients, which the engine captured because the method asked for them."""
    assert reference.gradients is not None
    return reference.gradients
