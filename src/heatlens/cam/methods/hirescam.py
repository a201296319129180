"""HiResCAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod


class HiResCAM(GradientMethod):
    """HiResCAM (Draelos and Carin, 2020).

    https://arxiv.org/abs/2011.08891
    ``ReLU(sum_c dS/dA_c * A_c)``
    A (C,h,w), g (T,C,h,w) -> maps (T,h,w)

    Without Grad-CAM's averaging: the map is the score's own first-order attribution to each cell.
    """

    name = "HiResCAM"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * activations).sum(dim=0).relu()
