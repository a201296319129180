"""Half-precision copies of the weights that autocast would otherwise cast again in every forward."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from heatlens.cam.precision import half_dtype
from heatlens.cam.protocols import ModelAdapter

# Their matrices go through functions that autocast runs in half precision; all else (norms, tables) stays as it is.
_CAST = (nn.Linear, nn.Conv2d)


class HalfWeights:
    """Inside the block the image tower's matrices are half-precision copies; outside they are its own again.

    Autocast keeps no copies of frozen weights: it casts every one of them in every forward, which shows in forwards
    of few rows (docs/performance.md). The results are bit for bit those of autocast alone, but for the fast path of
    nn.MultiheadAttention on a CPU, which autocast does not reach. The copies live as long as the block, so that
    weights may change in between, as they do while a model trains; for fp32 nothing happens.
    """

    def __init__(self, model: ModelAdapter, precision: str) -> None:
        self._model = model
        self._dtype = half_dtype(precision)
        self._own: list[tuple[nn.Parameter, Tensor]] = []

    def __enter__(self) -> HalfWeights:
        if self._dtype is not None:
            # First all copies, which may run out of memory, then the exchange, which cannot fail.
            pairs = [(one, one.data, one.data.to(self._dtype)) for one in _matrices(self._model.image_modules)]
            self._own = [(one, own) for one, own, _ in pairs]
            try:
                for parameter, _, half in pairs:
                    parameter.data = half
            except BaseException:  # Ctrl-C
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for parameter, own in self._own:
            parameter.data = own
        self._own = []


def _matrices(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []
    for module in modules:
        if isinstance(module, _CAST):
            found += list(module.parameters(recurse=False))
        elif isinstance(module, nn.MultiheadAttention):  # its output projection is not called as a module
            found += list(module.parameters())
    return [one for one in dict.fromkeys(found) if one.dtype == torch.float32]
