"""The Bounding_Box stage for real, on the demo: boxes.jsonl and overlays, again, and in two shards."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from tests.integration.runs import ROOT, Results, run_stage

pytestmark = pytest.mark.xdist_group("demo")
SCRIPT = ROOT / "Bounding_Box" / "scripts" / "bbox_preprocessing.py"
FLAGS = ("--stop-after", "6", "--cam-version", "GradCAM", "--save-raw-cam", "false", "--box-padding", "0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("boxes")


def run(folder, name: str, *flags: str):
    places = ("--results-dir", str(folder / name), "--dataset-path", str(folder / "phantom"))
    done = run_stage(*places, *FLAGS, *flags, script=SCRIPT)
    return Results(folder / name), done


@pytest.fixture(scope="module")
def whole(folder):
    results, done = run(folder, "run")
    assert done.returncode == 0, done.stderr
    return results, done


def test_what_lands_on_disk(whole, folder):
    results, done = whole
    assert str(results.folder / "boxes.jsonl") in done.stdout
    assert not (results.folder / "vqa_manifest.csv").exists()
    assert results.failures == []
    assert results.record["stage"] == "bbox"
    assert set(results.record["files"]) == {"boxes.jsonl", "details.parquet", "failures.csv"}
    table = pd.read_json(results.folder / "boxes.jsonl", lines=True)
    details = results.details
    assert len(table) >= 6
    for name, other in (("overlay", "image_path"), ("image_path", "source_image"), ("prompt", "prompt")):
        assert table[name].tolist() == details[other].tolist()
    assert table["boxes"].map(len).tolist() == details["box_count"].tolist()
    assert table["boxes"].map(len).sum() >= 4
    for row in table.itertuples():
        film = cv2.imread(str(folder / "phantom" / row.image_path), cv2.IMREAD_UNCHANGED)
        assert row.image_size == [film.shape[1], film.shape[0]]
        overlay = cv2.imread(str(results.folder / row.overlay))
        assert max(overlay.shape) == 1024
        assert (row.reason == "") == bool(row.boxes)
        for box in row.boxes:
            x1, y1, x2, y2 = box["xyxy"]
            assert film[y1:y2, x1:x2].shape == (y2 - y1, x2 - x1)
            assert np.ptp(box["xyxy_224"][::2]) == pytest.approx((x2 - x1) * 224 / max(film.shape), abs=0.02)


def test_the_best_box_holds_the_peak_of_most_maps(whole):
    """Peak and boxes are of the same map: they must agree unless another region has more heat in all."""
    details = whole[0].details
    held = []
    for _, row in details.iterrows():
        boxes = [box["xyxy"] for box in json.loads(row["found_boxes"])]
        held.append(any(x1 <= row["peak_x"] <= x2 and y1 <= row["peak_y"] <= y2 for x1, y1, x2, y2 in boxes))
    assert np.mean(held) >= 0.8, held


def test_the_same_command_has_nothing_to_do(whole, folder):
    results, _ = whole
    before = {path: path.stat().st_mtime_ns for path in results.folder.rglob("*.*") if "shards" not in path.parts}
    again, done = run(folder, "run")
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.tree() == results.tree()


def test_two_shards_are_one_run(whole, folder):
    results, _ = whole
    for index in ("0", "1"):
        sharded, done = run(folder, "two", "--num-shards", "2", "--shard-index", index)
        assert done.returncode == 0, done.stderr
        assert (sharded.folder / "boxes.jsonl").exists() == (index == "1")
    assert sharded.tree() == results.tree()


def test_box_keys_are_fixed_and_colours_are_not(whole, folder):
    before = whole[0].tree()
    refused = run(folder, "run", "--box-threshold", "otsu")[1]
    assert refused.returncode == 2
    assert 'BOX_THRESHOLD: "0.65" -> "otsu"' in refused.stderr
    assert run(folder, "run", "--alpha", "0.9", "--colormap", "hot")[1].returncode == 0
    assert whole[0].tree() == before


def test_crf_keys_mean_nothing_to_a_run_without_it(whole, folder):
    before = whole[0].tree()
    again = run(folder, "run", "--crf-tau", "3", "--crf-size", "64")[1]
    assert (again.returncode, "loading the model" in again.stdout) == (0, False), again.stderr
    assert whole[0].tree() == before


def test_boxes_of_refined_maps(whole, folder):
    pytest.importorskip("pydensecrf.densecrf")
    results, done = run(folder, "refined", "--skip-crf", "false")
    assert done.returncode == 0, done.stderr
    assert len(results.details) == len(whole[0].details)
    assert results.details["found_boxes"].tolist() != whole[0].details["found_boxes"].tolist()
    for _, row in results.details.iterrows():
        assert all(edge >= 0 for box in json.loads(row["found_boxes"]) for edge in box["xyxy"])
    two, done = run(folder, "refined", "--skip-crf", "false", "--crf-tau", "2")
    assert done.returncode == 2
    assert "CRF_TAU: 1.05 -> 2.0" in done.stderr
    assert "CRF_SIZE" not in done.stderr
    assert two.tree() == results.tree()
    changed = run(folder, "run", "--skip-crf", "false")[1]
    assert (changed.returncode, "SKIP_CRF: true -> false" in changed.stderr) == (2, True)
