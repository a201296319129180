"""LayerCAM."""

from __future__ import annotations

from torch import Tensor

from heatlens.cam.methods.base import GradientMethod


class LayerCAM(GradientMethod):
    """LayerCAM (Jiang et al., IEEE TIP 2021).

    https://doi.org/10.1109/TIP.2021.3089943
    ``ReLU(sum_c ReLU(dS/dA_c) * A_c)``
    A (C,h,w), g (T,C,h,w) -> maps (T,h,w)
    """

    name = "LayerCAM"

    def weigh(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients.relu() * activations).sum(dim=0).relu()
