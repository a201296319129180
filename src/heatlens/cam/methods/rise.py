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
    """RISE (Petsiuk et al., BMVC 2018).

    https://arxiv.org/abs/1806.07421
    ``ReLU(sum_n (S(image * M_n) - mean S) M_n / (N p))``
    image (3,H,W) -> maps (T,H,W)

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

        masks = RandomMasks(count, self.options.seed, size, images.device)

        def paint(segment: Segment, out: Tensor) -> None:
            torch.mul(images[segment.source], masks(segment.keys).to(out), out=out)

        numbers = torch.arange(count, device=images.device)
        tables = passes.masked.variant_scores(paint, [numbers] * len(images), targets, columns=[count] * len(images))
        return [
            MethodResult(self._maps(table, numbers, masks), whole, self._remarks(table))
            for table, whole in zip(tables, scores, strict=True)
        ]

    @staticmethod
    def _maps(table: Tensor, numbers: Tensor, masks: RandomMasks) -> Tensor:
        finite = table.isfinite()
        centred = torch.where(finite, table - torch.where(finite, table, 0).sum(1, True) / finite.sum(1, True), 0)
        size = masks(numbers[:1]).shape[2:]
        total = table.new_zeros((len(table), size.numel()), dtype=torch.float64)
        for some in numbers.split(100):
            seen = masks(some).flatten(1).to(total)
            for row, weights in zip(total, centred[:, some].double(), strict=True):
                row += weights @ seen
        return (total / (KEEP * finite.sum(1, True))).relu().reshape(-1, *size).to(table)

    @staticmethod
    def _remarks(table: Tensor) -> list[tuple[str, ...]]:
        missing = (~table.isfinite()).sum(dim=1).tolist()
        return [(f"{count} of {table.shape[1]} masks gave no finite score",) if count else () for count in missing]


class RandomMasks:
    """``count`` masks from ``seed``, made on ``device`` when they are asked for: only their 7 x 7 grids and shifts are
    kept. (The cells of a grid are enlarged to ``ceil(size / 7)`` pixels, with one more cell than is seen.)"""

    def __init__(self, count: int, seed: int, size: tuple[int, int], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand((count, CELLS, CELLS), generator=generator, device="cpu") < KEEP
        self._cell = [-(-pixels // CELLS) for pixels in size]
        shifts = [torch.randint(step, (count, 1), generator=generator, device="cpu") for step in self._cell]
        self._coarse = coarse.float().to(device)
        # The pixels (count, H) and (count, W) of an enlarged mask that are seen.
        self._rows, self._cols = (
            (shift + torch.arange(pixels)).to(device) for shift, pixels in zip(shifts, size, strict=True)
        )

    def __call__(self, numbers: Tensor) -> Tensor:
        """Masks number ``numbers`` (n,) -> (n, 1, H, W) in 0..1."""
        enlarged = F.interpolate(
            self._coarse[numbers][:, None],
            size=[(CELLS + 1) * step for step in self._cell],
            mode="bilinear",
            align_corners=False,
        )
        row = torch.arange(len(numbers), device=numbers.device)[:, None, None]
        return enlarged[row, 0, self._rows[numbers][:, :, None], self._cols[numbers][:, None, :]][:, None]
