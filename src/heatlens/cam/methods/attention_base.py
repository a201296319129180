"""What methods share that read a vision transformer's attention maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heatlens.cam.attention import AttentionPattern, attention_pattern, total_of, transformer_layout
from heatlens.cam.batches import for_each_batch
from heatlens.cam.capture import pad_rows
from heatlens.cam.methods.base import CamMethod, MethodResult, Passes
from heatlens.cam.protocols import ModelAdapter, PatchGrid, Target, TokenLayout


class AttentionMethod(CamMethod):
    """A method with a pass of its own, in which attention is not fused. The target layer plays no part."""

    def check(self, model: ModelAdapter) -> None:
        self._layout = transformer_layout(model, self.name)
        self._pattern = attention_pattern(model, self.name)

    @property
    def layout(self) -> TokenLayout:
        return self._layout

    @property
    def pattern(self) -> AttentionPattern:
        return self._pattern

    def grid(self, model: ModelAdapter) -> PatchGrid:
        return transformer_layout(model, self.name).grid

    def explain(self, images: Tensor, targets: Sequence[Sequence[Target]], passes: Passes) -> list[MethodResult]:
        results: list[MethodResult] = []

        def run(start: int, stop: int) -> None:
            part, wanted = pad_rows(images[start:stop], targets[start:stop], passes.reference.rows)
            maps, scores = self.trace(passes.model, part, wanted)
            results.extend(MethodResult(*pair) for pair in list(zip(maps, scores, strict=True))[: stop - start])

        for_each_batch(len(images), passes.reference, run)
        return results

    @abstractmethod
    def trace(
        self, model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One pass over ``images`` (B, 3, H, W) -> per image its maps (T, rows, cols) and scores (T,)."""

    def per_target(
        self,
        targets: Sequence[Sequence[Target]],
        scores: Sequence[Tensor],
        maps_of: Callable[[Tensor | None], Tensor],
    ) -> list[Tensor]:
        """Per image the maps (T, rows, cols) of its targets.

        ``maps_of(total)`` gives the maps (B, rows, cols) of those targets, one per image, whose ``scores`` add up to
        ``total`` (None without any): rows are independent, so one backward serves all images.
        """
        maps: list[list[Tensor]] = [[] for _ in targets]
        for position in range(max(map(len, targets), default=0)):
            found = maps_of(total_of(scores, position)).detach()
            for row, mine in enumerate(targets):
                if position < len(mine):
                    maps[row].append(found[row])
        grid = self.layout.grid
        nothing = [one.new_zeros((0, grid.rows, grid.cols)) for one in scores]
        return [torch.stack(one) if one else none for one, none in zip(maps, nothing, strict=True)]
