"""Attention maps, as they are computed: fused attention is replaced by its plain formula for one pass."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatlens.cam.protocols import ModelAdapter, TokenLayout
from heatlens.cam.targets import RandomDirection, random_image
from heatlens.errors import ModelError

CUT_WEIGHTS = "weights"
CUT_FIRST = "first weights"
CUT_OUTPUT = "output"

DEAF = "are the weights of its head zero, or not loaded?"

# scaled_dot_product_attention is one function for the whole process; one pass at a time may replace it.
_LOCK = threading.RLock()


@dataclass(frozen=True)
class AttentionCall:
    """One attention of a forward: ``query``, ``key``, ``value`` (B, heads, n, d), softmax ``weights``
    (B, heads, queries, keys) and ``output`` (B, heads, queries, d), before the output projection."""

    query: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor
    output: Tensor

    @property
    def pools(self) -> bool:
        """Do other queries than the tokens themselves look at them? Then this is an attention pooler."""
        return self.query.shape[2] != self.key.shape[2]


@contextmanager
def traced_attention(model: ModelAdapter, cut: str = "") -> Iterator[list[AttentionCall]]:
    """Records every attention of the forwards inside the block, in order, and makes some tensors autograd leaves.

    ``cut``: CUT_WEIGHTS, every call's softmax weights; CUT_FIRST, the first call's; CUT_OUTPUT, every call's
    output; empty, none. From the first leaf on gradients are recorded, as in
    :class:`heatlens.cam.capture.LayerCapture`; the caller's no_grad block ends that.

    open_clip, timm, torchvision and transformers all compute attention by torch's scaled_dot_product_attention,
    where it is caught; other threads' calls pass through untouched.
    """
    calls: list[AttentionCall] = []
    owner = threading.get_ident()
    with _LOCK, _fused(model.model):
        original = F.scaled_dot_product_attention

        def caught(*args: Any, **kwargs: Any) -> Tensor:
            if threading.get_ident() != owner:
                return original(*args, **kwargs)
            call = _attend(*args, cut=cut if cut != CUT_FIRST or not calls else "", **kwargs)
            calls.append(call)
            return call.output

        F.scaled_dot_product_attention = caught  # type: ignore[assignment]
        try:
            yield calls
        finally:
            F.scaled_dot_product_attention = original


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - the model is in evaluation mode
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    cut: str,
) -> AttentionCall:
    """``softmax(Q K^T / sqrt(d)) V``, step by step."""
    if enable_gqa:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
    logits = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -torch.inf) if hidden else logits + attn_mask
    weights = logits.softmax(dim=-1)
    if cut in (CUT_WEIGHTS, CUT_FIRST):
        weights = _leaf(weights)
    output = weights @ value
    if cut == CUT_OUTPUT:
        output = _leaf(output)
    return AttentionCall(query, key, value, weights, output)


def _leaf(tensor: Tensor) -> Tensor:
    torch.set_grad_enabled(True)  # undone by the no_grad block around the forward
    return tensor.detach().requires_grad_(True)


@contextmanager
def _fused(network: nn.Module) -> Iterator[None]:
    """Every attention module calls scaled_dot_product_attention, none a kernel of its own or an open-coded one."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    flags = [(module, module.fused_attn) for module in network.modules() if hasattr(module, "fused_attn")]
    handles = [
        module.register_forward_pre_hook(_without_weights, with_kwargs=True)
        for module in network.modules()
        if isinstance(module, nn.MultiheadAttention)
    ]
    for module, _ in flags:
        module.fused_attn = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, flag in flags:
            module.fused_attn = flag
        for handle in handles:
            handle.remove()
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _without_weights(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """nn.MultiheadAttention takes its open-coded path only when asked for the weights, which nobody here reads."""
    return args[:4], {**kwargs, "need_weights": False}


@dataclass(frozen=True)
class AttentionPattern:
    """What a model's attention looks like: ``pooled``, an attention pooler ends it; ``readout`` (n,), the weights of
    the tokens that the pooling reads: CLS alone, the mean of the patches, or the pooler's queries that count."""

    pooled: bool
    readout: Tensor

    def first_row(self, flows: list[Tensor]) -> Tensor:
        """How what is read hangs on the last block's tokens: (B, 1, n). Takes the pooler's own flow from ``flows``."""
        read = self.readout.to(flows[0]).expand(len(flows[0]), 1, -1)
        return read @ flows.pop() if self.pooled else read


def attention_pattern(model: ModelAdapter, method: str) -> AttentionPattern:
    """One probing forward. Raises ModelError when ``method`` cannot work with this model's attention."""
    layout = transformer_layout(model, method)
    with torch.no_grad(), traced_attention(model, CUT_OUTPUT) as calls:
        output = model.forward(random_image(model))
    count = layout.prefix + layout.grid.rows * layout.grid.cols
    pooled = len(calls) == len(layout.blocks) + 1 and calls[-1].pools
    inner = calls[:-1] if pooled else calls
    if len(inner) != len(layout.blocks) or any(call.weights.shape[-2:] != (count, count) for call in inner):
        seen = ", ".join(sorted({"x".join(map(str, call.weights.shape[-2:])) for call in calls})) or "none"
        raise ModelError(
            f"CAM_VERSION={method}: needs one attention of all {count} tokens per block ({len(layout.blocks)} blocks); "
            f"this model has {len(calls)} attentions of {seen} (windowed or non-standard attention). "
            "Use gScoreCAM, GradCAM or another method without attention maps."
        )
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(RandomDirection()(output).sum(), calls[-1].output)
    read = (gradient[0] != 0).any(dim=0).any(dim=-1).to(gradient)
    if not bool(read.any()):
        raise ModelError(f"CAM_VERSION={method}: the model's output does not depend on its last attention; {DEAF}")
    return AttentionPattern(pooled, read / read.sum())


def transformer_layout(model: ModelAdapter, method: str) -> TokenLayout:
    """The model's token layout; ModelError naming ``method`` for a model without transformer blocks."""
    if model.tokens is None:
        raise ModelError(
            f"CAM_VERSION={method}: needs a vision transformer's attention maps; the image tower of this model has "
            "none. Use gScoreCAM, GradCAM or another method without attention maps."
        )
    return model.tokens


@contextmanager
def block_hooks(layout: TokenLayout, hook: Callable[[int, object], object]) -> Iterator[None]:
    """``hook(number, output)`` after every block; what it returns (not None) replaces the block's output."""
    handles = [
        block.register_forward_hook(lambda _module, _inputs, output, number=number: hook(number, output))
        for number, block in enumerate(layout.blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def patch_columns(attention: Tensor, layout: TokenLayout) -> Tensor:
    """(..., prefix + rows * cols) -> (..., rows, cols): the patches' share."""
    return attention[..., layout.prefix :].unflatten(-1, (layout.grid.rows, layout.grid.cols))
