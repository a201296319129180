"""Eigen-Grad-CAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod
from heatlens.cam.methods.eigencam import principal_map


class EigenGradCAM(GradientMethod):
    """Eigen-CAM of activations times gradients (grad-cam's variant).

    https://github.com/jacobgil/pytorch-grad-cam
    ``ReLU(first principal component of dS/dA * A over the cells)``
    A (C,h,w), g (T,C,h,w) -> maps (T,h,w)
    """

    name = "EigenGradCAM"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return principal_map(gradients * activations)
