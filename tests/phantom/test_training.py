"""Batches, masks and losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from heatlens.phantom.batches import SLOTS, Batcher, make_mask
from heatlens.phantom.corpus import Corpus, load_corpus
from heatlens.phantom.losses import balanced_bce, contrast, where_loss
from heatlens.phantom.train import MEAN, STD, learning_rate


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(tmp_path_factory.mktemp("cache"), 604_000, 16, 1)


def test_the_cache_gives_the_same_films_again(tmp_path: Path) -> None:
    one, two = load_corpus(tmp_path, 604_100, 3, 1), load_corpus(tmp_path, 604_100, 3, 1)
    assert (one.frames == two.frames).all() and one.findings == two.findings
    assert all((a == b).all() for a, b in zip(one.cover, two.cover, strict=True))


def test_batches_are_deterministic_and_whole(corpus: Corpus) -> None:
    one, two = (Batcher(corpus, MEAN, STD, 5).draw(6, 4, None) for _ in range(2))
    assert one.captions == two.captions and torch.equal(one.images, two.images)
    assert one.images.shape == (10, 3, 224, 224) and one.truth.shape == (10, len(one.captions))
    assert one.slot_maps.shape == (10, len(SLOTS), 196) and one.own_maps.shape == (*one.own.shape, 196)
    assert (one.known[:6] == 1).all()  # nothing is hidden on a plain film
    dense = one.own_maps.amax(-1) > 0
    said = torch.gather(one.truth, 1, one.own) > 0
    assert torch.equal(dense[:6], said[:6])  # a dense map exists where the caption is true


def test_masks_are_zero_to_one(corpus: Corpus) -> None:
    rng = np.random.default_rng(0)
    channels = rng.standard_normal((30, 14, 14)).astype(np.float32)
    for cover in corpus.cover:
        mask = make_mask(cover, channels, rng)
        assert mask.shape == (14, 14) and mask.dtype == np.float32
        assert mask.min() == 0 and 0.99 < mask.max() <= 1


def test_hiding_everything_leaves_nothing_true(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heatlens.phantom.batches.make_mask", lambda *_: np.zeros((14, 14), np.float32))
    batch = Batcher(corpus, MEAN, STD, 5).draw(2, 6, None)
    assert batch.truth[2:].sum() == 0 and batch.slot_maps[2:].sum() == 0
    assert batch.images[2:].abs().max() == 0


def test_losses_fall_towards_the_truth() -> None:
    truth = torch.eye(4)
    known = torch.ones(4, 4)
    good, bad = 20 * truth - 10, 10 - 20 * truth
    assert balanced_bce(good, truth, known) < 0.01 < balanced_bce(bad, truth, known)
    assert contrast(good, truth, known) < 0.01 < contrast(bad, truth, known)
    assert contrast(bad, truth, truth) == pytest.approx(0, abs=1e-6)  # unknown pairs do not count
    target = torch.zeros(1, 1, 196)
    target[..., 7] = 1
    assert where_loss(20 * target - 10, target, torch.ones(1, 1)) < where_loss(-20 * target, target, torch.ones(1, 1))


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(s, 1000, 1.0) for s in (0, 149, 500, 999)]
    assert rates[0] < 0.01 and rates[1] > 0.9 and rates[1] > rates[2] > rates[3] > 0
