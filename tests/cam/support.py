"""A small CLIP with random weights, and gScoreCAM written a second time, plainly, from the paper's steps."""

from __future__ import annotations

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP

from heatlens.models.clip import ClipAdapter

TOKENIZER = open_clip.SimpleTokenizer(context_length=24)
PROMPTS = ("a nodule in the left lung", "an enlarged heart", "the tip of the endotracheal tube", "effusion")


def tiny_clip(dtype: torch.dtype = torch.float32, target_layer: str = "", seed: int = 0) -> ClipAdapter:
    """timm's smallest ViT (CLS token, 10x10 grid at 160, 64 channels) with a one-layer text tower."""
    torch.manual_seed(seed)
    model = CustomTextCLIP(
        embed_dim=32,
        vision_cfg={"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
        text_cfg={"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    )
    for parameter in model.parameters():  # away from near-zero initial values, so that maps have structure
        parameter.data += 0.05 * torch.randn_like(parameter)
    return ClipAdapter(
        model.to(dtype),
        TOKENIZER,
        name="tiny",
        preprocess={"size": 160, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
        target_layer=target_layer,
    )


def noise_images(count: int, model: ClipAdapter, seed: int = 1) -> torch.Tensor:
    """Smooth random pictures (B, 3, H, W) in the model's dtype."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((count, 3, 9, 9), generator=generator)
    width, height = model.frame
    return F.interpolate(coarse, size=(height, width), mode="bicubic").to(model.dtype)


def plain_gscorecam(model: ClipAdapter, image: torch.Tensor, prompt: str, k: int) -> torch.Tensor:
    """One image (3, H, W), one prompt, one channel at a time, everything in float64 with a full backward."""
    network = model.model
    assert next(network.parameters()).dtype == torch.float64
    kept: list[torch.Tensor] = []
    with torch.enable_grad():
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        handle = model.target_layer.register_forward_hook(lambda _m, _i, output: kept.append(output))
        logit = _logit(model, image[None], prompt)[0]
        handle.remove()
        (gradient,) = torch.autograd.grad(logit, kept[0])
        for parameter in network.parameters():
            parameter.requires_grad_(False)
    tokens, slopes = kept[0].detach()[0], gradient[0]
    rows = cols = int((len(tokens) - 1) ** 0.5)
    channels = tokens.shape[1]
    planes = [tokens[1:, c].reshape(rows, cols) for c in range(channels)]
    importance = [float(slopes[1:, c].mean()) for c in range(channels)]
    best = sorted(range(channels), key=lambda c: (-importance[c], c))[:k]
    scores = []
    for c in best:
        big = F.interpolate(planes[c][None, None], size=image.shape[1:], mode="bilinear", align_corners=True)[0, 0]
        mask = (big - big.min()) / (big.max() - big.min() + 1e-6)
        with torch.no_grad():
            scores.append(float(_logit(model, (image * mask)[None], prompt)[0]))
    weights = torch.softmax(torch.tensor(scores, dtype=torch.float64), dim=0)
    total = torch.zeros((rows, cols), dtype=torch.float64)
    for weight, c in zip(weights, best, strict=True):
        total += weight * planes[c]
    return total.clamp(min=0)


def _logit(model: ClipAdapter, images: torch.Tensor, prompt: str) -> torch.Tensor:
    network = model.model
    text = F.normalize(network.text(TOKENIZER([prompt])), dim=-1)
    seen = F.normalize(network.visual(images), dim=-1)
    return network.logit_scale.exp() * (seen @ text.T)[:, 0]
