"""Attention rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heatlens.cam.attention import patch_columns, traced_attention
from heatlens.cam.capture import score_rows
from heatlens.cam.methods.attention_base import AttentionMethod
from heatlens.cam.protocols import ModelAdapter, Target


class AttentionRollout(AttentionMethod):
    """Attention rollout (Abnar and Zuidema, ACL 2020).

    https://arxiv.org/abs/2005.00928
    ``row CLS of A_L ... A_1, A_l = (mean_heads softmax(QK^T/sqrt d) + I) / 2``
    attention (L,heads,n,n) -> maps (T,h,w)

    The map is the same whatever is asked. Read at the token that is pooled (CLS), at the mean of the tokens that
    are averaged, or through the attention pooler.
    """

    name = "rollout"
    uses_target = False

    def trace(
        self, model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad(), traced_attention(model) as calls:
            output = model.forward(images)
            scores = score_rows(output, targets)
        flows = [call.weights.mean(dim=1) for call in calls]
        read = self.pattern.first_row(flows)
        for flow in reversed(flows):
            read = (read @ flow + read) / 2
        maps = patch_columns(read[:, 0], self.layout)
        return [maps[row].expand(len(mine), -1, -1).clone() for row, mine in enumerate(targets)], scores
