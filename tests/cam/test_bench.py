"""benchmarks/cam_speed.py on a tiny model: its published loop is gScoreCAM, its samples add up, its lines say all."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.cam.support import PROMPTS, noise_images, plain_gscorecam, tiny_clip

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
K = 12


def _module(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


published = _module("cam_speed_published")  # the bench imports it by this name, so it comes first
bench = _module("cam_speed")


@pytest.fixture(scope="module")
def model():
    return tiny_clip()


@pytest.fixture(scope="module")
def work(model):
    return published.Work(model, noise_images(2, model), PROMPTS[:3], K)


def _arguments(**changes):
    values = {
        "batch_size": 4, "chunks": None, "full": False, "bare_batches": [2, 4], "check_k": 5, "seed": 0, "rounds": 2,
        "together": 1,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def _loop(model, **changes):
    return published.PublishedLoop(model, **{"k": K, "batch": 5, "precision": "fp32", "frugal": True, **changes})


@pytest.mark.parametrize("frugal", [False, True])
def test_the_published_loop_is_gscorecam(frugal):
    model = tiny_clip(torch.float64)
    (image,) = noise_images(1, model)
    found = _loop(model, frugal=frugal).map(image, PROMPTS[0])
    torch.testing.assert_close(found.double(), plain_gscorecam(model, image, PROMPTS[0], K), atol=1e-6, rtol=0)


def test_the_published_loop_leaves_the_model_frozen_and_without_hooks(work):
    for frugal in (False, True):
        loop = _loop(work.model, frugal=frugal)
        loop.seconds(work.images[0], PROMPTS[0], chunks=1)
        loop.map(work.images[0], PROMPTS[0])
    assert not work.model.target_layer._forward_hooks
    assert not any(one.requires_grad or one.grad is not None for one in work.model.model.parameters())


def test_texts_are_encoded_again_for_every_chunk_unless_frugal(work, monkeypatch):
    asked = []
    encode = work.model.text_features
    monkeypatch.setattr(work.model, "text_features", lambda prompts: asked.append(prompts) or encode(prompts))
    _loop(work.model, frugal=True).map(work.images[0], PROMPTS[0])
    assert len(asked) == 1
    _loop(work.model, frugal=False).map(work.images[0], PROMPTS[0])
    assert len(asked) == 1 + 1 + 3  # 12 channels in chunks of 5


def test_a_sample_is_scaled_to_the_whole_map(work, monkeypatch):
    """With every step taking one second and one of three chunks of 4 forwarded: 4 steps and 3 times the forwards."""
    monkeypatch.setattr(published, "timed", lambda step, device: (1.0, step()))
    assert _loop(work.model, batch=4).seconds(work.images[0], PROMPTS[0], chunks=1) == pytest.approx(4 + 3)


@pytest.fixture
def rows(work, monkeypatch):
    """Rows of every forward of the image side; a step's "seconds" are the number of rows that it forwards."""
    found = []
    forward = work.model.forward
    monkeypatch.setattr(work.model, "forward", lambda images: found.append(len(images)) or forward(images))

    def count(step, device):
        before = len(found)
        result = step()
        return float(sum(found[before:])), result

    monkeypatch.setattr(published, "timed", count)
    monkeypatch.setattr(bench, "timed", count)
    return found


@pytest.mark.parametrize(
    ("library", "module", "whole"), [("grad-cam", "pytorch_grad_cam", 1), ("torchcam", "torchcam", 2)]
)
def test_a_librarys_sample_sees_its_chunks_and_is_scaled_to_all_channels(work, rows, library, module, whole):
    pytest.importorskip(module)
    way = published.LibraryScoreCAM(library, work, batch=4, chunks=2)
    way.sample(0)
    assert rows == [1] * whole + [4, 4]
    assert way.seconds == [whole + work.channels]
    assert not work.model.target_layer._forward_hooks


def test_the_union_is_what_the_engine_forwards(work):
    engine = bench.CamEngine(work.model, top_k=K, batch_size=4, precision="fp32")
    engine.explain(work.images, [work.targets, work.targets])
    assert engine.masked_forwards == sum(work.unions)
    assert K < work.mean_union < 3 * K


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("together", [1, 2])
def test_ours_sampled_and_whole_count_the_same_forwards(work, together):
    sampled, whole = (bench.Ours(work, 4, "fp32", chunks, together) for chunks in (2, 0))
    for way in (sampled, whole):
        for turn in range(len(work.images)):
            way.sample(turn)
    assert sum(sampled.seconds) == pytest.approx(sum(whole.seconds))
    assert sampled.inner == [1.0, 1.0]
    assert not whole.inner


def test_every_row_describes_itself_and_every_ratio_says_reached_or_missed(work):
    args = _arguments()
    ways = bench.all_ways(work, ["fp32", "bf16"], args)
    bench.take_rounds(ways, args.rounds)
    assert {len(way.seconds) for way in ways} == {args.rounds}
    for way in ways:
        line = bench.row(way, work, args)
        for wanted in (f"way='{way.label}'", "model=tiny", "device=cpu", f"dtype={way.precision}", "images=2",
                       "questions_per_image=3", "seed=0", "samples=2", "IQR_s="):  # fmt: skip
            assert wanted in line
        assert (f"k={way.k} |U|={work.mean_union:.1f}" in line) == (way.unit == "map")
    lines = bench.ratios(ways, work)
    sharing = f"target {0.95 * 3 * K / work.mean_union:.3g} "
    assert sum(sharing in line for line in lines) == 2
    assert sum("target 2.5 " in line for line in lines) == 1
    assert sum("target 0.96 " in line for line in lines) == 2
    assert all(line.endswith((" reached", " missed")) for line in lines if "target" in line)


def test_verdicts():
    assert bench._verdict("a / b", [3.0, 5.0, 4.0], 4.0) == "ratio a / b: 4 (IQR 1), target 4 reached"
    assert bench._verdict("a / b", [3.9], 4.0) == "ratio a / b: 3.9 (IQR 0), target 4 missed"


def test_the_check_compares_with_the_loop_and_can_fail(work, monkeypatch):
    lines = bench.check(work, ["fp32", "bf16"], _arguments())
    (line,) = [line for line in lines if line.startswith("check fp32")]
    assert f"masked_forwards={work.union(0, 5)} |U|={work.union(0, 5)} maps=3" in line
    assert _difference(line) < 1e-4
    assert sum(line.startswith("memory") for line in lines) == 2
    monkeypatch.setattr(published, "weigh", lambda activations, scores: activations.mean(dim=0).relu())
    (line,) = [line for line in bench.check(work, ["fp32"], _arguments()) if line.startswith("check")]
    assert _difference(line) > 1e-2


def _difference(line):
    return float(line.split("text once'=")[1].split()[0])


def test_peak_memory_is_seen_after_it_was_given_back():
    megabytes, length = published.peak_growth(lambda: len(torch.ones(50_000_000)), torch.device("cpu"))
    assert length == 50_000_000
    assert megabytes is None or 150 < megabytes < 400


def test_films_fill_the_models_frame(model):
    images = bench.films(model, 2, seed=3)
    assert images.shape == (2, 3, 160, 160)
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[1:], bench.films(model, 1, seed=4))
