"""What the demo model is trained to do. All losses are means, so their weights do not depend on the batch
size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from heatlens.phantom.batches import SLOTS, Batch


def balanced_bce(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Binary cross entropy in which true and false pairs weigh the same in total. target 0..1, known 0 or 1."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * known
    positive, negative = target * known, (1 - target) * known
    return 0.5 * (loss * positive).sum() / positive.sum().clamp(min=1) + 0.5 * (
        loss * negative
    ).sum() / negative.sum().clamp(min=1)


def contrast(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Softmax contrastive loss with several true answers: along each row, all true columns against all known
    ones."""
    floor = torch.finfo(logits.dtype).min
    everything = logits.masked_fill(known == 0, floor).logsumexp(1)
    right = logits.masked_fill(truth * known == 0, floor).logsumexp(1)
    rows = (truth * known).sum(1) > 0
    return (everything - right)[rows].mean() if rows.any() else logits.sum() * 0


def where_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Is the finding here? logits, target (..., 196); target is the patch's relative cover 0..1, weight (...)
    0 or 1.

    A per-patch cross entropy (also teaches to stay silent where nothing is), plus a softmax over the patches,
    which cares about where the maximum lies: the question that pointing asks.
    """
    patch = F.binary_cross_entropy_with_logits(
        logits, target, reduction="none", pos_weight=logits.new_tensor(6.0)
    ).mean(-1)
    present = (target.amax(-1) > 0).float() * weight
    focus = target**2
    share = focus / focus.sum(-1, keepdim=True).clamp(min=1e-6)
    peak = -(share * logits.log_softmax(-1)).sum(-1)
    return (patch * weight).sum() / weight.sum().clamp(min=1) + 0.15 * (peak * present).sum() / present.sum().clamp(
        min=1
    )


def total_loss(
    batch: Batch,
    image: Tensor,
    text: Tensor,
    patches: Tensor,
    layer: Tensor,
    scale: Tensor,
    bias: Tensor,
    dense_scale: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """All losses of a step.

    image (B, D), text (J, D), patches (B, 196, D): normalised embeddings; layer (B, 196, C): the target
    layer's patch tokens; scale: the model's logit scale; bias, dense_scale (2,): helper parameters that are
    dropped after training.
    """
    cosine = image @ text.T
    logits = cosine * scale
    pair = balanced_bce(logits + bias, batch.truth, batch.known)
    nce = 0.5 * (contrast(logits, batch.truth, batch.known) + contrast(logits.T, batch.truth.T, batch.known.T))
    dense = torch.einsum("bpd,bcd->bcp", patches, text[batch.own]) * dense_scale[0].exp() + dense_scale[1]
    words = where_loss(dense, batch.own_maps, batch.own_known)
    spots = layer[..., : len(SLOTS)].transpose(1, 2) * 3 - 4
    slot = where_loss(spots, batch.slot_maps, batch.slot_known)
    parts = {"pair": pair, "contrast": nce, "dense": words, "slots": slot}
    total = pair + nce + words + 1.5 * slot
    return total, {name: float(value.detach()) for name, value in parts.items()}
