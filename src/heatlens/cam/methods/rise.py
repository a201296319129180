"""RISE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heatlens.cam.capture import score_passes
from heatlens.cam.masked import Segment
from heatlens.cam.methods.base import CamMethod, MethodResult, Passes
from heatlens.cam.protocols import ModelAdapter, PatchGrid, Target

CELLS = 7  # the paper's mask grid: 7 x 7 cells,
KEEP = 0.5  # each kept with this probability


class RISE(CamMethod):
    """RISE (Petsiuk et al., BMVC 2018). Images (3, H, W) -> maps (T, H, W), in pixels of the model's frame.

    ``N`` masks: a random 7 x 7 grid of zeros and ones, enlarged and cut out at a random shift. The masks come from
    the seed alone, so all images and questions share them. The paper's scores are probabilities; a logit may be
    negative, so the mean score is subtracted: what is left does not depend on the logit's zero point.
    """

    name = "RISE"

    def grid(self, model: ModelAdapter) -> PatchGrid:
        width, height = model.frame
        return PatchGrid(height, width, stride=(1.0, 1.0))

    def parameters(self) -> dict[str, object]:
        return {"masks": self.options.masks, "seed": self.options.seed}

    def explain(self, images: Tensor, targets: Sequence[Sequence[Target]], passes: Passes) -> list[MethodResult]:
        model, count = passes.model, self.options.masks
        size = (images.shape[2], images.shape[3])
        scores = score_passes(model, images, targets, batch=passes.reference)

        def paint(segment: Segment, out: Tensor) -> None:
            torch.mul(images[segment.source], self._masks(segment.keys, size).to(out), out=out)

        numbers = torch.arange(count, device=images.device)
        tables = passes.masked.variant_scores(paint, [numbers] * len(images), targets, columns=[count] * len(images))
        return [
            MethodResult(self._maps(table, numbers, size), whole, self._remarks(table))
            for table, whole in zip(tables, scores, strict=True)
        ]

    def _maps(self, table: Tensor, numbers: Tensor, size: tuple[int, int]) -> Tensor:
        finite = table.isfinite()
        centred = torch.where(finite, table - torch.where(finite, table, 0).sum(1, True) / finite.sum(1, True), 0)
        total = table.new_zeros((len(table), size[0] * size[1]), dtype=torch.float64)
        for some in numbers.split(100):
            masks = self._masks(some, size).flatten(1).to(total)
            for row, weights in zip(total, centred[:, some].double(), strict=True):
                row += weights @ masks
        return (total / (KEEP * finite.sum(1, True))).relu().reshape(-1, *size).to(table)

    @staticmethod
    def _remarks(table: Tensor) -> list[tuple[str, ...]]:
        missing = (~table.isfinite()).sum(dim=1).tolist()
        return [(f"{count} of {table.shape[1]} masks gave no finite score",) if count else () for count in missing]

    def _masks(self, numbers: Tensor, size: tuple[int, int]) -> Tensor:
        """Masks number ``numbers`` (n,) -> (n, 1, H, W) in 0..1: each from its own seed, so in any order and batch."""
        return torch.cat([self._mask(int(number), size) for number in numbers.tolist()])

    def _mask(self, number: int, size: tuple[int, int]) -> Tensor:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + number)
        coarse = (torch.rand((1, 1, CELLS, CELLS), generator=generator) < KEEP).float()
        cell = [-(-pixels // CELLS) for pixels in size]
        shift = [int(torch.randint(step, (1,), generator=generator)) for step in cell]
        whole = F.interpolate(coarse, size=[(CELLS + 1) * step for step in cell], mode="bilinear", align_corners=False)
        return whole[:, :, shift[0] : shift[0] + size[0], shift[1] : shift[1] + size[1]]
