"""The folder that holds the demo model, in the layout open_clip's `local-dir:` schema expects (BiomedCLIP's
layout)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from heatlens.models.timm_phantom import NAME as TRUNK
from heatlens.phantom.language import CONTEXT_LENGTH, vocabulary

WEIGHTS = Path(__file__).parent / "weights"
"""folder of the shipped model"""
CHECKPOINT = "open_clip_model.safetensors"
EMBED_DIM = 128
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # OpenAI CLIP


def write_configuration(folder: Path) -> None:
    """Write everything but the weights: model config, BERT config, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    _write(folder / "open_clip_config.json", _open_clip_config())
    _write(folder / "config.json", _bert_config(len(words)))
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": CONTEXT_LENGTH,
                 "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                 "mask_token": "[MASK]"}  # fmt: skip
    _write(folder / "tokenizer_config.json", tokenizer)
    _write_tokenizer(folder)


def _open_clip_config() -> dict[str, Any]:
    vision = {
        "timm_model_name": TRUNK,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    }
    bert = "heatlens-phantom-bert"  # whoever loads the folder puts its path here
    text = {"hf_model_name": bert, "hf_tokenizer_name": bert, "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler", "hf_model_pretrained": False,
            "context_length": CONTEXT_LENGTH}  # fmt: skip
    return {
        "model_cfg": {"embed_dim": EMBED_DIM, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }


def _bert_config(words: int) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 512, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "max_position_embeddings": CONTEXT_LENGTH, "type_vocab_size": 2,
        "vocab_size": words, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }  # fmt: skip


def _write_tokenizer(folder: Path) -> None:
    """tokenizer.json as the `tokenizers` library writes it, so that loading converts nothing."""
    from tokenizers import BertWordPieceTokenizer

    BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True).save(str(folder / "tokenizer.json"))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path = WEIGHTS, *, trained: bool = True) -> tuple[Any, Any]:
    """The model (open_clip CustomTextCLIP, fp32, eval) and its tokenizer, by the path that also loads
    BiomedCLIP.

    trained: False accepts a folder without a checkpoint and gives random weights (to train them).
    """
    import open_clip

    text = {**_open_clip_config()["model_cfg"]["text_cfg"], "hf_model_name": str(folder)}
    name = f"local-dir:{folder}"
    model = open_clip.create_model(
        name, text_cfg=text, require_pretrained=trained, pretrained_image=False, pretrained_text=False
    )
    return model.eval(), open_clip.get_tokenizer(name)
