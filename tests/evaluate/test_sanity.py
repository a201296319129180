"""The sanity checks find what they look for: each passes a healthy method and fails a broken one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from heatlens.cam.engine import CamEngine
from heatlens.cam.methods.base import LayerMethod, MethodResult
from heatlens.evaluate.layers import depth_stages, layer_gradients
from heatlens.evaluate.sanity import (
    Likeness,
    PromptSensitivity,
    RandomisedStage,
    WeightRandomisation,
    compare_prompts,
    has_structure,
    layers_verdict,
    prompt_sensitivity,
    randomised_weights,
    spearman,
    ssim,
    weight_randomisation,
)
from heatlens.models.classifier import ClassifierAdapter
from tests.cam.support import PROMPTS, noise_images, tiny_clip

NORM2 = "visual.trunk.blocks[-1].norm2"


class SameForAll:
    """A target that ignores the prompt it was made of."""

    def __init__(self, prompt):
        self.prompt = prompt

    def __call__(self, output):
        return output.sum(dim=1)


class EdgeDetector(LayerMethod):
    """A "map" of the image's own brightness: it needs no model at all."""

    name = "EdgeDetector"

    def maps(self, references, passes):
        grid = passes.model.grid
        found = []
        for reference in references:
            edges = reference.image.diff(dim=1).abs().mean(dim=0)
            small = torch.nn.functional.adaptive_avg_pool2d(edges[None], (grid.rows, grid.cols))
            found.append(MethodResult(small.expand(len(reference.targets), -1, -1), reference.scores))
        return found


def edge_engine(model):
    engine = CamEngine(model, method="GradCAM")
    engine.method = EdgeDetector()
    return engine


def asked(model, count=2):
    return noise_images(count, model), [[model.target(prompt) for prompt in PROMPTS]] * count


