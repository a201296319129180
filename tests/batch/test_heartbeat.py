"""Locks while time passes: the heartbeat, a holder that was suspended, taking over, waiting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from heatlens.batch import lock as lock_module
from heatlens.batch.lock import ShardLock, WaitingLock, live_locks, lock_is_live
from heatlens.batch.signals import StopSignals
from heatlens.errors import SetupError, StoppedEarly
from tests.batch.test_lock import dead_pid, holder

ELSEWHERE = {"host": "node17", "pid": 1}


def age(path: Path, seconds: float) -> None:
    """As if the lock had been touched for the last time ``seconds`` ago."""
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def wait_for(what, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_silent_holder_elsewhere_is_replaced_after_ten_minutes(tmp_path):
    path = holder(tmp_path, **ELSEWHERE)
    age(path, 590)
    assert lock_is_live(path)
    with pytest.raises(SetupError, match="node17"), ShardLock(tmp_path):
        pass
    age(path, 610)
    assert not lock_is_live(path)
    with ShardLock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_silence_is_measured_by_the_file_servers_clock(tmp_path, monkeypatch):
    """This host's clock is an hour ahead: nobody's fresh lock may look old because of that."""
    path = holder(tmp_path, **ELSEWHERE)
    real = time.time
    monkeypatch.setattr(lock_module.time, "time", lambda: real() + 3600)
    assert lock_is_live(path)
    assert lock_module.is_stale({"host": "node17"}, path, now=time.time())  # the trap that this test sets
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


def test_without_a_server_clock_nothing_is_judged(tmp_path, monkeypatch):
    path = holder(tmp_path, **ELSEWHERE)
    age(path, 3600)

    def full(**_):
        raise OSError(28, "No space left on device")

    assert not lock_is_live(path)
    monkeypatch.setattr(lock_module.tempfile, "mkstemp", full)
    assert lock_is_live(path)


def test_live_locks_ask_for_the_time_once(tmp_path, monkeypatch):
    for index in range(5):
        path = holder(tmp_path / f"shards/000{index}-of-0005", **ELSEWHERE)
        age(path, 700 if index == 3 else 10)
    asked, real = [], lock_module.server_clock
    monkeypatch.setattr(lock_module, "server_clock", lambda folder: asked.append(folder) or real(folder))
    assert list(live_locks(tmp_path)) == [f"000{index}-of-0005" for index in (0, 1, 2, 4)]
    assert asked == [tmp_path / "shards"]
    monkeypatch.setattr(lock_module.tempfile, "mkstemp", lambda **_: (_ for _ in ()).throw(OSError(28, "full")))
    assert len(live_locks(tmp_path)) == 5


def test_heartbeat_keeps_the_lock_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.02)
    with ShardLock(tmp_path) as lock:
        age(lock.path, 3600)
        wait_for(lambda: time.time() - lock.path.stat().st_mtime < 600)
    assert not lock.path.exists()
    wait_for(lambda: not any(thread.name == "heartbeat" for thread in threading.enumerate()))


def test_heartbeat_never_touches_the_lock_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.02)
    with ShardLock(tmp_path) as lock:
        aside = tmp_path / "next"
        aside.write_text(json.dumps({**lock_module.identity(), **ELSEWHERE}))
        age(aside, 300)
        aside.replace(lock.path)
        wait_for(lambda: not lock._heart.is_alive())
        assert 290 < time.time() - lock.path.stat().st_mtime < 310
        with pytest.raises(SetupError, match="pid 1 on node17"):
            lock.check()
    assert lock.path.exists()


def test_a_process_that_slept_notices_that_its_lock_is_gone(tmp_path):
    with ShardLock(tmp_path) as lock:
        lock.check()
        holder(tmp_path, **ELSEWHERE)
        lock.check()  # seconds after the last look: the file is not read again
        lock._sure = (lock._sure[0] - 61, lock._sure[1])
        with pytest.raises(SetupError, match="taken over by pid 1 on node17"):
            lock.check()
        with pytest.raises(SetupError, match="node17"):
            lock.check()
    assert (tmp_path / "lock").exists()


def test_sleep_that_only_the_wall_clock_saw_counts(tmp_path):
    """A laptop's lid: the monotonic clock stands still meanwhile."""
    with ShardLock(tmp_path) as lock:
        (tmp_path / "lock").unlink()
        lock._sure = (lock._sure[0], lock._sure[1] - 3600)
        with pytest.raises(SetupError, match="ended meanwhile, or was deleted"):
            lock.check()


def test_a_look_that_finds_the_own_lock_renews_it(tmp_path):
    with ShardLock(tmp_path) as lock:
        age(lock.path, 3600)
        lock._sure = (lock._sure[0] - 3600, lock._sure[1])
        lock.check()
        assert time.time() - lock.path.stat().st_mtime < 600
        assert lock._seconds_since_sure() < 60


def test_a_file_server_that_is_away_is_borne_for_ten_minutes(tmp_path, monkeypatch):
    with ShardLock(tmp_path) as lock:
        path, lock.path = lock.path, tmp_path / "lock" / "not a folder"  # ENOTDIR: neither ours nor gone
        lock._sure = (lock._sure[0] - 590, lock._sure[1])
        lock.check()
        lock._sure = (lock._sure[0] - 20, lock._sure[1])
        with pytest.raises(SetupError, match="could not be renewed"):
            lock.check()
        lock.path = path


