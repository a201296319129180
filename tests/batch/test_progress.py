"""Progress: what people see, what progress.json says, and that neither ever ends a run."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from heatlens.batch.progress import Progress, ShardFacts, duration, show_rate
from heatlens.errors import SetupError, StoppedEarly


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def facts(folder: Path, **changes) -> ShardFacts:
    values = {
        "results": folder, "stage": "attn_map", "shard": (3, 8), "images": 40, "heat_maps": 400,
        "finished_before": 100, "failed_before": 2, "plan_digest": "abc", "plan_rows": 3210, "plan_images": 320,
        "plan_heat_maps": 3200, "command": "python generate_heatmaps.py --config x.conf",
    }  # fmt: skip
    return ShardFacts(**{**values, **changes})


def spend(progress: Progress, clock: Clock, seconds: float, per_second: float = 0.0) -> None:
    """Let time pass second by second, as the progress thread sees it."""
    for _ in range(int(seconds)):
        clock.now += 1
        if per_second:
            progress.advance(int(per_second), 0)
        progress.tick()


def test_a_night_without_a_terminal_stays_far_below_a_megabyte():
    clock, stream = Clock(), io.StringIO()
    with Progress(1_605_575, stream, clock=clock, background=False) as progress:
        for _ in range(14 * 3600):
            clock.now += 1
            progress.done += 31
            progress.failed += 1
            progress.tick()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 14 * 3600 / 30
    assert len(stream.getvalue()) < 250_000
    assert lines[0] == "930/1605575 heat maps, 30 failed, 31/s, 14.4 h left"


def test_short_runs_print_no_line():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, stream, clock=clock, background=False) as progress:
        spend(progress, clock, 29, 1)
    assert stream.getvalue() == ""


def test_the_rate_is_that_of_the_last_minutes():
    """A slow start (first call of the device, a cold file system) must not spoil the rest of the night."""
    clock = Clock()
    progress = Progress(100_000, io.StringIO(), clock=clock, background=False)
    spend(progress, clock, 1000)
    spend(progress, clock, 60, 10)
    assert progress.rate() == pytest.approx(2, rel=0.02)
    spend(progress, clock, 240, 10)
    assert progress.rate() == pytest.approx(10, rel=0.02)
    spend(progress, clock, 400, 2)
    assert progress.rate() == pytest.approx(2, rel=0.02)


def test_the_rate_of_very_slow_work_looks_further_back():
    """One heat map in 100 s: a window of five minutes would show 0.006 to 0.013 per second in turns."""
    clock = Clock()
    progress = Progress(1000, io.StringIO(), clock=clock, background=False)
    rates = []
    for _ in range(60):
        spend(progress, clock, 100)
        progress.advance(1, 0)
        rates.append(progress.rate())
    assert all(rate == pytest.approx(0.01, rel=0.06) for rate in rates[20:])


def test_a_stall_is_said():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1000, stream, clock=clock, background=False)
    spend(progress, clock, 100, 1)
    assert "none for" not in progress.line()
    spend(progress, clock, 240)
    assert progress.line().endswith("(none for 4 min)")
    assert Progress(10, stream, clock=clock, background=False).line() == "0/10 heat maps, 0 failed, 0.0/s"


def test_terminal_shows_a_bar_with_rate_end_and_failures():
    clock, stream = Clock(), Terminal()
    with Progress(1000, stream, clock=clock, background=False) as progress:
        spend(progress, clock, 100, 2)
        progress.advance(0, 3)
        progress.tick()
    shown = stream.getvalue().split("\r")[-1]
    assert " 20%|" in shown
    assert "203/1000, 2.0/s, 7 min left, 3 failed" in shown
    assert "heat maps," not in stream.getvalue()


def test_record_says_what_programs_need(tmp_path):
    clock, path = Clock(), tmp_path / "shards/0003-of-0008/progress.json"
    with Progress(300, io.StringIO(), record=path, facts=facts(tmp_path), clock=clock, background=False) as progress:
        assert json.loads(path.read_text())["state"] == "running"
        spend(progress, clock, 20, 2)
        progress.advance(0, 2, {"read": 9.0, "explain": 1.0})
        progress.advance(0, 2, {"read": 9.0, "explain": 2.0, "wait": 1.0})
        data = json.loads(path.read_text())
        assert data["made"] == 30  # as of the last full quarter of a minute
        spend(progress, clock, 15)
        data = json.loads(path.read_text())
    expected = {
        "state": "running", "reason": "", "host": socket.gethostname(), "pid": os.getpid(), "shard": 3, "shards": 8,
        "planned": {"images": 40, "heat_maps": 400}, "finished_before": 100, "failed_before": 2, "total": 300,
        "made": 40, "failed": 4, "device_wait_share": 0.25, "stage": "attn_map", "results": str(tmp_path),
        "plan": {"digest": "abc", "rows": 3210, "images": 320, "heat_maps": 3200},
        "command": "python generate_heatmaps.py --config x.conf",
    }  # fmt: skip
    assert expected.items() <= data.items()
    assert {"slurm_job", "slurm_task", "started", "updated"} <= set(data)
    assert data["eta_s"] == pytest.approx(256 / data["rate"], rel=0.01)
    assert [entry.name for entry in path.parent.iterdir()] == ["progress.json"]


def test_record_is_replaced_every_15_seconds(tmp_path, monkeypatch):
    from heatlens.batch import progress as module

    written = []
    monkeypatch.setattr(module, "atomic_write", lambda path, text: written.append(json.loads(text)["made"]))
    clock = Clock()
    with Progress(9999, io.StringIO(), record=tmp_path / "p", clock=clock, background=False) as progress:
        spend(progress, clock, 60, 1)
    assert written == [0, 15, 30, 45, 60, 60]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "done", ""),
        (StoppedEarly("stopped by SIGTERM"), "stopped", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (SetupError("the disk is full"), "failed", "the disk is full"),
        (RuntimeError("odd\nthing"), "failed", "RuntimeError: odd thing"),
    ],
)
def test_last_state_says_how_it_ended(tmp_path, error, state, reason):
    path = tmp_path / "progress.json"
    try:
        with Progress(3, io.StringIO(), record=path) as progress:
            progress.advance(2, 1)
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    data = json.loads(path.read_text())
    assert (data["state"], data["reason"], data["made"], data["failed"]) == (state, reason, 2, 1)


def test_a_record_that_cannot_be_written_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("in the way")
    clock = Clock()
    record = tmp_path / "file" / "progress.json"
    with Progress(10, io.StringIO(), record=record, clock=clock, background=False) as progress:
        spend(progress, clock, 40, 1)
    assert progress.done == 40


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_terminal_that_has_gone_does_not_matter(stream):
    clock = Clock()
    with Progress(10, stream, clock=clock, background=False) as progress:
        stream.close()
        spend(progress, clock, 40, 1)
    assert progress.done == 40


def test_many_threads_count_right(tmp_path):
    with Progress(8000, io.StringIO(), record=tmp_path / "progress.json") as progress:
        threads = [threading.Thread(target=lambda: [progress.advance(1, n % 2) for n in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (progress.done, progress.failed) == (12_000, 4000)
    assert json.loads((tmp_path / "progress.json").read_text())["made"] == 8000
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_the_end_has_the_last_word(tmp_path):
    """A write that was under way when the run ended must not bring "running" back."""
    path = tmp_path / "progress.json"
    with Progress(1, io.StringIO(), record=path, background=False) as progress:
        pass
    progress._last_record = -1e9
    progress.tick()
    assert json.loads(path.read_text())["state"] == "done"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (36_000, "10.0 h"), (864_000, "10.0 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0.0/s"), (0.01, "0.6/min"), (0.5, "0.5/s"), (9.96, "10/s"), (262.4, "262/s")]
)
def test_rates(rate, text):
    assert show_rate(rate) == text
