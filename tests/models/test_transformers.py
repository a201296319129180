"""CLIP and SigLIP of the transformers library: the same numbers as theirs, and what the engine sees."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from heatlens.cam.engine import CamEngine, has_patch_gradient
from heatlens.errors import ModelError, ZeroGradientError
from heatlens.models.clip import ClipAdapter
from heatlens.models.loading import load_clip
from heatlens.models.sources import locate_model, weights_identity
from tests.models.tiny_transformers import (
    CONTEXT,
    IMAGE_SIZE,
    KINDS,
    PATCH,
    edit_json,
    pictures,
    tiny_tokenizer,
    tiny_transformers_folder,
)

PROMPTS = ("left lung", "where is the tip of the endotracheal tube")
LAST_BLOCK = "vision_model.encoder.layers[-1]"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: tiny_transformers_folder(kind, tmp_path_factory.mktemp("tiny") / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def adapters(folders) -> dict[str, ClipAdapter]:
    return {kind: load_clip(str(folder)) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(folders, kind, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folders[kind], tmp_path / "model"))


def theirs(folder: Path, kind: str, images: torch.Tensor, prompts: tuple[str, ...]) -> torch.Tensor:
    """The library's own logits (B, T), with its own loading and the text as its model cards say."""
    network = AutoModel.from_pretrained(folder).eval()
    padding = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": CONTEXT[kind]}
    text = tiny_tokenizer(kind)(list(prompts), return_tensors="pt", **padding)
    kept = {"input_ids": text["input_ids"]} | ({"attention_mask": text["attention_mask"]} if kind == "clip" else {})
    with torch.no_grad():
        return network(pixel_values=images, **kept).logits_per_image


def test_logits_are_the_librarys_own(adapters, folders, kind):
    model, images = adapters[kind], pictures(adapters[kind])
    output = model.forward(images)
    ours = torch.stack([model.target(prompt)(output) for prompt in PROMPTS], dim=1)
    wanted = theirs(folders[kind], kind, images, PROMPTS)
    assert wanted.std() > 0.01
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_scale_and_bias(adapters):
    assert adapters["siglip"].logit_bias == pytest.approx(-7.5)
    assert adapters["siglip"].logit_scale == pytest.approx(torch.tensor(2.3).exp().item())
    assert adapters["clip"].logit_bias == 0
    assert 10 < adapters["clip"].logit_scale < 20


def test_siglips_text_is_lower_case_and_padded_to_the_context(adapters):
    siglip, clip = adapters["siglip"], adapters["clip"]
    inputs = siglip.text_inputs(["Left Lung"])
    assert list(inputs) == ["input_ids"]
    assert inputs["input_ids"].shape == (1, CONTEXT["siglip"])
    siglip_tokens = siglip._tokenizer(["left lung"], return_tensors="pt")["input_ids"]
    assert siglip_tokens.shape == (1, 3)
    with torch.no_grad():
        unpadded = siglip.model.get_text_features(input_ids=siglip_tokens, return_dict=True)
        unpadded = unpadded if isinstance(unpadded, torch.Tensor) else unpadded.pooler_output
        assert not torch.allclose(unpadded, siglip.text_features(["left lung"]), atol=1e-3)
    assert clip.text_inputs(["left lung"])["input_ids"].shape == (1, 4)


def test_siglip_2s_tokenizer_leaves_lower_case_to_the_caller(folders, tmp_path):
    folder = Path(shutil.copytree(folders["siglip"], tmp_path / "model"))
    edit_json(folder / "tokenizer.json", normalizer=None)
    model = load_clip(str(folder))
    assert torch.equal(model.target("Left LUNG").text, model.target("left lung").text)


def test_long_prompts_are_cut_and_said_so(adapters, kind):
    model = adapters[kind]
    assert not model.truncates("left lung")
    assert model.truncates("lung " * 30)
    assert torch.equal(model.target("lung " * 30).text, model.target("lung " * 40).text)


