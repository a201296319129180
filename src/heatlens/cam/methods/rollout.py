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
    """Attention rollout (Abnar and Zuidema, ACL 2020). Attention (L, heads, n, n) -> map (rows, cols).

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
        read = flows.pop() if self.pattern.pooled else self.pattern.readout.to(output).expand(len(images), 1, -1)
        for flow in reversed(flows):
            read = (read @ flow + read) / 2
        maps = patch_columns(read.mean(dim=1), self.layout)
        return [maps[row].expand(len(mine), -1, -1).clone() for row, mine in enumerate(targets)], scores
