"""``CAMWrapper``: image + text -> map, in three lines of a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from heatlens.cam.engine import CamEngine
from heatlens.errors import ModelError
from heatlens.images.decode import read_film
from heatlens.images.geometry import FrameGeometry
from heatlens.models.clip import ClipAdapter
from heatlens.models.devices import resolve_device
from heatlens.models.loading import load_clip
from heatlens.render.overlay import normalise

ImageLike = str | Path | Image.Image | NDArray[np.uint8]


class CAMWrapper:
    """A CLIP model and a CAM method as one function: ``CAMWrapper(model)(image, "text") -> map``.

    ``model`` is a name or folder as in MODEL (``demo``, ``hf-hub:...``), a :class:`ClipAdapter`, or an
    open_clip model together with its ``tokenizer``. ``preprocess`` chooses how the image fits the model's frame:
    ``letterbox`` (nothing is cropped), ``crop`` (the model's own; what it cannot see is NaN) or ``squash``.
    ``options`` go to :class:`heatlens.cam.engine.CamEngine` (``top_k``, ``precision``, ``batch_size``...).
    """

    def __init__(
        self,
        model: str | Path | ClipAdapter | nn.Module,
        cam_version: str = "gScoreCAM",
        *,
        tokenizer: Callable[[list[str]], Tensor] | None = None,
        preprocess: str = "letterbox",
        device: str = "auto",
        target_layer: str = "",
        **options: Any,
    ) -> None:
        self.model = _adapter(model, tokenizer, device, target_layer)
        self.engine = CamEngine(self.model, method=cam_version, **options)
        self.preprocess = preprocess

    def __call__(self, image: ImageLike, text: str | Sequence[str]) -> NDArray[np.float32]:
        """The map of ``text`` in the image's own pixels: float32 (H, W), min-max scaled to 0..1.

        ``image``: a path (JPEG, PNG, DICOM), a PIL image, or a uint8 array (H, W) or (H, W, 3). A list of texts
        gives (T, H, W), for the price of little more than one. Parts that ``crop`` hides from the model are NaN.
        A constant map is all zero.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pixels = _pixels(image)
        height, width = pixels.shape[:2]
        geometry = FrameGeometry.fit(self.preprocess, (width, height), self.model.frame)
        frame = self.model.prepare([geometry.place(pixels)])
        (maps,) = self.engine.explain(frame, [[self.model.target(one) for one in texts]])
        placed = [geometry.map_to_source(one.numpy(), self.engine.grid, (width, height)) for one in maps]
        scaled = np.stack([np.where(seen, normalise(values, seen)[0], np.nan) for values, seen in placed])
        scaled = scaled.astype(np.float32)
        return scaled[0] if isinstance(text, str) else scaled


def _adapter(
    model: str | Path | ClipAdapter | nn.Module,
    tokenizer: Callable[[list[str]], Tensor] | None,
    device: str,
    target_layer: str,
) -> ClipAdapter:
    if isinstance(model, ClipAdapter):
        return model
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ModelError("CAMWrapper(model, tokenizer=...): an open_clip model needs its tokenizer")
        import open_clip

        settings = dict(open_clip.get_model_preprocess_cfg(model))
        return ClipAdapter(model, tokenizer, name=type(model).__name__, preprocess=settings, target_layer=target_layer)
    return load_clip(str(model), device=resolve_device(device), target_layer=target_layer)


def _pixels(image: ImageLike) -> NDArray[np.uint8]:
    if isinstance(image, (str, Path)):
        return read_film(Path(image)).pixels
    if isinstance(image, Image.Image):
        return np.asarray(image if image.mode in {"L", "RGB"} else image.convert("RGB"))
    return image
