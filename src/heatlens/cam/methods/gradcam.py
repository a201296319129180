"""Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence

from heatlens.cam.capture import Reference
from heatlens.cam.masked import MaskedForwards
from heatlens.cam.methods.base import CamMethod, MethodResult, required_gradients, weighted_activations


class GradCAM(CamMethod):
    """Grad-CAM (Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391).

    ``w_c = mean_ij dS/dA_c,ij``; ``map = ReLU(sum_c w_c A_c)``.
    Activations (C, h, w), gradients (T, C, h, w) -> maps (T, h, w). Needs gradients at the target layer.
    """

    name = "GradCAM"
    needs_gradients = True

    def maps(self, references: Sequence[Reference], masked: MaskedForwards) -> list[MethodResult]:  # noqa: ARG002
        return [
            MethodResult(weighted_activations(required_gradients(ref).mean(dim=(2, 3)), ref.activations))
            for ref in references
        ]
