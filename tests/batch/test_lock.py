"""One process per shard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heatlens.batch import lock as lock_module
from heatlens.batch.lock import ShardLock, live_locks
from heatlens.errors import SetupError
from tests.batch.kit import go, make_settings


def holder(folder: Path, **changes: object) -> Path:
    """A lock as this process would write it, with changes."""
    content = {**lock_module.identity(), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").write_text(json.dumps(content))
    return folder / "lock"


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_second_process_refuses_and_names_the_holder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with ShardLock(tmp_path), pytest.raises(SetupError) as caught, ShardLock(tmp_path):
        pass
    text = str(caught.value)
    assert f"pid {os.getpid()}" in text
    assert "Slurm job 4711" in text
    assert os.uname().nodename in text
    assert not (tmp_path / "lock").exists()


def test_lock_of_a_dead_process_is_taken_over(tmp_path):
    holder(tmp_path, pid=dead_pid())
    with ShardLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_pid_that_belongs_to_another_process_now_is_stale(tmp_path):
    holder(tmp_path, start_ticks="1")
    with ShardLock(tmp_path):
        pass


def test_reboot_makes_a_lock_stale(tmp_path):
    holder(tmp_path, boot="another boot")
    with ShardLock(tmp_path):
        pass


@pytest.mark.parametrize("change", [{"host": "node17"}, {"pid_namespace": "pid:[1]"}])
def test_a_holder_that_cannot_be_judged_from_here_is_respected(tmp_path, change):
    path = holder(tmp_path, pid=dead_pid(), **change)
    with pytest.raises(SetupError, match=str(path)), ShardLock(tmp_path):
        pass
    assert path.exists()


def test_requeued_job_takes_over_at_once(tmp_path, monkeypatch):
    holder(tmp_path, host="node17", slurm_job="9", slurm_restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    with pytest.raises(SetupError), ShardLock(tmp_path):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with ShardLock(tmp_path):
        pass


def test_lock_that_was_never_filled(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.write_bytes(b"")
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: None)
    with pytest.raises(SetupError, match="just started"), ShardLock(tmp_path):
        pass
    old = time.time() - 100
    os.utime(path, (old, old))
    with ShardLock(tmp_path):
        pass


def test_only_the_own_lock_is_removed(tmp_path):
    with ShardLock(tmp_path):
        holder(tmp_path, host="node17")
    assert (tmp_path / "lock").exists()


def test_run_refuses_while_another_process_works_on_the_shard(tmp_path):
    settings = make_settings(tmp_path)
    holder(settings.results_dir / "shards/0000-of-0001", host="node17")
    with pytest.raises(SetupError, match="node17"):
        go(settings)


def test_other_number_of_shards_is_refused_while_one_lives(tmp_path):
    settings = make_settings(tmp_path, NUM_SHARDS=2)
    holder(settings.results_dir / "shards/0001-of-0004", host="node17")
    with pytest.raises(SetupError, match="NUM_SHARDS=2"):
        go(settings)
    assert list(live_locks(settings.results_dir)) == ["0001-of-0004"]


def test_overwrite_is_refused_under_a_running_process(tmp_path):
    go(make_settings(tmp_path))
    holder(tmp_path / "results/shards/0001-of-0004", host="node17")
    with pytest.raises(SetupError, match="under a running process"):
        go(make_settings(tmp_path, OVERWRITE=True))
    assert (tmp_path / "results/vqa_manifest.csv").exists()
