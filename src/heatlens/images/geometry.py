"""Between a source image and the model's square frame: one class for the way there and back.

Coordinates are continuous: a pixel spans one unit, the centre of pixel (0, 0) is at (0.5, 0.5). A patch's value
belongs to the centre of its patch, so maps are interpolated between cell centres (half-pixel rule); aligning
corners instead would shift a 14 x 14 map by 7.5 of 224 pixels at the edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heatlens.cam.protocols import PatchGrid
from heatlens.errors import ConfigError

MODES = ("letterbox", "crop", "squash")
GEMEX_FRAME = 224

_BAND = 2**15
"""elements of a band of a map, which stays in the processor's cache"""

Points = NDArray[np.float64]
_Axis = tuple[NDArray[np.intp], Points]
Size = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class FrameGeometry:
    """How ``source`` (width, height) lies in ``frame`` (width, height).

    The source is scaled to ``content`` (integer width, height) and placed with its corner at ``corner``
    (x, y): at least 0 with ``letterbox`` (padding), at most 0 with ``crop`` (the rest is cut off).
    """

    mode: str
    source: Size
    frame: Size
    content: Size
    corner: tuple[int, int]

    @classmethod
    def fit(cls, mode: str, source: Size, frame: Size) -> FrameGeometry:
        """``letterbox``: whole image, aspect kept, padded. ``crop``: shorter side scaled to the frame, centre cut
        out (torchvision's Resize + CenterCrop). ``squash``: whole image, aspect ignored.

        Raises ConfigError for another mode; a crop wants a square frame, as every CLIP has.
        """
        if min(*source, *frame) < 1:
            raise ValueError(f"sizes must be positive, got source {source} and frame {frame}")
        if mode == "squash":
            return cls(mode, source, frame, frame, (0, 0))
        if mode == "letterbox":
            scale = min(frame[0] / source[0], frame[1] / source[1])
            content = (_scaled(source[0], scale, frame[0]), _scaled(source[1], scale, frame[1]))
            corner = ((frame[0] - content[0]) // 2, (frame[1] - content[1]) // 2)
            return cls(mode, source, frame, content, corner)
        if mode == "crop":
            return cls(mode, source, frame, *_centre_crop(source, frame))
        raise ConfigError(f"PREPROCESS={mode!r}: allowed are {', '.join(MODES)}")

    def place(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The film's pixels (H, W) or (H, W, 3), all of them or scaled down -> the model's frame, uint8 (h, w, 3).

        Pillow's antialiased bicubic, as CLIP's own preprocessing; black padding.
        """
        if not self._shows(pixels.shape[1], pixels.shape[0]):
            raise ValueError(f"pixels are {pixels.shape[1]}x{pixels.shape[0]}, the geometry is for {self.source}")
        scaled = Image.fromarray(pixels).resize(self.content, Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", self.frame)
        canvas.paste(scaled.convert("RGB"), self.corner)
        return np.asarray(canvas)

    def _shows(self, width: int, height: int) -> bool:
        """Is this the source's shape, at its own size or at a smaller one rounded up to whole pixels?"""
        scale = max(self.source) / max(width, height)
        return scale >= 1 and all(
            abs(own / scale - got) < 1 for own, got in zip(self.source, (width, height), strict=True)
        )

    def source_to_frame(self, points: Points) -> Points:
        """Points (N, 2) as (x, y): source coordinates -> frame coordinates."""
        return np.asarray(points, dtype=np.float64) * self._scale + np.asarray(self.corner, dtype=np.float64)

    def frame_to_source(self, points: Points) -> Points:
        """Points (N, 2) as (x, y): frame coordinates -> source coordinates."""
        return (np.asarray(points, dtype=np.float64) - np.asarray(self.corner, dtype=np.float64)) / self._scale

    @property
    def _scale(self) -> Points:
        """Frame pixels per source pixel, (x, y): the real one, after rounding to whole pixels."""
        return np.array(self.content, dtype=np.float64) / np.array(self.source, dtype=np.float64)

    def map_to_source(
        self, values: NDArray[np.float32], grid: PatchGrid, output: Size
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """A map on the patch grid (rows, cols) -> the whole source at ``output`` (width, height) pixels.

        Returns float32 (h, w), bilinear between cell centres and constant beyond the outermost ones, and the
        bool mask (h, w) of what the model saw; values are 0 where it did not.
        """
        if values.shape != (grid.rows, grid.cols):
            raise ValueError(f"the map is {values.shape}, its grid {grid.rows}x{grid.cols}")
        across, down, seen = _axes(self, grid, output)
        exact = values.astype(np.float64)
        # Along an axis that the frame shows from end to end, cells and pixels lie as in a plain resize.
        if self._spans(1, grid.rows * grid.stride[0], grid.offset[0]):
            full = _resized(_interpolated(exact, *across), output)
        elif self._spans(0, grid.cols * grid.stride[1], grid.offset[1]):
            full = _resized(_interpolated(exact.T, *down).T, output)
        else:
            full = _rows_between(_interpolated(exact, *across), *down)
        if not seen.all():
            full[~seen] = 0.0
        return full, seen

    def seen(self, grid: PatchGrid, output: Size) -> NDArray[np.bool_]:
        """What the model saw of the source at ``output`` (width, height) pixels, bool (h, w); not to be written to."""
        return _axes(self, grid, output)[2]

    def _spans(self, axis: int, cells: float, offset: float) -> bool:
        """Do source, frame and the grid (``cells``: its cells times its stride) begin and end alike along an axis?"""
        return self.corner[axis] == offset == 0 and self.content[axis] == self.frame[axis] == cells

    def axis(
        self, axis: int, pixels: int, cells: int, stride: float, offset: float
    ) -> tuple[NDArray[np.intp], Points, NDArray[np.bool_]]:
        """Along one axis, per output pixel: the cell before it, the share of the next one, and does the frame show
        it?"""
        centres = (np.arange(pixels) + 0.5) * self.source[axis] / pixels
        in_frame = centres * self._scale[axis] + self.corner[axis]
        cell = np.clip((in_frame - offset) / stride - 0.5, 0, cells - 1)
        low = np.minimum(np.floor(cell).astype(np.intp), max(cells - 2, 0))
        return low, cell - low, (in_frame >= 0) & (in_frame <= self.frame[axis])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the record."""
        return asdict(self)


@lru_cache(maxsize=4)
def _axes(geometry: FrameGeometry, grid: PatchGrid, output: Size) -> tuple[_Axis, _Axis, NDArray[np.bool_]]:
    """What all maps of an image share: both axes, and what the model saw (h, w), which is not to be written to."""
    low_x, share_x, seen_x = geometry.axis(0, output[0], grid.cols, grid.stride[1], grid.offset[1])
    low_y, share_y, seen_y = geometry.axis(1, output[1], grid.rows, grid.stride[0], grid.offset[0])
    seen = seen_y[:, None] & seen_x[None, :]
    seen.setflags(write=False)
    return (low_x, share_x), (low_y, share_y), seen


def _interpolated(values: Points, low: NDArray[np.intp], share: Points) -> Points:
    """Between the columns of ``values`` (rows, cols): (rows, pixels)."""
    high = np.minimum(low + 1, values.shape[1] - 1)
    return values[:, low] * (1 - share) + values[:, high] * share


def _resized(values: Points, size: Size) -> NDArray[np.float32]:
    """Bilinear between cell centres, constant beyond the outermost: OpenCV's plain resize, to single precision."""
    resized = cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)


def _rows_between(wide: Points, low: NDArray[np.intp], share: Points) -> NDArray[np.float32]:
    """Between the rows of ``wide`` (cells, w): (pixels, w).

    Not as a matrix product: a linear algebra library would wake threads of its own, which then spin for longer than a
    picture takes.
    """
    full = np.empty((len(low), wide.shape[1]), dtype=np.float32)
    rows, shares = wide.astype(np.float32), share.astype(np.float32)[:, None]
    band = max(1, _BAND // wide.shape[1])
    edges = np.searchsorted(low, np.arange(len(wide) + 1))
    for cell, (first, last) in enumerate(pairwise(edges.tolist())):
        rise = rows[min(cell + 1, len(rows) - 1)] - rows[cell]
        for top in range(first, last, band):
            part = full[top : min(top + band, last)]
            np.multiply(shares[top : top + len(part)], rise, out=part)
            part += rows[cell]
    return full


def _scaled(length: int, scale: float, most: int) -> int:
    return min(max(round(length * scale), 1), most)


def _centre_crop(source: Size, frame: Size) -> tuple[Size, tuple[int, int]]:
    """Content and corner of torchvision's ``Resize(side)`` and ``CenterCrop(side)``, whose roundings these are."""
    if frame[0] != frame[1]:
        raise ConfigError(f"PREPROCESS=crop wants a square frame, this model's is {frame[0]}x{frame[1]}")
    side, (width, height) = frame[0], source
    content = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    # Python's round, as torchvision: half to even.
    return content, (-round((content[0] - side) / 2.0), -round((content[1] - side) / 2.0))


def gemex_box_to_source(box: Box, size: Size, frame: int = GEMEX_FRAME) -> Box:
    """An xyxy box in GEMeX's letterboxed frame -> source pixels of an image of ``size`` (W, H), clipped.

    The frame's ideal formula (no rounding to whole pixels): ``s = max(W, H) / 224; X = (x - (224 - W/s)/2) * s``.
    """
    scale = max(size) / frame
    left, top = (frame - size[0] / scale) / 2, (frame - size[1] / scale) / 2
    return clip_box([(edge - start) * scale for edge, start in zip(box, (left, top, left, top), strict=True)], size)


def clip_box(box: Sequence[float], size: Size) -> Box:
    """An xyxy box cut off at the border of an image of ``size`` (W, H); without area if nothing of it lies inside."""
    x1, y1, x2, y2 = (min(max(edge, 0.0), float(most)) for edge, most in zip(box, (*size, *size), strict=True))
    return x1, y1, x2, y2


def source_box_to_gemex(box: Box, size: Size, frame: int = GEMEX_FRAME) -> Box:
    """An xyxy box in source pixels of an image of ``size`` (W, H) -> GEMeX's letterboxed frame."""
    scale = max(size) / frame
    left, top = (frame - size[0] / scale) / 2, (frame - size[1] / scale) / 2
    return box[0] / scale + left, box[1] / scale + top, box[2] / scale + left, box[3] / scale + top
