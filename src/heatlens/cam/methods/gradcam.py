"""Grad-CAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod, weighted_sum


class GradCAM(GradientMethod):
    """Grad-CAM (Selvaraju et al., ICCV 2017).

    https://arxiv.org/abs/1610.02391
    ``ReLU(sum_c mean_ij(dS/dA_c) A_c)``
    A (C,h,w), g (T,C,h,w) -> maps (T,h,w)
    """

    name = "GradCAM"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return weighted_sum(gradients.mean(dim=(1, 2)), activations)
