"""The engine against torchcam: same model, same layer, same target.

Agreement is 1e-4 of the map's range. Where torchcam computes something else, the test says what, and shows that the
engine's inputs put through torchcam's formula give torchcam's map.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from heatlens.cam.capture import reference_pass
from tests.cam.support import noise_images
from tests.cam.test_oracles import ours
from tests.cam.zoo import build

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
