"""``heatlens evaluate``: its command line; ``--sanity`` on the bundled model: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from heatlens import cli
from heatlens.config import KEYS
from heatlens.evaluate.command import MATCHES, read_options
from heatlens.evaluate.truth import base
from tests.integration.runs import write_csv

ROOT = Path(__file__).resolve().parents[2]
GRADCAM = ("--model", "demo", "--method", "gradcam", "--device", "cpu")
QUESTIONS = ("nodule in the left lung", "enlarged heart", "tip of the endotracheal tube")


@pytest.fixture(autouse=True)
def _no_keys_from_outside(monkeypatch):
    for name in (*KEYS, "HEATLENS_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Films a (missing), b (one prompt, twice), c (cut off), d and e (three prompts each)."""
    from heatlens.phantom.film import make_film

    folder = tmp_path_factory.mktemp("sanity")
    for number, name in enumerate("bcde"):
        film = make_film(500_000 + number, long_side=300).pixels
        cv2.imwrite(str(folder / f"{name}.png"), film)
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:500])
    rows = [{"image": f"{name}.png", "question": question} for name in "acde" for question in QUESTIONS]
    rows += [{"image": "b.png", "question": question} for question in ("effusion", "Effusion ")]
    rows.sort(key=lambda row: row["image"])
    return write_csv(folder / "rows.csv", rows)


def evaluate(table, *arguments):
    flags = ("--dataset", "table", "--dataset-path", str(table), "--image-root", str(table.parent))
    return cli.main(["evaluate", "--sanity", *flags, *GRADCAM, *arguments])


def test_a_healthy_method_passes_and_the_numbers_are_written(table, tmp_path, capsys):
    output = tmp_path / "new" / "sanity.json"
    assert evaluate(table, "--images", "2", "--prompts", "2", "--stop-after", "1", "--output", str(output)) == 0
    out, err = capsys.readouterr()
    assert "FAILS" not in out
    assert sum(line.startswith("ok: ") for line in out.splitlines()) == 3
    assert "visual.trunk.blocks[-1].norm1" in out
    assert str(output) in out
    # What cannot be used is named with its reason.
    for name, reason in (("a.png", "no image file"), ("b.png", "no two prompts"), ("c.png", "")):
        assert name in err
        assert reason in err
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["passed"] is True
    assert [one["image_path"] for one in record["images"]] == ["d.png", "e.png"]
    assert record["images"][0]["prompts"] == list(QUESTIONS[:2])
    (method,) = record["methods"]
    assert method["method"] == "GradCAM"
    assert len(method["prompts"]["each"]) == method["prompts"]["pairs"] == 2
    stages = method["weights"]["stages"]
    assert [stages[0]["stage"], stages[-1]["stage"]] == ["head", "input embedding"]
    assert all(len(stage["each"]) == 4 for stage in stages)
    dead = {row["name"].removeprefix("visual.trunk.") for row in record["layers"]["rows"] if not row["usable"]}
    assert dead == {"blocks[-1]", "blocks[-1].attn", "blocks[-1].norm2", "blocks[-1].mlp", "norm"}


def test_the_zero_gradient_layer_fails_with_exit_code_3(table, tmp_path, capsys):
    output = tmp_path / "sanity.json"
    flags = ("--images", "1", "--prompts", "2", "--target-layer", "visual.trunk.blocks[-1].norm2")
    assert evaluate(table, *flags, "--output", str(output)) == 3
    out = capsys.readouterr().out
    assert "FAILS: TARGET_LAYER=visual.trunk.blocks[-1].norm2" in out
    assert "set TARGET_LAYER=visual.trunk.blocks[-1].norm1" in out
    assert "3 of 3 checks fail" in out
    assert json.loads(output.read_text(encoding="utf-8"))["passed"] is False


