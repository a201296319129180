"""What the engine asks of a model and of a target. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# How warnings begin that others look for: a map that cannot be used, and one that equals others to rounding only.
ERROR_PREFIX = "error: "
HALVED_PREFIX = "out of memory: "


@dataclass(frozen=True)
class PatchGrid:
    """Where the cells of a map lie in the model's input frame.

    ``rows`` x ``cols`` cells; ``stride`` and ``offset`` are (y, x) in pixels of the model frame. The centre of
    cell (i, j) is at ``offset + ((i, j) + 0.5) * stride`` in continuous coordinates (a pixel spans one unit,
    its centre is at +0.5). A ViT's grid has the patch size as stride and offset 0.
    """

    rows: int
    cols: int
    stride: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class TokenLayout:
    """A vision transformer's blocks and how its tokens lie.

    ``blocks`` in forward order; every block's tokens are (B, prefix + rows * cols, C): CLS and registers first,
    then the patches of ``grid`` row by row.
    """

    blocks: tuple[torch.nn.Module, ...]
    prefix: int
    grid: PatchGrid


class Target(Protocol):
    """What a map explains: one number per image from the model's output."""

    def __call__(self, output: Tensor) -> Tensor:
        """``output`` (B, ...) as the model gave it -> scores (B,), differentiable, in ``output``'s dtype."""
        ...


@runtime_checkable
class ModelAdapter(Protocol):
    """The only view of a model that the engine has."""

    @property
    def model(self) -> torch.nn.Module:
        """The network itself."""
        ...

    @property
    def image_modules(self) -> Sequence[torch.nn.Module]:
        """The modules that a forward of an image runs; a CLIP's text tower is not among them."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype: float32, or float64 for numerical studies."""
        ...

    @property
    def frame(self) -> tuple[int, int]:
        """(width, height) of the input images in pixels."""
        ...

    @property
    def target_layer(self) -> torch.nn.Module:
        """The module whose output is the activations."""
        ...

    @property
    def target_layer_name(self) -> str:
        """Its path, as users write it in TARGET_LAYER."""
        ...

    @property
    def default_layer_name(self) -> str:
        """The layer to advise when the chosen one cannot work."""
        ...

    @property
    def grid(self) -> PatchGrid:
        """Geometry of the target layer's activations in the input frame."""
        ...

    @property
    def tokens(self) -> TokenLayout | None:
        """A vision transformer's blocks and token order; None for a convnet."""
        ...

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> output (B, ...). Must treat rows independently."""
        ...

    def to_grid(self, activations: Tensor) -> Tensor:
        """The target layer's output -> (B, C, rows, cols); drops CLS and register tokens."""
        ...

    def from_grid(self, activations: Tensor, output: Tensor) -> Tensor:
        """The inverse: (N, C, rows, cols) -> the target layer's output with these patches.

        CLS and register tokens are those of ``output``, the layer's output for one image (1, ...).
        """
        ...
