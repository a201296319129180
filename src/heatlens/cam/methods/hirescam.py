"""HiResCAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod


class HiResCAM(GradientMethod):
    """HiResCAM (Draelos and Carin, 2020). Activations and gradients (C, h, w) -> map (h, w).

    Without Grad-CAM's averaging: the map is the score's own first-order attribution to each cell.
    """

    name = "HiResCAM"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * activations).sum(dim=0).relu()
