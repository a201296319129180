"""CAMWrapper, as the README shows it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

import heatlens
from heatlens import CAMWrapper
from heatlens.errors import ModelError
from heatlens.evaluate.pointing import point
from heatlens.phantom.heldout import cases
from tests.cam.support import TOKENIZER, tiny_clip


@pytest.fixture(scope="module")
def look():
    return CAMWrapper("demo", precision="fp32", top_k=160)


@pytest.fixture(scope="module")
def pacemaker():
    """A validation film (not a held-out one) with a large, bright finding."""
    return next(case for case in cases(200, 500_000) if case[1].name == "pacemaker")


def test_one_text_gives_one_map_in_film_pixels(look, pacemaker):
    film, _, prompt = pacemaker
    heat = look(film.pixels, prompt)
    assert heat.shape == film.pixels.shape
    assert heat.dtype == np.float32
    assert (heat.min(), heat.max()) == (0.0, 1.0)


def test_most_maps_point_at_their_finding(look):
    """Eight findings of validation films; the measured rate over hundreds is in docs/performance.md."""
    found = list(cases(8, 500_000, long_side=600))
    hits = [point(look(film.pixels, prompt), finding.mask).hit(8) for film, finding, prompt in found]
    assert sum(hits) >= 6, hits


def test_path_picture_and_array_agree(look, pacemaker, tmp_path):
    pixels, prompt = pacemaker[0].pixels, pacemaker[2]
    cv2.imwrite(str(tmp_path / "film.png"), pixels)
    heat = look(pixels, prompt)
    assert np.array_equal(look(tmp_path / "film.png", prompt), heat)
    assert np.array_equal(look(str(tmp_path / "film.png"), prompt), heat)
    assert np.array_equal(look(Image.fromarray(pixels), prompt), heat)


def test_several_texts_are_those_of_one_at_a_time(look, pacemaker):
    film, _, prompt = pacemaker
    both = look(film.pixels, [prompt, "pleural effusion"])
    assert both.shape == (2, *film.pixels.shape)
    assert np.array_equal(both[0], look(film.pixels, prompt))
    assert not np.allclose(both[0], both[1], atol=0.05)


def test_crop_leaves_what_the_model_cannot_see_empty(pacemaker):
    film, _, prompt = pacemaker
    heat = CAMWrapper("demo", "GradCAM", preprocess="crop")(film.pixels, prompt)
    height, width = heat.shape
    if height == width:
        pytest.skip("a square film loses nothing")
    unseen = np.isnan(heat).mean()
    assert unseen == pytest.approx(1 - min(height, width) / max(height, width), abs=0.02)


def test_an_open_clip_model_needs_its_tokenizer():
    model = tiny_clip().model
    with pytest.raises(ModelError, match="tokenizer"):
        CAMWrapper(model)
    model.visual.preprocess_cfg = {"size": 160, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    heat = CAMWrapper(model, tokenizer=TOKENIZER, device="cpu", top_k=5)(np.zeros((50, 80), np.uint8) + 7, "a nodule")
    assert heat.shape == (50, 80)


def test_the_two_names_are_public():
    assert heatlens.reshape_transform.__module__ == "heatlens.cam.grid"
    with pytest.raises(AttributeError, match="no attribute"):
        _ = heatlens.nothing
