"""LayerCAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod


class LayerCAM(GradientMethod):
    """LayerCAM (Jiang et al., IEEE TIP 2021). Activations and gradients (C, h, w) -> map (h, w)."""

    name = "LayerCAM"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients.relu() * activations).sum(dim=0).relu()
