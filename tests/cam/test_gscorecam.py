"""gScoreCAM against its plain float64 twin, and the sharing of masked forwards against one at a time."""

from __future__ import annotations

import pytest
import torch

from heatlens.cam.engine import CamEngine
from tests.cam.support import PROMPTS, noise_images, plain_gscorecam, tiny_clip


@pytest.fixture(scope="module")
def double_model():
    return tiny_clip(torch.float64)


@pytest.mark.parametrize("k", [1, 7, 300])
def test_float64_engine_equals_the_plain_algorithm(double_model, k):
    images = noise_images(2, double_model)
    engine = CamEngine(double_model, top_k=k, batch_size=8)
    maps = engine.explain(images, [[double_model.target(p) for p in PROMPTS[:3]]] * 2)
    for image, image_maps in zip(images, maps, strict=True):
        for prompt, one in zip(PROMPTS[:3], image_maps, strict=True):
            plain = plain_gscorecam(double_model, image, prompt, k)
            torch.testing.assert_close(one.double(), plain, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("k", [7, 300])
def test_fp32_engine_is_within_1e4_of_the_plain_algorithm(double_model, k):
    single = tiny_clip(torch.float32)
    images = noise_images(3, single)
    engine = CamEngine(single, top_k=k, precision="fp32")
    maps = engine.explain(images, [[single.target(p) for p in PROMPTS[:2]]] * 3)
    for image, image_maps in zip(images, maps, strict=True):
        for prompt, one in zip(PROMPTS[:2], image_maps, strict=True):
            plain = plain_gscorecam(double_model, image.double(), prompt, k)
            torch.testing.assert_close(one.double(), plain, atol=1e-4, rtol=1e-4)


def test_results_do_not_depend_on_what_shares_a_batch():
    model = tiny_clip()
    images = noise_images(2, model)
    targets = [[model.target(p) for p in PROMPTS]] * 2
    engine = CamEngine(model, top_k=20, batch_size=8, precision="fp32")
    both = engine.explain(images, targets)
    for row in range(2):
        (alone,) = engine.explain(images[row : row + 1], targets[row : row + 1])
        assert torch.equal(both[row], alone)


def test_masked_forwards_are_the_union_of_the_channels():
    model = tiny_clip()
    image = noise_images(1, model)
    engine = CamEngine(model, top_k=20, precision="fp32")
    engine.explain(image, [[model.target(PROMPTS[0])] * 5])
    assert engine.masked_forwards == 20
    engine.explain(image, [[model.target(p) for p in PROMPTS]])
    assert 20 < engine.masked_forwards - 20 <= 64


def test_negative_logits_do_not_invert_the_map():
    model = tiny_clip(torch.float64)
    image = noise_images(1, model)
    target = model.target(PROMPTS[0])
    lowered = type(target)(target.text, target.scale, target.bias - 1000.0)
    engine = CamEngine(model, top_k=20)
    plain, shifted = engine.explain(image, [[target, lowered]])[0]
    torch.testing.assert_close(plain, shifted, atol=1e-6, rtol=1e-5)


class OneBrokenScore:
    """A target whose first masked image gets no finite score."""

    def __init__(self, healthy, bias):
        self.healthy, self.bias, self.calls = healthy, bias, 0

    def __call__(self, output):
        score = self.healthy(output).clone() + self.bias
        self.calls += 1
        if self.calls == 2:  # the first call is the reference pass
            score[0] = torch.nan
        return score


def test_a_channel_without_a_finite_score_is_left_out_and_named():
    """Left out, not scored 0: below zero logits a 0 would take almost all of the weight."""
    model = tiny_clip(torch.float64)
    image = noise_images(1, model)
    maps = []
    for bias in (0.0, -1000.0):
        engine = CamEngine(model, top_k=6, batch_size=8)
        (result,) = engine.explain_full(image, [[OneBrokenScore(model.target(PROMPTS[0]), bias)]])
        assert result.maps.isfinite().all()
        assert result.maps.max() > 0
        assert "1 of 6 channels" in result.warnings[0][0]
        maps.append(result.maps)
    torch.testing.assert_close(maps[0], maps[1], atol=1e-6, rtol=1e-5)


def test_ties_in_the_ranking_go_to_the_lower_channel():
    from heatlens.cam.methods.gscorecam import top_channels

    gradients = torch.zeros((1, 6, 2, 2))
    gradients[0, 4] = 1.0
    assert top_channels(gradients, 3).tolist() == [[4, 0, 1]]
    gradients[0, 2] = torch.nan
    assert top_channels(gradients, 6).tolist() == [[4, 0, 1, 3, 5, 2]]
