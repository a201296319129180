"""What every method promises, on every family of models."""

from __future__ import annotations

import pytest
import torch

from heatlens.cam.engine import CamEngine
from heatlens.cam.methods.attention_base import AttentionMethod
from heatlens.cam.methods.base import LayerMethod
from heatlens.errors import ConfigError, ModelError
from heatlens.registry import METHODS, find
from tests.cam.support import noise_images
from tests.cam.zoo import TRANSFORMERS, ZOO, build, targets_of

ATTENTION = ["LeGrad", "Grad-ECLIP", "rollout", "Chefer"]
PROMPTLESS = ["EigenCAM", "rollout"]
SMALL = {"top_k": 12, "masks": 24, "batch_size": 8, "precision": "fp32"}
PAIRS = [(method, name) for method in METHODS for name in ZOO if method not in ATTENTION or name in TRANSFORMERS]


def engine_for(method, name, dtype=torch.float32, **options):
    return CamEngine(build(name, dtype), method=method, **{**SMALL, **options})


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_maps_are_finite_positive_and_on_the_grid(method, name):
    engine = engine_for(method, name)
    images, targets = noise_images(2, engine.model), targets_of(engine.model)
    explained = engine.explain_full(images, [targets, targets[:1]])
    assert any(one.max() > one.min() for found in explained for one in found.maps)
    for found in explained:
        assert found.maps.shape[1:] == (engine.grid.rows, engine.grid.cols)
        assert found.maps.dtype == torch.float32
        assert found.maps.isfinite().all()
        assert found.maps.min() >= 0
        for one, remarks in zip(found.maps, found.warnings, strict=True):
            flat = bool(one.max() == one.min())  # nothing speaks for that class
            assert flat <= (name == "convnet")
            assert [text.startswith("the map is constant") for text in remarks] == [True] * flat


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-8)], ids=["fp32", "fp64"])
@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_many_at_once_equal_one_at_a_time(method, name, dtype, bound):
    engine = engine_for(method, name, dtype)
    images, targets = noise_images(2, engine.model), targets_of(engine.model)
    asked = [targets, targets[2:]]
    together = engine.explain_full(images, asked)
    for image, mine, found in zip(images, asked, together, strict=True):
        for position, target in enumerate(mine):
            (alone,) = engine.explain_full(image[None], [[target]])
            torch.testing.assert_close(found.maps[position], alone.maps[0], atol=bound, rtol=bound)
            assert found.scores[position] == pytest.approx(alone.scores[0], abs=bound, rel=bound)


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_a_map_has_the_same_bits_whatever_else_is_asked(method, name):
    engine = engine_for(method, name)
    image, targets = noise_images(1, engine.model), targets_of(engine.model)
    (many,) = engine.explain(image, [targets])
    for position, target in enumerate(targets):
        assert torch.equal(engine.explain(image, [[target]])[0][0], many[position])


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in PROMPTLESS])
def test_different_targets_give_different_maps(method, name):
    engine = engine_for(method, name)
    (maps,) = engine.explain(noise_images(1, engine.model), [targets_of(engine.model, 2)])
    assert not torch.allclose(maps[0] / maps[0].max(), maps[1] / maps[1].max(), atol=1e-4)


@pytest.mark.parametrize("method", PROMPTLESS)
def test_methods_that_ignore_the_target_say_so(method):
    engine = engine_for(method, "open_clip")
    (maps,) = engine.explain(noise_images(1, engine.model), [targets_of(engine.model, 2)])
    assert torch.equal(maps[0], maps[1])
    assert not engine.method.uses_target
    assert "ignores the prompt" in METHODS[method].summary


@pytest.mark.parametrize("method", ATTENTION)
def test_attention_methods_refuse_a_convnet_by_name(method):
    with pytest.raises(ModelError, match=f"CAM_VERSION={method}: needs a vision transformer"):
        engine_for(method, "convnet")


@pytest.mark.parametrize("method", ["AblationCAM", "GradCAM", "HiResCAM", "LeGrad", "Grad-ECLIP", "Chefer", "RISE"])
@pytest.mark.parametrize("name", ["open_clip", "SigLIP"])
def test_negative_logits_do_not_invert_the_map(method, name):
    """A constant below every logit: maps that rest on differences of scores must not notice."""
    engine = engine_for(method, name, torch.float64)
    model = engine.model
    target = targets_of(model, 1)[0]
    lowered = type(target)(target.text, target.scale, target.bias - 1000.0)
    plain, shifted = engine.explain(noise_images(1, model), [[target, lowered]])[0]
    torch.testing.assert_close(plain / plain.max(), shifted / shifted.max(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_broken_image_is_named_and_the_others_are_fine(method):
    engine = engine_for(method, "open_clip")
    images = noise_images(2, engine.model)
    images[0, 1, 5, 5] = torch.nan
    targets = targets_of(engine.model, 2)
    broken, fine = engine.explain_full(images, [targets, targets])
    assert broken.maps.isnan().all()
    assert all(any(text.startswith("error: ") for text in mine) for mine in broken.warnings)
    assert fine.maps.isfinite().all()
    assert not any(fine.warnings)


@pytest.mark.parametrize("method", METHODS)
def test_no_targets_is_an_empty_stack(method):
    engine = engine_for(method, "open_clip")
    first, second = engine.explain(noise_images(2, engine.model), [[], targets_of(engine.model, 1)])
    assert first.shape == (0, engine.grid.rows, engine.grid.cols)
    assert len(second) == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_states_its_paper_formula_and_needs(method):
    entry = METHODS[method]
    found = entry.load()
    assert found.name == entry.name
    assert entry.paper.startswith("https://")
    assert len(entry.formula) > 10
    assert set(entry.needs) <= {"gradients", "masked forwards", "tail forwards", "attention maps"}
    for fact in (entry.paper, f"``{entry.formula}``", entry.shapes):  # the class says what the table says
        assert fact in found.__doc__
    assert "->" in entry.shapes
    if issubclass(found, LayerMethod):
        assert ("gradients" in entry.needs) == found.needs_gradients
    assert ("attention maps" in entry.needs) == issubclass(found, AttentionMethod)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("gscorecam", "gScoreCAM"),
        ("G-Score-CAM", "gScoreCAM"),
        ("grad-cam", "GradCAM"),
        ("Grad CAM", "GradCAM"),
        ("gradcam++", "GradCAM++"),
        ("GradCAMPlusPlus", "GradCAM++"),
        ("grad_cam_plus_plus", "GradCAM++"),
        ("gradcampp", "GradCAM++"),
        ("hires-cam", "HiResCAM"),
        ("xgrad_cam", "XGradCAM"),
        ("layer cam", "LayerCAM"),
        ("eigen-grad-cam", "EigenGradCAM"),
        ("Score-CAM", "ScoreCAM"),
        ("ablation_cam", "AblationCAM"),
        ("rise", "RISE"),
        ("LEGRAD", "LeGrad"),
        ("GradECLIP", "Grad-ECLIP"),
        ("grad_eclip", "Grad-ECLIP"),
        ("attention-rollout", "rollout"),
        ("chefer relevance", "Chefer"),
    ],
)
def test_common_spellings(spelling, name):
    assert find("method", spelling).name == name


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean LeGrad\?"):
        find("method", "LeGard")
