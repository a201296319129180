"""``heatlens status``: from small files only, at any moment, whatever is in them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from heatlens.batch import lock, run_record, status
from heatlens.batch.markers import shard_name, write_marker
from heatlens.batch.progress import Progress, ShardFacts
from heatlens.batch.status import main, read_status
from heatlens.batch.status_text import WIDTH, ranges, text_of
from heatlens.batch.tables import index_of
from heatlens.errors import ConfigError, SetupError, StoppedEarly

COMMAND = "python generate_heatmaps.py --config my.conf"
PER_SHARD = 100


def new_run(results: Path, stage: str = "attn_map") -> Path:
    (results / "shards").mkdir(parents=True)
    fingerprint = {"STAGE": stage, "CAM_VERSION": "gScoreCAM"}
    (results / "shards/fingerprint.json").write_text(json.dumps(fingerprint))
    return results


def shard(
    results: Path, index: int, count: int, state: str, plan: str = "plan", failed: int = 0, merge: str = ""
) -> Path:
    """A shard folder as a process of the run leaves it; 60 heat maps are settled unless it is done."""
    folder = results / "shards" / shard_name(index, count)
    if state == "not started":
        return folder
    facts = ShardFacts(
        results, "attn_map", (index, count), 10, PER_SHARD, 20, 1, plan,
        count * PER_SHARD + 1, 10 * count, PER_SHARD * count, COMMAND, merge,
    )  # fmt: skip
    errors = {"stopped": StoppedEarly("by SIGTERM"), "failed": SetupError("the disk is full")}
    made = 80 if state == "done" else 40
    with (
        suppress(StoppedEarly, SetupError),
        Progress(80, io.StringIO(), record=folder / "progress.json", facts=facts, background=False) as progress,
    ):
        progress.advance(made - failed, failed)
        if state in errors:
            raise errors[state]
    if state in ("running", "stale"):
        path = folder / "progress.json"
        host = "node17.cluster" if state == "stale" else lock.identity()["host"]
        data = {**json.loads(path.read_text()), "state": "running", "host": host, "rate": 2.0, "eta_s": 20.0}
        path.write_text(json.dumps(data))
        (folder / "lock").write_text(json.dumps({**lock.identity(), "host": host}))
        if state == "stale":
            os.utime(folder / "lock", (time.time() - 3000,) * 2)
    if state == "done":
        write_marker(folder, plan, made=99 - failed, failed=1 + failed)
    return folder


def tables(results: Path, status_word: str = "complete", **record: object) -> None:
    stage = json.loads((results / "shards/fingerprint.json").read_text())["STAGE"]
    for name in (index_of(stage), *status.TABLES):
        (results / name).write_text("")
    counts = {"made": 190, "failed": 11}
    (results / "run.json").write_text(json.dumps({"status": status_word, "exit_code": 0, "counts": counts, **record}))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def test_every_state_of_a_shard(tmp_path):
    results = new_run(tmp_path / "run")
    states = ["running", "done", "stale", "failed", "stopped", "not started"]
    for index, state in enumerate(states):
        shard(results, index, 6, state)
    before = snapshot(results)
    found = read_status(results)
    assert snapshot(results) == before, "status wrote something"
    assert [one["state"] for one in found["shards"]] == states
    assert [one["finished"] for one in found["shards"]] == [60, 100, 60, 60, 60, 0]
    assert [one["failed"] for one in found["shards"]] == [1, 1, 1, 1, 1, 0]
    assert [one["planned"] for one in found["shards"]] == [100] * 5 + [None]
    running = found["shards"][0]
    assert (running["host"], running["pid"]) == (lock.identity()["host"], os.getpid())
    assert 0 <= running["heartbeat_s"] < 60
    assert found["shards"][2]["host"] == "node17.cluster"
    assert found["shards"][3]["note"] == "the disk is full"
    assert found["state"] == "running"
    totals = found["totals"]
    assert (totals["heat_maps"], totals["finished"], totals["failed"], totals["rate"]) == (600, 340, 5, 2.0)
    assert totals["eta_s"] == 130.0
    (step,) = found["next"]
    assert step["shards"] == [2, 3, 4, 5]
    assert "--array=2-5" in step["text"]
    assert step["commands"] == [f"for i in $(seq 2 5); do SHARD_INDEX=$i NUM_SHARDS=6 {COMMAND}; done"]


def test_text_says_it_in_100_columns(tmp_path):
    results = new_run(tmp_path / "run")
    for index, state in enumerate(["running", "stale", "failed", "stopped"]):
        shard(results, index, 6, state)
    text = text_of(read_status(results))
    table = [line for line in text.splitlines() if str(results) not in line and "for i in" not in line]
    assert max(map(len, table)) <= WIDTH
    assert "heat maps  240 of 600 (40.0%), 4 failed, 2.0/s" in text
    assert "shards     6: 1 running, 1 stale, 1 failed, 1 stopped, 2 not started" in text
    assert f"pid {os.getpid()}" in text
    assert "shard 2 failed: the disk is full" in text
    assert "node17 pid" in text


def test_a_hundred_shards_are_put_together_by_state(tmp_path):
    results = new_run(tmp_path / "run")
    for index in range(100):
        shard(results, index, 100, "done" if index % 10 < 8 else "not started")
    shard(results, 98, 100, "running")
    text = text_of(read_status(results))
    assert len(text.splitlines()) < 25
    assert "0-7,10-17,20-27" in text
    assert max(len(line) for line in text.splitlines() if "run" not in line and "for i" not in line) <= WIDTH
    assert "$(seq 8 9) $(seq 18 19)" in text


def test_one_shard_continues_with_the_bare_command(tmp_path):
    results = new_run(tmp_path / "run")
    shard(results, 0, 1, "stopped")
    (step,) = read_status(results)["next"]
    assert step["commands"] == [COMMAND]
    assert step["text"] == "The run is not finished, and no process is at work on it. Continue with:"


def test_one_of_several_names_its_index(tmp_path):
    results = new_run(tmp_path / "run")
    shard(results, 0, 2, "running")
    shard(results, 1, 2, "stopped")
    (step,) = read_status(results)["next"]
    assert step["commands"] == [f"SHARD_INDEX=1 NUM_SHARDS=2 {COMMAND}"]
    assert "Unless a job for it is queued" in step["text"]


def test_all_at_work_needs_nothing(tmp_path):
    results = new_run(tmp_path / "run")
    for index in range(2):
        shard(results, index, 2, "running")
    found = read_status(results)
    assert found["next"] == []
    assert found["totals"]["eta_s"] == 20.0


def test_finished_shards_without_tables_are_to_be_merged(tmp_path):
    results = new_run(tmp_path / "run")
    for index in range(2):
        shard(results, index, 2, "done")
    found = read_status(results)
    assert found["state"] == "unmerged"
    assert found["next"][0]["commands"] == [f"SHARD_INDEX=0 NUM_SHARDS=2 {COMMAND}"]
    for index in range(2):
        shard(results, index, 2, "done", merge="heatlens merge attn_map --config my.conf")
    assert read_status(results)["next"][0]["commands"] == ["heatlens merge attn_map --config my.conf"]


@pytest.mark.parametrize("folder", ["0001-of-0002", "merge"])
def test_nothing_is_to_be_started_while_tables_are_written(tmp_path, folder):
    results = new_run(tmp_path / "run")
    for index in range(2):
        shard(results, index, 2, "done")
    (results / "shards" / folder).mkdir(exist_ok=True)
    (results / "shards" / folder / "lock").write_text(json.dumps(lock.identity()))
    found = read_status(results)
    assert found["state"] == "merging"
    assert found["next"] == []


def test_complete_run_names_manifest_and_retry(tmp_path):
    results = new_run(tmp_path / "run")
    for index in range(2):
        shard(results, index, 2, "done", failed=5 * index)
    tables(results)
    found = read_status(results)
    assert found["state"] == "complete"
    assert (found["totals"]["made"], found["totals"]["failed"]) == (190, 11)
    retry, following = found["next"]
    loop = f"for i in $(seq 0 1); do RETRY_FAILED=true SHARD_INDEX=$i NUM_SHARDS=2 {COMMAND}; done"
    assert retry["commands"] == [loop]
    assert following["commands"] == [str(results / "vqa_manifest.csv")]
    assert str(results / "failures.csv") in text_of(found)


def test_a_stage_with_another_index_is_complete_with_that(tmp_path):
    results = new_run(tmp_path / "run", "bbox")
    shard(results, 0, 1, "done")
    tables(results)
    found = read_status(results)
    assert found["state"] == "complete"
    assert found["tables"]["files"] == dict.fromkeys(("boxes.jsonl", "details.parquet", "failures.csv"), True)
    assert found["next"][-1]["commands"] == [str(results / "boxes.jsonl")]
    (results / "boxes.jsonl").rename(results / "vqa_manifest.csv")
    assert read_status(results)["state"] == "unmerged"


def test_too_many_failures_are_no_success(tmp_path):
    results = new_run(tmp_path / "run")
    shard(results, 0, 1, "done")
    tables(results, "failed")
    found = read_status(results)
    assert found["state"] == "failed"
    assert [step["commands"] for step in found["next"]] == [[f"RETRY_FAILED=true {COMMAND}"]]
    assert "MAX_FAILURE_RATE" in text_of(found)


@pytest.mark.parametrize("digest", ["", "plan", "a smaller plan"])
def test_tables_of_a_smaller_run_do_not_count(tmp_path, digest):
    """By run.json's plan_digest; without one by age: run.json is written last."""
    results = new_run(tmp_path / "run")
    tables(results, **({"plan_digest": digest} if digest else {}))
    os.utime(results / "run.json", (time.time() - 100,) * 2)
    shard(results, 0, 1, "done")
    found = read_status(results)
    assert found["tables"]["current"] == (digest == "plan")
    assert found["state"] == ("complete" if digest == "plan" else "unmerged")


