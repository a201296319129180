"""What all stages share: from a map on the patch grid to a final map in the picture's frame, the picture's and the raw
map's files.

Order: patch grid -> the picture's frame (source coordinates, half-pixel centres) -> dense CRF if asked -> times body
mask -> min-max inside the mask. Pixels that the model never saw (PREPROCESS=crop) count like pixels outside the body
for the range, and are marked in ``seen``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.batch.protocols import Explanation, OutputFile, Placed, StageResult, Statistic
from heatlens.cam.protocols import PatchGrid
from heatlens.errors import ItemError
from heatlens.images.bodymask import BodyMask, body_mask, pixels_needed
from heatlens.images.film import Film
from heatlens.images.geometry import FrameGeometry
from heatlens.refine.crf import UNDECIDED, CrfOptions, FilmCrf, require_package
from heatlens.render.encode import encode_jpg, encode_npy, encode_png, encode_png16
from heatlens.render.overlay import Range, levels_between, normalise, output_size, resize_film, stretched, value_range
from heatlens.render.peak import peak

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.questions.plan import HeatMap

RAW_FOLDER = "raw/"

# Foreground probabilities of a CRF whose range is below this say the same everywhere; stretched to 0..1 they would
# be shown as heat.
_FLAT_CRF = 1e-3

# What every stage can say about a heat map, with types, for details.parquet.
MAP_COLUMNS: Mapping[str, type] = {
    "map_min": float,
    "map_max": float,
    "map_mean": float,
    "constant": bool,
    "peak_x": float,
    "peak_y": float,
    "seen_fraction": float,
    "body_fraction": float,
    "whole_film": bool,
    "image_notes": str,
}


@dataclass(frozen=True)
class ImageView:
    """What all heat maps of one image share.

    ``picture`` is the film at the output size, uint8 (h, w) or (h, w, 3); ``mask`` its body, None where all counts;
    ``source`` the film's own (width, height). ``crf`` refines maps at a size of its own, None without.
    """

    picture: NDArray[np.uint8]
    mask: BodyMask | None
    source: tuple[int, int]
    geometry: FrameGeometry
    grid: PatchGrid
    notes: tuple[str, ...]
    crf: FilmCrf | None = None

    @cached_property
    def body(self) -> NDArray[np.bool_]:
        """The body mask at the picture's size, (h, w). Not sent from process to process: it is larger than the mask."""
        return np.ones(self.picture.shape[:2], dtype=bool) if self.mask is None else self.mask.at(self.size)

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """What the model saw of the picture, (h, w)."""
        return self.geometry.seen(self.grid, self.size)

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """Body and view, (h, w)."""
        return self.body & self.seen

    @cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """The picture with three channels, (h, w, 3)."""
        if self.picture.ndim == 3:
            return self.picture
        return np.asarray(cv2.cvtColor(self.picture, cv2.COLOR_GRAY2RGB), dtype=np.uint8)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the output."""
        return self.picture.shape[1], self.picture.shape[0]

    def statistics(self) -> dict[str, Statistic]:
        """Numbers of the image itself."""
        return {
            "geometry": json.dumps(self.geometry.as_dict(), sort_keys=True),
            "body_fraction": 1.0 if self.mask is None else self.mask.fraction,
            "whole_film": self.mask is not None and self.mask.whole_film,
            "image_notes": "; ".join(self.notes),
        }


@dataclass(frozen=True)
class FinalMap:
    """A map in the picture's frame. ``heat`` float32 (h, w) before min-max; ``inside`` body and view, bool (h, w);
    ``range`` of the heat inside, None for a map that is constant there."""

    heat: NDArray[np.float32]
    inside: NDArray[np.bool_]
    range: Range | None

    @property
    def constant(self) -> bool:
        """Is there no heat to show?"""
        return self.range is None

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """float32 (h, w) in 0..1, 0 outside body and view."""
        if self.range is None:
            return np.zeros(self.heat.shape, dtype=np.float32)
        return stretched(self.heat, self.inside, self.range)

    def levels(self) -> NDArray[np.uint8]:
        """The same as uint8 0..255, faster."""
        if self.range is None:
            return np.zeros(self.heat.shape, dtype=np.uint8)
        return levels_between(self.heat, self.inside, self.range)

    def peak(self) -> tuple[int, int] | None:
        """(x, y) of the hottest pixel inside, the middle one of several; None for a constant map."""
        return None if self.range is None else peak(self.heat, self.inside, self.range.hottest)


def open_view(
    film: Film,
    placed: Placed,
    grid: PatchGrid,
    *,
    longest: int | None,
    mask_body: bool,
    crf: CrfOptions | None = None,
) -> ImageView:
    """Resize the film and find the body, once per image. ``longest`` is OUTPUT_SIZE.

    The film may have been decoded at a smaller scale, as :func:`pixels_needed` says.
    """
    size = output_size(film.size, longest)
    notes = film.notes
    # On the film's pixels, not the picture's: the body is not to depend on how small the picture is.
    found = body_mask(film.pixels) if mask_body else None
    if found is not None and found.whole_film and found.reason:
        notes = (*notes, f"no body mask: {found.reason}")
    picture = resize_film(film.pixels, size)
    refiner = FilmCrf(resize_film(picture, output_size(size, crf.size)), crf) if crf else None
    return ImageView(picture, found, film.size, placed.geometry, grid, notes, refiner)


def final_map(view: ImageView, grid_map: NDArray[np.float32]) -> FinalMap:
    """The map as it is coloured. ItemError (explain) when it is not finite."""
    if not np.isfinite(grid_map).all():
        raise ItemError("explain", "the map is not finite")
    heat = None if view.crf is None else _refined(view, view.crf, grid_map)
    if heat is None:
        heat, _ = view.geometry.map_to_source(grid_map, view.grid, view.size)
    return FinalMap(heat, view.inside, value_range(heat, view.inside))


def _refined(view: ImageView, crf: FilmCrf, grid_map: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """How probably each pixel (h, w) of the picture is foreground; 0 everywhere when that is the same for all, None
    for a map that is constant before.

    Pixels outside the body are background to begin with; what the model did not see is undecided.
    """
    values, seen = view.geometry.map_to_source(grid_map, view.grid, crf.size)
    body = cv2.resize(view.body.view(np.uint8), crf.size, interpolation=cv2.INTER_AREA).astype(bool)
    heat, constant = normalise(values, body & seen)
    if constant:
        return None
    heat[body & ~seen] = UNDECIDED
    found = crf.foreground(heat)
    if np.ptp(found[body & seen]) < _FLAT_CRF:
        found[:] = 0
    return np.asarray(cv2.resize(found, view.size, interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def map_statistics(view: ImageView, grid_map: NDArray[np.float32], final: FinalMap) -> dict[str, Statistic]:
    """Numbers of one heat map: range of the raw map, and where the final one is hottest, in source pixels.

    The peak is the centre of the hottest output pixel, the middle one of several; None for a constant map, which has no
    peak.
    """
    peak_x: float | None = None
    peak_y: float | None = None
    if (hottest := final.peak()) is not None:
        column, row = hottest
        (width, height), (source_width, source_height) = view.size, view.source
        peak_x = (column + 0.5) * source_width / width
        peak_y = (row + 0.5) * source_height / height
    return {
        "map_min": float(grid_map.min()),
        "map_max": float(grid_map.max()),
        "map_mean": float(grid_map.mean(dtype=np.float64)),
        "constant": final.constant,
        "peak_x": peak_x,
        "peak_y": peak_y,
        "seen_fraction": np.count_nonzero(view.seen) / view.seen.size,
    }


class MapStage(ABC):
    """A stage that draws one picture per heat map, ``<output>.png`` (or ``.jpg``).

    SAVE_RAW_CAM=true adds ``raw/<output>.npy``, the float32 map on the patch grid before mask and colours,
    and ``raw/<output>.png``, the final map as 16-bit grey (0..65535 = 0..1).
    """

    def __init__(self, settings: Settings) -> None:
        self._longest = settings.output_size
        self._mask_body = settings.enable_body_mask
        self._raw = settings.save_raw_cam
        self._suffix = settings.output_format
        self._crf = CrfOptions.of(settings)

    def check(self) -> None:
        """SetupError when what making a heat map needs, beside the model, is not here (SKIP_CRF=false)."""
        if self._crf is not None:
            require_package()

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
        return open_view(film, placed, grid, longest=self._longest, mask_body=self._mask_body, crf=self._crf)

    def image_statistics(self, view: ImageView) -> Mapping[str, Statistic]:
        """Geometry and body mask."""
        return view.statistics()

    def make(self, view: ImageView, heat_map: HeatMap, explanation: Explanation) -> StageResult:
        """Draw and encode one heat map."""
        paths = self.expected_files(heat_map)
        if self._raw and heat_map.output.startswith(RAW_FOLDER):
            raise ItemError("write", "an image in a folder named raw collides with the files of SAVE_RAW_CAM")
        final = final_map(view, explanation.map)
        drawn, own = self.draw(view, heat_map, final)
        data = [encode_jpg(drawn) if self._suffix == "jpg" else encode_png(drawn)]
        if self._raw:
            data += [encode_npy(explanation.map), encode_png16(final.values)]
        files = tuple(OutputFile(path, content) for path, content in zip(paths, data, strict=True))
        return StageResult(files, {**map_statistics(view, explanation.map, final), **own})

    @abstractmethod
    def draw(
        self, view: ImageView, heat_map: HeatMap, final: FinalMap
    ) -> tuple[NDArray[np.uint8], Mapping[str, Statistic]]:
        """The picture, uint8 RGB (h, w, 3), and the stage's own statistics beside MAP_COLUMNS."""
