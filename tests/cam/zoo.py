"""Small models of every family, with random weights: what the methods are tested on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from heatlens.cam.protocols import Target
from heatlens.models.classifier import ClassifierAdapter
from heatlens.models.clip import ClipAdapter
from heatlens.models.loading import load_clip
from heatlens.models.network import NetworkAdapter
from heatlens.models.transformers_clip import TransformersClipAdapter
from tests.cam.support import PROMPTS, TOKENIZER, tiny_clip
from tests.models.tiny_transformers import tiny_transformers_folder

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
CLASSES = 5


def preprocess(size: int | tuple[int, int]) -> dict[str, Any]:
    return {"size": size, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def stirred(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Away from near-zero and constant initial values, so that maps have structure."""
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.to(dtype)


def open_clip_vit(dtype: torch.dtype = torch.float32) -> ClipAdapter:
    """open_clip's own ViT: nn.MultiheadAttention, CLS, 4 x 4 patches."""
    torch.manual_seed(1)
    vision = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 16, "image_size": 64}
    model = stirred(CLIP(embed_dim=24, vision_cfg=vision, text_cfg=TEXT), dtype)
    return ClipAdapter(model, TOKENIZER, name="open_clip", preprocess=preprocess(64))


def siglip_like(dtype: torch.dtype = torch.float32) -> ClipAdapter:
    """timm trunk without CLS token, pooled by attention (MAP), as open_clip's SigLIP models are."""
    torch.manual_seed(2)
    timm_kwargs = {"embed_dim": 48, "depth": 3, "num_heads": 3, "class_token": False, "global_pool": "map"}
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none", "image_size": 64}
    model = CustomTextCLIP(embed_dim=48, vision_cfg=vision, text_cfg=TEXT, init_logit_bias=-10.0)
    model.visual.trunk = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, **timm_kwargs)
    return ClipAdapter(stirred(model, dtype), TOKENIZER, name="siglip", preprocess=preprocess(64))


def registers_vit(dtype: torch.dtype = torch.float32) -> ClassifierAdapter:
    """timm, CLS and three registers, 4 x 6 patches, class logits."""
    torch.manual_seed(3)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(64, 96), embed_dim=48, depth=3, num_heads=3, reg_tokens=3, num_classes=CLASSES
    )
    return ClassifierAdapter(stirred(model, dtype), name="registers", preprocess=preprocess((64, 96)))


def averaged_vit(dtype: torch.dtype = torch.float32) -> ClassifierAdapter:
    """timm, no CLS in the pooling: the mean of the patches."""
    torch.manual_seed(4)
    model = timm.create_model("test_vit", img_size=64, num_classes=CLASSES, global_pool="avg")
    return ClassifierAdapter(stirred(model, dtype), name="averaged", preprocess=preprocess(64))


def torchvision_vit(dtype: torch.dtype = torch.float32) -> ClassifierAdapter:
    torch.manual_seed(5)
    model = torchvision.models.VisionTransformer(64, 16, 3, 4, 48, 96, num_classes=CLASSES)
    return ClassifierAdapter(stirred(model, dtype), name="torchvision", preprocess=preprocess(64))


def convnet(dtype: torch.dtype = torch.float32) -> ClassifierAdapter:
    """timm's smallest ResNet at its third stage: 48 channels, 4 x 4 cells, inside a network with a fourth."""
    torch.manual_seed(6)
    model = stirred(timm.create_model("test_resnet", num_classes=CLASSES), dtype)
    return ClassifierAdapter(model, name="convnet", preprocess=preprocess(64), target_layer="layer3")


def _transformers(kind: str, dtype: torch.dtype) -> NetworkAdapter:
    with tempfile.TemporaryDirectory() as folder:
        model = load_clip(str(tiny_transformers_folder(kind, Path(folder) / kind)))
    torch.manual_seed(7)
    return TransformersClipAdapter(
        stirred(model.model, dtype), model._tokenizer, name=kind, preprocess=preprocess(model.frame[0])
    )


def transformers_clip(dtype: torch.dtype = torch.float32) -> NetworkAdapter:
    """transformers' CLIPModel: CLS token."""
    return _transformers("clip", dtype)


def transformers_siglip(dtype: torch.dtype = torch.float32) -> NetworkAdapter:
    """transformers' SiglipModel: no CLS token, pooled by nn.MultiheadAttention, a logit bias."""
    return _transformers("siglip", dtype)


ZOO: dict[str, Callable[[torch.dtype], NetworkAdapter]] = {
    "timm trunk": tiny_clip,
    "open_clip": open_clip_vit,
    "SigLIP": siglip_like,
    "registers": registers_vit,
    "averaged": averaged_vit,
    "transformers CLIP": transformers_clip,
    "transformers SigLIP": transformers_siglip,
    "torchvision": torchvision_vit,
    "convnet": convnet,
}
TRANSFORMERS = [name for name in ZOO if name != "convnet"]


@cache
def build(name: str, dtype: torch.dtype = torch.float32) -> NetworkAdapter:
    return ZOO[name](dtype)


def targets_of(model: NetworkAdapter, count: int = 3) -> list[Target]:
    """``count`` different things to look for."""
    if isinstance(model, ClipAdapter):
        return [model.target(prompt) for prompt in PROMPTS[:count]]
    return [model.target(number) for number in range(count)]
