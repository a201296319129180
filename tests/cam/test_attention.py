"""The attention trace: fused attention off for one pass, on again afterwards, other threads untouched."""

from __future__ import annotations

import threading

import pytest
import timm
import torch
import torch.nn.functional as F

from heatlens.cam.attention import CUT_WEIGHTS, attention_pattern, traced_attention
from heatlens.cam.engine import CamEngine
from heatlens.errors import ModelError
from heatlens.models.classifier import ClassifierAdapter
from tests.cam.support import noise_images
from tests.cam.zoo import TRANSFORMERS, build, preprocess


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_plain_formula_gives_the_fused_result(name):
    model = build(name, torch.float64)
    images = noise_images(2, model)
    with torch.no_grad():
        fused = model.forward(images)
        with traced_attention(model) as calls:
            plain = model.forward(images)
    torch.testing.assert_close(plain, fused, atol=1e-10, rtol=0)
    assert len(calls) == len(model.tokens.blocks) + ("SigLIP" in name)
    for call in calls:
        torch.testing.assert_close(call.weights.sum(dim=-1), torch.ones_like(call.weights[..., 0]))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_readout_is_what_is_pooled(name):
    model = build(name)
    pattern = attention_pattern(model, "rollout")
    assert pattern.pooled == ("SigLIP" in name)
    if name in ("timm trunk", "open_clip", "registers", "torchvision", "transformers CLIP"):
        assert pattern.readout.tolist() == [1.0] + [0.0] * (len(pattern.readout) - 1)
    if name == "averaged":
        patches = model.tokens.grid.rows * model.tokens.grid.cols
        expected = [0.0] * model.tokens.prefix + [1 / patches] * patches
        assert pattern.readout.tolist() == pytest.approx(expected)


def test_everything_is_as_before_even_after_an_error():
    model = build("SigLIP")
    original = F.scaled_dot_product_attention
    fast = torch.backends.mha.get_fastpath_enabled()
    flags = [module.fused_attn for module in model.model.modules() if hasattr(module, "fused_attn")]
    with pytest.raises(RuntimeError, match="boom"), torch.no_grad(), traced_attention(model, CUT_WEIGHTS):
        raise RuntimeError("boom")
    assert F.scaled_dot_product_attention is original
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert [module.fused_attn for module in model.model.modules() if hasattr(module, "fused_attn")] == flags
    assert not any(module._forward_pre_hooks for module in model.model.modules())


def test_another_threads_attention_is_not_recorded():
    model = build("open_clip")
    query = torch.randn(1, 2, 3, 4)
    results = []
    with torch.no_grad(), traced_attention(model) as calls:
        thread = threading.Thread(target=lambda: results.append(F.scaled_dot_product_attention(query, query, query)))
        thread.start()
        thread.join()
        assert calls == []
        mine = F.scaled_dot_product_attention(query, query, query)
        assert len(calls) == 1
    torch.testing.assert_close(results[0], mine)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": "float"}, {"attn_mask": "bool"}]
)
def test_every_argument_of_the_fused_function(options):
    model = build("open_clip")
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    masks = {"float": torch.randn(5, 5, dtype=torch.float64), "bool": torch.rand(5, 5) > 0.2}
    if "attn_mask" in options:
        options = {"attn_mask": masks[options["attn_mask"]]}
        if options["attn_mask"].dtype == torch.bool:
            options["attn_mask"] |= torch.eye(5, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    with traced_attention(model):
        found = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(found, expected)


def test_a_model_with_windowed_attention_is_refused_before_any_work():
    model = timm.create_model("test_vit", img_size=64, num_classes=3)
    adapter = ClassifierAdapter(model, name="windows", preprocess=preprocess(64))
    block = model.blocks[0]
    whole = block.forward

    def halves(tokens, *args, **kwargs):
        return torch.cat([whole(part, *args, **kwargs) for part in tokens.chunk(2, dim=1)], dim=1)

    block.forward = halves
    with pytest.raises(ModelError, match="CAM_VERSION=Chefer: needs one attention of all"):
        CamEngine(adapter, method="Chefer")


@pytest.mark.parametrize("method", ["LeGrad", "Chefer", "Grad-ECLIP", "rollout", "GradCAM"])
def test_a_head_of_zeros_is_named(method):
    model = timm.create_model("test_vit", img_size=64, num_classes=3)
    torch.nn.init.zeros_(model.head.weight)
    adapter = ClassifierAdapter(model, name="untrained", preprocess=preprocess(64))
    with pytest.raises(ModelError, match="weights of its head zero"):
        CamEngine(adapter, method=method)
