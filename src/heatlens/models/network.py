"""What every model adapter shares: the target layer, its grid in the input frame, the transformer's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heatlens.cam.capture import LayerCapture
from heatlens.cam.grid import reshape_transform, tokens_of_grid
from heatlens.cam.locks import model_lock
from heatlens.cam.protocols import PatchGrid, TokenLayout
from heatlens.errors import ModelError
from heatlens.models.layers import resolve_layer
from heatlens.models.receptive import measure_grid
from heatlens.models.towers import find_tower

_MAX_PREFIX_TOKENS = 16


class NetworkAdapter:
    """An image model as the engine sees it (:class:`heatlens.cam.protocols.ModelAdapter`).

    ``model`` is frozen and put into evaluation mode. ``preprocess`` holds ``size`` (pixels, or (height, width)),
    ``mean`` and ``std`` (of RGB in 0..1). ``target_layer`` is a path; empty takes the family's default.
    ``identity`` describes the weights for the run's record.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        preprocess: dict[str, Any],
        target_layer: str = "",
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self._identity = identity or {}
        self._parameter = next(model.parameters())
        self.dtype = self._parameter.dtype
        if self.dtype not in (torch.float32, torch.float64):
            raise ModelError(f"model {name}: its weights are {self.dtype}; float32 is needed (PRECISION makes halves)")
        size = preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.frame = (int(width), int(height))
        self._mean = torch.tensor(preprocess["mean"]).view(3, 1, 1)
        self._std = torch.tensor(preprocess["std"]).view(3, 1, 1)
        tower = find_tower(model)
        self.default_layer_name = tower.default_layer if tower else ""
        self.target_layer_name = target_layer or self.default_layer_name
        if not self.target_layer_name:
            raise ModelError(f"no default target layer is known for a {type(model).__name__}; set TARGET_LAYER")
        self.target_layer = resolve_layer(model, self.target_layer_name)
        blocks = resolve_layer(model, tower.blocks) if tower and tower.blocks else None
        self.tokens, self.grid = self._measure(tuple(blocks.children()) if blocks is not None else ())

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    def identity(self) -> dict[str, Any]:
        """What names these weights: model, revision, SHA-256, target layer."""
        return {**self._identity, "target_layer": self.target_layer_name}

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> the model's output (B, ...)."""
        return self.model(images)  # type: ignore[no-any-return]

    def to_grid(self, activations: Tensor) -> Tensor:
        """A layer's output -> (B, C, rows, cols): the reshape transform, or a feature map as it is."""
        if activations.ndim == 4:
            return activations
        assert self.tokens is not None
        return reshape_transform(activations, self.tokens.grid.rows, self.tokens.grid.cols, self.tokens.prefix)

    def from_grid(self, activations: Tensor, output: Tensor) -> Tensor:
        """(N, C, rows, cols) -> the target layer's output with these patches, prefix tokens as in ``output``."""
        return activations if output.ndim == 4 else tokens_of_grid(activations, output)

    def prepare(self, frames: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Model frames, uint8 (H, W, 3) each -> normalised float tensor (B, 3, H, W) on the model's device."""
        width, height = self.frame
        for frame in frames:
            if frame.shape != (height, width, 3):
                raise ModelError(f"a model frame must be ({height}, {width}, 3), got {frame.shape}")
        pixels = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2)
        scaled = pixels.to(self.dtype) / 255
        return (scaled - self._mean.to(scaled)) / self._std.to(scaled)

    def _measure(self, blocks: tuple[nn.Module, ...]) -> tuple[TokenLayout | None, PatchGrid]:
        """Token layout and the target layer's grid, from one empty forward."""
        width, height = self.frame
        empty = torch.zeros((1, 3, height, width), device=self.device, dtype=self.dtype)
        convolved: list[tuple[nn.Conv2d, int, int]] = []
        shapes: list[torch.Size] = []
        ran: dict[nn.Module, None] = {}

        def note(module: nn.Module, _inputs: object, output: Any) -> None:
            ran[module] = None
            if isinstance(module, nn.Conv2d):
                convolved.append((module, int(output.shape[-2]), int(output.shape[-1])))

        def note_tokens(_module: nn.Module, _inputs: object, output: Any) -> None:
            shapes.append((output if isinstance(output, Tensor) else output[0]).shape)

        handles = [module.register_forward_hook(note) for module in self.model.modules()]
        if blocks:
            handles.append(blocks[-1].register_forward_hook(note_tokens))
        try:
            with model_lock(self.model), torch.no_grad(), LayerCapture(self.target_layer, gradients=False) as capture:
                self.output_size = int(self.forward(empty).shape[-1])
            shape = capture.output.shape
        except ModelError as error:
            raise ModelError(
                f"TARGET_LAYER={self.target_layer_name}: {error}"
                + (f" The default is {self.default_layer_name}." if self.default_layer_name else "")
            ) from None
        finally:
            for handle in handles:
                handle.remove()
        self.image_modules = tuple(ran)
        layout = self._token_layout(blocks, shapes[0], convolved) if shapes and len(shapes[0]) == 3 else None
        return layout, self._layer_grid(shape, layout)

    def _token_layout(
        self, blocks: tuple[nn.Module, ...], shape: torch.Size, convolved: list[tuple[nn.Conv2d, int, int]]
    ) -> TokenLayout:
        """The patch grid is that of the patch embedding, the last convolution that fits; the rest is prefix."""
        count = int(shape[1])
        for conv, rows, cols in reversed(convolved):
            if 0 <= (prefix := count - rows * cols) <= _MAX_PREFIX_TOKENS:
                return TokenLayout(blocks, prefix, self._convolution_grid(conv, rows, cols))
        sizes = ", ".join(f"{rows}x{cols}" for _, rows, cols in convolved) or "none"
        raise ModelError(f"model {self.name}: {count} tokens fit no patch embedding (its convolutions give {sizes})")

    def _convolution_grid(self, conv: nn.Conv2d, rows: int, cols: int) -> PatchGrid:
        only = conv.in_channels == 3 and conv.stride == conv.kernel_size and conv.padding in ((0, 0), "valid")
        if only:  # patches side by side from the first pixel on; a frame may have a rest that no patch covers
            return PatchGrid(rows, cols, stride=(float(conv.stride[0]), float(conv.stride[1])))
        return measure_grid(self.forward, self.model, conv, self.frame, (rows, cols))

    def _layer_grid(self, shape: torch.Size, layout: TokenLayout | None) -> PatchGrid:
        if len(shape) == 3 and layout is not None and shape[1] == layout.prefix + layout.grid.rows * layout.grid.cols:
            return layout.grid
        if len(shape) == 4 and layout is not None and tuple(shape[2:]) == (layout.grid.rows, layout.grid.cols):
            return layout.grid
        if len(shape) == 4 and self._lies_like_the_frame(shape[2], shape[3]):
            return measure_grid(self.forward, self.model, self.target_layer, self.frame, (int(shape[2]), int(shape[3])))
        raise ModelError(
            f"TARGET_LAYER={self.target_layer_name}: its output has shape {tuple(shape)}; patch tokens (B, N, C) "
            "of the image tower or a feature map (B, C, h, w), channels first, are needed"
        )

    def _lies_like_the_frame(self, rows: int, cols: int) -> bool:
        """Are ``rows`` x ``cols`` a picture of the frame? Channels-last maps and heads x tokens are not."""
        width, height = self.frame
        return abs(rows * width - cols * height) <= max(width, height)  # one cell more or less