def test_the_heartbeat_does_not_keep_a_process_alive(tmp_path):
    code = (
        "from pathlib import Path; from heatlens.batch.lock import ShardLock; "
        f"ShardLock(Path({str(tmp_path)!r})).__enter__()"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source}, timeout=60, check=True)
    with ShardLock(tmp_path):  # its pid is gone
        pass


def test_a_forked_child_leaves_the_lock_alone(tmp_path):
    with ShardLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        assert lock.path.exists()


def test_failed_creation_leaves_no_empty_lock(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match="disk is full"), ShardLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_stop_signal_right_after_the_creation_leaves_no_lock(tmp_path):
    class Stopped(ShardLock):
        def _attempt(self):
            assert super()._attempt()
            raise StoppedEarly("stopped by SIGTERM")

    with pytest.raises(StoppedEarly), Stopped(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b'{"pid": "x", "slurm_restarts": [1]}', b"\xff\xfe", b"[" * 100_000]
)
def test_garbage_in_a_lock_is_no_crash(tmp_path, monkeypatch, content):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "none")
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: None)
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(SetupError), ShardLock(tmp_path):
        pass
    age(tmp_path / "lock", 3600)
    with ShardLock(tmp_path):
        pass


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path, monkeypatch):
    """And its lock is never moved by one that judged the old one."""
    monkeypatch.setattr(lock_module, "_POLL_S", (0.01, 0.02))
    for _ in range(10):
        holder(tmp_path, pid=dead_pid())
        inside, most, errors = [], [], []
        ready = threading.Barrier(8)

        def work(inside=inside, most=most, errors=errors, ready=ready):
            ready.wait()
            try:
                with WaitingLock(tmp_path, "the test") as lock:
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.002)
                    lock._sure = (0.0, 0.0)
                    lock.check()
                    inside.pop()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert errors == []
        assert most == [1] * 8
        assert list(tmp_path.iterdir()) == []


def test_abandoned_takeover_is_cleared_after_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_RETRY_S", 0.001)
    holder(tmp_path, pid=dead_pid())
    guard = tmp_path / "lock.takeover"
    guard.touch()
    with pytest.raises(SetupError, match="try again in a minute"), ShardLock(tmp_path):
        pass
    age(guard, 100)
    with ShardLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


_WORK = """
import sys, time
from pathlib import Path
from heatlens.batch import lock as module
module.HEARTBEAT_S = 0.05
with module.ShardLock(Path(sys.argv[1])) as lock:
    print("has it", flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    while sys.argv[2] == "work":
        try:
            lock.check()
        except module.SetupError as error:
            sys.exit(str(error))
        time.sleep(0.01)
"""


@contextmanager
def held_elsewhere(folder: Path, do: str = "wait", **pipes: int):
    """Another process that holds the lock of ``folder``; ``do``: ``wait`` for the end of input, or ``work``."""
    source = str(Path(__file__).resolve().parents[2] / "src")
    child = subprocess.Popen(
        [sys.executable, "-c", _WORK, str(folder), do], env={**os.environ, "PYTHONPATH": source},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **pipes,
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "has it\n"
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_suspended_process_that_wakes_up_stops(tmp_path):
    """The real thing: stopped for too long, replaced, woken up."""
    with held_elsewhere(tmp_path, "work", stderr=subprocess.PIPE) as child:
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: "T" in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0])
        age(tmp_path / "lock", 700)
        with ShardLock(tmp_path):
            child.send_signal(signal.SIGCONT)
            assert child.wait(timeout=30) == 1
            assert f"taken over by pid {os.getpid()} on" in child.stderr.read()
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("end", ["released", "killed"])
def test_waiting_for_another_process(tmp_path, monkeypatch, capsys, end):
    monkeypatch.setattr(lock_module, "_SILENT_WAIT_S", 0.0)
    monkeypatch.setattr(lock_module, "_POLL_S", (0.01, 0.02))
    with held_elsewhere(tmp_path) as child:
        timer = threading.Timer(0.3, child.stdin.close if end == "released" else child.kill)
        timer.start()
        with WaitingLock(tmp_path, purpose="the plan") as lock:
            assert lock.acquired
            assert json.loads(lock.path.read_text())["pid"] == os.getpid()
        timer.join()
        assert capsys.readouterr().out.count(f"waiting for the plan, which is being made by pid {child.pid}") == 1
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_without_the_lock_when_what_is_needed_is_there(tmp_path):
    made = tmp_path / "made"
    with held_elsewhere(tmp_path):
        threading.Timer(0.2, made.touch).start()
        with WaitingLock(tmp_path, "the plan", until=made.exists) as lock:
            assert not lock.acquired
        assert (tmp_path / "lock").exists()


def test_a_stop_signal_ends_the_waiting(tmp_path):
    with held_elsewhere(tmp_path), StopSignals() as stop:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(StoppedEarly), stop.interruptible(), WaitingLock(tmp_path, "the plan"):
            raise AssertionError("it got a lock that is held")
        timer.join()


def test_plan_lock_is_no_shard(tmp_path):
    with WaitingLock(tmp_path / "shards/plan", "the plan"), ShardLock(tmp_path / "shards/0001-of-0002"):
        assert list(live_locks(tmp_path)) == ["0001-of-0002"]


def test_array_task_is_named_as_slurm_shows_it(tmp_path, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "4715", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    with ShardLock(tmp_path), pytest.raises(SetupError, match="Slurm job 4711_3"), ShardLock(tmp_path):
        pass
