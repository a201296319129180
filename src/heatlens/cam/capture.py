"""One reference pass: activations at the target layer and the gradients of all targets there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from heatlens.cam.batches import BatchRows, for_each_batch
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
    scores: list[Tensor] = []

    def run(start: int, stop: int) -> None:
        part, wanted = pad_rows(images[start:stop], targets[start:stop], batch.rows)
        with torch.no_grad():
            scores.extend(score_rows(model.forward(part), wanted)[: stop - start])

    for_each_batch(len(images), batch, run)
    return scores


def reference_passes(
    model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]], *, gradients: bool, batch: BatchRows
) -> list[Reference]:
    """:func:`reference_pass` over any number of images, always with ``batch.rows`` rows (padded with nothing)."""
    references: list[Reference] = []

    def run(start: int, stop: int) -> None:
        part, wanted = pad_rows(images[start:stop], targets[start:stop], batch.rows)
        references.extend(reference_pass(model, part, wanted, gradients=gradients)[: stop - start])

    for_each_batch(len(images), batch, run)
    return references


def pad_rows(
    images: Tensor, targets: Sequence[Sequence[Target]], rows: int
) -> tuple[Tensor, Sequence[Sequence[Target]]]:
    """``images`` (n, 3, H, W) filled up to ``rows`` with zeros, and no targets for those."""
    missing = rows - len(images)
    return torch.cat([images, images.new_zeros((missing, *images.shape[1:]))]), [
        *targets,
        *([] for _ in range(missing)),
    ]


def _tail_gradients(model: ModelAdapter, leaf: Tensor, scores: Sequence[Tensor]) -> list[Tensor]:
    """Gradients on the grid, one (T_b, C, h, w) tensor per image."""
    rounds = max((len(row) for row in scores), default=0)
    per_image: list[list[Tensor]] = [[] for _ in scores]
    for position in range(rounds):
        total = sum((row[position] for row in scores if position < len(row)), start=leaf.new_zeros(()))
        gradient = _gradient(total, leaf, keep_graph=position + 1 < rounds)
        grid = model.to_grid(gradient)
        for row, row_scores in enumerate(scores):
            if position < len(row_scores):
                per_image[row].append(grid[row])
    nothing = model.to_grid(leaf.detach())[:0]
    return [torch.stack(grids) if grids else nothing for grids in per_image]


def _gradient(total: Tensor, leaf: Tensor, *, keep_graph: bool) -> Tensor:
    """d total / d leaf; zeros where the output does not depend on the layer at all."""
    if not total.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=keep_graph, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient
