"""Stage ``attn_map``: one overlay per heat map, and ``vqa_manifest.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heatlens.batch.protocols import Explanation, MadeMap, OutputFile, Placed, StageResult, Statistic
from heatlens.batch.tables import write_manifest
from heatlens.cam.protocols import PatchGrid
from heatlens.errors import ItemError
from heatlens.images.film import Film
from heatlens.render.colormaps import colour_table
from heatlens.render.encode import encode_jpg, encode_npy, encode_png, encode_png16
from heatlens.render.overlay import blend
from heatlens.stages.base import MAP_COLUMNS, FinalMap, ImageView, final_map, map_statistics, open_view, pixels_needed

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.questions.plan import HeatMap

RAW_FOLDER = "raw/"


class AttnMapStage:
    """Writes ``<output>.png`` (or ``.jpg``): the film with the heat map blended over it.

    SAVE_RAW_CAM=true adds ``raw/<output>.npy``, the float32 map on the patch grid before mask and colours,
    and ``raw/<output>.png``, the final map as 16-bit grey (0..65535 = 0..1).
    """

    name = "attn_map"
    columns: Mapping[str, type] = MAP_COLUMNS

    def __init__(self, settings: Settings) -> None:
        self._alpha = settings.alpha
        self._background = settings.background
        self._longest = settings.output_size
        self._mask_body = settings.enable_body_mask
        self._raw = settings.save_raw_cam
        self._suffix = settings.output_format
        self._table = colour_table(settings.colormap)

    def expected_files(self, heat_map: HeatMap) -> tuple[str, ...]:
        """The overlay, then the raw files if asked for."""
        overlay = f"{heat_map.output}.{self._suffix}"
        raw = f"{RAW_FOLDER}{heat_map.output}"
        return (overlay, f"{raw}.npy", f"{raw}.png") if self._raw else (overlay,)

    @property
    def longest(self) -> int | None:
        """Pixels of the film that :meth:`open_image` needs along the longer side; None for all."""
        return pixels_needed(self._longest, mask_body=self._mask_body)

    def open_image(self, film: Film, placed: Placed, grid: PatchGrid) -> ImageView:
        """The film at output size with its body mask."""
        return open_view(film, placed, grid, longest=self._longest, mask_body=self._mask_body)

    def image_statistics(self, view: ImageView) -> Mapping[str, Statistic]:
        """Geometry and body mask."""
        return view.statistics()

    def make(self, view: ImageView, heat_map: HeatMap, explanation: Explanation) -> StageResult:
        """Draw and encode one heat map."""
        paths = self.expected_files(heat_map)
        if self._raw and heat_map.output.startswith(RAW_FOLDER):
            raise ItemError("write", "an image in a folder named raw collides with the files of SAVE_RAW_CAM")
        final = final_map(view, explanation.map)
        data = [self._encode(self._draw(view, final))]
        if self._raw:
            data += [encode_npy(explanation.map), encode_png16(final.values)]
        files = tuple(OutputFile(path, content) for path, content in zip(paths, data, strict=True))
        return StageResult(files, map_statistics(view, explanation.map, final))

    def write_index(self, folder: Path, made: Iterator[MadeMap]) -> Sequence[Path]:
        """``vqa_manifest.csv``."""
        return [write_manifest(folder, made)]

    def _draw(self, view: ImageView, final: FinalMap) -> NDArray[np.uint8]:
        drawn: NDArray[np.uint8] = blend(
            view.picture, final.values, self._table, self._alpha, mask=view.body, background=self._background
        )
        if not final.seen.all():
            # What the model did not see has no colour: not hot, not cold.
            bare = view.picture if view.picture.ndim == 3 else view.picture[..., None]
            drawn = np.where(final.seen[..., None], drawn, bare)
        return drawn

    def _encode(self, rgb: NDArray[np.uint8]) -> bytes:
        return encode_jpg(rgb) if self._suffix == "jpg" else encode_png(rgb)
