"""LayerCAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod


class LayerCAM(GradientMethod):
    """LayerCAM (Jiang et al., IEEE TIP 2021). Activations and gradients (C, h, w) -> map (h, w)."""

    name = "LayerCAM"
    paper = "https://doi.org/10.1109/TIP.2021.3089943"
    formula = "ReLU(sum_c ReLU(dS/dA_c) * A_c)"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients.relu() * activations).sum(dim=0).relu()
