"""gScoreCAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heatlens.cam.capture import Reference
from heatlens.cam.masked import MaskedForwards
from heatlens.cam.methods.base import CamMethod, MethodResult, required_gradients, weighted_activations


class GScoreCAM(CamMethod):
    """gScoreCAM (Chen et al., ACCV 2022, https://github.com/anguyen8/gScoreCAM).

    1. importance ``g_c = mean_ij dS/dA_c,ij`` (signed); keep the top k channels (lower index first on ties);
    2. ``s_c = S(image * minmax(upsample(A_c)))`` for each kept channel;
    3. ``w = softmax(s)`` over the kept channels; ``map = ReLU(sum_c w_c A_c)``.

    Step 2 depends on the question only through the scoring, so the union of the channels of all questions of
    an image is forwarded once. The softmax runs over the kept channels alone: zeros for the others would win
    it where logits are negative and invert the map. A channel whose score is not finite is left out and named.

    Activations (C, h, w), gradients (T, C, h, w) -> maps (T, h, w). Needs gradients and masked forwards.
    """

    name = "gScoreCAM"
    needs_gradients = True

    def maps(self, references: Sequence[Reference], masked: MaskedForwards) -> list[MethodResult]:
        chosen = [self._top_channels(required_gradients(ref)) for ref in references]
        unions = [torch.unique(channels) for channels in chosen]
        all_scores = masked.channel_scores(references, unions)
        return [
            self._weigh(ref, channels, scores)
            for ref, channels, scores in zip(references, chosen, all_scores, strict=True)
        ]

    def parameters(self) -> dict[str, object]:
        return {"top_k": self.top_k}

    def _top_channels(self, gradients: Tensor) -> Tensor:
        """(T, C, h, w) -> (T, k) channel indices, best first."""
        importance = gradients.mean(dim=(2, 3))
        importance = torch.where(importance.isnan(), -torch.inf, importance)
        order = torch.sort(importance, dim=1, descending=True, stable=True).indices
        return order[:, : self.top_k]

    @staticmethod
    def _weigh(reference: Reference, channels: Tensor, scores: Tensor) -> MethodResult:
        kept = scores.gather(1, channels).double()
        finite = kept.isfinite()
        weights = torch.softmax(torch.where(finite, kept, -torch.inf), dim=1)
        full = scores.new_zeros(scores.shape).scatter(1, channels, weights.to(scores))
        remarks: list[tuple[str, ...]] = [
            () if missing == 0 else (f"{missing} of {finite.shape[1]} channels gave no finite score and were left out",)
            for missing in (~finite).sum(dim=1).tolist()
        ]
        return MethodResult(weighted_activations(full, reference.activations), remarks)
