"""The adapter for CLIP models of open_clip: images and prompts in, normalised embeddings and a patch grid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from heatlens.cam.capture import LayerCapture
from heatlens.cam.grid import reshape_transform
from heatlens.cam.protocols import PatchGrid
from heatlens.cam.targets import TextSimilarity
from heatlens.errors import ModelError
from heatlens.models.layers import default_layer, resolve_layer

_TEXT_CACHE = 4096  # distinct prompts kept; a GEMeX run has a few thousand


class ClipAdapter:
    """An open_clip model as the engine sees it (:class:`heatlens.cam.protocols.ModelAdapter`).

    ``model`` is frozen and put into evaluation mode. ``tokenizer`` maps a list of strings to token ids
    (N, context). ``preprocess`` holds open_clip's ``size``, ``mean`` and ``std``. ``identity`` describes the
    weights for the run's record.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        name: str,
        preprocess: dict[str, Any],
        target_layer: str = "",
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self._tokenizer = tokenizer
        self._identity = identity or {}
        self._parameter = next(model.parameters())
        size = preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.frame = (int(width), int(height))
        self._mean = torch.tensor(preprocess["mean"]).view(3, 1, 1)
        self._std = torch.tensor(preprocess["std"]).view(3, 1, 1)
        self.default_layer_name = default_layer(self._visual)
        self.target_layer_name = target_layer or self.default_layer_name
        self.target_layer = resolve_layer(model, self.target_layer_name)
        self.prefix_tokens, self.grid = self._measure_grid()
        self.encode_text = lru_cache(maxsize=_TEXT_CACHE)(self._encode_text)

    @property
    def _visual(self) -> Any:
        return self.model.visual

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter.dtype

    def identity(self) -> dict[str, Any]:
        """What names these weights: model, revision, SHA-256, target layer."""
        return {**self._identity, "target_layer": self.target_layer_name}

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> normalised embeddings (B, D), in the model's own dtype."""
        return F.normalize(self.model.encode_image(images).to(self.dtype), dim=-1)  # type: ignore[operator]

    def to_grid(self, activations: Tensor) -> Tensor:
        """The target layer's output -> (B, C, rows, cols): the reshape transform, or a convnet's own shape."""
        if activations.ndim == 4:
            return activations
        return reshape_transform(activations, self.grid.rows, self.grid.cols, self.prefix_tokens)

    def prepare(self, frames: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Model frames, uint8 (H, W, 3) each -> normalised float tensor (B, 3, H, W) on the model's device."""
        width, height = self.frame
        for frame in frames:
            if frame.shape != (height, width, 3):
                raise ModelError(f"a model frame must be ({height}, {width}, 3), got {frame.shape}")
        pixels = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2)
        scaled = pixels.to(self.dtype) / 255
        return (scaled - self._mean.to(scaled)) / self._std.to(scaled)

    def target(self, prompt: str) -> TextSimilarity:
        """The image-text logit of ``prompt``; its text is encoded once and kept."""
        return TextSimilarity(self.encode_text(prompt), self.logit_scale, self.logit_bias, prompt)

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale): about 85 for BiomedCLIP."""
        return float(self.model.logit_scale.exp())  # type: ignore[operator]

    @property
    def logit_bias(self) -> float:
        """SigLIP-type models add a bias; 0 otherwise."""
        bias = getattr(self.model, "logit_bias", None)
        return 0.0 if bias is None else float(bias)

    def _encode_text(self, prompt: str) -> Tensor:
        tokens = self._tokenizer([prompt]).to(self.device)
        with torch.no_grad():
            return F.normalize(self.model.encode_text(tokens).to(self.dtype), dim=-1)[0]  # type: ignore[operator]

    def truncates(self, prompt: str) -> bool:
        """Is ``prompt`` longer than the text tower reads? The rest has no effect on the map."""
        context = getattr(self._tokenizer, "context_length", None)
        if context is None:
            return False
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is not None:  # a Hugging Face tokenizer, with its own special tokens
            return len(inner(prompt, truncation=False)["input_ids"]) > context
        encode = getattr(self._tokenizer, "encode", None)
        return encode is not None and len(encode(prompt)) + 2 > context

    def _measure_grid(self) -> tuple[int, PatchGrid]:
        """Prefix tokens and grid of the target layer, from one empty forward."""
        width, height = self.frame
        empty = torch.zeros((1, 3, height, width), device=self.device, dtype=self.dtype)
        with torch.no_grad(), LayerCapture(self.target_layer, gradients=False) as capture:
            self.forward(empty)
        shape = capture.output.shape
        if len(shape) == 4:
            return 0, _grid(shape[2], shape[3], width, height)
        if len(shape) != 3:
            raise ModelError(
                f"TARGET_LAYER={self.target_layer_name}: its output has shape {tuple(shape)}; "
                "patch tokens (B, N, C) or a feature map (B, C, h, w) are needed"
            )
        rows, cols = self._token_grid()
        prefix = int(shape[1]) - rows * cols
        reshape_transform(capture.output, rows, cols, prefix)  # refuses a layer whose tokens are no grid
        return prefix, _grid(rows, cols, width, height)

    def _token_grid(self) -> tuple[int, int]:
        embed = getattr(getattr(self._visual, "trunk", None), "patch_embed", None)
        size = getattr(embed, "grid_size", None) or getattr(self._visual, "grid_size", None)
        if size is None:
            raise ModelError(f"model {self.name}: its image tower does not say how large its patch grid is")
        return int(size[0]), int(size[1])


def _grid(rows: int, cols: int, width: int, height: int) -> PatchGrid:
    return PatchGrid(rows, cols, stride=(height / rows, width / cols))
