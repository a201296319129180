"""XGrad-CAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod, weighted_sum

_EPSILON = 1e-7


class XGradCAM(GradientMethod):
    """XGrad-CAM (Fu et al., BMVC 2020).

    https://arxiv.org/abs/2008.02312
    ``ReLU(sum_c w_c A_c), w_c = sum_ij(dS/dA_c * A_c) / sum_ij A_c``
    A (C,h,w), g (T,C,h,w) -> maps (T,h,w)

    Made for activations after a ReLU. Where they have both signs, as after a transformer's norm, sum_ij A_c may
    be close to 0 and its channel then rules the map; the formula is kept as published (+1e-7 below the line).
    """

    name = "XGradCAM"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        weights = (gradients * activations).sum(dim=(1, 2)) / (activations.sum(dim=(1, 2)) + _EPSILON)
        return weighted_sum(weights, activations)
