"""heatlens doctor --model: right weights pass, and every kind of wrong ones is told by its own check."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from heatlens.cluster.model_folder import Source, write_sums
from heatlens.config import load_settings
from heatlens.doctor import proof
from heatlens.doctor.command import main
from heatlens.files import digest_file
from heatlens.models import sources
from heatlens.models.loading import load_clip
from heatlens.models.sources import locate_model

DEMO = Path(sources.__file__).parent.parent / "phantom" / "weights"
WEIGHTS = "open_clip_model.safetensors"


def settings_of(**values: object):
    return load_settings(None, {name: str(value) for name, value in values.items()}, {}, "attn_map")


def proven(**values: object) -> dict[str, proof.Finding]:
    return {one.check: one for one in proof.prove(settings_of(**{"cam_version": "GradCAM", **values}))}


def problems(found: dict[str, proof.Finding]) -> set[str]:
    return {name for name, one in found.items() if one.state == "problem"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The demo as a fetched folder."""
    target = tmp_path / "model"
    shutil.copytree(DEMO, target)
    write_all_sums(target)
    return target


def write_all_sums(folder: Path) -> None:
    files = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt")]
    write_sums(folder, {path.name: digest_file(path) for path in files}, Source("people/demo", "0" * 40, "main"))


def change(folder: Path, name: str, value: torch.Tensor) -> None:
    weights = load_file(folder / WEIGHTS)
    assert weights[name].shape == value.shape
    save_file({**weights, name: value.to(weights[name].dtype)}, folder / WEIGHTS)


def test_the_demo_passes_every_check_with_the_runs_own_method(folder, capsys):
    assert main(["--model", str(folder), "--topk", "24", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    found = {one["check"]: one for one in record["checks"]}
    assert found["weights"]["text"].startswith("7 files as in SHA256SUMS")
    assert found["logit scale"]["text"] == "exp of it is 16.4"
    assert found["gradient"]["text"].startswith("192 of 192 channels at visual.trunk.blocks[-1].norm1")
    assert found["tokenizer"]["text"] == "7 prompts, 7 different texts"
    assert "gScoreCAM" in found["speed"]["text"]
    assert {"prompts", "films", "loading"} <= set(found)


def test_a_flipped_bit_is_a_wrong_digest(folder):
    weights = load_file(folder / WEIGHTS)
    name = "visual.trunk.blocks.0.norm1.bias"
    change(folder, name, weights[name] + 0.001)
    found = proven(model=folder)
    assert problems(found) == {"weights"}  # it still loads and works: only the digest tells
    assert WEIGHTS in found["weights"].text


def test_the_hub_caches_names_are_digests(tmp_path):
    digest = digest_file(DEMO / WEIGHTS)
    snapshot = tmp_path / "snapshots" / "abc"
    shutil.copytree(DEMO, snapshot, ignore=shutil.ignore_patterns(WEIGHTS))
    (tmp_path / "blobs").mkdir()
    for name, state in ((digest, "ok"), ("0" * 64, "problem")):
        shutil.copyfile(DEMO / WEIGHTS, tmp_path / "blobs" / name)
        (snapshot / WEIGHTS).unlink(missing_ok=True)
        (snapshot / WEIGHTS).symlink_to(tmp_path / "blobs" / name)
        (found,) = proof.files(locate_model(str(snapshot)))
        assert (found.state, digest in found.text) == (state, True)


def test_an_untrained_logit_scale_is_a_problem(folder):
    change(folder, "logit_scale", torch.tensor(math.log(1 / 0.07)))
    write_all_sums(folder)
    found = proven(model=folder)
    assert problems(found) == {"logit scale"}
    assert "14.3" in found["logit scale"].text


def test_a_layer_without_gradient_is_a_problem_even_when_it_is_allowed(capsys):
    arguments = ["--model", "demo", "--target-layer", "visual.trunk.blocks[-1].norm2", "--allow-zero-gradient", "true"]
    assert main([*arguments, "--topk", "8"]) == 4
    printed = capsys.readouterr().out
    assert "problem  gradient: TARGET_LAYER=visual.trunk.blocks[-1].norm2 has no gradient" in printed
    assert "set TARGET_LAYER=visual.trunk.blocks[-1].norm1" in printed


def test_dead_channels_are_a_problem(folder):
    weights = load_file(folder / WEIGHTS)
    qkv = weights["visual.trunk.blocks.5.attn.qkv.weight"].clone()
    qkv[:, :10] = 0  # nothing reads the first ten channels of the last block's input norm
    change(folder, "visual.trunk.blocks.5.attn.qkv.weight", qkv)
    write_all_sums(folder)
    found = proven(model=folder)
    assert "gradient" in problems(found)
    assert found["gradient"].text.startswith("182 of 192")


def test_a_model_that_ignores_the_picture_is_told(folder):
    weights = load_file(folder / WEIGHTS)
    change(
        folder,
        "visual.trunk.patch_embed.proj.weight",
        torch.zeros_like(weights["visual.trunk.patch_embed.proj.weight"]),
    )
    write_all_sums(folder)
    assert "films" in problems(proven(model=folder))


def test_a_model_that_ignores_the_prompt_is_told(monkeypatch):
    monkeypatch.setattr(proof, "PROMPTS", ("heart", "heart"))
    assert "prompts" in problems(proven(model="demo"))


def test_words_that_are_one_text_are_told(folder):
    assert proof.words(load_clip(str(folder))).state == "ok"
    model = load_clip(str(folder))
    encode = model.encode_text
    model.encode_text = lambda prompt: encode("[UNK]" if prompt in ("effusion", "tube") else prompt)
    found = proof.words(model)
    assert (found.state, found.text) == ("problem", "'effusion' and 'tube' are the same text for the model")


def test_weights_that_do_not_load_are_one_clear_problem(folder, capsys):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])
    assert main(["--model", str(folder)]) == 4
    printed = capsys.readouterr().out
    assert "problem  weights:" in printed
    assert "damaged" in printed
    assert "Traceback" not in printed


