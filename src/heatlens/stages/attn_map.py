"""Stage ``attn_map``: one overlay per heat map, and ``vqa_manifest.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heatlens.batch.protocols import MadeMap, Statistic
from heatlens.batch.tables import write_manifest
from heatlens.render.colormaps import colour_table
from heatlens.render.overlay import blend
from heatlens.stages.base import MAP_COLUMNS, FinalMap, ImageView, MapStage

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.questions.plan import HeatMap


class AttnMapStage(MapStage):
    """The picture is the film with the heat map blended over it."""

    name = "attn_map"
    columns: Mapping[str, type] = MAP_COLUMNS

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._alpha = settings.alpha
        self._background = settings.background
        self._table = colour_table(settings.colormap)

    def draw(
        self,
        view: ImageView,
        heat_map: HeatMap,  # noqa: ARG002
        final: FinalMap,
    ) -> tuple[NDArray[np.uint8], Mapping[str, Statistic]]:
        """The blend; no statistics of its own."""
        drawn: NDArray[np.uint8] = blend(
            view.rgb, final.levels(), self._table, self._alpha, mask=view.body, background=self._background
        )
        if not view.seen.all():
            # What the model did not see has no colour: not hot, not cold.
            drawn = np.where(view.seen[..., None], drawn, view.rgb)
        return drawn, {}

    def write_index(self, folder: Path, made: Iterator[MadeMap]) -> Sequence[Path]:
        """``vqa_manifest.csv``."""
        return [write_manifest(folder, made)]
