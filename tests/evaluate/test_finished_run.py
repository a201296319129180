"""A results folder is read, or refused with what is wrong with it; a run without maps is made once more."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heatlens.batch.fingerprint import FORMAT_VERSION
from heatlens.boxes.find import BoxRules
from heatlens.errors import ConfigError, HeatlensError, SetupError
from heatlens.evaluate import recompute
from heatlens.evaluate.cases import find_cases, load_map
from heatlens.evaluate.finished_run import read_run, recomputed
from tests.evaluate.finished import change_record, finished, row, write_run


def test_a_run_is_what_its_record_says(tmp_path):
    run = finished(tmp_path, [row(n) for n in range(5)], group=2, BOX_THRESHOLD="p95", MAX_BOXES=2, MIN_AREA=0.01)
    assert (run.stage, run.config["MAX_BOXES"], run.has_raw_maps, run.has_boxes) == ("attn_map", 2, True, False)
    assert run.box_rules() == BoxRules("p95", 2, 0.01, 0.0)
    assert run.describe()["counts"] == {"made": 5, "failed": 0}
    json.dumps(run.describe(), allow_nan=False)
    assert list(run.details["row"]) == list(range(5))
    assert [one["row"] for one in run.rows(["row"], np.array([1, 2, 4]))] == [1, 2, 4]
    assert run.column("region").to_pylist() == ["right lung"] * 5
    assert run.image_root == tmp_path


def test_moved_films_are_named_on_the_command_line(tmp_path):
    folder = write_run(tmp_path / "run", [row(0)], IMAGE_ROOT="/gone/for/good")
    assert read_run(folder).image_root is None
    assert read_run(folder, tmp_path).image_root == tmp_path
    with pytest.raises(ConfigError, match="--image-root"):
        read_run(folder, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"stage": "other"}, ConfigError, "stage 'other'"),
        ({"stage": None}, ConfigError, "attn_map, bbox"),
        ({"config": None}, ConfigError, "unknown format"),
        ({"config": {"A": 1}}, ConfigError, "unknown format"),
        ({"fingerprint": {"FORMAT_VERSION": FORMAT_VERSION + 1}}, ConfigError, "newer program"),
        ({"fingerprint": None}, ConfigError, "format None"),
        ({"status": "partial"}, ConfigError, "not finished"),
        ({"status": 3}, ConfigError, "not finished"),
        ({"files": {"details.parquet": "0" * 64}}, SetupError, "is not the one that run.json speaks of"),
    ],
)
def test_a_record_that_cannot_be_used(tmp_path, change, error, said):
    folder = write_run(tmp_path / "run", [row(0)])
    change_record(folder, **change)
    with pytest.raises(error, match=said):
        read_run(folder)


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no finished run"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{" * 10_000)
    with pytest.raises(SetupError, match="not JSON"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(SetupError, match="not the record"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(SetupError, match="not JSON"):
        read_run(tmp_path)


def test_details_that_cannot_be_used(tmp_path):
    folder = write_run(tmp_path / "run", [row(0)])
    change_record(folder, files={})
    path = folder / "details.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["prompt"]), path)
    with pytest.raises(ConfigError, match="no column prompt"):
        read_run(folder)
    pq.write_table(table.set_column(1, "source_image", pa.array([3])), path)
    with pytest.raises(ConfigError, match="source_image holds int64, not text"):
        read_run(folder)
    pq.write_table(table, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SetupError, match="cannot be read"):
        read_run(folder)
    path.unlink()
    with pytest.raises(ConfigError, match=r"details.parquet is missing"):
        read_run(folder)


def test_damage_behind_a_sound_head_is_an_error_for_people(tmp_path):
    run = finished(tmp_path, [row(n, prompt=f"{n}" * 50) for n in range(200)])
    path = run.folder / "details.parquet"
    data = bytearray(path.read_bytes())
    data[100 : len(data) // 2] = b"\xa5" * (len(data) // 2 - 100)
    path.write_bytes(bytes(data))
    with pytest.raises(SetupError, match=r"details.parquet cannot be read"):
        find_cases(run, None)


def test_settings_of_boxes_that_are_wrong(tmp_path):
    run = finished(tmp_path, [row(0)], BOX_THRESHOLD="warm")
    with pytest.raises(ConfigError, match="BOX_THRESHOLD='warm'"):
        run.box_rules()


# Once more


def demo_run(folder, stage="bbox", **keys):
    """The demo's first questions by the real runner, without raw maps."""
    from heatlens.batch.runner import run
    from heatlens.config import load_settings
    from heatlens.registry import find

    flags = {
        "DATASET": "phantom", "DATASET_PATH": str(folder / "phantom"), "RESULTS_DIR": str(folder / "results"),
        "MODEL": "demo", "DEVICE": "cpu", "CAM_VERSION": "GradCAM", "STOP_AFTER": "3", "OUTPUT_SIZE": "256",
        "NUM_WORKERS": "0", **keys,
    }  # fmt: skip
    settings = load_settings(None, flags, {}, stage)
    assert run(settings, find("stage", stage).load()(settings)) == 0
    return folder / "results"