def test_a_method_that_ignores_prompts_is_not_blamed_for_it():
    found = proven(model="demo", cam_version="EigenCAM")
    assert problems(found) == set()
    assert "does not look at the prompt" in found["prompts"].text


# --- BiomedCLIP -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "scale", "state"),
    [
        ("hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", 85.2, "ok"),
        ("hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", 100.0, "problem"),
        ("hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", 14.2857, "problem"),
        ("/models/mine", 100.0, "warning"),  # BiomedCLIP's architecture, perhaps trained further
        ("/models/mine", 14.2857, "problem"),
        ("/models/mine", math.nan, "problem"),
    ],
)
def test_biomedclips_logit_scale(model, scale, state):
    from tests.biomedclip import CONFIG

    source = sources.ModelSource(model, Path("weights.bin"), config=CONFIG)
    assert proof.logit_scale(scale, source).state == state


def test_a_fetched_folder_knows_that_it_is_biomedclip(tmp_path):
    write_sums(tmp_path, {"a": "0" * 64}, Source(proof.BIOMEDCLIP_NAME, "0" * 40, "main"))
    assert proof.kinship(sources.ModelSource(str(tmp_path), tmp_path / "a", tmp_path)) == "BiomedCLIP"
    assert proof.kinship(locate_model("demo")) == ""


@pytest.mark.slow
@pytest.mark.xdist_group("biomedclip")
def test_random_weights_of_biomedclips_architecture(biomedclip_folder, monkeypatch):
    """As an initialisation leaves them, with logit_scale ln(1/0.07); all else about them is in order."""

    def untrained(settings):
        model = load_clip(settings.model)
        torch.nn.init.constant_(model.model.logit_scale, math.log(1 / 0.07))
        return model

    monkeypatch.setattr("heatlens.batch.explainer.load_model", untrained)
    found = proven(model=biomedclip_folder)
    assert found["logit scale"].state == "problem"
    assert "14.3" in found["logit scale"].text
    assert found["gradient"].text.startswith("768 of 768")
    assert found["tokenizer"].state == "ok"
