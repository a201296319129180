"""The engine refuses to lie: zero gradients, NaN and constant maps, leaks, wrong shapes."""

from __future__ import annotations

import pytest
import torch

from heatlens.cam.engine import CamEngine, has_patch_gradient
from heatlens.cam.grid import reshape_transform
from heatlens.cam.precision import resolve_batch_size, resolve_precision
from heatlens.errors import ConfigError, ModelError, ZeroGradientError
from tests.cam.support import PROMPTS, noise_images, tiny_clip

DEAD_LAYERS = ["blocks[-1]", "blocks[-1].norm2", "blocks[-1].attn", "norm"]
LIVE_LAYERS = ["blocks[-1].norm1", "blocks[-2]", "blocks[0]", "blocks.4.norm2"]


@pytest.mark.parametrize("layer", DEAD_LAYERS)
def test_a_layer_without_patch_gradient_is_refused_by_name(layer):
    model = tiny_clip(target_layer=f"visual.trunk.{layer}")
    with pytest.raises(ZeroGradientError, match=r"visual\.trunk\.blocks\[-1\]\.norm1"):
        CamEngine(model)
    CamEngine(model, allow_zero_gradient=True)


@pytest.mark.parametrize("layer", LIVE_LAYERS)
def test_layers_with_patch_gradient_pass(layer):
    assert has_patch_gradient(tiny_clip(target_layer=f"visual.trunk.{layer}"))


def test_the_zero_gradient_layer_draws_from_the_same_channels_for_every_prompt():
    """The published bug, shown: at norm2 the ranking is one of zeros, whatever is asked."""
    model = tiny_clip(target_layer="visual.trunk.blocks[-1].norm2")
    engine = CamEngine(model, top_k=20, precision="fp32", allow_zero_gradient=True)
    engine.explain(noise_images(1, model), [[model.target(p) for p in PROMPTS]])
    assert engine.masked_forwards == 20


def test_different_prompts_give_different_maps():
    model = tiny_clip()
    maps = CamEngine(model, top_k=20, precision="fp32").explain(
        noise_images(1, model), [[model.target(p) for p in PROMPTS]]
    )[0]
    for left in range(len(PROMPTS)):
        for right in range(left):
            assert not torch.allclose(maps[left], maps[right], atol=1e-3)


def test_the_tail_gradient_equals_the_full_one():
    from heatlens.cam.capture import reference_pass

    model = tiny_clip(torch.float64)
    image = noise_images(1, model)
    (reference,) = reference_pass(model, image, [[model.target(PROMPTS[0])]], gradients=True)
    kept = []
    handle = model.target_layer.register_forward_hook(lambda _m, _i, output: kept.append(output))
    watched = image.clone().requires_grad_(True)
    score = model.target(PROMPTS[0])(model.forward(watched))
    handle.remove()
    (full,) = torch.autograd.grad(score.sum(), kept[0])
    torch.testing.assert_close(reference.gradients[0], model.to_grid(full)[0], atol=1e-12, rtol=0)


def test_nan_input_is_an_error_text_not_a_picture():
    model = tiny_clip()
    images = noise_images(2, model)
    images[0, 0, 3, 3] = torch.nan
    broken, fine = CamEngine(model, top_k=5, precision="fp32").explain_full(images, [[model.target("a")]] * 2)
    assert any(text.startswith("error: ") for text in broken.warnings[0])
    assert broken.maps.isnan().all()
    assert fine.warnings == [()]
    assert fine.maps.isfinite().all()


def test_a_constant_map_is_reported():
    model = tiny_clip()

    class Blind:
        def __call__(self, output):
            return (output * 0).sum(dim=1)

    engine = CamEngine(model, method="GradCAM")
    (result,) = engine.explain_full(noise_images(1, model), [[Blind()]])
    assert "constant" in result.warnings[0][0]


def test_no_hook_and_no_graph_stays_even_on_error():
    model = tiny_clip()

    class Broken:
        def __call__(self, output):
            raise RuntimeError("boom")

    engine = CamEngine(model, top_k=5)
    with pytest.raises(RuntimeError, match="boom"):
        engine.explain(noise_images(1, model), [[Broken()]])
    assert not model.target_layer._forward_hooks
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_bf16_maps_keep_their_shape():
    model = tiny_clip()
    images = noise_images(4, model)
    targets = [[model.target(p) for p in PROMPTS]] * 4
    exact = CamEngine(model, top_k=40, precision="fp32").explain(images, targets)
    rough = CamEngine(model, top_k=40, precision="bf16").explain(images, targets)
    for one, other in zip(torch.cat(exact), torch.cat(rough), strict=True):
        pair = torch.stack([one.flatten(), other.flatten()])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.99


def test_no_targets_for_an_image_is_an_empty_stack():
    model = tiny_clip()
    maps = CamEngine(model, top_k=5).explain(noise_images(2, model), [[], [model.target("a")]])
    assert maps[0].shape == (0, 10, 10)
    assert maps[1].shape == (1, 10, 10)


def test_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean gScoreCAM"):
        CamEngine(tiny_clip(), method="gScoreCM")


def test_images_and_targets_must_match():
    model = tiny_clip()
    with pytest.raises(ModelError, match="one list of targets per image"):
        CamEngine(model).explain(noise_images(2, model), [[]])


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_reshape_transform_drops_the_prefix_of_any_batch(prefix):
    batch, rows, cols, channels = 3, 4, 6, 5
    grid = torch.arange(batch * rows * cols * channels, dtype=torch.float32).reshape(batch, rows, cols, channels)
    tokens = torch.cat([torch.full((batch, prefix, channels), -1.0), grid.flatten(1, 2)], dim=1)
    for given in (None, prefix):
        out = reshape_transform(tokens, rows, cols, given)
        assert out.shape == (batch, channels, rows, cols)
        assert torch.equal(out[2, 3], grid[2, :, :, 3])


def test_reshape_transform_refuses_sequence_first_tokens():
    with pytest.raises(ModelError, match="batch first"):
        reshape_transform(torch.zeros((197, 1, 768)))
    with pytest.raises(ModelError, match="batch, tokens, channels"):
        reshape_transform(torch.zeros((197, 768)))


def test_precision_and_batch_size_are_resolved_once():
    assert resolve_precision("fp16", "cpu") == "fp16"
    assert resolve_precision("auto", "cpu") in {"fp32", "bf16"}
    assert resolve_batch_size(None, "cpu") == 8
    assert resolve_batch_size(None, "cuda:3") == 128
    assert resolve_batch_size(5, "cuda") == 5