@pytest.mark.slow
def test_a_run_without_maps_is_made_once_more_with_its_own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("ALPHA", "0.9")  # an environment of today must not change a run of then
    monkeypatch.setenv("STOP_AFTER", "1")
    first = read_run(demo_run(tmp_path))
    assert not first.has_raw_maps
    again = recomputed(first)
    assert again.folder == tmp_path / "results" / "report" / "recomputed"
    assert again.config["ALPHA"] == first.config["ALPHA"]
    found = find_cases(again, None)
    assert [case.row for case in found.items] == [0, 1, 2]
    assert found.items[0].found is not None
    assert load_map(found.items[0]).max() == 1.0
    assert list(again.details["found_boxes"]) == list(first.details["found_boxes"])
    assert list(again.details["map_max"]) == list(first.details["map_max"])
    # What is there is kept.
    before = found.items[0].raw.stat().st_mtime_ns
    assert recomputed(first).folder == again.folder
    assert found.items[0].raw.stat().st_mtime_ns == before

    # Another model or other data: no, before anything is made.
    monkeypatch.setattr(recompute, "_run", lambda *_: pytest.fail("it ran"))
    for key, text in (("MODEL (weights)", "weights"), ("DATASET_PATH (content)", "content"), ("TOPK", "TOPK")):
        other = {**first.record["fingerprint"], key: "f" * 64}
        change_record(first.folder, fingerprint=other)
        with pytest.raises(SetupError, match=rf"(?s)would not be those of.*{text}"):
            recomputed(read_run(first.folder))


@pytest.mark.parametrize("code", [2, 3, 4, 75, 143])
def test_the_exit_code_of_the_run_is_handed_on(tmp_path, monkeypatch, code):
    run = finished(tmp_path, [row(0)], SAVE_RAW_CAM=False)
    monkeypatch.setattr(recompute, "_check_same", lambda *_: None)
    monkeypatch.setattr(recompute, "_run", lambda *_: code)
    with pytest.raises(HeatlensError, match=f"exit code {code}") as error:
        recomputed(run)
    assert error.value.exit_code == code


def test_a_run_with_too_many_failures_may_have_them_again(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", [row(0)], SAVE_RAW_CAM=False)
    change_record(folder, status="failed", exit_code=3, plan_digest="a")
    made = write_run(folder / "report" / "recomputed", [row(0)])
    change_record(made, plan_digest="a")
    monkeypatch.setattr(recompute, "_check_same", lambda *_: None)
    monkeypatch.setattr(recompute, "_run", lambda *_: 3)
    assert recomputed(read_run(folder)).folder == made
    change_record(made, plan_digest="b")
    with pytest.raises(SetupError, match="other heat maps"):
        recomputed(read_run(folder))


def test_the_runs_keys_are_all_given_as_flags(tmp_path, monkeypatch):
    run = finished(
        tmp_path, [row(0)], SAVE_RAW_CAM=False, STOP_AFTER=7, SAMPLE=None, VIEW="PA", NUM_SHARDS=8, OVERWRITE=True,
        PROMPT_TEMPLATE="-- {question} 'x' $HOME", OLD_KEY="gone", PRECISION="auto",
    )  # fmt: skip
    run.record["fingerprint"].update(PRECISION="bf16", BATCH_SIZE=16)
    keys = recompute._settings(run, tmp_path / "out")
    assert keys["PROMPT_TEMPLATE"] == "-- {question} 'x' $HOME"
    assert (keys["STOP_AFTER"], keys["SAMPLE"], keys["VIEW"], keys["NUM_SHARDS"]) == ("7", "", "PA", "1")
    assert (keys["SAVE_RAW_CAM"], keys["OVERWRITE"], keys["RESULTS_DIR"]) == ("true", "false", str(tmp_path / "out"))
    assert (keys["PRECISION"], keys["BATCH_SIZE"], keys["IMAGE_ROOT"]) == ("bf16", "16", str(run.image_root))
    assert "OLD_KEY" not in keys
    monkeypatch.setattr(recompute.sys, "executable", _program(tmp_path))
    assert recompute._run("attn_map", keys) == 5
    words = (tmp_path / "words").read_text().split("\n")
    assert words[:4] == ["-m", "heatlens.cli", "run", "attn_map"]
    assert "--prompt-template=-- {question} 'x' $HOME" in words
    assert "--stop-after=7" in words


def _program(folder):
    path = folder / "program.sh"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{folder}/words\nexit 5\n')
    path.chmod(0o755)
    return str(path)


def test_signals_reach_the_run(tmp_path, monkeypatch):
    import os
    import signal
    import threading
    import time

    path = tmp_path / "program.sh"
    path.write_text(
        f"#!/bin/sh\ntrap 'exit 75' TERM\ntouch {tmp_path}/ready\nfor n in $(seq 200); do sleep 0.05; done\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(recompute.sys, "executable", str(path))

    def stop():
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert recompute._run("attn_map", {}) == 75
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_goes_on_is_told_from_a_folder_that_is_none(tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(ConfigError, match="is not finished: `heatlens status"):
        read_run(tmp_path)
