"""What a run does with what its container's launcher tells it: end of stdin, CPU quota, the image's digest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heatlens.batch.parts import available_cores, cpu_quota
from heatlens.batch.run_record import container

CHILD = """
import sys, time
from heatlens.batch.signals import StopSignals
from heatlens.errors import StoppedEarly
with StopSignals() as stop:
    print("ready", flush=True)
    try:
        with stop.interruptible():
            time.sleep(60)
    except StoppedEarly as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
"""


def watcher(value):
    command = [sys.executable, "-c", CHILD]
    environment = {"HEATLENS_WATCH_STDIN": value, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_the_end_of_stdin_is_a_stop_signal_where_the_launcher_asks_for_it():
    child = watcher("1")
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("what is written there means nothing\n")
    child.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.stdin.close()
    assert child.wait(20) == 75
    assert "stopped by SIGTERM" in child.stdout.read()


def test_otherwise_the_end_of_stdin_means_nothing():
    child = watcher("0")
    assert child.stdout.readline() == "ready\n"
    child.stdin.close()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.kill()
    child.wait()


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group(tmp_path, files, granted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == granted


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (2.5, 2), (0.2, 1), (64.0, 8)])
def test_workers_are_counted_by_the_quota(monkeypatch, quota, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("heatlens.batch.parts.cpu_quota", lambda: quota)
    assert available_cores() == cores


def test_the_record_names_the_image(monkeypatch):
    for name in ("HEATLENS_CONTAINER", "HEATLENS_IMAGE", "HEATLENS_IMAGE_DIGEST"):
        monkeypatch.delenv(name, raising=False)
    assert container() == {}
    monkeypatch.setenv("HEATLENS_CONTAINER", "docker")
    monkeypatch.setenv("HEATLENS_IMAGE_DIGEST", "sha256:0123")
    assert container() == {"runtime": "docker", "digest": "sha256:0123"}
