"""Where the known families of image models keep their blocks, and their default target layer.

A family is recognised by the names of its modules; one line here adds one. Paths are from the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from heatlens.errors import ModelError
from heatlens.models.layers import resolve_layer


@dataclass(frozen=True)
class Tower:
    """``default_layer`` is the target layer to use; ``blocks`` the path of a transformer's blocks, else empty."""

    default_layer: str
    blocks: str = ""


# (path of the blocks, a block's input norm). For a CLS-pooled transformer the input norm of the last block is the
# last place where patch tokens have a gradient: at the block's own output, at its second norm and at the final
# norm the score's gradient with respect to the patch tokens is exactly zero.
_TRANSFORMERS = (
    ("visual.trunk.blocks", "norm1"),  # open_clip with a timm trunk: BiomedCLIP
    ("visual.transformer.resblocks", "ln_1"),  # open_clip's own ViT
    ("vision_model.encoder.layers", "layer_norm1"),  # transformers' CLIP and SigLIP
    ("blocks", "norm1"),  # timm
    ("encoder.layers", "ln_1"),  # torchvision
)
_CONVNETS = (
    "visual.layer4",  # open_clip's ResNets
    "visual.trunk.layer4",
    "visual.trunk.stages[-1]",
    "layer4",  # ResNets of torchvision and timm
    "stages[-1]",  # timm's ConvNeXt
    "features[-1]",  # torchvision's VGG, DenseNet, EfficientNet, ConvNeXt
    "blocks[-1]",  # timm's EfficientNet
)


def find_tower(model: nn.Module) -> Tower | None:
    """The image tower of ``model``, or None for a family that is not known."""
    for blocks, norm in _TRANSFORMERS:
        last = f"{blocks}[-1].{norm}"
        if _has(model, last):
            return Tower(last, blocks)
    return next((Tower(layer) for layer in _CONVNETS if _has(model, layer)), None)


def _has(model: nn.Module, path: str) -> bool:
    try:
        resolve_layer(model, path)
    except ModelError:
        return False
    return True
