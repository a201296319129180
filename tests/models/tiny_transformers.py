"""Small CLIP and SigLIP models of the transformers library with random weights, as folders like those of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from heatlens.models.clip import ClipAdapter

Kind = Literal["clip", "siglip"]
KINDS: tuple[Kind, ...] = ("clip", "siglip")

CORPUS = (
    "where is the nodule in the left lung",
    "an enlarged heart and a small effusion on the right side",
    "the tip of the endotracheal tube is above the carina",
    "left lung, right heart, no pneumothorax, dark bone",
)
CONTEXT = {"clip": 20, "siglip": 16}
IMAGE_SIZE = {"clip": 48, "siglip": 64}
PATCH = 8
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def tiny_transformers_folder(kind: Kind, folder: Path, seed: int = 0) -> Path:
    """Writes config, safetensors, tokenizer and preprocessing of a 3-layer model into ``folder``; returns it.

    ``clip`` has a 6 x 6 grid and a CLS token, ``siglip`` an 8 x 8 grid and attention pooling; both have width 32.
    """
    tokenizer = tiny_tokenizer(kind)
    model = tiny_model(kind, tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessing(kind)))
    return folder


def tiny_model(kind: Kind, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> torch.nn.Module:
    """The model, its weights moved away from near-zero initial values so that maps have structure."""
    torch.manual_seed(seed)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**_TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT[kind], **ids}
    vision = {**_TOWER, "image_size": IMAGE_SIZE[kind], "patch_size": PATCH}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        if kind == "siglip":  # published SigLIPs have about 4.7 and -16
            model.logit_scale.fill_(2.3)
            model.logit_bias.fill_(-7.5)
    return model.eval()


def tiny_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """CLIP: byte-level BPE between start and end of text. SigLIP: whole words in lower case, then ``</s>``."""
    return _bpe() if kind == "clip" else _words()


def _bpe() -> PreTrainedTokenizerFast:
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(unk_token=end, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            end_of_word_suffix="</w>",
            special_tokens=[start, end],
            show_progress=False,
        ),
    )
    ids = {token: tokenizer.token_to_id(token) for token in (start, end)}
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, ids[end]), (start, ids[start]), trim_offsets=False, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, unk_token=end, pad_token=end, model_max_length=20
    )


def _words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>", model_max_length=16,
        padding_side="right",
    )  # fmt: skip


def _preprocessing(kind: Kind) -> dict[str, Any]:
    """As the hub's files of the two families spell it."""
    size = IMAGE_SIZE[kind]
    if kind == "clip":
        return {
            "size": {"shortest_edge": size},
            "crop_size": {"height": size, "width": size},
            "do_center_crop": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
    return {"size": {"height": size, "width": size}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def pictures(model: ClipAdapter, count: int = 2) -> torch.Tensor:
    """Smooth random images (B, 3, H, W)."""
    coarse = torch.randn((count, 3, 7, 7), generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=model.frame[::-1], mode="bicubic")


def edit_json(path: Path, **changes) -> None:
    """Replaces entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
