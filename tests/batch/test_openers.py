"""Decoder processes: what a crash, a hang or a hostile file costs, and what they leave behind (nothing)."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from heatlens.batch.decoder_process import DecoderProcesses
from heatlens.batch.openers import FilmReader, FramePlacer, InlineDecoder, Opened, Opener, start_decoders
from heatlens.cam.protocols import PatchGrid
from heatlens.config import load_settings
from heatlens.errors import ItemError, SetupError
from heatlens.stages.attn_map import AttnMapStage

ROOT = Path(__file__).resolve().parents[2]
GRID = PatchGrid(14, 14, (16.0, 16.0))


def open_fake(path: str) -> Opened:
    """Behaves as the name of the image says. Runs in the decoder process."""
    if path == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path == "exit":
        os._exit(7)
    if path == "hang":
        time.sleep(3600)
    if path == "bad":
        return Opened(failure=ItemError("decode", "not a picture"), seconds=1.5)
    if path == "mount":
        raise SetupError("IMAGE_ROOT is gone")
    if path == "unpicklable":
        return Opened(view=lambda: None)
    if path == "modules":
        return Opened(view=sorted(sys.modules))
    if path == "process":
        return Opened(view=(os.getpid(), cv2.getNumThreads(), os.environ["OMP_NUM_THREADS"]))
    return Opened(view=(path, np.arange(12, dtype=np.uint8).reshape(3, 4)))


class CannotBeLoaded:
    def __call__(self, path: str) -> Opened:
        raise AssertionError(path)

    def __reduce__(self):
        return int, ("not a number",)


class Desk:
    """Submits images and waits for what comes of them."""

    def __init__(self, decoders):
        self.decoders = decoders
        self.answers = queue.SimpleQueue()

    def ask(self, *paths):
        for path in paths:
            self.decoders.submit(path, lambda outcome, path=path: self.answers.put((path, outcome)))
        return dict(self.answers.get(timeout=60) for _ in paths)


@pytest.fixture
def desk():
    with DecoderProcesses(2, ("heatlens.images.decode",)) as decoders:
        decoders.open_with(open_fake)
        yield Desk(decoders)


@pytest.fixture
def single():
    """One process with little patience."""
    with DecoderProcesses(1, (), timeout=0.3) as decoders:
        decoders.open_with(open_fake)
        yield Desk(decoders)


def failure(outcome) -> tuple[str, str]:
    assert isinstance(outcome, Opened), outcome
    assert outcome.view is None
    assert outcome.failure is not None
    return outcome.failure.stage, outcome.failure.reason


def test_what_is_opened_arrives_as_it_is(desk):
    answers = desk.ask(*(f"image {number}" for number in range(20)))
    assert len(answers) == 20
    for path, opened in answers.items():
        assert opened.view[0] == path
        assert np.array_equal(opened.view[1], np.arange(12).reshape(3, 4))


def test_a_bad_image_is_a_failure_with_its_stage(desk):
    outcome = desk.ask("bad")["bad"]
    assert failure(outcome) == ("decode", "not a picture")
    assert outcome.seconds == 1.5


def test_a_crash_costs_one_image_and_says_what_it_was(desk):
    answers = desk.ask("a", "crash", "b", "exit", "c", "crash", "d", "e")
    assert failure(answers["crash"]) == ("decode", "the decoder crashed (signal SIGSEGV)")
    assert failure(answers["exit"]) == ("decode", "the decoder crashed (exit code 7)")
    assert [answers[name].view[0] for name in "abcde"] == list("abcde")


def test_a_hanging_decoder_is_stopped(single):
    answers = single.ask("hang")
    assert failure(answers["hang"]) == ("decode", "decoding took longer than 0.3 seconds and was stopped")
    # Its successor imports for longer than that: only images are timed.
    assert single.ask("a")["a"].view[0] == "a"


def test_a_process_killed_while_idle_costs_no_image(single):
    number = single.ask("process")["process"].view[0]
    os.kill(number, signal.SIGKILL)
    until(lambda: gone(number))
    answer = single.ask("process")["process"]
    assert answer.failure is None
    assert answer.view[0] != number


def test_errors_that_are_no_images_fault_come_through(desk):
    outcome = desk.ask("mount")["mount"]
    assert isinstance(outcome, SetupError)
    assert str(outcome) == "IMAGE_ROOT is gone"


def test_what_cannot_be_sent_is_a_failure_of_its_image(desk):
    stage, reason = failure(desk.ask("unpicklable")["unpicklable"])
    assert stage == "decode"
    assert "pickle" in reason


def test_an_opener_that_cannot_be_loaded_is_a_setup_error():
    with DecoderProcesses(1, ("no.such.module",)) as decoders:
        decoders.open_with(CannotBeLoaded())
        outcome = Desk(decoders).ask("a")["a"]
    assert isinstance(outcome, SetupError)
    assert "cannot be started: ValueError" in str(outcome)


def test_one_thread_each_and_no_torch(desk):
    _, threads, environment = desk.ask("process")["process"].view
    assert (threads, environment) == (1, "1")
    # This very module brings pytest along, but nothing that the opener needs brings torch.
    assert "torch" not in desk.ask("modules")["modules"].view


def test_stop_signals_are_ignored(desk):
    number = desk.ask("process")["process"].view[0]
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(number, name)
    seen = {desk.ask("process")["process"].view[0] for _ in range(20)}
    assert number in seen


def gone(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split(")")[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_processes_end_when_this_one_is_killed():
    script = (
        "import time\nfrom tests.batch.test_openers import *\n"
        "decoders = DecoderProcesses(2, ())\ndecoders.open_with(open_fake)\ndesk = Desk(decoders)\n"
        "print(*{desk.ask('process')['process'].view[0] for _ in range(1)}, flush=True)\ntime.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    number = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until(lambda: gone(number))


def test_closing_ends_processes_and_threads_even_busy_ones():
    before = threading.active_count()
    with DecoderProcesses(2, ()) as decoders:
        decoders.open_with(open_fake)
        desk = Desk(decoders)
        number = desk.ask("process")["process"].view[0]
        for _ in range(5):
            decoders.submit("hang", desk.answers.put)
    assert gone(number)
    assert threading.active_count() == before
    assert desk.answers.empty()


def test_closed_before_it_was_told_anything():
    with DecoderProcesses(1, ()):
        pass


def settings_for(folder: Path, **keys: str):
    flags = {
        "DATASET": "table", "DATASET_PATH": str(folder / "x.csv"), "IMAGE_ROOT": str(folder), "MODEL": "demo",
        "RESULTS_DIR": str(folder / "r"), **keys,
    }  # fmt: skip
    return load_settings(None, flags, {}, "attn_map")


def opener_for(folder: Path, **keys: str) -> Opener:
    stage = AttnMapStage(settings_for(folder, **keys))
    return Opener(FilmReader(folder), stage, FramePlacer("letterbox", (224, 224)), GRID)


@pytest.mark.parametrize(
    ("keys", "longest"),
    [
        ({"OUTPUT_SIZE": "1024"}, 1024),
        ({"OUTPUT_SIZE": "300"}, 512),  # the body mask's
        ({"OUTPUT_SIZE": "300", "ENABLE_BODY_MASK": "false"}, 448),  # twice the model's frame
        ({"OUTPUT_SIZE": ""}, None),
    ],
)
def test_how_many_pixels_are_decoded(tmp_path, keys, longest):
    assert opener_for(tmp_path, **keys).longest == longest


@pytest.fixture
def jpeg(tmp_path):
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (1500, 1200), dtype=np.uint8), (0, 0), 30)
    pixels = cv2.normalize(grey, None, 60, 220, cv2.NORM_MINMAX)
    cv2.imwrite(str(tmp_path / "film.jpg"), pixels)
    return tmp_path


def test_the_real_opener_in_a_process_and_here_are_the_same(jpeg):
    opener = opener_for(jpeg, OUTPUT_SIZE="500")
    (jpeg / "text.jpg").write_text("text")
    inline = InlineDecoder()
    inline.open_with(opener)
    with start_decoders(1, opener.stage) as decoders:
        decoders.open_with(opener)
        there = Desk(decoders).ask("film.jpg", "text.jpg", "gone.jpg")
    here = Desk(inline).ask("film.jpg", "text.jpg", "gone.jpg")
    one, other = here["film.jpg"], there["film.jpg"]
    # Small: the picture, the mask at its own size and the model's frame, never the film.
    assert len(pickle.dumps(other)) < 500 * 400 + 512 * 410 + 3 * 224 * 224 + 4096
    assert np.array_equal(one.view.picture, other.view.picture)
    assert np.array_equal(one.view.body, other.view.body)
    assert np.array_equal(one.placed.frame, other.placed.frame)
    assert one.placed.geometry == other.placed.geometry
    assert one.statistics == other.statistics
    assert one.view.source == (1200, 1500)
    for name in ("text.jpg", "gone.jpg"):
        assert failure(here[name]) == failure(there[name])
    assert failure(there["gone.jpg"])[0] == "locate"


def test_with_no_readers_the_caller_opens():
    inline = start_decoders(0, object())
    assert inline.readers == 0
    inline.open_with(open_fake)
    assert Desk(inline).ask("process")["process"].view[0] == os.getpid()
