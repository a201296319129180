"""Killed in the middle, then the same command: the same bytes as a run that was never interrupted."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heatlens.batch import closing, lock
from heatlens.batch.ledger import ledger_paths, read_ledger
from heatlens.batch.runner import run
from heatlens.errors import EXIT_STOPPED, SetupError
from tests.batch.kit import (
    QUESTIONS,
    FakeExplainer,
    FakeParts,
    FakeStage,
    go,
    leftovers,
    make_settings,
    pictures,
    record,
)

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Stands for a kill that leaves no time for anything."""


def uninterrupted(tmp_path: Path) -> dict[str, bytes]:
    """Pictures of a run in the same folder name that nothing disturbed (moved away afterwards)."""
    settings = make_settings(tmp_path)
    go(settings)
    wanted = pictures(settings.results_dir)
    settings.results_dir.rename(tmp_path / "reference")
    return wanted


@pytest.mark.parametrize("at", range(7))
def test_death_at_any_explanation_then_resume(tmp_path, at):
    wanted = uninterrupted(tmp_path)
    seen = []

    def die(prompt):
        seen.append(prompt)
        if len(seen) == at + 1:
            raise Killed

    settings = make_settings(tmp_path)
    with pytest.raises(Killed):
        go(settings, explainer=FakeExplainer(die))
    assert not (settings.results_dir / "vqa_manifest.csv").exists()
    made = sum(one.ok for path in ledger_paths(settings.results_dir) for line in read_ledger(path)
               for one in line.heat_maps)  # fmt: skip
    resumed = go(settings)
    assert pictures(settings.results_dir) == wanted
    assert leftovers(settings.results_dir) == []
    assert sum(map(len, resumed.fake.calls)) == 7 - made


def test_torn_last_line_is_cut_and_its_image_made_again(tmp_path):
    wanted = uninterrupted(tmp_path)
    settings = make_settings(tmp_path)
    go(settings)
    (ledger,) = settings.results_dir.rglob("ledger.jsonl")
    lines = ledger.read_bytes().splitlines(keepends=True)
    for cut in (1, len(lines[-1]) // 2, len(lines[-1]) - 1):
        ledger.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        resumed = go(settings)
        assert len(resumed.opened) == 1
        assert pictures(settings.results_dir) == wanted
        assert ledger.read_bytes().count(b"\n") == len(lines)


def test_temporary_files_of_a_killed_run_are_swept(tmp_path):
    settings = make_settings(tmp_path)
    go(settings, stage=FakeStage())
    for folder in ("", "a", "raw/a", "shards", "shards/0000-of-0001"):
        (settings.results_dir / folder / ".heatlens-tmp-abc.png").write_text("half")
    (settings.results_dir / "a/one_idx1.png").unlink()
    go(settings)
    assert leftovers(settings.results_dir) == []


@pytest.mark.parametrize("step", ["sweep", "_record", "_report"])
def test_death_while_the_run_is_closed_leaves_nothing_behind(tmp_path, monkeypatch, step):
    wanted = uninterrupted(tmp_path)

    def die(*_, **__):
        raise Killed

    settings = make_settings(tmp_path)
    go(settings)
    results = settings.results_dir
    (results / "run.json").unlink()
    (results / "a/.heatlens-tmp-1.png").write_text("half")  # of an earlier kill
    with monkeypatch.context() as patch:
        patch.setattr(closing, step, die)
        # A killed process unlocks nothing; its heartbeat ends.
        patch.setattr(lock.ShardLock, "_release", lambda self: self._released.set())
        with pytest.raises(Killed):
            go(settings)
    for path in results.rglob("lock"):
        path.write_bytes(path.read_bytes().replace(b'"pid":', b'"pid": 99999999, "was":'))
    go(settings)
    assert leftovers(results) == []
    assert pictures(results) == wanted


def _child(tmp_path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.batch.crash_child", str(tmp_path)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _wait_for_ledger(results: Path, lines: int) -> None:
    for _ in range(2000):
        if sum(path.read_bytes().count(b"\n") for path in ledger_paths(results)) >= lines:
            return
        time.sleep(0.01)
    raise AssertionError("the child made no progress")


def test_sigkill_then_resume_is_byte_identical(tmp_path):
    wanted = uninterrupted(tmp_path)
    settings = make_settings(tmp_path)
    for lines in (1, 3):
        child = _child(tmp_path)
        _wait_for_ledger(settings.results_dir, lines)
        child.kill()
        child.communicate()
    assert (settings.results_dir / "shards/0000-of-0001/lock").exists()  # of a dead process: stale
    go(settings)
    assert pictures(settings.results_dir) == wanted
    assert leftovers(settings.results_dir) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_stop_signal_commits_exits_75_and_resumes(tmp_path, number):
    wanted = uninterrupted(tmp_path)
    settings = make_settings(tmp_path)
    child = _child(tmp_path)
    _wait_for_ledger(settings.results_dir, 1)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == EXIT_STOPPED, err
    assert "the same command continues" in out
    assert "Traceback" not in err
    assert leftovers(settings.results_dir) == []
    assert record(settings.results_dir)["status"] == "partial"
    assert not (settings.results_dir / "vqa_manifest.csv").exists()
    go(settings)
    assert pictures(settings.results_dir) == wanted
    assert record(settings.results_dir)["status"] == "complete"


def test_signal_during_a_long_explanation_drops_the_image_at_once(tmp_path):
    def slow(prompt):
        if prompt == "Where is the tube?":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler runs here, inside the explanation
            raise AssertionError("the explanation went on after the signal")

    settings = make_settings(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    parts = go(settings, explainer=FakeExplainer(slow))
    assert parts.code == EXIT_STOPPED
    assert len(parts.fake.calls) == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(settings.results_dir.rglob("*.png"))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
    ],
)
def test_a_disk_that_cannot_be_written_ends_the_run_and_can_be_resumed(tmp_path, monkeypatch, number, words):
    wanted = uninterrupted(tmp_path)
    settings = make_settings(tmp_path)
    real, written = os.fsync, []

    def full(handle):
        written.append(handle)
        if len(written) > 12:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match=words) as caught:
        go(settings)
    assert caught.value.exit_code == 4
    assert "the same command continues" in str(caught.value)
    monkeypatch.undo()
    assert leftovers(settings.results_dir) == []
    go(settings)
    assert pictures(settings.results_dir) == wanted


