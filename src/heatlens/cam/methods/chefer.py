"""Chefer's transformer relevance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from heatlens.cam.attention import CUT_FIRST, AttentionCall, patch_columns, traced_attention
from heatlens.cam.capture import score_rows
from heatlens.cam.gradients import slopes
from heatlens.cam.methods.attention_base import AttentionMethod
from heatlens.cam.protocols import ModelAdapter, Target


class CheferRelevance(AttentionMethod):
    """Relevance propagation by Chefer et al. (ICCV 2021), over all layers.

    https://arxiv.org/abs/2103.15679
    ``row CLS of R, R <- R + mean_heads ReLU(dS/dA_l * A_l) R for l = 1..L, starting from R = I``
    attention (L,heads,n,n) and its gradients -> maps (T,h,w)

    A full backward per target. Read as in attention rollout: at CLS, at the mean of the averaged tokens, or
    through the attention pooler's own (positive gradient times attention) row.
    """

    name = "Chefer"

    def trace(
        self, model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad(), traced_attention(model, CUT_FIRST) as calls:
            output = model.forward(images)
        with torch.enable_grad():
            scores = score_rows(output, targets)
        maps = self.maps_per_target(scores, partial(self._relevance, calls))
        return maps, [one.detach() for one in scores]

    def _relevance(self, calls: Sequence[AttentionCall], total: Tensor) -> Tensor:
        """(B, rows, cols) of the targets whose scores add up to ``total``."""
        weights = [call.weights for call in calls]
        flows = [(slope * own).relu().mean(dim=1) for slope, own in zip(slopes(total, weights), weights, strict=True)]
        read = self.pattern.first_row(flows)
        for flow in reversed(flows):
            read = read + read @ flow
        return patch_columns(read[:, 0], self.layout)
