"""The stage with the real reader, decoder, engine and a tiny random CLIP (its maps mean nothing; its bytes count)."""

from __future__ import annotations

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from heatlens.batch.parts import Parts
from heatlens.batch.runner import run
from heatlens.stages.attn_map import AttnMapStage
from tests.batch.kit import make_settings, pictures, record

ROWS = [
    ("wide.png", "Where is the heart?", "A"),
    ("wide.png", "Where is the tube?", "B"),
    ("tall.png", "Where is the nodule?", "C"),
    ("wide.png", "Where is the effusion, on the left or on the right side of this film of the chest, " * 3, "D"),
    ("text.png", "What is this?", "E"),
]


class RealParts(Parts):
    """Everything real but the weights."""

    def weights(self):
        return {"model": "tiny", "weights_sha256": "0" * 64}


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    import heatlens.batch.explainer as explainer
    from tests.cam.support import tiny_clip

    monkeypatch.setattr(explainer, "load_clip", lambda *args, **kwargs: tiny_clip())


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("wide.png", (300, 220)), ("tall.png", (220, 300))):
        coarse = generator.integers(0, 255, (9, 7), dtype=np.uint8)
        cv2.imwrite(str(images / name), cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
    (images / "text.png").write_text("not a picture", encoding="utf-8")
    return tmp_path


def make(folder, name, **keys):
    settings = make_settings(
        folder, ROWS, RESULTS_DIR=folder / name / "results", TOPK=24, BATCH_SIZE=8, SAVE_RAW_CAM=True, **keys
    )
    return run(settings, AttnMapStage(settings), RealParts(settings)), settings.results_dir


def test_everything_is_there_and_fits_together(folder):
    code, results = make(folder, "one")
    assert code == 0
    details = pq.read_table(results / "details.parquet").to_pylist()
    assert [row["image_path"] for row in details] == [
        "wide_idx1.png",
        "wide_idx2.png",
        "tall_idx1.png",
        "wide_idx3.png",
    ]
    assert [row["prompt_truncated"] for row in details] == [False, False, False, True]
    assert record(results)["counts"]["truncated_prompts"] == 1
    assert record(results)["counts"]["failed"] == 1
    for row in details:
        overlay = cv2.imread(str(results / row["image_path"]))
        assert overlay.shape == ((220, 300, 3) if row["source_image"] == "wide.png" else (300, 220, 3))
        raw = np.load((results / "raw" / row["image_path"]).with_suffix(".npy"))
        assert float(raw.max()) == pytest.approx(row["map_max"])
        final = cv2.imread(str(results / "raw" / row["image_path"]), cv2.IMREAD_UNCHANGED)
        if not row["constant"]:
            assert final[int(row["peak_y"]), int(row["peak_x"])] == final.max() == 65535


def test_growing_inside_an_image_gives_the_bytes_of_a_full_run(folder):
    make(folder, "grown", STOP_AFTER=1)
    make(folder, "grown", STOP_AFTER=3)
    _, grown = make(folder, "grown")
    _, whole = make(folder, "whole")
    unlike = {"failures.csv"}  # its retry command names the results folder
    assert {name: data for name, data in pictures(grown).items() if name not in unlike} == {
        name: data for name, data in pictures(whole).items() if name not in unlike
    }
