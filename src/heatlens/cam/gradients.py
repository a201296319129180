"""Gradients of many targets of many images: rows are independent, so the t-th targets of all share one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def per_target(scores: Sequence[Tensor], of_total: Callable[[Tensor], Tensor], nothing: Tensor) -> list[Tensor]:
    """Per image (T_b, ...) of what ``of_total`` finds for its targets.

    ``scores`` holds one (T_b,) tensor per image; ``of_total(total)`` gives (B, ...) for those targets, one per image,
    whose scores add up to ``total``. ``nothing`` (0, ...) is for images without targets.
    """
    found: list[list[Tensor]] = [[] for _ in scores]
    for position in range(max(map(len, scores), default=0)):
        rows = [row for row, mine in enumerate(scores) if position < len(mine)]
        values = of_total(torch.stack([scores[row][position] for row in rows]).sum()).detach()
        for row in rows:
            found[row].append(values[row])
    return [torch.stack(mine) if mine else nothing for mine in found]


def slopes(total: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """d total / d input for each of ``inputs``; zeros where ``total`` does not depend on it. The graph is kept."""
    if not total.requires_grad:
        return [torch.zeros_like(one) for one in inputs]
    found = torch.autograd.grad(total, list(inputs), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if slope is None else slope for slope, one in zip(found, inputs, strict=True)]