def test_a_real_full_disk(tmp_path):
    """/dev/full answers every write with ENOSPC."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    from heatlens.batch.ledger import ImageRecord, LedgerWriter, read_ledger

    with LedgerWriter(tmp_path / "ledger.jsonl") as writer, full.open("wb", buffering=0) as stream:
        writer.append(ImageRecord("a.png", ()))
        good, writer._stream = writer._stream, stream
        with pytest.raises(OSError, match="No space"):
            writer.append(ImageRecord("b.png", ()))
        writer._stream = good
        writer.append(ImageRecord("c.png", ()))
    assert [one.image for one in read_ledger(tmp_path / "ledger.jsonl")] == ["a.png", "c.png"]


def test_device_failures_are_not_blamed_on_the_image(tmp_path):
    def broken(prompt):
        raise RuntimeError("CUDA error: device-side assert triggered")

    settings = make_settings(tmp_path)
    with pytest.raises(SetupError, match="the device failed"):
        go(settings, explainer=FakeExplainer(broken))
    go(settings)
    assert record(settings.results_dir)["counts"]["failed"] == 3


def test_two_shards_give_what_one_gives(tmp_path):
    wanted = uninterrupted(tmp_path)
    first = go(make_settings(tmp_path, NUM_SHARDS=2, SHARD_INDEX=0))
    results = tmp_path / "results"
    assert first.code == 0
    assert not (results / "vqa_manifest.csv").exists()
    second = go(make_settings(tmp_path, NUM_SHARDS=2, SHARD_INDEX=1))
    assert first.loads == second.loads == 1
    assert not set(first.opened) & set(second.opened)
    assert pictures(results) == wanted


def test_shards_may_be_finished_by_another_number_of_shards(tmp_path):
    wanted = uninterrupted(tmp_path)
    go(make_settings(tmp_path, NUM_SHARDS=3, SHARD_INDEX=1))
    done = list((tmp_path / "results").rglob("*_idx*.png"))
    assert done
    settings = make_settings(tmp_path)
    parts = FakeParts(settings)
    run(settings, FakeStage(), parts)
    assert len(parts.opened) < len({row[0] for row in QUESTIONS})
    assert pictures(tmp_path / "results") == wanted
