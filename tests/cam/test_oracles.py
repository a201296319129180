"""The engine against grad-cam: same model, same layer, same target.

Agreement is 1e-4 of the map's range. Where a library computes something else, the test says what and why, and
compares with the library's formula put right.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from heatlens.cam.capture import reference_pass
from heatlens.cam.engine import CamEngine
from tests.cam.support import noise_images
from tests.cam.zoo import build, targets_of

grad_cam = pytest.importorskip("pytorch_grad_cam")

MODELS = ["convnet", "timm trunk", "SigLIP", "registers", "torchvision"]
SHARED = {
    "GradCAM": "GradCAM",
    "HiResCAM": "HiResCAM",
    "XGradCAM": "XGradCAM",
    "LayerCAM": "LayerCAM",
    "EigenCAM": "EigenCAM",
    "EigenGradCAM": "EigenGradCAM",
    "ScoreCAM": "ScoreCAM",
}


class Watched(torch.nn.Module):
    """The adapter as a plain module whose frozen weights still let gradients reach the layer."""

    def __init__(self, adapter):
        super().__init__()
        self.network, self.adapter = adapter.model, adapter

    def forward(self, images):
        return self.adapter.forward(images.requires_grad_(True) if torch.is_grad_enabled() else images)


def ours(model, image, target, method, **options):
    (maps,) = CamEngine(model, method=method, precision="fp32", **options).explain(image, [[target]])
    return maps[0].numpy()


def as_grad_cam_shows_it(values, frame):
    """The package's own last steps: min-max, cv2.resize to the frame, min-max."""

    def scaled(one):
        return (one - one.min()) / (1e-7 + (one - one.min()).max())

    return scaled(cv2.resize(scaled(values), frame))


def theirs(model, image, target, name):
    cam = getattr(grad_cam, name)(Watched(model), [model.target_layer], reshape_transform=model.to_grid)
    try:
        return cam(image.clone(), [lambda output: target(output[None])[0]])[0]
    finally:
        cam.activations_and_grads.release()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", SHARED)
def test_agrees_with_grad_cam(method, name):
    model = build(name)
    image, target = noise_images(1, model), targets_of(model, 1)[0]
    mine = ours(model, image, target, method)
    if method in ("EigenCAM", "EigenGradCAM"):
        # A principal component has no sign. grad-cam keeps the one that numpy's SVD happens to give (LAPACK may
        # change it with the matrix's last bits) and so may show the map's negative; ours grows with the features'
        # strength. Both signs are compared with the raw component, before the ReLU.
        mine, other = principal_components(model, image, target, method)
        np.testing.assert_allclose(mine, other, atol=1e-4 * np.abs(other).max())
        return
    found = theirs(model, image, target, SHARED[method])
    np.testing.assert_allclose(as_grad_cam_shows_it(mine, model.frame), found, atol=1e-4)


def principal_components(model, image, target, method):
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    (reference,) = reference_pass(model, image, [[target]], gradients=True)
    features = reference.activations * (reference.gradients[0] if method == "EigenGradCAM" else 1)
    component = get_2d_projection(features[None].numpy())[0]
    mine = ours(model, image, target, method)
    sign = 1 if np.abs(component.clip(min=0) - mine).sum() < np.abs((-component).clip(min=0) - mine).sum() else -1
    return mine, (sign * component).clip(min=0)


@pytest.mark.parametrize("name", MODELS)
def test_grad_cams_gradcam_plusplus_has_an_epsilon_that_rules_small_gradients(name):
    """grad-cam adds 1e-6 to ``2 g^2 + g^3 sum A``: where |g| is below 7e-4, as in most transformers, the weights become
    sums of g^3. Ours has no epsilon (tests/cam/test_plain.py); with it, the engine's gradients give grad-cam's map."""
    model = build(name)
    image, target = noise_images(1, model), targets_of(model, 1)[0]
    (reference,) = reference_pass(model, image, [[target]], gradients=True)
    planes, slopes = reference.activations, reference.gradients[0]
    alpha = slopes**2 / (2 * slopes**2 + planes.sum(dim=(1, 2), keepdim=True) * slopes**3 + 1e-6)
    weights = (slopes.relu() * torch.where(slopes != 0, alpha, 0.0)).sum(dim=(1, 2))
    expected = as_grad_cam_shows_it(torch.einsum("c,chw->hw", weights, planes).relu().numpy(), model.frame)
    np.testing.assert_allclose(expected, theirs(model, image, target, "GradCAMPlusPlus"), atol=1e-4)


def test_the_epsilon_changes_the_map_of_a_trained_model():
    from heatlens.models.loading import load_clip

    model = load_clip("demo")
    image, target = noise_images(1, model), model.target("Is there a nodule?")
    mine = as_grad_cam_shows_it(ours(model, image, target, "GradCAM++"), model.frame)
    found = theirs(model, image, target, "GradCAMPlusPlus")
    assert np.abs(mine - found).max() > 0.1


def test_agrees_with_grad_cams_ablation_after_a_relu():
    model = build("convnet")  # layer3 ends in a ReLU: the package sets channels to 0, as the paper does
    image, target = noise_images(1, model), targets_of(model, 1)[0]
    mine = ours(model, image, target, "AblationCAM")
    found = theirs_ablation(model, image, target)
    sign = np.sign(float(target(model.forward(image))[0]))  # the package divides by S, ours by |S|
    assert sign > 0
    np.testing.assert_allclose(as_grad_cam_shows_it(mine, model.frame), found, atol=1e-4)


def theirs_ablation(model, image, target):
    parent = model.model
    try:
        return theirs(model, image, target, "AblationCAM")
    finally:
        parent.layer3 = model.target_layer


def test_grad_cams_ablation_where_activations_are_negative_is_something_else():
    """There it sets a channel to the minimum minus ten million (its own note says so), which is not an ablation:
    every channel's drop is then that of a saturated network. Ours keeps the paper's 0 (tests/cam/test_plain.py)."""
    from pytorch_grad_cam import AblationLayerVit

    model = build("timm trunk")
    image, target = noise_images(1, model), targets_of(model, 1)[0]
    layer, block = model.target_layer, model.model.visual.trunk.blocks[-1]
    cam = grad_cam.AblationCAM(
        Watched(model), [layer], reshape_transform=model.to_grid, ablation_layer=AblationLayerVit()
    )
    try:
        found = cam(image.clone(), [lambda output: target(output[None])[0]])[0]
    finally:
        block.norm1 = layer
        cam.activations_and_grads.release()
    mine = as_grad_cam_shows_it(ours(model, image, target, "AblationCAM"), model.frame)
    assert np.abs(found - mine).max() > 0.1
