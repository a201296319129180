"""The command as a user calls it, on a real run of the demo."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys

import cv2
import pytest

from tests.integration.runs import ROOT, Results, run_stage

pytestmark = pytest.mark.xdist_group("demo")
SCRIPT = ROOT / "Bounding_Box" / "scripts" / "bbox_preprocessing.py"
FLAGS = ("--stop-after", "4", "--cam-version", "GradCAM", "--save-raw-cam", "false", "--umask", "022")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export demo")
    places = ("--results-dir", str(folder / "run"), "--dataset-path", str(folder / "phantom"))
    done = run_stage(*places, *FLAGS, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    return Results(folder / "run")


def heatlens(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "heatlens.cli", *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def test_coco_of_the_demo(run):
    done = heatlens("export", str(run.folder))
    assert (done.returncode, done.stderr) == (0, "")
    folder = run.folder / "export" / "coco"
    assert str(folder) in done.stdout
    found = json.loads((folder / "found.json").read_text())
    details = run.details
    assert len(found["annotations"]) == details["box_count"].sum() > 0
    assert {one["overlay"] for one in found["annotations"]} <= set(details["image_path"])
    for image in found["images"]:
        film = cv2.imread(str(run.folder.parent / "phantom" / image["file_name"]), cv2.IMREAD_UNCHANGED)
        assert film.shape == (image["height"], image["width"])
    annotated = json.loads((folder / "annotated.json").read_text())
    assert len(annotated["annotations"]) == len(details)  # the demo's rows have a box per region
    stats = evaluated(folder)
    assert 0 <= stats[0] <= stats[1] <= 1


def evaluated(folder):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(folder / "annotated.json"))
        score = cocoeval.COCOeval(truth, truth.loadRes(str(folder / "found_results.json")), "bbox")
        score.evaluate()
        score.accumulate()
        score.summarize()
    return score.stats


def test_yolo_of_the_demo_elsewhere(run, tmp_path):
    done = heatlens("export", str(run.folder), "--format", "yolo", "--scores", "--output", str(tmp_path / "boxes"))
    assert (done.returncode, done.stderr) == (0, "")
    labels = {path.relative_to(tmp_path / "boxes/labels").with_suffix(".jpg").as_posix(): path.read_text()
              for path in (tmp_path / "boxes/labels").rglob("*.txt")}  # fmt: skip
    assert set(labels) == set(run.details["source_image"])
    assert all(len(line.split()) == 6 for text in labels.values() for line in text.splitlines())
    assert any(labels.values())


def test_the_run_is_still_finished_and_can_grow(run):
    """An export lies in the results folder and is none of the run's business."""
    before = heatlens("export", str(run.folder), "--format", "yolo").returncode
    places = ("--results-dir", str(run.folder), "--dataset-path", str(run.folder.parent / "phantom"))
    done = run_stage(*places, *FLAGS, script=SCRIPT)
    assert (before, done.returncode, "nothing to do" in done.stdout) == (0, 0, True), done.stderr
    assert (run.folder / "export/yolo/classes.txt").is_file()


def test_errors_are_for_people(run):
    (run.folder / "attn").mkdir()
    record = run.record | {"stage": "attn_map"}
    (run.folder / "attn/run.json").write_text(json.dumps(record))
    done = heatlens("export", str(run.folder / "attn"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("heatlens: ")
    assert "heatlens run bbox --config FILE.conf" in done.stderr
    (run.folder / "attn/run.json").unlink()
    (run.folder / "attn").rmdir()