def test_markers_of_an_earlier_plan_do_not_count(tmp_path):
    results = new_run(tmp_path / "run")
    for index in range(2):
        folder = shard(results, index, 2, "done", plan="five rows")
        for name, key in (("progress.json", "updated"), ("done.json", "at")):
            data = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**data, key: time.time() - 1000}))
    shard(results, 0, 2, "running", plan="all rows")
    found = read_status(results)
    assert [one["state"] for one in found["shards"]] == ["running", "not started"]
    assert found["plan"]["digest"] == "all rows"
    assert "another plan" in found["shards"][1]["note"]


def test_the_latest_division_is_shown(tmp_path):
    results = new_run(tmp_path / "run")
    old = shard(results, 5, 8, "stopped") / "progress.json"
    old.write_text(json.dumps({**json.loads(old.read_text()), "updated": time.time() - 5000}))
    shard(results, 0, 4, "stopped")
    found = read_status(results)
    assert found["num_shards"] == 4
    assert found["other_divisions"] == [8]
    assert "earlier calls split this run into 8 shards" in text_of(found)
    (results / "shards/0005-of-0008/lock").write_text(json.dumps(lock.identity()))
    assert read_status(results)["num_shards"] == 8


def test_a_process_that_has_not_begun_to_count_is_starting(tmp_path):
    results = new_run(tmp_path / "run")
    folder = shard(results, 0, 1, "stopped")
    (folder / "lock").write_text(json.dumps({**lock.identity(), "host": "node3"}))
    (one,) = read_status(results)["shards"]
    assert (one["state"], one["note"], one["host"], one["finished"]) == ("running", "starting", "node3", 60)
    assert one["rate"] is None


