"""Grad-CAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod, weighted_sum


class GradCAM(GradientMethod):
    """Grad-CAM (Selvaraju et al., ICCV 2017). Activations and gradients (C, h, w) -> map (h, w)."""

    name = "GradCAM"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return weighted_sum(gradients.mean(dim=(1, 2)), activations)
