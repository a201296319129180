"""The first command of the README, for real: five questions, again, two more."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

from tests.integration.runs import DEMO, ROOT, Results, run_stage

pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return tmp_path_factory.mktemp("demo films") / "phantom"


@pytest.fixture(scope="module")
def five(tmp_path_factory, films):
    results = tmp_path_factory.mktemp("demo results") / "run"
    done = run_stage("--results-dir", str(results), "--dataset-path", str(films), "--stop-after", "5")
    assert done.returncode == 0, done.stderr
    return Results(results), done


def test_what_lands_on_disk(five):
    results, done = five
    assert str(results.folder) in done.stdout + done.stderr
    manifest = results.manifest
    assert list(manifest[0]) == ["image_path", "question", "answer"]
    assert len(manifest) >= 5
    for row in manifest:
        overlay = cv2.imread(str(results.folder / row["image_path"]), cv2.IMREAD_UNCHANGED)
        assert overlay.ndim == 3
        assert max(overlay.shape) == 1024
        raw = results.folder / "raw" / row["image_path"]
        assert cv2.imread(str(raw), cv2.IMREAD_UNCHANGED).dtype == np.uint16
        grid = np.load(raw.with_suffix(".npy"), allow_pickle=False)
        assert (grid.shape, grid.dtype) == ((14, 14), np.float32)
    assert results.failures == []
    record = results.record
    assert record["status"] == "complete"
    assert record["config"]["STOP_AFTER"] == {"value": 5, "origin": "flag"}
    assert len(record["weights"]["weights_sha256"]) == 64
    details = results.details
    assert list(details["image_path"]) == [row["image_path"] for row in manifest]
    assert list(details["question"]) == [row["question"] for row in manifest]


def test_the_same_command_recognises_finished_work_without_loading_the_model(five, films):
    results, _ = five
    before = results.tree()
    again = run_stage(
        "--results-dir", str(results.folder), "--dataset-path", str(films), "--stop-after", "5",
        PYTHONPROFILEIMPORTTIME="1",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert results.tree() == before
    assert "open_clip.factory" not in again.stderr
    assert str(results.folder) in again.stdout


def test_growing_stop_after_only_adds(five, films, tmp_path):
    results, _ = five
    grown = Results(tmp_path / "run")
    shutil.copytree(results.folder, grown.folder)
    before = {path: path.stat().st_mtime_ns for path in grown.folder.glob("files/**/*.png")}
    more = run_stage("--results-dir", str(grown.folder), "--dataset-path", str(films), "--stop-after", "7")
    assert more.returncode == 0, more.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(grown.manifest) > len(results.manifest)
    assert grown.manifest[: len(results.manifest)] == results.manifest
    assert len(list(grown.folder.glob("files/**/*.png"))) == len(grown.manifest)


def test_another_setting_is_refused_with_the_key(five, films):
    results, _ = five
    before = results.tree()
    refused = run_stage(
        "--results-dir", str(results.folder), "--dataset-path", str(films), "--stop-after", "5", "--alpha", "0.7"
    )
    assert refused.returncode == 2
    assert "ALPHA" in refused.stderr
    assert "0.7" in refused.stderr
    assert "OVERWRITE" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert results.tree() == before


def test_the_map_looks_where_the_finding_is(five, films):
    """Not a benchmark (that is benchmarks/pointing_demo.py): most peaks lie in the region that GEMeX names."""
    import json

    details = five[0].details
    hits = []
    for _, row in details.iterrows():
        (box,) = [entry["box"] for entry in json.loads(row["boxes"])][:1]
        film = cv2.imread(str(films / row["source_image"]), cv2.IMREAD_UNCHANGED)
        scale = max(film.shape) / 224
        x = row["peak_x"] / scale + (224 - film.shape[1] / scale) / 2
        y = row["peak_y"] / scale + (224 - film.shape[0] / scale) / 2
        hits.append(box[0] - 8 <= x <= box[2] + 8 and box[1] - 8 <= y <= box[3] + 8)
    assert np.mean(hits) >= 0.6, hits


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--alpha", "1.5", "0 to 1"),
        ("--colormap", "jett", "jet"),
        ("--cam-version", "foo", "gScoreCAM"),
        ("--output-format", "gif", "png"),
    ],
)
def test_wrong_values_are_exit_2_with_what_is_allowed(flag, value, expected, tmp_path):
    wrong = run_stage(flag, value, "--results-dir", str(tmp_path / "never"))
    assert wrong.returncode == 2
    assert value in wrong.stderr
    assert expected in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "never").exists()


def test_an_unknown_key_in_a_conf_names_the_nearest(tmp_path):
    conf = tmp_path / "typo.conf"
    conf.write_text("DATASET=phantom\nCOLOURMAP=jet\n", encoding="utf-8")
    wrong = run_stage(config=conf)
    assert wrong.returncode == 2
    assert "COLOURMAP" in wrong.stderr
    assert "COLORMAP" in wrong.stderr


def test_the_gemex_experiment_names_the_data_that_is_missing(tmp_path):
    wrong = run_stage("--results-dir", str(tmp_path / "never"), config=ROOT / "configs" / "gemex" / "exp_01_vqa.conf")
    assert wrong.returncode == 2
    assert "DATASET_PATH" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "never").exists()


def test_help_lists_every_key():
    from heatlens.config import KEYS

    text = run_stage("--help", config=None).stdout
    assert DEMO.is_file()
    for name in KEYS:
        assert f"--{name.lower().replace('_', '-')}" in text
