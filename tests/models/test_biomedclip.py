"""The real loading code on BiomedCLIP's exact architecture, offline, with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from heatlens.cam.capture import reference_pass
from heatlens.errors import ModelError
from heatlens.models.loading import load_clip
from heatlens.models.sources import PINNED_REVISIONS, locate_model, weights_identity

pytestmark = pytest.mark.xdist_group("biomedclip")
HUB_NAME = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"


@pytest.fixture(scope="module")
def adapter(biomedclip_folder):
    return load_clip(str(biomedclip_folder))


def test_shapes_target_layer_and_identity(adapter, biomedclip_folder):
    assert adapter.frame == (224, 224)
    assert (adapter.grid.rows, adapter.grid.cols) == (14, 14)
    assert adapter.grid.stride == (16.0, 16.0)
    assert adapter.tokens.prefix == 1
    assert adapter.target_layer_name == "visual.trunk.blocks[-1].norm1"
    assert adapter.logit_scale == pytest.approx(85, abs=0.5)
    assert sum(p.numel() for p in adapter.model.parameters()) == 195_902_721
    identity = adapter.identity()
    assert len(identity["weights_sha256"]) == 64
    assert identity == {**weights_identity(str(biomedclip_folder)), "target_layer": adapter.target_layer_name}


def test_all_768_channels_have_importance(adapter):
    images = torch.randn((1, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    (reference,) = reference_pass(adapter, images, [[adapter.target("where is the nodule")]], gradients=True)
    assert reference.activations.shape == (768, 14, 14)
    assert (reference.gradients.mean(dim=(2, 3)) != 0).all()


def test_the_text_tower_reads_256_tokens_and_says_when_more_are_cut(adapter):
    assert not adapter.truncates("where is the tube")
    assert adapter.truncates("lung " * 300)
    assert torch.equal(adapter.target("lung " * 300).text, adapter.target("lung " * 400).text)
    assert not torch.equal(adapter.target("left lung").text, adapter.target("right lung").text)


def link_folder(source: Path, target: Path, *, without: tuple[str, ...] = ()) -> Path:
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name not in without:
            (target / file.name).symlink_to(file)
    return target


def test_berts_config_need_not_be_in_the_folder(biomedclip_folder, adapter, tmp_path):
    bare = link_folder(biomedclip_folder, tmp_path / "model", without=("config.json",))
    other = load_clip(f"local-dir:{bare}")
    assert torch.equal(other.target("nodule").text, adapter.target("nodule").text)


def test_from_the_hub_cache_offline_at_the_pinned_revision(biomedclip_folder, tmp_path, monkeypatch):
    revision = PINNED_REVISIONS[HUB_NAME]
    cache = tmp_path / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    link_folder(biomedclip_folder, cache / "snapshots" / revision, without=("config.json",))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = locate_model(f"hf-hub:{HUB_NAME}")
    assert source.revision == revision
    assert load_clip(f"hf-hub:{HUB_NAME}").identity()["revision"] == revision


def test_an_empty_hub_cache_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"hf download microsoft/BiomedCLIP.* --revision 9f341de"):
        load_clip(f"hf-hub:{HUB_NAME}")


def test_missing_weights_are_an_error(biomedclip_folder, tmp_path):
    bare = link_folder(biomedclip_folder, tmp_path / "model", without=("open_clip_pytorch_model.bin",))
    with pytest.raises(ModelError, match="no weights in"):
        load_clip(str(bare))


@pytest.mark.parametrize("size", [0, 1000, 50_000_000])
def test_a_truncated_checkpoint_is_an_error(biomedclip_folder, tmp_path, size):
    folder = link_folder(biomedclip_folder, tmp_path / "model", without=("open_clip_pytorch_model.bin",))
    with (biomedclip_folder / "open_clip_pytorch_model.bin").open("rb") as stream:
        (folder / "open_clip_pytorch_model.bin").write_bytes(stream.read(size))
    with pytest.raises(ModelError, match="damaged"):
        load_clip(str(folder))


def test_a_partial_checkpoint_is_an_error_that_counts(biomedclip_folder, tmp_path):
    folder = link_folder(biomedclip_folder, tmp_path / "model", without=("open_clip_pytorch_model.bin",))
    weights = torch.load(biomedclip_folder / "open_clip_pytorch_model.bin", mmap=True)
    kept = {key: value for key, value in weights.items() if "blocks.7." not in key}
    torch.save({**kept, "stray": torch.zeros(1)}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"12 weights are missing \(visual.trunk.blocks.7.*1 are unknown \(stray"):
        load_clip(str(folder))


def test_a_pickle_that_is_not_weights_is_refused_not_run(biomedclip_folder, tmp_path):
    folder = link_folder(biomedclip_folder, tmp_path / "model", without=("open_clip_pytorch_model.bin",))
    torch.save({"a": Path("/")}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="damaged or does not fit"):
        load_clip(str(folder))


def test_a_folder_without_config_or_tokenizer_is_an_error(biomedclip_folder, tmp_path):
    bare = link_folder(biomedclip_folder, tmp_path / "a", without=("open_clip_config.json",))
    with pytest.raises(ModelError, match=r"open_clip_config.json is missing"):
        load_clip(str(bare))
    mute = link_folder(biomedclip_folder, tmp_path / "b", without=("vocab.txt", "tokenizer_config.json"))
    with pytest.raises(ModelError, match="tokenizer"):
        load_clip(str(mute))
    odd = tmp_path / "c"
    odd.mkdir()
    (odd / "open_clip_config.json").write_text(json.dumps({"model_cfg": []}))
    with pytest.raises(ModelError, match="no model_cfg"):
        load_clip(str(odd))
    shutil.rmtree(odd)
    with pytest.raises(ModelError, match="does not exist"):
        load_clip(f"local-dir:{odd}")
