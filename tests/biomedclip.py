"""BiomedCLIP's exact architecture with random weights, as a local model folder.

Good for shapes, gradients, offline loading, memory and speed; its maps mean nothing, and no test says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch

CONFIG = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
}
BERT = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "pad_token_id": 0,
}


def write_model_folder(folder: Path, *, bert_config: bool = True, seed: int = 0) -> Path:
    """Config, vocabulary and random weights (784 MB) in ``folder``, under BiomedCLIP's own file names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    write_vocabulary(folder)
    bert = folder / "config.json"
    bert.write_text(json.dumps(BERT), encoding="utf-8")
    torch.manual_seed(seed)
    text = {**CONFIG["model_cfg"]["text_cfg"], "hf_model_name": str(folder), "hf_model_pretrained": False}
    model = open_clip.create_model(
        f"local-dir:{folder}", load_weights=False, pretrained_image=False, pretrained_text=False, text_cfg=text
    )
    torch.nn.init.constant_(model.logit_scale, 4.4427)  # exp = 85
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    if not bert_config:
        bert.unlink()
    return folder


def write_vocabulary(folder: Path) -> None:
    """A WordPiece vocabulary of BERT's size: special tokens, letters, digits, word pieces, then fillers."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!:;()-'\"/%"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    words += ["the", "lung", "heart", "left", "right", "what", "is", "where", "nodule", "effusion", "tube"]
    words += [f"[unused{number}]" for number in range(BERT["vocab_size"] - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}), encoding="utf-8"
    )
