"""Score-CAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heatlens.cam.capture import Reference
from heatlens.cam.methods.base import LayerMethod, MethodResult, Passes
from heatlens.cam.methods.gscorecam import weigh_by_scores


class ScoreCAM(LayerMethod):
    """Score-CAM (Wang et al., CVPR workshops 2020).

    https://arxiv.org/abs/1910.01279
    ``ReLU(sum_c w_c A_c), w = softmax_c S(image * minmax(upsample(A_c)))``
    A (C,h,w) -> maps (T,h,w)

    As gScoreCAM with every channel: C masked forwards per image, however many questions. The paper subtracts the
    score of a black image, which a softmax does not notice.
    """

    name = "ScoreCAM"

    def maps(self, references: Sequence[Reference], passes: Passes) -> list[MethodResult]:
        everything = [torch.arange(len(ref.activations), device=ref.activations.device) for ref in references]
        all_scores = passes.masked.channel_scores(references, everything)
        return [
            weigh_by_scores(ref, channels.expand(len(ref.targets), -1), scores)
            for ref, channels, scores in zip(references, everything, all_scores, strict=True)
        ]
