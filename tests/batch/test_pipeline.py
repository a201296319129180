"""The pipeline's promises: bounded queues, one line per image, failures as records, stopping and breaking in order."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from heatlens.batch.decoder_process import DecoderProcesses
from heatlens.batch.openers import InlineDecoder, Opened, start_decoders
from heatlens.batch.pipeline import QUEUED, make_all
from heatlens.batch.protocols import Explanation, OutputFile, Placed, StageResult
from heatlens.batch.signals import StopSignals
from heatlens.batch.worker import ImageWorker
from heatlens.errors import ItemError, SetupError, StoppedEarly
from heatlens.questions.plan import ImageTask

PATIENCE = 20


def heat_map(image: str, number: int, prompt: str):
    return SimpleNamespace(key=f"{image}/{number}", output=f"{image}_idx{number}", prompt=prompt, question=prompt)


def task(image: str, *prompts: str) -> ImageTask:
    return ImageTask(image, tuple(heat_map(image, number, prompt) for number, prompt in enumerate(prompts, 1)))


def tasks(count: int, prompts: int = 2) -> list[ImageTask]:
    return [task(f"i{one:02}", *(f"q{number}" for number in range(prompts))) for one in range(count)]


def open_fake(path: str) -> Opened:
    """Also runs in decoder processes."""
    if path.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.startswith("bad"):
        return Opened(failure=ItemError("decode", f"{path} is no picture"))
    frame = np.frombuffer(path.ljust(12)[:12].encode(), np.uint8).reshape(2, 2, 3)
    return Opened(view=path, placed=Placed(None, frame), statistics={"name": path}, seconds=0.5)


class ThreadDecoders:
    """Opens in threads of this process, so that tests can hold images back; counts what is in flight."""

    def __init__(self, readers: int = 2, open_image=open_fake) -> None:
        self.readers = readers
        self.submitted: list[str] = []
        self._open = open_image
        self._pool = ThreadPoolExecutor(readers)

    def submit(self, path, done):
        self.submitted.append(path)
        self._pool.submit(lambda: done(self._answer(path)))

    def _answer(self, path):
        try:
            return self._open(path)
        except BaseException as error:
            return error

    def close(self):
        self._pool.shutdown(cancel_futures=True)


class FakeExplainer:
    grid = None
    placer = None

    def __init__(self, group: int = 1, on_explain=None) -> None:
        self.group = group
        self.calls: list[list[tuple[str, list[str]]]] = []
        self._on_explain = on_explain

    def explain(self, frames, prompts):
        names = [frame.tobytes().decode().strip() for frame in frames]
        self.calls.append([(name, list(mine)) for name, mine in zip(names, prompts, strict=True)])
        if self._on_explain:
            self._on_explain(names, prompts)
        return [[Explanation(np.full((2, 2), len(one), np.float32), 1.0) for one in mine] for mine in prompts]


class FakeStage:
    def __init__(self, on_make=None) -> None:
        self._on_make = on_make

    def make(self, view, one, explanation):
        if self._on_make:
            self._on_make(one)
        return StageResult((OutputFile(f"{one.output}.txt", f"{view} {one.prompt}".encode()),), {"n": 1})


class Bench:
    """Everything that make_all wants, with what came of it. Asserts at each commit that the files are there."""

    def __init__(self, folder, *, group=1, on_explain=None, on_make=None, on_commit=None):
        self.folder, self.stop = folder, StopSignals()
        self.explainer, self.stage = FakeExplainer(group, on_explain), FakeStage(on_make)
        self.records = {}
        self.usable = 0
        self.committing = threading.Lock()
        self._on_commit = on_commit

    def opened(self):
        self.usable += 1

    def commit(self, record):
        assert self.committing.acquire(blocking=False), "two commits at once"
        try:
            if self._on_commit:
                self._on_commit(record)
            assert record.image not in self.records
            assert all((self.folder / one.output).is_file() for one in record.heat_maps if one.ok)
            self.records[record.image] = record
        finally:
            self.committing.release()

    def run(self, work, decoders=None, writers=2):
        if decoders is None:
            decoders = InlineDecoder()
            decoders.open_with(open_fake)
        worker = ImageWorker(self.stage, self.explainer, self.folder, self.stop)
        try:
            with self.stop:
                make_all(iter(work), worker, self, self.stop, decoders=decoders, writers=writers)
        finally:
            decoders.close()
            leftovers = [one.name for one in threading.enumerate() if one.name.startswith("write")]
            assert not leftovers

    @property
    def files(self):
        return {path.name: path.read_text() for path in self.folder.rglob("*.txt")}

    def failures(self):
        found = [one for record in self.records.values() for one in record.heat_maps if not one.ok]
        return {one.key: (one.stage, one.reason) for one in found}


def everything(count=12, prompts=2):
    return {f"i{one:02}_idx{n + 1}.txt": f"i{one:02} q{n}" for one in range(count) for n in range(prompts)}


@pytest.mark.parametrize("readers", [0, 1, 3])
@pytest.mark.parametrize("writers", [1, 4])
@pytest.mark.parametrize("group", [1, 4, 5])
def test_everything_is_made_once_whatever_the_numbers(tmp_path, readers, writers, group):
    bench = Bench(tmp_path, group=group)
    bench.run(tasks(12), ThreadDecoders(readers) if readers else None, writers)
    assert bench.files == everything()
    assert len(bench.records) == 12
    for name, record in bench.records.items():
        assert [one.key for one in record.heat_maps] == [f"{name}/1", f"{name}/2"]
        assert record.image_statistics == {"name": name}
        assert set(record.seconds) == {"read", "explain", "write", "wait"}
        assert record.seconds["read"] == 0.5
    assert sorted(name for call in bench.explainer.calls for name, _ in call) == sorted(bench.records)
    assert all(len(call) == group for call in bench.explainer.calls[: 12 // group])


def test_equal_prompts_share_one_map(tmp_path):
    bench = Bench(tmp_path)
    bench.run([task("i", "same", "other", "same")])
    assert bench.explainer.calls == [[("i", ["same", "other"])]]
    assert bench.files == {"i_idx1.txt": "i same", "i_idx2.txt": "i other", "i_idx3.txt": "i same"}


def test_order_of_decoding_does_not_matter(tmp_path):
    """The first image is the last to be opened; its results are the same."""
    late = threading.Event()

    def open_late(path):
        if path == "i00":
            assert late.wait(PATIENCE)
        elif path == "i05":
            late.set()
        return open_fake(path)

    bench = Bench(tmp_path)
    bench.run(tasks(8), ThreadDecoders(3, open_late))
    assert bench.files == everything(8)
    assert bench.explainer.calls[0][0][0] != "i00"


@pytest.mark.parametrize(("readers", "group"), [(1, 1), (3, 1), (2, 4)])
def test_never_more_opened_than_the_bound(tmp_path, readers, group):
    """While the device works on its first group, exactly the next group and what the readers may have is read."""
    decoders = ThreadDecoders(readers)
    bound = group + readers + 1
    seen = []

    def count(names, _):
        explained = sum(len(call) for call in bench.explainer.calls)
        seen.append(len(decoders.submitted) - explained)

    bench = Bench(tmp_path, group=group, on_explain=count)
    bench.run(tasks(40), decoders)
    assert max(seen) <= bound
    assert len(bench.records) == 40


@pytest.mark.parametrize("writers", [1, 3])
def test_the_device_waits_for_slow_writers(tmp_path, writers):
    """With all writers held, explaining stops at the bound and goes on when they are let go."""
    most, held, full = QUEUED * writers, threading.Event(), threading.Event()

    def hold(_):
        assert held.wait(PATIENCE)

    def count(names, _):
        if len(bench.explainer.calls) == most:  # one heat map each
            full.set()

    def watch():
        assert full.wait(PATIENCE)
        # Nothing more may come; the decoders run full behind it meanwhile.
        for _ in range(200):
            if len(decoders.submitted) >= most + 2 + 2:
                break
            time.sleep(0.01)
        calls.append(len(bench.explainer.calls))
        held.set()

    calls: list[int] = []
    decoders = ThreadDecoders(2)
    bench = Bench(tmp_path, on_explain=count, on_make=hold)
    watcher = threading.Thread(target=watch)
    watcher.start()
    bench.run(tasks(most + 10, prompts=1), decoders, writers)
    watcher.join()
    assert calls == [most]
    assert len(bench.records) == most + 10
    assert sum(record.seconds["wait"] for record in bench.records.values()) > 0


def test_failures_of_opening_are_records(tmp_path):
    bench = Bench(tmp_path, group=3)
    bench.run([task("a", "q0"), task("bad1", "q0", "q1"), task("b", "q0"), task("bad2", "q0")], ThreadDecoders())
    assert bench.failures() == {
        "bad1/1": ("decode", "bad1 is no picture"),
        "bad1/2": ("decode", "bad1 is no picture"),
        "bad2/1": ("decode", "bad2 is no picture"),
    }
    assert sorted(bench.files) == ["a_idx1.txt", "b_idx1.txt"]


def test_many_failures_in_a_row_do_not_pile_up(tmp_path):
    decoders = ThreadDecoders(3)
    bench = Bench(tmp_path, on_commit=lambda _: most.append(len(decoders.submitted) - len(bench.records)))
    most: list[int] = []
    bench.run([task(f"bad{number}", "q") for number in range(100)], decoders, writers=2)
    assert len(bench.records) == 100
    assert max(most) <= QUEUED * 2 + 5 + 1


def test_a_group_that_fails_is_tried_image_by_image_and_prompt_by_prompt(tmp_path):
    def broken(names, prompts):
        if "i01" in names and any("q1" in mine for mine in prompts):
            raise ValueError("this prompt breaks the model")

    bench = Bench(tmp_path, group=4, on_explain=broken)
    bench.run(tasks(4))
    assert bench.failures() == {"i01/2": ("explain", "ValueError: this prompt breaks the model")}
    assert len(bench.files) == 7
    first, *alone = bench.explainer.calls
    assert len(first) == 4
    assert [name for call in alone for name, _ in call] == ["i00", "i01", "i01", "i01", "i02", "i03"]


def test_a_heat_map_that_fails_costs_no_other(tmp_path):
    def broken(one):
        if one.key == "i01/1":
            raise ZeroDivisionError("no picture")
        if one.key == "i02/2":
            raise ItemError("render", "no picture either")

    bench = Bench(tmp_path, on_make=broken)
    bench.run(tasks(4), ThreadDecoders())
    assert bench.failures() == {
        "i01/1": ("render", "ZeroDivisionError: no picture"),
        "i02/2": ("render", "no picture either"),
    }


def test_a_broken_map_is_a_failure(tmp_path):
    bench = Bench(tmp_path)
    good = bench.explainer.explain

    def broken(frames, prompts):
        from dataclasses import replace

        return [[replace(one, warnings=("error: not finite",)) for one in mine] for mine in good(frames, prompts)]

    bench.explainer.explain = broken
    bench.run(tasks(1))
    assert bench.failures() == {"i00/1": ("explain", "not finite"), "i00/2": ("explain", "not finite")}


def test_images_without_anything_to_make_are_passed_over(tmp_path):
    bench = Bench(tmp_path)
    bench.run([ImageTask("empty", ()), *tasks(1)])
    assert list(bench.records) == ["i00"]


def test_no_tasks_at_all(tmp_path):
    bench = Bench(tmp_path)
    bench.run([])
    assert not bench.records


def test_a_crash_in_a_decoder_process_is_one_failure(tmp_path):
    decoders = DecoderProcesses(2, ())
    decoders.open_with(open_fake)
    bench = Bench(tmp_path)
    bench.run([*tasks(3), task("crash", "q0", "q1"), *tasks(6)[3:]], decoders)
    assert bench.failures() == {
        "crash/1": ("decode", "the decoder crashed (signal SIGSEGV)"),
        "crash/2": ("decode", "the decoder crashed (signal SIGSEGV)"),
    }
    assert bench.files == everything(6)


# Stopping


def interrupt(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)  # the handler runs in the main thread, at the latest here


def test_stop_while_explaining_drops_the_group_and_commits_what_was_explained(tmp_path):
    def stop(names, _):
        if "i05" in names:
            interrupt()
            raise AssertionError("the explanation went on after the signal")

    bench = Bench(tmp_path, on_explain=stop)
    with pytest.raises(StoppedEarly):
        bench.run(tasks(12))
    assert sorted(bench.records) == [f"i{number:02}" for number in range(5)]
    assert bench.files == everything(5)


def test_stop_while_waiting_for_a_decoder(tmp_path):
    never = threading.Event()

    def hang(path):
        if path == "i03":
            threading.Thread(target=when_written).start()
            never.wait(PATIENCE)
        return open_fake(path)

    def when_written():
        assert written.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGUSR1)
        stopped.wait(PATIENCE)
        never.set()

    written, stopped = threading.Event(), threading.Event()
    bench = Bench(tmp_path, on_commit=lambda _: len(bench.records) == 2 and written.set())
    try:
        with pytest.raises(StoppedEarly):
            bench.run(tasks(4)[:4], Stopping(hang, stopped))
    finally:
        stopped.set()
    assert sorted(bench.records) == ["i00", "i01", "i02"]


class Stopping(ThreadDecoders):
    """Lets a hanging open go when it is closed."""

    def __init__(self, open_image, stopped) -> None:
        super().__init__(1, open_image)
        self._stopped = stopped

    def close(self):
        self._stopped.set()
        super().close()


def test_stop_while_waiting_for_room_finishes_what_was_explained(tmp_path):
    held, explained = threading.Event(), threading.Event()

    def hold(_):
        assert held.wait(PATIENCE)

    def count(names, _):
        if len(bench.explainer.calls) == QUEUED:
            explained.set()

    def stop():
        assert explained.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            if bench.stop.received:
                break
            time.sleep(0.01)
        held.set()

    bench = Bench(tmp_path, on_explain=count, on_make=hold)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(StoppedEarly):
        bench.run(tasks(20, prompts=1), ThreadDecoders(2), writers=1)
    thread.join()
    assert QUEUED <= len(bench.records) <= QUEUED + 1  # the signal may come before or after the last one's explanation
    assert len(bench.files) == len(bench.records)


def test_stop_while_opening_inline(tmp_path):
    inline = InlineDecoder()
    inline.open_with(lambda path: interrupt() if path == "i02" else open_fake(path))
    bench = Bench(tmp_path)
    with pytest.raises(StoppedEarly):
        bench.run(tasks(5), inline)
    assert sorted(bench.records) == ["i00", "i01"]


def test_stop_while_writing_commits_what_is_written(tmp_path):
    """The signal is delivered to the main thread, wherever that is; the writer goes on."""
    bench = Bench(tmp_path, on_make=lambda one: one.key == "i01/1" and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedEarly):
        bench.run(tasks(30), ThreadDecoders())
    assert "i01" in bench.records
    assert len(bench.records) < 30
    assert set(bench.files) == {f"{name}_idx{number}.txt" for name in bench.records for number in (1, 2)}


def test_stop_that_came_before(tmp_path):
    bench = Bench(tmp_path)
    bench.stop.received = "SIGTERM"
    with pytest.raises(StoppedEarly):
        bench.run(tasks(3))
    assert not bench.records
    assert not bench.explainer.calls


# Breaking


def test_a_full_disk_in_a_writer_ends_the_run(tmp_path):
    def full(one):
        if one.key == "i02/2":
            raise SetupError("the disk is full")

    bench = Bench(tmp_path, on_make=full)
    with pytest.raises(SetupError, match="disk is full"):
        bench.run(tasks(40), ThreadDecoders(), writers=1)
    assert "i02" not in bench.records
    assert sorted(bench.records) == ["i00", "i01"]  # one writer works in order; the queue behind it was dropped
    assert len(bench.explainer.calls) <= 3 + QUEUED


def test_an_error_of_a_writer_wakes_a_main_thread_that_waits_for_a_decoder(tmp_path):
    failing, stopped = threading.Event(), threading.Event()

    def hang(path):
        if path == "i01":
            failing.set()
            stopped.wait(PATIENCE)
        return open_fake(path)

    def full(_):
        assert failing.wait(PATIENCE)
        raise SetupError("the disk is full")

    bench = Bench(tmp_path, on_make=full)
    start = time.monotonic()
    with pytest.raises(SetupError):
        bench.run(tasks(2), Stopping(hang, stopped))
    assert time.monotonic() - start < PATIENCE


def test_a_commit_that_fails_ends_the_run(tmp_path):
    def refuse(record):
        if record.image == "i03":
            raise SetupError("the ledger cannot be written")

    bench = Bench(tmp_path, on_commit=refuse)
    with pytest.raises(SetupError, match="ledger"):
        bench.run(tasks(30), ThreadDecoders())
    assert "i03" not in bench.records
    assert len(bench.records) < 30


def test_a_full_disk_after_a_stop_signal_is_what_is_reported(tmp_path):
    stopped = threading.Event()

    def full(_):
        assert stopped.wait(PATIENCE)
        raise SetupError("the disk is full")

    def stop(names, _):
        if "i01" in names:
            stopped.set()
            interrupt()

    bench = Bench(tmp_path, on_explain=stop, on_make=full)
    with pytest.raises(SetupError, match="disk is full"):
        bench.run(tasks(3, prompts=1))
    assert not bench.records


@pytest.mark.parametrize("error", [SetupError("the mount is gone"), KeyboardInterrupt(), MemoryError()])
def test_errors_of_a_decoder_that_are_no_images_fault_end_the_run(tmp_path, error):
    def broken(path):
        if path == "i04":
            raise error
        return open_fake(path)

    bench = Bench(tmp_path)
    with pytest.raises(type(error)):
        bench.run(tasks(20), ThreadDecoders(2, broken))
    assert "i04" not in bench.records


def test_device_failures_are_not_blamed_on_the_image(tmp_path):
    def broken(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    bench = Bench(tmp_path, on_explain=broken, group=2)
    with pytest.raises(SetupError, match="the device failed"):
        bench.run(tasks(4))
    assert len(bench.explainer.calls) == 1
    assert not bench.records


def test_an_error_in_the_plan_rises(tmp_path):
    def plan():
        yield from tasks(2)
        raise SetupError("the plan cannot be read")

    bench = Bench(tmp_path)
    with pytest.raises(SetupError, match="plan"):
        bench.run(plan())


def test_start_decoders_takes_the_stage_for_its_imports():
    with start_decoders(1, FakeStage()) as decoders:
        decoders.open_with(open_fake)
        done = threading.Event()
        decoders.submit("a", lambda outcome: done.set())
        assert done.wait(PATIENCE)
