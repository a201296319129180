"""What callers do around the engine: inference mode, threads, wrong arguments, networks that work in place."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from torch import nn

from heatlens.cam.attention import patch_columns, traced_attention
from heatlens.cam.capture import reference_pass
from heatlens.cam.engine import CamEngine
from heatlens.errors import ConfigError, ModelError
from heatlens.models.classifier import ClassifierAdapter
from heatlens.models.clip import ClipAdapter
from heatlens.registry import METHODS
from tests.cam.support import PROMPTS, TOKENIZER, noise_images, tiny_clip
from tests.cam.zoo import TEXT, build, preprocess, stirred, targets_of

SMALL = {"top_k": 8, "masks": 12, "batch_size": 4, "precision": "fp32"}


@pytest.mark.parametrize("method", METHODS)
def test_a_callers_inference_mode_changes_nothing(method):
    model = build("open_clip")
    image, targets = noise_images(1, model), targets_of(model, 2)
    (expected,) = CamEngine(model, method=method, **SMALL).explain(image, [targets])
    with torch.inference_mode():
        engine = CamEngine(model, method=method, **SMALL)
        (found,) = engine.explain(image.clone(), [targets])
    assert torch.equal(found, expected)


def test_a_text_encoded_in_inference_mode_can_be_explained_later():
    model = tiny_clip()
    with torch.inference_mode():
        target = model.target("said in inference mode")
    assert not target.text.is_inference()
    CamEngine(model, method="GradCAM").explain(noise_images(1, model), [[target]])


def test_a_text_is_encoded_once_and_again_when_the_weights_have_changed(monkeypatch):
    model = tiny_clip()
    asked = []
    original = model.text_features
    monkeypatch.setattr(model, "text_features", lambda prompts: asked.append(prompts) or original(prompts))
    before = model.target("effusion").text
    model.target("effusion")
    CamEngine(model, top_k=4, precision="bf16").explain(noise_images(1, model), [[model.target("effusion")]])
    assert asked == [["effusion"]]
    with torch.no_grad():
        for parameter in model.model.text.parameters():
            parameter.mul_(1.3)
    assert not torch.equal(model.target("effusion").text, before)
    assert len(asked) == 2


@pytest.mark.parametrize(("method", "precision"), [("GradCAM", "fp32"), ("gScoreCAM", "bf16"), ("LeGrad", "fp32")])
def test_threads_that_share_a_model_do_not_disturb_each_other(method, precision):
    model = tiny_clip()
    images, targets = noise_images(3, model), [targets_of(model, 2)]
    engines = [CamEngine(model, method=method, top_k=8, batch_size=4, precision=precision) for _ in range(3)]
    expected = [engines[0].explain(images[row : row + 1], targets)[0] for row in range(3)]
    wrong = []

    def work(row):
        for _ in range(8):
            try:
                if not torch.equal(engines[row].explain(images[row : row + 1], targets)[0], expected[row]):
                    wrong.append("another map")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(row,)) for row in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class InPlace(nn.Module):
    """What follows the layer overwrites its output: a ReLU in place, as in DenseNet or VGG."""

    def __init__(self):
        super().__init__()
        self.layer4, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 2)
        self.careful = False

    def forward(self, images):
        features = self.layer4(images)
        features = torch.relu(features) if self.careful else F.relu(features, inplace=True)
        return self.head(features.mean(dim=(2, 3)))


@pytest.mark.parametrize("method", ["GradCAM", "gScoreCAM", "AblationCAM", "EigenCAM", "ScoreCAM"])
def test_a_layer_whose_output_is_overwritten_is_seen_as_it_was(method):
    torch.manual_seed(0)
    model = ClassifierAdapter(InPlace(), name="in place", preprocess=preprocess(16))
    image, targets = noise_images(1, model), [[model.target(0), model.target(1)]]
    engine = CamEngine(model, method=method, **SMALL)
    (found,) = engine.explain(image, targets)
    model.model.careful = True
    (expected,) = engine.explain(image, targets)
    assert torch.equal(found, expected)
    (reference,) = reference_pass(model, image, [[]], gradients=False)
    assert reference.activations.min() < 0


def test_rollout_reads_a_pooler_only_where_its_queries_count():
    """CoCa: 9 queries, of which the first becomes the image's embedding."""
    torch.manual_seed(0)
    vision = {
        "layers": 2, "width": 48, "head_width": 16, "patch_size": 16, "image_size": 64, "attentional_pool": True,
        "attn_pooler_queries": 9, "attn_pooler_heads": 3, "output_tokens": True,
    }  # fmt: skip
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    network = stirred(CoCa(embed_dim=24, multimodal_cfg=dict(TEXT), text_cfg=text, vision_cfg=vision), torch.float64)
    for parameter in network.visual.attn_pool.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model = ClipAdapter(network, TOKENIZER, name="coca", preprocess=preprocess(64))
    image = noise_images(1, model)
    (found,) = CamEngine(model, method="rollout").explain(image, [targets_of(model, 1)])
    with torch.no_grad(), traced_attention(model) as calls:
        model.forward(image)
    flows = [call.weights.mean(dim=1) for call in calls]
    read = flows.pop()[:, :1]
    for flow in reversed(flows):
        read = (read @ flow + read) / 2
    expected = patch_columns(read[:, 0], model.tokens)
    torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=1e-5)
    for method in ("Chefer", "LeGrad", "Grad-ECLIP"):
        (maps,) = CamEngine(model, method=method).explain(image, [targets_of(model, 1)])
        assert maps.max() > 0


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 224, 224),
        torch.zeros(1, 3, 32, 64),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(3, 64, 64),
        torch.zeros((1, 3, 64, 64), dtype=torch.uint8),
        np.zeros((1, 3, 64, 64), dtype=np.float32),
    ],
    ids=["large", "small", "grey", "no batch", "uint8", "numpy"],
)
@pytest.mark.parametrize("method", ["gScoreCAM", "RISE"])
def test_images_that_are_not_the_models_are_refused(images, method):
    model = build("open_clip")
    with pytest.raises(ModelError, match=r"explain\(\) wants normalised images, float \(B, 3, 64, 64\); got"):
        CamEngine(model, method=method, **SMALL).explain(images, [targets_of(model, 1)])


