"""One reference pass: activations at the target layer and the gradients of all targets there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from heatlens.cam.batches import BatchRows, in_padded_batches
from heatlens.cam.gradients import per_target, slopes
from heatlens.cam.protocols import ModelAdapter, Target
from heatlens.errors import ModelError


@dataclass(frozen=True)
class Reference:
    """What one image's reference pass found.

    ``image`` (3, H, W) normalised; ``activations`` (C, h, w); ``gradients`` (T, C, h, w) or None for methods
    that need none; ``scores`` (T,) of the T ``targets``. All on the model's device, in the model's dtype.
    """

    image: Tensor
    activations: Tensor
    gradients: Tensor | None
    scores: Tensor
    targets: Sequence[Target]


def first_tensor(output: object) -> Tensor:
    """A module's output, or the first of a tuple: some blocks return their attention beside their tokens."""
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor):
        raise ModelError(f"the layer's output is a {type(output).__name__}, not one tensor")
    return first


def with_first(output: object, replacement: Tensor) -> object:
    """``output`` with its (first) tensor replaced."""
    return (replacement, *output[1:]) if isinstance(output, tuple) else replacement


class LayerCapture:
    """Holds a layer's output during one forward; the hook is gone on exit, on error too.

    With ``gradients`` the output is cut off and replaced by a leaf, and autograd is switched on from there:
    inside ``no_grad`` only the tail after the layer is recorded. The gradient at the leaf is the same as in a
    fully recorded forward, for a tenth of the memory and work.
    """

    def __init__(self, layer: torch.nn.Module, *, gradients: bool) -> None:
        self._layer = layer
        self._gradients = gradients
        self._output: Tensor | None = None

    def __enter__(self) -> LayerCapture:
        self._handle = self._layer.register_forward_hook(self._hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _hook(self, _module: torch.nn.Module, _inputs: object, output: object) -> object:
        if self._output is not None:
            raise ModelError("the target layer runs more than once in a forward; its activations are ambiguous")
        # A copy: the model may work in place on what follows (a ReLU after the layer).
        self._output = first_tensor(output).detach().clone()
        if not self._gradients:
            return None
        self._output.requires_grad_(True)
        torch.set_grad_enabled(True)  # undone by the no_grad block around the forward
        return with_first(output, self._output.clone())

    @property
    def output(self) -> Tensor:
        """The layer's output; ModelError when the forward never reached the layer."""
        if self._output is None:
            raise ModelError("the forward did not reach the target layer; is it on the image side of the model?")
        return self._output


def reference_pass(
    model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]], *, gradients: bool
) -> list[Reference]:
    """One forward over ``images`` (B, 3, H, W) and, per target position, one backward through the tail.

    ``targets`` holds one list per image; lists may differ in length. Rows are independent, so the t-th
    targets of all images share one backward. Runs in the model's own dtype, whatever autocast is active.
    """
    with torch.autocast(images.device.type, enabled=False):
        with torch.no_grad(), LayerCapture(model.target_layer, gradients=gradients) as capture:
            output = model.forward(images)
        leaf = capture.output
        with torch.enable_grad():
            scores = score_rows(output, targets)
        tails = _tail_gradients(model, leaf, scores) if gradients else None
        activations = model.to_grid(leaf.detach())
    return [
        Reference(
            image=images[row],
            activations=activations[row],
            gradients=None if tails is None else tails[row],
            scores=scores[row].detach(),
            targets=row_targets,
        )
        for row, row_targets in enumerate(targets)
    ]


def score_rows(output: Tensor, targets: Sequence[Sequence[Target]]) -> list[Tensor]:
    """Per image the scores (T,) of its row of ``output`` (B, ...), differentiable where ``output`` is."""
    return [
        torch.cat([target(output[row : row + 1]) for target in mine]) if mine else output.new_zeros(0)
        for row, mine in enumerate(targets)
    ]


def score_passes(
    model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]], *, batch: BatchRows
) -> list[Tensor]:
    """The scores (T_b,) of whole images, in the model's own dtype, always with ``batch.rows`` rows."""

    def run(part: Tensor, wanted: Sequence[Sequence[Target]]) -> list[Tensor]:
        with torch.no_grad():
            return score_rows(model.forward(part), wanted)

    return in_padded_batches(images, targets, batch, run)


def reference_passes(
    model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]], *, gradients: bool, batch: BatchRows
) -> list[Reference]:
    """:func:`reference_pass` over any number of images, always with ``batch.rows`` rows (padded with nothing)."""
    return in_padded_batches(images, targets, batch, partial(reference_pass, model, gradients=gradients))


def _tail_gradients(model: ModelAdapter, leaf: Tensor, scores: Sequence[Tensor]) -> list[Tensor]:
    """Gradients on the grid, one (T_b, C, h, w) tensor per image; zeros where the output ignores the layer."""
    nothing = model.to_grid(leaf.detach())[:0]
    return per_target(scores, lambda total: model.to_grid(slopes(total, [leaf])[0]), nothing)
