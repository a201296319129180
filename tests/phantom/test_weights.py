"""The shipped model loads through open_clip, strictly, and reads the phantom language."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from heatlens.phantom.batches import SLOTS
from heatlens.phantom.film import make_film, to_frame
from heatlens.phantom.language import Claim, vocabulary, word
from heatlens.phantom.questions import rows_about
from heatlens.phantom.train import MEAN, STD
from heatlens.phantom.weights_format import CHECKPOINT, WEIGHTS, load_model, write_configuration


@pytest.fixture(scope="module")
def loaded() -> tuple:
    return load_model()


def test_weights_load_strictly_and_are_small(loaded: tuple) -> None:
    model, _ = loaded
    state = load_file(WEIGHTS / CHECKPOINT)
    assert set(state) == set(model.state_dict())
    assert all(torch.isfinite(v.float()).all() for v in state.values())
    assert (WEIGHTS / CHECKPOINT).stat().st_size <= 15e6
    assert len(model.visual.trunk.blocks) == 6 and model.visual.trunk.num_prefix_tokens == 1


def test_the_record_beside_the_weights_is_theirs() -> None:
    record = json.loads((WEIGHTS / "training.json").read_text(encoding="utf-8"))
    assert record["sha256"] == hashlib.sha256((WEIGHTS / CHECKPOINT).read_bytes()).hexdigest()
    assert record["training_seeds"][1] < 500_000


def test_the_configuration_is_the_one_the_code_writes(tmp_path: Path) -> None:
    write_configuration(tmp_path)
    for path in tmp_path.iterdir():
        assert (WEIGHTS / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), path.name


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    write_configuration(tmp_path)
    with pytest.raises(RuntimeError):
        load_model(tmp_path)


def test_no_unknown_words(loaded: tuple) -> None:
    _, tokenizer = loaded
    rng = np.random.default_rng(0)
    texts = [word(Claim(*slot), rng) for slot in SLOTS for _ in range(20)]
    for seed in range(602_000, 602_006):
        for row in rows_about(make_film(seed, long_side=200), rng):
            texts += [f"{row.fields['question']} {region}" for region in row.fields["visual_regions"]]
            texts.append(" ".join(row.fields.get("choices", [])))
    texts.append("Glioblastoma multiforme: contrast-enhanced T1, 3.5 x 2 cm?")
    ids = tokenizer(texts)
    assert not (ids == vocabulary().index("[UNK]")).any()
    assert ids.shape[1] == 64


def test_the_model_tells_findings_apart(loaded: tuple) -> None:
    """A film's finding beats the same finding on the other side, on most of a few films."""
    model, tokenizer = loaded
    right = 0
    with torch.no_grad():
        text = model.encode_text(
            tokenizer(["pleural effusion on the left", "pleural effusion on the right"]), normalize=True
        )
        for seed in range(603_000, 603_010):
            film = make_film(seed, long_side=448, names=["pleural effusion"])
            grey = torch.from_numpy(to_frame(film.pixels) / np.float32(255))
            image = (grey - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
            best = int((model.encode_image(image, normalize=True) @ text.T).argmax())
            right += film.findings[0].side == ("left", "right")[best]
    assert right >= 9