def test_layout_and_default_layer(adapters, kind):
    model, side = adapters[kind], IMAGE_SIZE[kind] // PATCH
    assert model.frame == (IMAGE_SIZE[kind], IMAGE_SIZE[kind])
    assert model.target_layer_name == f"{LAST_BLOCK}.layer_norm1"
    assert model.tokens.prefix == (1 if kind == "clip" else 0)
    assert len(model.tokens.blocks) == 3
    assert model.grid == model.tokens.grid
    assert (model.grid.rows, model.grid.cols, model.grid.stride) == (side, side, (8.0, 8.0))
    assert has_patch_gradient(model)


def test_a_frame_that_patches_do_not_fill_keeps_their_stride(folder):
    """As google/siglip-so400m-patch14-384: the last columns are seen by no patch."""
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", vision_config={**config["vision_config"], "image_size": IMAGE_SIZE["clip"] + 5})
    (folder / "preprocessor_config.json").unlink()
    if config["model_type"] == "siglip":
        weights = load_file(folder / "model.safetensors")
        name = "vision_model.embeddings.position_embedding.weight"
        weights[name] = weights[name][:36].clone()
        save_file(weights, folder / "model.safetensors")
    model = load_clip(str(folder))
    assert model.frame == (53, 53)
    assert (model.grid.rows, model.grid.stride) == (6, (8.0, 8.0))


def test_attention_stays_torchs_own_in_every_block(folder, kind, monkeypatch):
    edit_json(folder / "config.json", _attn_implementation="eager", attn_implementation="eager")
    model, calls, sdpa = load_clip(str(folder)), [], F.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model.forward(pictures(model, 1))
    tokens = model.tokens.prefix + model.grid.rows * model.grid.cols
    assert calls == [(1, 4, tokens, 8)] * 3


def test_the_last_blocks_output_has_a_gradient_without_cls_only(folders):
    clip = load_clip(str(folders["clip"]), target_layer=LAST_BLOCK)
    with pytest.raises(ZeroGradientError, match="layer_norm1"):
        CamEngine(clip, method="GradCAM")
    siglip = load_clip(str(folders["siglip"]), target_layer=LAST_BLOCK)
    assert has_patch_gradient(siglip)


@pytest.mark.parametrize("method", ["gScoreCAM", "GradCAM"])
def test_maps(adapters, kind, method):
    model = adapters[kind]
    with CamEngine(model, method=method, top_k=12, batch_size=8) as engine:
        maps = engine.explain(pictures(model), [[model.target(prompt) for prompt in PROMPTS]] * 2)
    for one in maps:
        assert one.shape == (2, model.grid.rows, model.grid.cols)
        assert one.isfinite().all()
    together = torch.cat(maps)
    assert (together.flatten(1).max(dim=1).values > together.flatten(1).min(dim=1).values).any()
    assert not torch.equal(maps[0], maps[1])


def test_identity_is_that_of_the_source(adapters, folders, kind):
    identity = adapters[kind].identity()
    assert identity == {**weights_identity(str(folders[kind])), "target_layer": adapters[kind].target_layer_name}
    assert identity["weights_file"] == "model.safetensors"
    assert len(identity["weights_sha256"]) == 64


def test_another_preprocessing_is_another_identity(folder):
    before = weights_identity(str(folder))
    edit_json(folder / "preprocessor_config.json", image_mean=[0.4, 0.4, 0.4])
    after = weights_identity(str(folder))
    assert before["config_sha256"] != after["config_sha256"]
    assert before["weights_sha256"] == after["weights_sha256"]


def test_no_network_is_asked(folder, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_clip(f"local-dir:{folder}")


def test_from_the_hub_cache_offline(folders, kind, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(folders[kind], snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = load_clip("hf-hub:someone/tiny", revision="a" * 40)
    assert model.identity()["revision"] == "a" * 40
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"not complete in the hub cache.*no tokenizer"):
        load_clip("hf-hub:someone/tiny", revision="a" * 40)


def test_open_clips_config_wins(folder):
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"open_clip_config.json has no model_cfg"):
        locate_model(str(folder))
