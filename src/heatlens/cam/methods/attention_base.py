"""What methods share that read a vision transformer's attention maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor

from heatlens.cam.attention import AttentionPattern, attention_pattern, transformer_layout
from heatlens.cam.batches import in_padded_batches
from heatlens.cam.gradients import per_target
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
        def run(part: Tensor, wanted: Sequence[Sequence[Target]]) -> list[MethodResult]:
            maps, scores = self.trace(passes.model, part, wanted)
            return [MethodResult(*pair) for pair in zip(maps, scores, strict=True)]

        return in_padded_batches(images, targets, passes.reference, run)

    @abstractmethod
    def trace(
        self, model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One pass over ``images`` (B, 3, H, W) -> per image its maps (T, rows, cols) and scores (T,)."""

    def maps_per_target(self, scores: Sequence[Tensor], maps_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """:func:`heatlens.cam.gradients.per_target` for maps: ``maps_of(total)`` gives (B, rows, cols)."""
        grid = self.layout.grid
        return per_target(scores, maps_of, scores[0].new_zeros((0, grid.rows, grid.cols)))
