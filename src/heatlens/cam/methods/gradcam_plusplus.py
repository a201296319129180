"""Grad-CAM++."""

from __future__ import annotations

import torch
from torch import Tensor

from heatlens.cam.methods.base import GradientMethod, weighted_sum

_EPSILON = 1e-6


class GradCAMPlusPlus(GradientMethod):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, equation 19). Activations and gradients (C, h, w) -> map (h, w).

    The formula holds for exp(S) and keeps the scale of S: for CLIP that is the logit with its scale (about 85 for
    BiomedCLIP), and a map of the bare cosine would differ. 1e-6 keeps the fraction finite where gradients vanish.
    """

    name = "GradCAM++"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        squared = gradients**2
        denominator = 2 * squared + activations.sum(dim=(1, 2), keepdim=True) * squared * gradients + _EPSILON
        alpha = torch.where(gradients != 0, squared / denominator, 0.0)
        return weighted_sum((gradients.relu() * alpha).sum(dim=(1, 2)), activations)
