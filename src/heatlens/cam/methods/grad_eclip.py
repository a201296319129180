"""Grad-ECLIP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from heatlens.cam.attention import CUT_OUTPUT, AttentionCall, traced_attention
from heatlens.cam.capture import score_rows
from heatlens.cam.gradients import slopes
from heatlens.cam.methods.attention_base import AttentionMethod
from heatlens.cam.protocols import ModelAdapter, Target


class GradECLIP(AttentionMethod):
    """Grad-ECLIP (Zhao et al., ICML 2024).

    https://arxiv.org/abs/2502.18816
    ``ReLU(sum_i sum_c dS/do_ic * minmax_j cos(q_i, k_j) * v_jc), last attention``
    q, k, v (heads,n,d) and the output's gradients -> maps (T,h,w)

    q, k, v and the output o (before the projection) of the last attention, heads side by side; i runs over the
    queries that are pooled: CLS, or the attention pooler's own queries, or all tokens that are averaged. The
    cosine is scaled to 0..1 over the patches.
    """

    name = "Grad-ECLIP"

    def trace(
        self, model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad(), traced_attention(model, CUT_OUTPUT) as calls:
            output = model.forward(images)
        with torch.enable_grad():
            scores = score_rows(output, targets)
        last = calls[-1]
        weigh = partial(self._weigh, last, self._nearness(last))
        return self.maps_per_target(scores, weigh), [one.detach() for one in scores]

    def _weigh(self, call: AttentionCall, nearness: Tensor, total: Tensor) -> Tensor:
        """(B, rows, cols) of the targets whose scores add up to ``total``."""
        (gradient,) = slopes(total, [call.output])
        values = _side_by_side(call.value)[:, self.layout.prefix :]
        strength = _side_by_side(gradient) @ values.transpose(1, 2)  # (B, queries, patches)
        grid = self.layout.grid
        return (strength * nearness).sum(dim=1).relu().unflatten(1, (grid.rows, grid.cols))

    def _nearness(self, call: AttentionCall) -> Tensor:
        """(B, queries, patches): the cosine of queries and keys, min-max scaled over the patches."""
        queries, keys = F.normalize(_side_by_side(call.query), dim=-1), F.normalize(_side_by_side(call.key), dim=-1)
        cosine = (queries @ keys.transpose(1, 2))[:, :, self.layout.prefix :].detach()
        low, high = cosine.amin(dim=-1, keepdim=True), cosine.amax(dim=-1, keepdim=True)
        return (cosine - low) / (high - low).clamp(min=torch.finfo(cosine.dtype).tiny)


def _side_by_side(heads: Tensor) -> Tensor:
    """(B, heads, n, d) -> (B, n, heads * d)."""
    return heads.transpose(1, 2).flatten(2)
