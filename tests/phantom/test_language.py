"""Claims, their truth and their wording."""

from __future__ import annotations

import numpy as np
import pytest

from heatlens.phantom.batches import SLOTS, _fits
from heatlens.phantom.corpus import Placed
from heatlens.phantom.language import Claim, claim_about, prompt_for, twist, vocabulary, word

FILM = [
    Placed("nodule", "left", "lower", "left lower lung zone"),
    Placed("pleural effusion", "right", "lower", "right lower lung zone"),
    Placed("endotracheal tube", "", "", "trachea"),
]


@pytest.mark.parametrize(
    ("claim", "true"),
    [
        (Claim("nodule"), True),
        (Claim("nodule", "left", "lower"), True),
        (Claim("nodule", "right"), False),
        (Claim("nodule", "left", "upper"), False),
        (Claim("", "right", "lower"), True),
        (Claim("", "right", "upper"), False),
        (Claim("endotracheal tube", region="trachea"), True),
        (Claim("pacemaker"), False),
    ],
)
def test_truth(claim: Claim, true: bool) -> None:
    assert claim.true_of(FILM) is true
    assert bool(_fits([FILM], [claim])[0].any()) is true  # the fast path says the same


def test_claims_about_a_finding_are_true_and_twists_differ() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        finding = FILM[int(rng.integers(3))]
        claim = claim_about(finding, rng)
        assert claim.true_of([finding])
        assert word(claim, rng) == " ".join(word(claim, np.random.default_rng(1)).split()) or word(claim, rng)
        twisted = twist(claim, rng)
        assert twisted != claim or twisted.name == claim.name


def test_captions_name_the_side_they_mean() -> None:
    rng = np.random.default_rng(0)
    for name, side, zone in SLOTS:
        for _ in range(20):
            text = word(Claim(name, side, zone), rng)
            assert not side or (side in text and ({"left": "right", "right": "left"}[side] not in text))
            assert "{" not in text


def test_prompts() -> None:
    assert prompt_for(FILM[0]) == "nodule in the left lower lung zone"
    assert prompt_for(FILM[2]) == "endotracheal tube"
    assert prompt_for(Placed("pacemaker", "left", "upper", "left clavicle")) == "pacemaker in the left upper chest"


def test_the_vocabulary_has_no_doubles() -> None:
    words = vocabulary()
    assert len(words) == len(set(words)) and words[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
