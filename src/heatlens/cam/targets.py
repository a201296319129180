"""Targets: one scalar per image from a model's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatlens.cam.protocols import ModelAdapter


@dataclass(frozen=True)
class TextSimilarity:
    """CLIP's image-text logit: ``logit_scale * <image, text> + logit_bias``.

    ``text`` (D,) is the normalised text embedding; the model's output is the normalised image embedding
    (B, D). ``scale`` is the exponentiated logit scale (about 85 for BiomedCLIP).
    """

    text: Tensor
    scale: float
    bias: float = 0.0
    prompt: str = ""

    def __call__(self, output: Tensor) -> Tensor:
        return self.scale * (output @ self.text.to(output)) + self.bias


@dataclass(frozen=True)
class ClassLogit:
    """A classifier's logit of class ``index``, before any softmax or sigmoid."""

    index: int
    label: str = ""

    def __call__(self, output: Tensor) -> Tensor:
        return output[:, self.index]


def random_image(model: ModelAdapter) -> Tensor:
    """Noise (1, 3, H, W) in the model's frame, always the same: what structural questions are asked with."""
    width, height = model.frame
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, 3, height, width), generator=generator, device="cpu")
    return noise.to(device=model.device, dtype=model.dtype)


@dataclass(frozen=True)
class RandomDirection:
    """A fixed random projection of the output: the probe of the zero-gradient check."""

    seed: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        flat = output.flatten(1)
        generator = torch.Generator().manual_seed(self.seed)
        return flat @ torch.randn(flat.shape[1], generator=generator, device="cpu").to(flat)
