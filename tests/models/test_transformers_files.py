"""Files of transformers models that are missing, damaged or spelt in another way: loaded strictly, or not at all."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from heatlens.errors import ModelError
from heatlens.models.loading import load_clip
from heatlens.models.sources import locate_model, weights_identity
from heatlens.models.transformers_clip import preprocess_numbers
from tests.models.tiny_transformers import IMAGE_SIZE, KINDS, edit_json, pictures, tiny_transformers_folder


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tmp_path) -> Path:
    """A model that a test may spoil."""
    return tiny_transformers_folder(kind, tmp_path / "model")


def test_weights_in_shards_are_the_same_model(folder):
    before = load_clip(str(folder))
    network = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="60KB")
    model = load_clip(str(folder))
    assert torch.equal(model.forward(pictures(model)), before.forward(pictures(model)))
    identity = model.identity()
    assert identity["weights_file"] == "model.safetensors.index.json"
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert identity["weights_bytes"] == sum(shard.stat().st_size for shard in shards)
    save_file({name: weight + 1 for name, weight in load_file(shards[1]).items()}, shards[1])
    assert weights_identity(str(folder))["weights_sha256"] != identity["weights_sha256"]
    shards[0].rename(folder / "elsewhere")
    with pytest.raises(ModelError, match=rf"not in the folder: {shards[0].name}"):
        load_clip(str(folder))


@pytest.mark.parametrize("weight_map", [{}, {"a": "../model.safetensors"}, {"a": 3}, None])
def test_an_index_that_names_no_files_beside_it_is_an_error(folder, weight_map):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="no weight_map"):
        load_clip(str(folder))


def test_a_pickled_checkpoint_with_the_positions_of_old_releases(folder):
    before = load_clip(str(folder))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for tower in ("text_model", "vision_model"):
        weights[f"{tower}.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(weights, folder / "pytorch_model.bin")
    model = load_clip(str(folder))
    assert torch.equal(model.forward(pictures(model)), before.forward(pictures(model)))


def test_half_precision_weights_run_in_float32(folder):
    halves = {name: weight.half() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    edit_json(folder / "config.json", dtype="float16", torch_dtype="float16")
    model = load_clip(str(folder))
    assert {weight.dtype for weight in model.model.parameters()} == {torch.float32}


def test_missing_and_unknown_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file({**weights, "stray": torch.zeros(1)}, folder / "model.safetensors")
    wanted = r"1 weights are missing \(vision_model.post_layernorm.weight\) and 1 are unknown \(stray\)"
    with pytest.raises(ModelError, match=wanted):
        load_clip(str(folder))


def test_weights_of_another_size_or_not_finite_are_errors(folder):
    weights = load_file(folder / "model.safetensors")
    name = "vision_model.post_layernorm.weight"
    save_file({**weights, name: weights[name][:5].clone()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"damaged or does not fit.*post_layernorm"):
        load_clip(str(folder))
    save_file({**weights, name: weights[name] * float("nan")}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"NaN or infinity in vision_model.post_layernorm"):
        load_clip(str(folder))


@pytest.mark.parametrize("size", [0, 5000])
def test_a_truncated_checkpoint_is_an_error(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match="damaged"):
        load_clip(str(folder))


def test_a_pickle_that_is_not_weights_is_refused_not_run(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="damaged or does not fit"):
        load_clip(str(folder))


def test_no_weights_no_model(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights in .*model.safetensors.index.json"):
        load_clip(str(folder))


@pytest.mark.parametrize("model_type", ["bert", "siglip2", None, ["clip"]])
def test_another_model_type_names_those_that_work(folder, model_type):
    edit_json(folder / "config.json", model_type=model_type)
    with pytest.raises(ModelError, match=r"open_clip_config.json is missing and .* clip and siglip work"):
        load_clip(str(folder))


def test_a_broken_config_is_an_error(folder):
    edit_json(folder / "config.json", vision_config={"hidden_size": "wide"})
    with pytest.raises(ModelError, match=r"cannot build the architecture of .*config.json"):
        load_clip(str(folder))
    (folder / "config.json").write_text('{"model_type": "cl')
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        load_clip(str(folder))


def test_towers_that_cannot_be_used_are_errors(folder, kind):
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    name = "vision_model.embeddings.patch_embedding.weight"
    save_file({**weights, name: weights[name][:, :1].clone()}, folder / "model.safetensors")
    edit_json(folder / "config.json", vision_config={**config["vision_config"], "num_channels": 1})
    with pytest.raises(ModelError, match="images have 1 channels"):
        load_clip(str(folder))
    if kind == "siglip":
        headless = {key: value for key, value in weights.items() if not key.startswith("vision_model.head")}
        save_file(headless, folder / "model.safetensors")
        edit_json(folder / "config.json", vision_config={**config["vision_config"], "vision_use_head": False})
        with pytest.raises(ModelError, match="without its attention head"):
            load_clip(str(folder))


def test_code_of_the_repository_is_not_run(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit_json(folder / "config.json", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    load_clip(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_missing_tokenizer_is_an_error(folder, kind):
    (folder / "tokenizer.json").unlink()
    wanted = {"clip": "vocab.json with merges.txt", "siglip": "spiece.model"}[kind]
    with pytest.raises(ModelError, match=f"no tokenizer in .*{wanted}"):
        load_clip(str(folder))


def test_a_broken_tokenizer_is_an_error(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_clip(str(folder))


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="the tokenizer can be loaded here")
def test_siglips_sentencepiece_tokenizer_names_what_it_needs(tmp_path):
    folder = tiny_transformers_folder("siglip", tmp_path)
    (folder / "spiece.model").write_bytes(b"")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    with pytest.raises(ModelError, match="pip install sentencepiece protobuf"):
        load_clip(str(folder))
    (folder / "spiece.model").unlink()  # then tokenizer.json is the tokenizer
    load_clip(str(folder))


def test_clips_tokenizer_in_two_files(tmp_path):
    folder = tiny_transformers_folder("clip", tmp_path)
    before = load_clip(str(folder))
    inner = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(inner["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in inner["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = load_clip(str(folder))
    for prompt in ("left lung", "where is the tip of the endotracheal tube"):
        torch.testing.assert_close(model.target(prompt).text, before.target(prompt).text)


def test_a_tokenizer_without_words_is_an_error(folder, kind):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {word: number for word, number in content["model"]["vocab"].items() if number < 2}
    if kind == "clip":
        content["model"]["merges"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="knows no words"):
        load_clip(str(folder))


def test_a_text_tower_that_pools_the_start_token_is_an_error(tmp_path):
    """With an eos_token_id that no prompt has, transformers reads the first token, which sees no word."""
    folder = tiny_transformers_folder("clip", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config={**config["text_config"], "eos_token_id": 77})
    with pytest.raises(ModelError, match=r"same embedding.*eos_token_id"):
        load_clip(str(folder))


def test_a_tokenizer_larger_than_the_text_tower_is_an_error(folder):
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    save_file({**weights, name: weights[name][:4].clone()}, folder / "model.safetensors")
    edit_json(folder / "config.json", text_config={**config["text_config"], "vocab_size": 4})
    with pytest.raises(ModelError, match="the text tower knows 4 tokens"):
        load_clip(str(folder))


@pytest.mark.parametrize(
    "settings",
    [
        lambda side: {"size": side},
        lambda side: {"size": [side, side]},
        lambda side: {"size": {"shortest_edge": side}},
        lambda side: {"size": {"height": side, "width": side}},
        lambda side: {"size": 80, "crop_size": side},
        lambda side: {"size": {"shortest_edge": 80}, "crop_size": {"height": side, "width": side}},
        lambda side: {"size": side, "crop_size": 80, "do_center_crop": False},
        lambda side: {},
    ],
)
def test_spellings_of_the_size(folder, kind, settings):
    (folder / "preprocessor_config.json").write_text(json.dumps(settings(IMAGE_SIZE[kind])))
    assert load_clip(str(folder)).frame == (IMAGE_SIZE[kind], IMAGE_SIZE[kind])


def test_mean_and_std(folder, kind):
    path, vision_config = folder / "preprocessor_config.json", load_clip(str(folder)).config.vision_config

    def expect(*numbers: float) -> None:
        found = preprocess_numbers(locate_model(str(folder)), vision_config)
        assert (*found["mean"], *found["std"]) == pytest.approx(numbers, abs=1e-6)

    clips = (0.48145466, 0.4578275, 0.40821073, 0.26862954, 0.26130258, 0.27577711)
    default = clips if kind == "clip" else (0.5,) * 6
    path.write_text("{}")
    expect(*default)
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    expect(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    path.write_text(json.dumps({"do_normalize": False}))
    expect(0, 0, 0, 1, 1, 1)
    path.write_text(json.dumps({"image_mean": [1] * 3, "image_std": [2] * 3, "rescale_factor": 2 / 255}))
    expect(*[0.5] * 3, *[1] * 3)
    path.unlink()
    expect(*default)
    inner = {"image_mean": [0.25] * 3, "image_std": [0.75] * 3}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    expect(*[0.25] * 3, *[0.75] * 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 99}, "images of 99 x 99 pixels"),
        ({"image_mean": [0.5, 0.5]}, "three numbers"),
        ({"image_std": [0, 1, 1]}, "above 0"),
        ({"size": {"longest_edge": 64}}, "preprocessing cannot be read"),
        ({"size": "large"}, "preprocessing cannot be read"),
    ],
)
def test_preprocessing_that_does_not_fit_is_an_error(folder, settings, message):
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        load_clip(str(folder))
