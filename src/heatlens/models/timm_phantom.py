"""The demo's vision trunk in timm's registry: a ViT with a CLS token, patch 16 at 224 pixels, width 192 and
depth 6.

open_clip asks timm for a trunk by name and passes neither width nor depth, so the name has to say it all.
Importing this module registers the name; nothing else is needed.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

NAME = "heatlens_phantom_vit_tiny_d6_patch16_224"


def heatlens_phantom_vit_tiny_d6_patch16_224(**options: Any) -> VisionTransformer:
    """Build the trunk. Options are those of timm's VisionTransformer; there are no published weights to
    fetch."""
    for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    settings = {"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 6, "num_heads": 3, **options}
    model = VisionTransformer(**settings)
    # open_clip asks default_cfg for pool_size
    about = {"input_size": (3, 224, 224), "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head"}
    model.default_cfg = model.pretrained_cfg = about  # type: ignore[assignment]
    return model


register_model(heatlens_phantom_vit_tiny_d6_patch16_224)