def test_a_run_that_is_being_planned(tmp_path):
    results = new_run(tmp_path / "run")
    assert read_status(results)["state"] == "unfinished"
    (results / "shards/plan").mkdir()
    (results / "shards/plan/lock").write_text(json.dumps(lock.identity()))
    found = read_status(results)
    assert found["state"] == "planning"
    assert "being planned" in text_of(found)


def test_killed_process_of_this_host_is_stale_at_once(tmp_path):
    results = new_run(tmp_path / "run")
    folder = shard(results, 0, 1, "running")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (folder / "lock").write_text(json.dumps({**lock.identity(), "pid": child.pid}))
    assert read_status(results)["shards"][0]["state"] == "stale"


GARBAGE = [
    b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'"text"', b"NaN",
    b'{"updated": "soon", "at": [], "plan": "p", "planned": 3, "made": -4, "failed": NaN, "rate": Infinity}',
    b'{"updated": 1e400, "at": 9e99, "plan": {"digest": {}, "heat_maps": "many"}, "planned": {"heat_maps": []}}',
    b'{"state": {}, "host": ["x"], "pid": {}, "status": 7, "counts": [], "STAGE": {}, "command": 5, "eta_s": "x"}',
    b'{"state": "failed", "reason": "\\u001b[31mred\\ud800", "slurm_job": 1e3, "updated": 1, "made": 1e15}',
]  # fmt: skip


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("name", ["progress.json", "done.json", "lock", "run.json", "shards/fingerprint.json"])
def test_garbage_is_never_a_traceback(tmp_path, capsys, monkeypatch, name, content):
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: None)
    results = new_run(tmp_path / "run")
    folder = shard(results, 0, 2, "running")
    shard(results, 1, 2, "done")
    tables(results)
    ((results if "/" in name or name == "run.json" else folder) / name).write_bytes(content)
    assert main([str(results)]) == 0
    assert main([str(results), "--json"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    out.encode("utf-8")
    assert len(json.loads(out[out.index("\n{") :])["shards"]) == 2


def test_folders_in_place_of_files_are_no_traceback(tmp_path):
    results = new_run(tmp_path / "run")
    for name in ("progress.json", "done.json", "lock"):
        (results / "shards/0000-of-0001" / name).mkdir(parents=True)
    (results / "run.json").mkdir()
    assert [one["state"] for one in read_status(results)["shards"]] == ["not started"]


def test_no_run_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist") as caught:
        main([str(tmp_path / "nowhere")])
    assert caught.value.exit_code == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        main([str(tmp_path / "file")])
    with pytest.raises(ConfigError, match=r"holds no run of this program$"):
        main([str(tmp_path)])
    new_run(tmp_path / "demo/exp_00")
    with pytest.raises(ConfigError, match=r"There are runs in\n  .*/demo/exp_00"):
        main([str(tmp_path)])


@pytest.mark.parametrize("argv", [[], ["a", "b"], ["--jsn", "a"]])
def test_wrong_arguments_show_the_usage(argv):
    with pytest.raises(ConfigError, match=r"heatlens status RESULTS_DIR \[--json\]"):
        main(argv)


def test_status_needs_nothing_heavy(tmp_path):
    """It is asked often, on log-in nodes, while a cluster is at work."""
    results = new_run(tmp_path / "run")
    shard(results, 0, 1, "running")
    code = (
        "import sys; from heatlens.batch.status import main; main([sys.argv[1]]); "
        "heavy = {'torch', 'duckdb', 'pyarrow', 'numpy', 'pandas', 'pydantic', 'cv2', 'tqdm'} & set(sys.modules); "
        "sys.exit(' '.join(heavy) or 0)"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    subprocess.run(
        [sys.executable, "-c", code, str(results)],
        env={**os.environ, "PYTHONPATH": source}, check=True, timeout=60, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def test_names_are_those_that_a_run_writes():
    assert run_record.RUN_RECORD == status.RUN_RECORD


def test_ranges():
    assert ranges([3, 1, 2, 7, 9, 10]) == "1-3,7,9-10"
    assert ranges([]) == ""
