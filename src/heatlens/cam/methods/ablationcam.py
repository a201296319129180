"""Ablation-CAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heatlens.cam.capture import Reference
from heatlens.cam.methods.base import LayerMethod, MethodResult, Passes, stack_maps, weighted_sum
from heatlens.cam.tail import Tail


class AblationCAM(LayerMethod):
    """Ablation-CAM (Ramaswamy et al., WACV 2020).

    https://doi.org/10.1109/WACV45572.2020.9093360
    ``ReLU(sum_c w_c A_c), w_c = (S - S_c) / |S|, S_c: score without channel c``
    A (C,h,w) -> maps (T,h,w)

    ``S_c`` is the score with channel c of the target layer set to 0 at every cell; a transformer's CLS and
    register tokens keep theirs. Only the part of the model after the layer runs again, for all channels, once per
    image. It runs in the model's own precision: the drops are smaller than half precision can tell apart. The
    paper divides by S; here by |S|, so that a negative logit does not invert the map.
    """

    name = "AblationCAM"
    needs_live_layer = True

    def maps(self, references: Sequence[Reference], passes: Passes) -> list[MethodResult]:
        tail = Tail(passes.model, passes.masked.batch)
        return [self._image(ref, tail) for ref in references]

    @staticmethod
    def _image(reference: Reference, tail: Tail) -> MethodResult:
        def ablate(channels: Tensor) -> Tensor:
            variants = reference.activations.expand(len(channels), -1, -1, -1).clone()
            variants[torch.arange(len(channels), device=channels.device), channels] = 0
            return variants

        without = tail.scores(reference, len(reference.activations), ablate)
        drops = (reference.scores[:, None] - without) / reference.scores[:, None].abs()
        maps = [weighted_sum(row, reference.activations) for row in drops]
        return MethodResult(stack_maps(maps, reference), reference.scores)