def test_the_demo_data_set_with_gscorecam(tmp_path, capsys):
    flags = ("--dataset", "phantom", "--dataset-path", str(tmp_path / "films"), "--model", "demo", "--topk", "12")
    assert cli.main(["evaluate", "--sanity", *flags, "--images", "1", "--prompts", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "gScoreCAM, prompts" in out
    assert "1 images, 2 prompts" in out


def test_no_image_with_two_prompts_is_a_data_set_error(tmp_path, capsys):
    film = np.random.default_rng(0).integers(0, 255, (60, 60), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), film)
    rows = write_csv(tmp_path / "rows.csv", [{"image": "a.png", "question": "effusion"}])
    assert evaluate(rows) == 2
    assert "two different prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ("--sanity", "usage: heatlens evaluate")),
        (["--sanity", "--images", "0"], ("--images=0", "from 1")),
        (["--sanity", "--images", "two"], ("--images=two",)),
        (["--sanity", "--prompts", "1"], ("--prompts=1", "from 2")),
        (["--sanity", "--method", "GradCAM,gradcm"], ("--method", "did you mean GradCAM?")),
        (["--sanity", "--method", ","], ("--method is empty",)),
        (["--sanity", "--output", ""], ("--output is empty",)),
        (["--sanity", "--output", "/"], ("--output=/", "folder")),
        (["--sanity", "--topk", "0"], ("TOPK=0",)),
        (["--sanity", "--imags", "3"], ("unknown flag --imags",)),
        (["--sanity"], ("DATASET_PATH",)),
        (["--sanity", "--config", "nowhere.conf"], ("nowhere.conf",)),
    ],
)
def test_wrong_arguments_are_exit_2_and_name_the_key(arguments, texts, capsys):
    assert cli.main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert all(text in err for text in texts), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--truth", "phantom"], ("RESULTS_DIR", "A B", "usage: heatlens evaluate")),
        (["a", "b", "c"], ("got 3: a, b, c", "two to compare")),
        (["a", "--truth", "phantm"], ("--truth=phantm", "did you mean phantom?", "chexlocalize")),
        (["a", "--truth", ":x.csv"], ("FORMAT or FORMAT:PATH", "ms-cxr")),
        (["a", "--match", "label"], ("--match=label", "auto, region, question, prompt, image")),
        (["a", "--threshold", "1.5"], ("--threshold=1.5", "otsu", "p95")),
        (["a", "--sample", "0"], ("--sample=0", "from 1")),
        (["a", "--curves", "many"], ("--curves=many", "whole number")),
        (["a", "--seed", "-1"], ("--seed", "-1")),
        (["a", "--seed=4294967296"], ("--seed=4294967296", "to 4294967295")),
        (["a", "--workers", "0"], ("--workers=0", "from 1 to 256")),
        (["a", "--trut", "own"], ("unknown flag --trut", "did you mean --truth?")),
        (["a", "--config", "x.conf"], ("run.json", "--sanity alone")),
        (["a", "b", "--curves", "3"], ("--curves is for one run",)),
        (["a", "b", "--sanity"], ("--sanity is for one run",)),
        (["a", "./a"], ("same folder",)),
        (["a", "--image-root", "nowhere"], ("--image-root=nowhere", "no such folder")),
        (["a", "--output", ""], ("--output", "folder of its own")),
        (["nowhere"], ("nowhere",)),
    ],
)
def test_wrong_arguments_name_what_is_allowed(arguments, texts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert all(text in err for text in texts), err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_options_may_stand_before_between_and_behind_the_folders():
    for arguments in (["a", "b", "--sample", "3", "--json"], ["--sample=3", "a", "--json", "b"]):
        options = read_options(arguments)
        assert options.folders == (Path("a"), Path("b"))
        assert (options.sample, options.as_json, options.truth, options.curves) == (3, True, "own", 0)
    assert read_options(["a", "--truth", "table:C:/x.csv"]).truth == "table:C:/x.csv"
    assert read_options(["my run", "--curves", "2"]).command == "heatlens evaluate 'my run' --curves 2"


def test_sanity_with_a_results_folder_is_about_that_run(monkeypatch, tmp_path, capsys):
    for arguments in (["--sanity", str(tmp_path)], [str(tmp_path), "--sanity"]):
        assert cli.main(["evaluate", *arguments]) == 2
        assert "run.json" in capsys.readouterr().err


def test_the_help_is_one_screen_and_names_every_option(capsys):
    assert cli.main(["evaluate", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 44
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    names = [
        "truth",
        "match",
        "threshold",
        "recompute",
        "image-root",
        "sample",
        "seed",
        "curves",
        "sanity",
        "workers",
        "output",
        "json",
    ]
    assert all(f"  --{name}" in text for name in names)
    assert cli.main(["evaluate", "--sanity", "--help"]) == 0
    assert "--prompts N" in capsys.readouterr().out
    assert MATCHES == base.MATCHES


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"], ["evaluate"], ["evaluate", "a", "--seed=x"]])
def test_help_and_wrong_arguments_need_nothing_heavy(arguments):
    code = (
        "import sys; from heatlens.cli import main; main(sys.argv[1:]); "
        "sys.exit(', '.join({'torch', 'matplotlib', 'pandas', 'cv2', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--sanity" in done.stdout + done.stderr or "--seed=x" in done.stderr
