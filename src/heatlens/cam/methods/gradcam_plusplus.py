"""Grad-CAM++."""

from __future__ import annotations

import torch
from torch import Tensor

from heatlens.cam.methods.base import GradientMethod, weighted_sum


class GradCAMPlusPlus(GradientMethod):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, equation 19).

    https://arxiv.org/abs/1710.11063
    ``ReLU(sum_c w_c A_c), w_c = sum_ij a_c ReLU(g_c), a_c = g_c^2 / (2 g_c^2 + g_c^3 sum_ij A_c), g=dS/dA``
    A (C,h,w), g (T,C,h,w) -> maps (T,h,w)

    The formula holds for exp(S) and keeps the scale of S: for CLIP that is the logit with its scale (about 85 for
    BiomedCLIP), and a map of the bare cosine would differ. The fraction is computed as ``1 / (2 + g sum_ij A)``,
    which needs no epsilon: the usual 1e-6 below the line outweighs 2 g^2 wherever |g| is below 7e-4, as most
    gradients of a transformer are, and turns the weights into sums of g^3.
    """

    name = "GradCAM++"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        denominator = 2 + gradients * activations.sum(dim=(1, 2), keepdim=True)
        usable = (gradients != 0) & (denominator != 0)
        alpha = torch.where(usable, 1 / torch.where(usable, denominator, 1.0), 0.0)
        return weighted_sum((gradients.relu() * alpha).sum(dim=(1, 2)), activations)
