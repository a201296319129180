"""Half precision in the masked forwards keeps the maps: correlation at least 0.99, the same hottest patch in 95%."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch

from heatlens.cam.engine import CamEngine
from heatlens.images.geometry import FrameGeometry
from heatlens.models.loading import load_clip
from heatlens.phantom.heldout import cases


@pytest.fixture(scope="module")
def phantoms():
    """The demo model, and held-out phantom films with the prompts of their findings."""
    model = load_clip("demo")
    work = []
    for _, group in groupby(cases(24, 1_000_000), key=lambda case: id(case[0])):
        found = list(group)
        pixels = found[0][0].pixels
        geometry = FrameGeometry.fit("letterbox", (pixels.shape[1], pixels.shape[0]), model.frame)
        work.append((model.prepare([geometry.place(pixels)]), [model.target(prompt) for _, _, prompt in found]))
    return model, work


@pytest.mark.parametrize(
    ("method", "precision", "films", "options"),
    [
        pytest.param("gScoreCAM", "bf16", 11, {"top_k": 10}, id="gScoreCAM-bf16"),
        pytest.param("RISE", "bf16", 3, {"masks": 40}, id="RISE-bf16"),
        pytest.param("gScoreCAM", "fp16", 2, {"top_k": 8}, id="gScoreCAM-fp16"),  # a CPU only emulates it
    ],
)
def test_half_precision_keeps_the_maps(phantoms, method, precision, films, options):
    """Few channels: every one of them weighs more than in a run. docs/performance.md has the figures at full k."""
    model, work = phantoms
    maps = {}
    for name in ("fp32", precision):
        engine = CamEngine(model, method=method, precision=name, **options)
        maps[name] = torch.cat([engine.explain(image, [targets])[0] for image, targets in work[:films]]).numpy()
    exact, rough = (maps[name].reshape(len(maps[name]), -1) for name in ("fp32", precision))
    assert not np.array_equal(exact, rough)
    assert min(np.corrcoef(one, other)[0, 1] for one, other in zip(exact, rough, strict=True)) >= 0.99
    # RISE's map has a pixel per pixel of the frame: neighbours are almost equal, so a patch is compared.
    same = [near(one, other, model) for one, other in zip(maps["fp32"], maps[precision], strict=True)]
    assert np.mean(same) >= 0.95


def near(one, other, model):
    """Do both maxima lie in the same patch?"""
    patches = []
    for values in (one, other):
        row, col = np.unravel_index(values.argmax(), values.shape)
        scale = values.shape[0] // model.grid.rows
        patches.append((row // scale, col // scale))
    return patches[0] == patches[1]
