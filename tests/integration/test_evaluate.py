"""``heatlens evaluate`` on the demo, through the command line: runs, report, comparison, curves, recomputing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pandas as pd
import pytest

from heatlens.evaluate.metrics import METRICS
from tests.integration.runs import DEMO, ROOT


def heatlens(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "OMP_NUM_THREADS", "TMPDIR") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "heatlens.cli", *arguments],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate") / "phantom"


@pytest.fixture(scope="module")
def make(data):
    """A finished demo run of four questions."""

    def run(name, *flags, stage="bbox"):
        folder = data.parent / name
        common = ("--config", str(DEMO), "--dataset-path", str(data), "--device", "cpu", "--stop-after", "4")
        heatlens("run", stage, *common, "--output-size", "256", "--results-dir", str(folder), *flags)
        return folder

    return run


@pytest.fixture(scope="module")
def first(make):
    return make("first", "--save-raw-cam", "--cam-version", "GradCAM", "--umask", "027")


@pytest.fixture(scope="module")
def second(make):
    return make("second", "--save-raw-cam", "--cam-version", "HiResCAM", "--umask", "077")


@pytest.fixture(scope="module")
def bare(make):
    return make("bare", "--save-raw-cam", "false", "--cam-version", "GradCAM", stage="attn_map")


def test_the_runs_own_boxes(first):
    done = heatlens("evaluate", str(first), "--workers", "1")
    folder = first / "report" / "evaluation"
    assert str(folder / "report.md") in done.stdout
    assert all(metric.label in done.stdout for metric in METRICS.values())
    record = json.loads((folder / "report.json").read_text())
    rows = pd.read_csv(folder / "per_map.csv")
    assert len(rows) == record["evaluated"] == record["groups"]["all"]["all"]["n"] > 0
    assert record["evaluated"] + sum(record["left_out"].values()) == record["heat_maps"]
    assert record["boxes"] == "written by the run"
    assert record["groups"]["all"]["all"]["metrics"]["iou"]["mean"] == pytest.approx(rows["iou"].mean(), abs=1e-4)
    for path in (*folder.glob("*.*"), *folder.glob("plots/*.png")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "heatlens evaluate" in text
    assert "None" not in text


def test_masks_of_the_phantom_curves_and_sanity_and_json(first, data, tmp_path):
    truth = f"phantom:{data}"
    options = ("--truth", truth, "--curves", "2", "--sanity", "--threshold", "otsu", "--output", str(tmp_path / "out"))
    done = heatlens("evaluate", str(first), *options, "--json", "--workers", "1")
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["truth"]["format"] == "phantom"
    assert record["threshold_rule"] == "otsu"
    assert record["sanity"]["passed"] is True
    curves = record["curves"]
    assert curves["cases"] == 2
    assert all(-1 <= one["whole"] <= 1 for one in curves["each"])  # cosines, not logits
    assert curves["logit"]["scale"] > 10
    # The whole film is what the run saw: the same score.
    assert curves["largest_difference_from_the_runs_scores"] < 1e-3
    assert curves["ends"]["emptied"]["mean"] < curves["ends"]["whole"]["mean"]
    assert (tmp_path / "out" / "plots" / "curves.png").stat().st_size > 5000
    assert "## Sanity checks" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_sample_is_the_same_every_time(first, tmp_path):
    records = [
        json.loads(heatlens("evaluate", str(first), "--sample", "2", "--json", "--output", str(tmp_path / one)).stdout)
        for one in "ab"
    ]
    assert records[0]["evaluated"] == 2
    assert records[0]["groups"] == records[1]["groups"]


def test_two_runs(first, second):
    done = heatlens("evaluate", str(second), str(first), "--workers", "1")
    folder = first / "report" / "comparison"
    record = json.loads((folder / "compare.json").read_text())
    assert record["settings"] == {"CAM_VERSION": ["HiResCAM", "GradCAM"]}
    figures = record["groups"]["all"]["all"]["metrics"]["iou"]
    assert figures["mean"] == pytest.approx(figures["b_mean"] - figures["a_mean"], abs=2e-4)
    assert "B minus A" in done.stdout
    assert "`CAM_VERSION`" in (folder / "compare.md").read_text(encoding="utf-8")
    for path in (*folder.glob("*.*"), *folder.glob("plots/*.png")):  # the stricter of both
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_raw_maps_the_way_out_is_named_and_works(bare, first, data, tmp_path):
    done = heatlens("evaluate", str(bare), code=4)
    assert "SAVE_RAW_CAM=false" in done.stderr
    assert "--recompute" in done.stderr
    done = heatlens("evaluate", str(bare), "--recompute", "--truth", f"phantom:{data}", "--json")
    record = json.loads(done.stdout)
    assert (bare / "report" / "recomputed" / "run.json").is_file()
    assert (bare / "report" / "evaluation" / "report.md").is_file()
    # The same maps as the run that kept them: the same figures.
    options = ("--truth", f"phantom:{data}", "--json", "--output", str(tmp_path))
    other = json.loads(heatlens("evaluate", str(first), *options).stdout)
    assert record["groups"]["all"]["all"]["metrics"]["energy"] == other["groups"]["all"]["all"]["metrics"]["energy"]


def test_what_cannot_be_evaluated_is_said(tmp_path, first):
    assert "run.json" in heatlens("evaluate", str(tmp_path), code=2).stderr
    missing = tmp_path / "missing.csv"
    assert "missing.csv" in heatlens("evaluate", str(first), "--truth", f"table:{missing}", code=2).stderr
    (tmp_path / "other.csv").write_text("image,label,x1,y1,x2,y2\nnobody.png,effusion,1,1,5,5\n")
    done = heatlens("evaluate", str(first), "--truth", f"table:{tmp_path / 'other.csv'}", code=2)
    assert "target" in done.stderr


def test_curves_without_films_still_leave_a_report(first, tmp_path):
    (tmp_path / "nothing").mkdir()
    options = ("--image-root", str(tmp_path / "nothing"), "--curves", "1", "--output", str(tmp_path / "out"))
    done = heatlens("evaluate", str(first), *options, code=4)
    assert "--image-root" in done.stderr
    assert "could not be made" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
