"""CAM_VERSION=grad-cam:NAME: the package's methods on the engine's models."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from heatlens.cam.engine import CamEngine
from heatlens.errors import ConfigError, ModelError, ZeroGradientError
from heatlens.registry import find
from tests.cam.support import noise_images, tiny_clip
from tests.cam.test_forwards import module_hooks
from tests.cam.zoo import build, targets_of

grad_cam = pytest.importorskip("pytorch_grad_cam")

NAMES = [
    "AblationCAM", "EigenCAM", "EigenGradCAM", "FEM", "FinerCAM", "FullGrad", "GradCAM", "GradCAMElementWise",
    "GradCAMPlusPlus", "HiResCAM", "KPCA_CAM", "LayerCAM", "RandomCAM", "RefineCAM", "ScoreCAM", "SegEigenCAM", "SESS",
    "ShapleyCAM", "XGradCAM",
]  # fmt: skip


def test_every_method_of_the_package_is_reachable():
    """A new release's methods are found by themselves; these are the ones of 1.5.7 (older ones have fewer)."""
    known = set(vars(grad_cam))
    for name in NAMES:
        if name in known:
            assert find("method", f"grad-cam:{name}").load()().name == f"grad-cam:{name}"


@pytest.mark.parametrize("name", ["open_clip", "SigLIP", "convnet"])
@pytest.mark.parametrize("method", NAMES)
def test_maps_on_every_family(method, name):
    if not hasattr(grad_cam, method):
        pytest.skip(f"this grad-cam has no {method}")
    model = build(name)
    if method == "ShapleyCAM" and name != "convnet":
        pytest.skip("test_a_method_that_cannot_work_says_so_before_any_work")
    engine = CamEngine(model, method=f"grad-cam:{method}")
    targets = targets_of(model, 2)
    layer = model.target_layer
    (found,) = engine.explain_full(noise_images(1, model), [targets])
    assert found.maps.shape == (2, engine.grid.rows, engine.grid.cols)
    assert found.maps.isfinite().all() and found.maps.min() >= 0 and found.maps.max() > 0
    assert module_hooks(model) == 0
    assert any(module is layer for module in model.model.modules())
    assert not any(one.requires_grad for one in model.model.parameters())


@pytest.mark.parametrize("method", ["GradCAM", "HiResCAM", "XGradCAM", "LayerCAM", "ScoreCAM"])
def test_the_bridges_map_is_the_engines_own(method):
    model = build("timm trunk")
    images, targets = noise_images(2, model), targets_of(model, 2)
    mine = CamEngine(model, method=method, precision="fp32").explain(images, [targets, targets[:1]])
    theirs = CamEngine(model, method=f"grad-cam:{method}").explain(images, [targets, targets[:1]])
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(one.max()), rtol=0)


def test_finercam_compares_with_the_images_other_prompts():
    model = build("open_clip")
    image, targets = noise_images(1, model), targets_of(model, 3)
    finer = CamEngine(model, method="grad-cam:FinerCAM")
    (alone,) = finer.explain(image, [targets[:1]])
    (plain,) = CamEngine(model, method="GradCAM").explain(image, [targets[:1]])
    torch.testing.assert_close(alone, plain, atol=1e-5, rtol=1e-4)
    (together,) = finer.explain(image, [targets])
    assert not torch.allclose(together[0] / together[0].max(), plain[0] / plain[0].max(), atol=1e-3)


def test_random_methods_repeat_and_leave_numpys_generator_alone():
    model = build("open_clip")
    engine = CamEngine(model, method="grad-cam:RandomCAM")
    image, targets = noise_images(1, model), [targets_of(model, 1)]
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    (first,), (second,) = engine.explain(image, targets), engine.explain(image, targets)
    assert torch.equal(first, second)
    assert (np.random.get_state()[1] == before).all()
    (other,) = CamEngine(model, method="grad-cam:RandomCAM", seed=1).explain(image, targets)
    assert not torch.equal(first, other)


def test_a_method_that_cannot_work_says_so_before_any_work():
    """The package's ShapleyCAM forgets the reshape transform where it weighs the activations."""
    with pytest.raises(ModelError, match=r"CAM_VERSION=grad-cam:ShapleyCAM does not work with this model.*ln_1"):
        CamEngine(build("open_clip"), method="grad-cam:ShapleyCAM")


def test_a_layer_without_gradient_is_refused_for_the_packages_gradient_methods_too():
    model = tiny_clip(target_layer="visual.trunk.blocks[-1].norm2")
    with pytest.raises(ZeroGradientError, match="grad-cam:GradCAM"):
        CamEngine(model, method="grad-cam:GradCAM")
    CamEngine(model, method="grad-cam:EigenCAM")


def test_unknown_names_and_spellings():
    for spelling in ("Grad-CAM:finer-cam", "gradcam:FinerCAM", "pytorch-grad-cam: finer_cam", "GRAD_CAM:FINERCAM"):
        assert find("method", spelling).load()().name == "grad-cam:FinerCAM"
    with pytest.raises(ConfigError, match=r"grad-cam:FinnerCAM is no such method; did you mean FinerCAM\?"):
        find("method", "grad-cam:FinnerCAM").load()()
    for name in ("BaseCAM", "AblationLayer", "np", "__doc__", ""):
        with pytest.raises(ConfigError, match="is no such method"):
            find("method", f"grad-cam:{name}").load()()


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ModelError, match=r"pip install 'heatlens\[grad-cam\]'"):
        find("method", "grad-cam:FinerCAM").load()()