def tiny_resnet():
    import timm

    torch.manual_seed(0)
    options = {"size": 64, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return ClassifierAdapter(timm.create_model("resnet10t", num_classes=3), name="resnet", preprocess=options)


def bits(model):
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def same_bits(model, before):
    now = model.model.state_dict()
    return all(torch.equal(now[name], tensor) for name, tensor in before.items())


# --- prompts


@pytest.mark.parametrize("method", ["GradCAM", "gScoreCAM"])
def test_a_healthy_method_is_sensitive_to_the_prompt(method):
    model = tiny_clip()
    found = prompt_sensitivity(CamEngine(model, method=method, top_k=20, precision="fp32"), *asked(model))
    assert found.maps == 8
    assert len(found.pairs) + found.constant * 3 >= 12  # of 2 x 6 pairs, less those with a constant map
    assert found.verdict().state == "ok"


@pytest.mark.parametrize("method", ["GradCAM", "gScoreCAM"])
def test_a_target_that_ignores_the_prompt_fails(method):
    model = tiny_clip()
    targets = [[SameForAll(prompt) for prompt in PROMPTS]] * 2
    found = prompt_sensitivity(CamEngine(model, method=method, top_k=20), noise_images(2, model), targets)
    assert found.figures()["identical"] == len(found.pairs) == 12
    assert found.verdict().failed
    assert "bit-identical" in found.verdict().text


def test_gradcam_at_the_zero_gradient_layer_fails_for_it_draws_nothing():
    model = tiny_clip(target_layer=NORM2)
    engine = CamEngine(model, method="GradCAM", allow_zero_gradient=True)
    found = prompt_sensitivity(engine, *asked(model))
    assert found.constant == found.maps == 8
    assert found.verdict().failed
    assert "TARGET_LAYER" in found.verdict().advice


def test_a_method_without_a_prompt_is_left_out_by_name():
    model = tiny_clip()
    engine = edge_engine(model)
    engine.method.uses_target = False
    found = prompt_sensitivity(engine, *asked(model))
    assert found == PromptSensitivity("EdgeDetector", uses_target=False)
    assert found.verdict().state == "left out"
    assert "EdgeDetector" in found.verdict().text


def test_nearly_equal_maps_fail_and_a_constant_one_is_counted_apart():
    generator = torch.Generator().manual_seed(0)
    one = torch.rand((5, 5), generator=generator)
    other = one + 1e-4 * torch.rand((5, 5), generator=generator)
    found = compare_prompts("any", [torch.stack([one, other, torch.zeros(5, 5)])])
    assert (len(found.pairs), found.constant, found.figures()["identical"]) == (1, 1, 0)
    assert "nearly one map" in found.verdict().text
    assert compare_prompts("any", [torch.stack([one, torch.full((5, 5), torch.nan)])]).verdict().failed
    different = compare_prompts("any", [torch.stack([one, one.flip(0), torch.zeros(5, 5)])])
    assert different.verdict().state == "ok"
    assert "1 of 3 maps are constant" in different.verdict().text


# --- weights


@pytest.mark.parametrize("method", ["GradCAM", "gScoreCAM"])
def test_a_healthy_method_depends_on_the_weights_and_they_come_back(method):
    model = tiny_clip()
    before = bits(model)
    engine = CamEngine(model, method=method, top_k=20, precision="fp32")
    found = weight_randomisation(engine, *asked(model))
    assert same_bits(model, before)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert found.verdict().state == "ok"
    assert found.stages[-1].figures()["spearman_mean"] < 0.9
    assert [stage.stage for stage in found.stages][::5] == ["head", "input embedding"]
    assert found.stages[-1].weights == sum(parameter.numel() for parameter in model.model.visual.parameters())


def test_an_edge_detector_fails():
    model = tiny_clip()
    found = weight_randomisation(edge_engine(model), *asked(model))
    assert [stage.figures()["spearman_mean"] for stage in found.stages] == pytest.approx([1.0] * 6)
    assert [stage.figures()["ssim_mean"] for stage in found.stages] == pytest.approx([1.0] * 6)
    assert found.verdict().failed
    assert "EdgeDetector" in found.verdict().advice


@pytest.mark.parametrize(("ranks", "state"), [((0.95, 0.9), "FAILS"), ((-0.95, -0.9), "FAILS"), ((0.95, 0.3), "ok")])
def test_the_last_stage_decides_and_an_inverted_map_is_the_same_map(ranks, state):
    stages = [
        RandomisedStage("head", 1, (Likeness(0, 0, 1.0, 1.0, 1.0),)),
        RandomisedStage("input embedding", 2, tuple(Likeness(0, t, rank, 0.0, None) for t, rank in enumerate(ranks))),
    ]
    assert WeightRandomisation("any", 0, 2, tuple(stages)).verdict().state == state
    blank = RandomisedStage("all", 2, (Likeness(0, 0, None, None, None),))
    assert blank.figures()["constant"] == 1
    assert "constant" in WeightRandomisation("any", 0, 1, (blank,)).verdict().text


def test_half_precision_copies_of_the_weights_do_not_outlive_a_stage():
    model = tiny_clip()
    images, targets = asked(model, 1)
    make = partial(CamEngine, model, method="gScoreCAM", top_k=20, precision="bf16")
    (original,) = make().explain(images, targets)
    found = weight_randomisation(make(), images, targets, seed=5)
    with randomised_weights(5) as randomise:
        for stage in depth_stages(model):
            randomise(stage.parameters)
        (expected,) = make().explain(images, targets)
    ranks = [spearman(one.numpy(), other.numpy()) for one, other in zip(original, expected, strict=True)]
    assert [one.spearman for one in found.stages[-1].likeness] == ranks


def test_the_weights_come_back_after_an_error(monkeypatch):
    model = tiny_clip()
    before = bits(model)
    engine = CamEngine(model, method="GradCAM")
    explain, asked_for = engine.explain, []

    def breaks(images, targets):
        asked_for.append(images)
        if len(asked_for) == 4:
            assert not same_bits(model, before)
            raise RuntimeError("boom")
        return explain(images, targets)

    monkeypatch.setattr(engine, "explain", breaks)
    with pytest.raises(RuntimeError, match="boom"):
        weight_randomisation(engine, *asked(model))
    assert same_bits(model, before)


def test_random_weights_have_the_tensors_own_statistics_and_a_seed():
    model = tiny_clip()
    weight = model.model.visual.trunk.blocks[0].mlp.fc1.weight
    original = weight.clone()
    drawn = []
    for seed in (1, 1, 2):
        with randomised_weights(seed) as randomise:
            randomise([weight])
            randomise([weight])  # twice: the first original counts
            drawn.append(weight.clone())
        assert torch.equal(weight, original)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert float(drawn[0].std()) == pytest.approx(float(original.std()), rel=0.05)
    assert abs(spearman(drawn[0].numpy(), original.numpy())) < 0.05


def test_constant_originals_leave_nothing_to_compare():
    model = tiny_clip(target_layer=NORM2)
    engine = CamEngine(model, method="GradCAM", allow_zero_gradient=True)
    found = weight_randomisation(engine, *asked(model))
    assert found == WeightRandomisation("GradCAM", 0, 0, ())
    assert found.verdict().failed


def test_stages_go_from_the_output_to_the_input_and_cover_the_image_side_once():
    for model, side in ((tiny_clip(), "visual."), (tiny_resnet(), "")):
        stages = depth_stages(model)
        assert stages[0].name == "head"
        assert 3 <= len(stages) <= 6
        named = {parameter: name for name, parameter in model.model.named_parameters()}
        covered = [named[parameter] for stage in stages for parameter in stage.parameters]
        assert sorted(covered) == sorted(name for name in named.values() if name.startswith(side))
    assert [stage.name for stage in stages] == ["head", "layer4", "layer3", "layer1 to layer2", "conv1 to bn1"]
    stages = depth_stages(tiny_clip(), limit=3)
    assert [stage.name for stage in stages[1:]] == [
        "visual.trunk.blocks[0] to visual.trunk.blocks[-1]", "input embedding",
    ]  # fmt: skip


# --- layers


def test_the_layers_of_a_cls_pooled_transformer_are_as_known():
    model = tiny_clip()
    before = bits(model)
    rows = {row.name.removeprefix("visual.trunk."): row for row in layer_gradients(model)}
    dead = {"blocks[-1]", "blocks[-1].attn", "blocks[-1].norm2", "blocks[-1].mlp", "norm"}
    assert {name for name, row in rows.items() if not row.usable} == dead
    assert {"blocks[-1].norm1", "blocks[4]", "blocks[4].norm2", "blocks[0].attn", "blocks[0].norm1"} <= set(rows)
    assert all(row.with_gradient == row.channels == 64 for name, row in rows.items() if name not in dead)
    assert [name for name, row in rows.items() if row.chosen] == ["blocks[-1].norm1"]
    assert same_bits(model, before)
    assert not any(module._forward_hooks for module in model.model.modules())


def test_the_names_are_target_layers():
    model = tiny_clip()
    for row in layer_gradients(model)[-7:]:
        engine = partial(CamEngine, tiny_clip(target_layer=row.name), method="GradCAM")
        if row.usable:
            engine()
        else:
            with pytest.raises(Exception, match="no gradient"):
                engine()


def test_the_layer_verdict_fails_at_the_zero_gradient_layer_and_names_a_better_one():
    model = tiny_clip(target_layer=NORM2)
    rows = layer_gradients(model)
    verdict = layers_verdict(rows, model.target_layer_name, "visual.trunk.blocks[-1].norm1")
    assert verdict.failed
    assert NORM2 in verdict.text
    assert "visual.trunk.blocks[-1].norm1" in str(verdict)
    assert layers_verdict(rows, model.target_layer_name, "x", needed=False).state == "left out"
    blind = [replace(row, with_gradient=0) for row in rows]
    assert "does not depend on the image" in layers_verdict(blind, model.target_layer_name, "x").text
    healthy = tiny_clip()
    assert layers_verdict(layer_gradients(healthy), healthy.target_layer_name, "x").state == "ok"


def test_the_stages_of_a_convnet():
    rows = layer_gradients(tiny_resnet())
    assert [row.name for row in rows][-4:] == ["layer1", "layer2", "layer3", "layer4"]
    assert all(row.usable for row in rows)
    assert rows[-1].chosen


# --- measures


def test_measures():
    rising = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert spearman(rising, rising**3) == pytest.approx(1.0)
    assert spearman(rising, -rising) == pytest.approx(-1.0)
    # Ties share their mean rank: (1.5, 1.5, 3) against (1, 2, 3) is sqrt(3)/2.
    assert spearman(np.float32([0, 0, 1]), np.float32([0, 1, 2])) == pytest.approx(3**0.5 / 2)
    assert ssim(rising, 5 * rising + 2) == pytest.approx(1.0)
    assert ssim(rising, -rising) < 0.5
    assert ssim(rising[:2], rising[:2]) is None
    assert not has_structure(np.zeros((2, 2), np.float32))
    assert not has_structure(np.float32([[0, np.nan]]))
