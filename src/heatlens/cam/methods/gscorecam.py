"""gScoreCAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heatlens.cam.capture import Reference
from heatlens.cam.methods.base import (
    LayerMethod,
    MethodResult,
    Passes,
    gradients_of,
    stack_maps,
    weighted_sum,
)


class GScoreCAM(LayerMethod):
    """gScoreCAM (Chen et al., ACCV 2022).

    https://github.com/anguyen8/gScoreCAM
    ``ReLU(sum_c w_c A_c), w = softmax_c S(image * minmax(upsample(A_c))), c: k largest mean_ij(dS/dA_c)``
    A (C,h,w), g (T,C,h,w) -> maps (T,h,w)

    1. importance ``g_c = mean_ij dS/dA_c,ij`` (signed); keep the top k channels (lower index first on ties);
    2. ``s_c = S(image * minmax(upsample(A_c)))`` for each kept channel;
    3. ``w = softmax(s)`` over the kept channels; ``map = ReLU(sum_c w_c A_c)``.

    Step 2 depends on the question only through the scoring, so the union of the channels of all questions of
    an image is forwarded once. The softmax runs over the kept channels alone: zeros for the others would win
    it where logits are negative and invert the map. A channel whose score is not finite is left out and named.
    """

    name = "gScoreCAM"
    needs_gradients = True
    needs_live_layer = True

    def maps(self, references: Sequence[Reference], passes: Passes) -> list[MethodResult]:
        chosen = [top_channels(gradients_of(ref), self.options.top_k) for ref in references]
        unions = [torch.unique(channels) for channels in chosen]
        all_scores = passes.masked.channel_scores(references, unions)
        return [
            weigh_by_scores(ref, channels, scores)
            for ref, channels, scores in zip(references, chosen, all_scores, strict=True)
        ]

    def parameters(self) -> dict[str, object]:
        return {"top_k": self.options.top_k}


def top_channels(gradients: Tensor, k: int) -> Tensor:
    """(T, C, h, w) -> (T, k) channel indices by their mean gradient, best first; NaN counts as the worst."""
    importance = gradients.mean(dim=(2, 3))
    importance = torch.where(importance.isnan(), -torch.inf, importance)
    return torch.sort(importance, dim=1, descending=True, stable=True).indices[:, :k]


def weigh_by_scores(reference: Reference, channels: Tensor, scores: Tensor) -> MethodResult:
    """Maps from the softmax of ``scores`` (T, C) over each target's ``channels`` (T, k); not finite: left out."""
    maps: list[Tensor] = []
    remarks: list[tuple[str, ...]] = []
    for mine, all_scores in zip(channels, scores, strict=True):
        order = mine.sort().values
        kept = order[all_scores[order].isfinite()]
        weights = torch.softmax(all_scores[kept].double(), dim=0).to(scores)
        missing = len(order) - len(kept)
        remarks.append(
            (f"{missing} of {len(order)} channels gave no finite score and were left out",) if missing else ()
        )
        one = weighted_sum(weights, reference.activations[kept])
        maps.append(one if len(kept) else torch.full_like(one, float("nan")))
    return MethodResult(stack_maps(maps, reference), reference.scores, remarks)
