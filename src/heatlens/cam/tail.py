"""Running only the part of a model that comes after the target layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from heatlens.cam.batches import BatchRows, for_each_batch, is_out_of_memory
from heatlens.cam.capture import Reference, first_tensor, with_first
from heatlens.cam.masked import Rows, Scores
from heatlens.cam.protocols import ModelAdapter


class Tail:
    """Scores of one image with other activations at the target layer.

    A forward of a single image has its target layer's output replaced by many rows; from there on the model works
    on that many. What the model adds from before the layer (a residual) has one row and is broadcast. A model that
    cannot do that (it concatenates) gets the image as many times from the start.
    """

    def __init__(self, model: ModelAdapter, batch: BatchRows) -> None:
        self._model = model
        self._batch = batch
        self._single = True

    def scores(self, reference: Reference, count: int, variants: Callable[[Tensor], Tensor]) -> Tensor:
        """``variants(keys)`` gives activations (n, C, h, w) for keys 0..count-1 -> scores (T, count)."""
        device = self._model.device
        rows = Rows.of([torch.arange(count)], device)
        found = Scores([reference.targets], [count], self._model)

        def run(start: int, stop: int) -> None:
            segments = rows.segments(start, stop)
            keys = segments[0].keys
            padded = torch.cat([keys, keys[-1:].expand(self._batch.rows - len(keys))])
            with torch.inference_mode():
                found.take(segments, self._outputs(reference.image, variants(padded)))

        for_each_batch(count, self._batch, run)
        return found.tables[0]

    def _outputs(self, image: Tensor, activations: Tensor) -> Tensor:
        if self._single:
            try:
                outputs = self._replaced(image[None], activations)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                outputs = activations.new_zeros(0)
            if len(outputs) == len(activations):
                return outputs
            self._single = False
        return self._replaced(image.expand(len(activations), -1, -1, -1), activations)

    def _replaced(self, images: Tensor, activations: Tensor) -> Tensor:
        def replace(_module: torch.nn.Module, _inputs: object, output: object) -> object:
            own = first_tensor(output)
            return with_first(output, self._model.from_grid(activations, own[:1]).to(own.dtype))

        handle = self._model.target_layer.register_forward_hook(replace)
        try:
            return self._model.forward(images)
        finally:
            handle.remove()
