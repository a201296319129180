"""LeGrad."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from heatlens.cam.attention import CUT_WEIGHTS, AttentionCall, block_hooks, patch_columns, traced_attention
from heatlens.cam.capture import first_tensor, with_first
from heatlens.cam.gradients import slopes
from heatlens.cam.methods.attention_base import AttentionMethod
from heatlens.cam.protocols import ModelAdapter, Target


class LeGrad(AttentionMethod):
    """LeGrad (Bousselham et al., ICCV 2025), over all layers.

    https://arxiv.org/abs/2404.03214
    ``mean_l mean_heads,queries ReLU(dS_l/dA_l), columns of the patches``
    attention (L,heads,n,n) and its gradients -> maps (T,h,w)

    ``S_l`` is the score of layer l's tokens, put through the model's own final norm, pooling and projection. All
    layers share one forward: each block's tokens are cut off from the next, and the last block hands all of
    them, as rows, to the head. No backward crosses a block. With an attention pooler, A_l is the pooler's
    attention to layer l's tokens, as in the paper. The authors' program also offers a correction by an empty
    prompt for SigLIP; it is not part of the method here.
    """

    name = "LeGrad"

    def trace(
        self, model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        tokens: list[Tensor] = []
        last = len(self.layout.blocks) - 1

        def cut(number: int, output: object) -> object:
            tokens.append(first_tensor(output))
            return with_first(output, torch.cat(tokens) if number == last else tokens[-1].detach())

        with torch.no_grad(), traced_attention(model, CUT_WEIGHTS) as calls, block_hooks(self.layout, cut):
            output = model.forward(images)
        per_layer = output.unflatten(0, (last + 1, len(images)))
        with torch.enable_grad():
            layer_scores = [
                torch.stack([target(per_layer[:, row]) for target in mine]) if mine else output.new_zeros((0, last + 1))
                for row, mine in enumerate(targets)
            ]
        maps = self.maps_per_target(layer_scores, partial(self._sensitivity, calls, len(images)))
        return maps, [one.detach()[:, -1] for one in layer_scores]

    def _sensitivity(self, calls: Sequence[AttentionCall], images: int, total: Tensor) -> Tensor:
        """(B, rows, cols) of the targets whose layer scores add up to ``total``."""
        asked = calls[-1:] if self.pattern.pooled else calls
        gradients = slopes(total, [call.weights for call in asked])
        columns = torch.cat([one.relu().mean(dim=(1, 2)) for one in gradients])  # (layers * B, tokens), layer first
        return patch_columns(columns.unflatten(0, (-1, images)).mean(dim=0), self.layout)