def test_targets_that_are_not_in_lists_are_refused():
    model = build("open_clip")
    engine = CamEngine(model, method="GradCAM")
    for targets in (targets_of(model, 1), [[], []], []):
        with pytest.raises(ModelError, match="wants one list of targets per image: 1 images"):
            engine.explain(noise_images(1, model), targets)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top_k": 0}, "top_k must be a whole number from 1 on, got 0"),
        ({"masks": 2.5}, "masks must be a whole number from 1 on, got 2.5"),
        ({"batch_size": 0}, "BATCH_SIZE=0"),
        ({"batch_size": -1}, "BATCH_SIZE=-1"),
        ({"precision": "bfloat16"}, r"PRECISION=bfloat16: .*bf16"),
    ],
)
def test_options_out_of_range_are_config_errors(options, text):
    with pytest.raises(ConfigError, match=text):
        CamEngine(build("open_clip"), **options)


def test_classes_that_do_not_exist_are_refused_when_they_are_named():
    model = build("convnet")
    assert model.target(np.int64(1)).index == 1
    for index in (-1, 5, 99):
        with pytest.raises(ModelError, match=f"has classes 0 to 4, not {index}"):
            model.target(index)


def classifier(name, size, layer, **options):
    network = timm.create_model(name, num_classes=3, **options)
    return ClassifierAdapter(network, name=name, preprocess=preprocess(size), target_layer=layer)


@pytest.mark.parametrize(
    ("size", "layer"), [(64, "patch_embed"), ((64, 128), "layers[-1]"), (64, "layers[0].blocks[0].attn.qkv")]
)
def test_outputs_that_are_no_picture_of_the_frame_are_refused_by_name(size, layer):
    options = {"img_size": size, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2)}
    with pytest.raises(ModelError, match=r"TARGET_LAYER="):
        classifier("swin_tiny_patch4_window7_224", size, layer, **options)


def test_a_layer_inside_attention_is_refused():
    with pytest.raises(ModelError, match=r"TARGET_LAYER=visual.trunk.blocks\[-1\].attn.q_norm: its output has shape"):
        tiny_clip(target_layer="visual.trunk.blocks[-1].attn.q_norm")


def test_a_map_with_as_many_channels_as_rows_is_not_taken_for_channels_last():
    network = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.Flatten(2), nn.AdaptiveAvgPool1d(2), nn.Flatten(1))
    model = ClassifierAdapter(network, name="square", preprocess=preprocess((64, 96)), target_layer="[0]")
    assert (model.grid.rows, model.grid.cols) == (16, 24)


def test_a_layer_of_the_text_tower_is_refused_with_the_default():
    with pytest.raises(ModelError, match=r"TARGET_LAYER=text.*image side.*visual\.trunk\.blocks\[-1\]\.norm1"):
        tiny_clip(target_layer="text.transformer.resblocks[0].ln_1")


def test_half_precision_weights_are_refused():
    with pytest.raises(ModelError, match="float32 is needed"):
        tiny_clip(torch.bfloat16)


def test_prompts_are_kept_apart():
    model = tiny_clip()
    assert not torch.equal(model.target(PROMPTS[0]).text, model.target(PROMPTS[1]).text)
