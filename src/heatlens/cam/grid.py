"""From a transformer's token sequence to a spatial grid."""

from __future__ import annotations

import torch
from torch import Tensor

from heatlens.errors import ModelError

_MAX_PREFIX_TOKENS = 16  # CLS plus registers; the largest in use has 1 + 8


def reshape_transform(tokens: Tensor, height: int = 14, width: int = 14, prefix_tokens: int | None = None) -> Tensor:
    """Patch tokens as a picture: (B, N, C) -> (B, C, height, width).

    ``N = prefix_tokens + height * width``; the prefix (CLS, registers) is dropped. Without ``prefix_tokens``
    it is what N leaves over. The batch comes first, as in timm and open_clip 3: a sequence-first tensor
    (N, B, C) does not have the right N and is refused instead of being reshaped into an empty or scrambled map.

    Raises ModelError when the shape does not fit.
    """
    if tokens.ndim != 3:
        raise ModelError(f"patch tokens must be (batch, tokens, channels), got shape {tuple(tokens.shape)}")
    batch, count, channels = tokens.shape
    prefix = count - height * width if prefix_tokens is None else prefix_tokens
    wanted = "a few" if prefix_tokens is None else prefix_tokens
    if not 0 <= prefix <= _MAX_PREFIX_TOKENS or prefix + height * width != count:
        raise ModelError(
            f"{count} tokens are not a {height}x{width} grid plus {wanted} "
            f"prefix tokens (shape {tuple(tokens.shape)}; expected (batch, tokens, channels), batch first)"
        )
    return tokens[:, prefix:].reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def tokens_of_grid(activations: Tensor, tokens: Tensor) -> Tensor:
    """The inverse of :func:`reshape_transform`: (N, C, h, w) -> (N, n, C) with the prefix of ``tokens`` (1, n, C)."""
    patches = activations.flatten(2).transpose(1, 2)
    prefix = tokens[:, : tokens.shape[1] - patches.shape[1]].to(patches)
    return torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)
