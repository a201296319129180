"""The engine against grad-cam and torchcam: same model, same layer, same target.

Agreement is 1e-4 of the map's range. Where a library computes something else, the test says what and why, and
compares with the library's formula put right.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from heatlens.cam.engine import CamEngine
from tests.cam.support import noise_images
from tests.cam.zoo import build, targets_of

grad_cam = pytest.importorskip("pytorch_grad_cam")

MODELS = ["convnet", "timm trunk", "SigLIP", "registers", "torchvision"]
SHARED = {
    "GradCAM": "GradCAM",
    "GradCAM++": "GradCAMPlusPlus",
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

    from heatlens.cam.capture import reference_pass

    (reference,) = reference_pass(model, image, [[target]], gradients=True)
    features = reference.activations * (reference.gradients[0] if method == "EigenGradCAM" else 1)
    component = get_2d_projection(features[None].numpy())[0]
    mine = ours(model, image, target, method)
    sign = 1 if np.abs(component.clip(min=0) - mine).sum() < np.abs((-component).clip(min=0) - mine).sum() else -1
    return mine, (sign * component).clip(min=0)


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


torchcam_methods = pytest.importorskip("torchcam.methods", reason="torchcam needs Python 3.11")
TORCHCAM = {"GradCAM": "GradCAM", "XGradCAM": "XGradCAM", "LayerCAM": "LayerCAM"}


def torchcam_map(model, image, index, name, **options):
    network = model.model
    with getattr(torchcam_methods, name)(network, model.target_layer, **options) as cam:
        scores = network(image.clone().requires_grad_(True))
        return cam(index, scores, normalized=False)[0][0].detach().clamp(min=0).numpy()


@pytest.mark.parametrize("name", ["convnet", "registers", "torchvision"])
@pytest.mark.parametrize("method", TORCHCAM)
def test_agrees_with_torchcam(method, name):
    model = build(name)
    image = noise_images(1, model)
    mine = ours(model, image, model.target(1), method)
    found = torchcam_map(model, image, 1, TORCHCAM[method], reshape_transform=model.to_grid)
    np.testing.assert_allclose(mine, found, atol=1e-4 * found.max())


def test_torchcams_gradcam_plusplus_never_divides():
    """torchcam writes its quotient into a copy (``alpha[mask].div_()``), so its weights are g^2 ReLU(g), and its
    denominator would sum g^3 A instead of multiplying g^3 by the sum of A (equation 19). Both are shown."""
    from heatlens.cam.capture import reference_pass

    model = build("convnet")
    image = noise_images(1, model)
    (reference,) = reference_pass(model, image, [[model.target(1)]], gradients=True)
    slopes = reference.gradients[0]
    undivided = (slopes**2 * slopes.relu()).sum(dim=(1, 2))
    expected = torch.einsum("c,chw->hw", undivided, reference.activations).relu().numpy()
    found = torchcam_map(model, image, 1, "GradCAMpp")
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    mine = ours(model, image, model.target(1), "GradCAM++")
    assert np.abs(mine / mine.max() - found / found.max()).max() > 1e-4


def test_torchcams_scorecam_scales_before_it_enlarges():
    """torchcam scales a channel to 0..1 on its own grid, then enlarges it with half-pixel centres; the authors (and
    grad-cam, and ours) enlarge with aligned corners first. With its masks the engine's weights are torchcam's."""
    model = build("convnet")
    image, target = noise_images(1, model), model.target(1)
    found = torchcam_map(model, image, 1, "ScoreCAM", input_shape=tuple(image.shape[1:]))
    kept = []
    handle = model.target_layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    model.forward(image)
    handle.remove()
    planes = kept[0][0]
    low = planes.amin(dim=(1, 2), keepdim=True)
    small = (planes - low) / ((planes - low).amax(dim=(1, 2), keepdim=True) + 1e-8)
    masks = F.interpolate(small[:, None], size=image.shape[2:], mode="bilinear", align_corners=False)
    weights = torch.softmax(target(model.forward(image * masks)), dim=0)
    expected = torch.einsum("c,chw->hw", weights, planes).relu().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    assert np.abs(ours(model, image, target, "ScoreCAM") - found).max() > 1e-6


def test_agrees_with_torchcams_legrad():
    model = build("torchvision")
    network = model.model
    image = noise_images(1, model)
    with torchcam_methods.LeGrad(
        network,
        list(network.encoder.layers),
        score_projection=lambda tokens: network.heads(network.encoder.ln(tokens)[:, 0]),
    ) as cam:
        scores = network(image.clone())
        found = cam(2, scores, normalized=False)[0][0].detach().numpy()
    mine = ours(model, image, model.target(2), "LeGrad")
    np.testing.assert_allclose(mine, found, atol=1e-4 * found.max())
