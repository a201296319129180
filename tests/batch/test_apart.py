"""A function in its own process: results and errors come back, and no child outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from heatlens.batch import apart
from heatlens.batch.apart import run_apart
from heatlens.batch.signals import StopSignals
from heatlens.errors import DataSetError, ItemError, SetupError, StoppedEarly
from heatlens.files import TEMPORARY_PREFIX, temporary_folder

ROOT = Path(__file__).resolve().parents[2]


def where(*values: object) -> tuple[int, tuple[object, ...], str]:
    return os.getpid(), values, str(Path.cwd())


def complain(kind: str) -> None:
    if kind == "item":
        raise ItemError("decode", "not an image")
    if kind == "data":
        raise DataSetError("no rows, line 3")
    if kind == "disk":
        raise OSError(28, "No space left on device", "/results/x")
    if kind == "odd":

        class Odd(Exception):
            pass

        raise Odd("a class that cannot be sent")
    raise ZeroDivisionError("a mistake in the program")


def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.2)


def leave() -> None:
    os._exit(7)


def shout_signals() -> str:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    time.sleep(0.05)
    return "still here"


def work_long(folder: Path) -> None:
    with temporary_folder(folder) as mine:
        (mine / "half").write_text("x")
        (folder / "started").write_text(str(os.getpid()))
        time.sleep(300)


def hang(folder: Path) -> None:
    """Deaf to everything, as a library's endless computation would be."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (folder / "started").write_text(str(os.getpid()))
    while True:
        time.sleep(1)


def big(size: int) -> bytes:
    return b"x" * size


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def started(folder: Path) -> int:
    """The pid that a child left, 0 as long as there is none."""
    path = folder / "started"
    return int(path.read_text() or 0) if path.exists() else 0


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]


def test_result_comes_back_from_another_process():
    pid, values, folder = run_apart(where, 1, {"a": Path("b")})
    assert pid != os.getpid()
    assert (values, folder) == ((1, {"a": Path("b")}), str(Path.cwd()))
    assert not alive(pid)


def test_large_requests_and_answers():
    assert len(run_apart(big, 3_000_000)) == 3_000_000
    assert run_apart(len, b"y" * 3_000_000) == 3_000_000


def test_errors_for_people_keep_class_and_text():
    with pytest.raises(ItemError) as caught:
        run_apart(complain, "item")
    assert (str(caught.value), caught.value.stage, caught.value.reason) == (
        "decode: not an image", "decode", "not an image",
    )  # fmt: skip
    with pytest.raises(DataSetError, match=r"^no rows, line 3$"):
        run_apart(complain, "data")


def test_system_errors_keep_their_number():
    with pytest.raises(OSError, match="No space") as caught:
        run_apart(complain, "disk")
    assert (caught.value.errno, caught.value.filename) == (28, "/results/x")


def test_mistakes_show_where_they_were_made():
    with pytest.raises(ZeroDivisionError) as caught:
        run_apart(complain, "mistake")
    assert "in complain" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="Odd: a class that cannot be sent"):
        run_apart(complain, "odd")
    with pytest.raises(Exception, match="lock"):
        run_apart(threading.Lock)


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "memory ran out"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_child_that_the_system_ends(number, words):
    with pytest.raises(SetupError, match=words):
        run_apart(die, number)


def test_a_child_that_leaves_without_a_word():
    with pytest.raises(SetupError, match="exit code 7"):
        run_apart(leave)


def test_the_child_is_deaf_to_stop_signals():
    assert run_apart(shout_signals) == "still here"


def test_standard_output_is_the_parents(capfd):
    run_apart(print, "from the child")
    assert capfd.readouterr().out == "from the child\n"


def interrupted(function, folder: Path) -> int:
    """Run ``function`` apart until it has started, send this process SIGTERM; the child's pid."""

    def send() -> None:
        wait_for(lambda: started(folder))
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with StopSignals() as stop, pytest.raises(StoppedEarly), stop.interruptible():
        run_apart(function, folder)
    sender.join()
    return started(folder)


def test_a_stopped_parent_ends_the_child_which_cleans_up(tmp_path):
    pid = interrupted(work_long, tmp_path)
    assert not alive(pid)
    assert leftovers(tmp_path) == []


def test_a_child_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "GRACE_S", 0.3)
    assert not alive(interrupted(hang, tmp_path))


def test_a_killed_parent_takes_the_child_along(tmp_path):
    code = (
        "from pathlib import Path; from heatlens.batch.apart import run_apart; "
        f"from tests.batch.test_apart import work_long; run_apart(work_long, Path({str(tmp_path)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    wait_for(lambda: started(tmp_path))
    pid = started(tmp_path)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(pid))
    assert leftovers(tmp_path) == []
