"""Names of models, layers and devices: what people mistype is answered with what is right."""

from __future__ import annotations

import open_clip
import pytest
import torch

from heatlens.errors import ModelError, SetupError
from heatlens.models.devices import resolve_device
from heatlens.models.layers import resolve_layer
from heatlens.models.loading import load_clip
from tests.cam.support import tiny_clip


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(ModelError, match="did you mean ViT-B-16"):
        load_clip("ViT-B16/openai")


def test_a_known_architecture_wants_a_tag():
    with pytest.raises(ModelError, match=r"write ViT-B-32/TAG.*openai"):
        load_clip("ViT-B-32")


def test_an_open_clip_architecture_with_a_checkpoint_file(tmp_path):
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", pretrained_image=False, pretrained_text=False)
    checkpoint = tmp_path / "own weights.pt"
    torch.save(model.state_dict(), checkpoint)
    adapter = load_clip(f"ViT-S-32-alt/{checkpoint}")
    assert adapter.target_layer_name == "visual.transformer.resblocks[-1].ln_1"
    assert (adapter.grid.rows, adapter.tokens.prefix) == (7, 1)
    assert adapter.identity()["weights_file"] == "own weights.pt"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("visual.trunk.blocks[-1].norm3", "did you mean norm"),
        ("visual.trunk.blocks[99]", "has 6 children"),
        ("visual.tronk", "did you mean trunk"),
        ("", "names no layer"),
    ],
)
def test_layer_paths(path, message):
    with pytest.raises(ModelError, match=message):
        resolve_layer(tiny_clip().model, path)


def test_layer_paths_index_from_both_ends():
    model = tiny_clip().model
    last = model.visual.trunk.blocks[5].norm1
    for path in ("visual.trunk.blocks[-1].norm1", "visual.trunk.blocks.5.norm1", "visual.trunk.blocks[5].norm1"):
        assert resolve_layer(model, path) is last


def test_a_layer_without_a_grid_is_refused():
    with pytest.raises(ModelError, match="patch tokens"):
        tiny_clip(target_layer="visual.head")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU answers here")
def test_a_gpu_that_is_not_there_is_an_error_not_a_fallback():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(SetupError, match="no CUDA device"):
        resolve_device("cuda")
