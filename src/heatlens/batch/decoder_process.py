"""Decoder processes: what :func:`heatlens.batch.openers.start_decoders` starts, and what runs inside them.

They are plain child processes and not ``multiprocessing``'s, which would import the caller's main module again
(torch with it) and could not be started from a notebook. Messages go over a socket pair, pickled: the opener, then
``ready`` or ``broken`` back, then a path and its reply in turn.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

from heatlens.batch.openers import Opened, Outcome, step_back
from heatlens.batch.signals import SIGNALS, ending_of, stop_signals_held
from heatlens.errors import HeatlensError, ItemError, SetupError, one_line

DECODE_TIMEOUT = 300.0
"""seconds for one image; what takes longer hangs"""
START_TIMEOUT = 300.0
"""seconds for a process to be ready: imports from a busy network file system"""
STARTS = 3
"""processes that may die in a row before their first image"""

# Each process has one thread: there are as many processes as there is work.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from heatlens.batch.decoder_process import serve; serve(int(sys.argv[2]), sys.argv[3:])"
)


class DecoderProcesses:
    """``readers`` processes that import ``imports`` at once and open images once they are told how."""

    def __init__(self, readers: int, imports: Sequence[str], *, timeout: float = DECODE_TIMEOUT) -> None:
        self.readers = readers
        self._jobs: SimpleQueue[tuple[str, Callable[[Outcome], None]] | None] = SimpleQueue()
        self._drivers = [_Driver(imports, timeout) for _ in range(readers)]
        self._threads: list[threading.Thread] = []

    def open_with(self, open_image: Callable[[str], Opened]) -> None:
        """See :class:`heatlens.batch.openers.Decoders`."""
        opener = pickle.dumps(open_image, protocol=pickle.HIGHEST_PROTOCOL)
        for number, driver in enumerate(self._drivers):
            driver.opener = opener
            thread = threading.Thread(target=driver.work, args=(self._jobs,), name=f"decode-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, image_path: str, done: Callable[[Outcome], None]) -> None:
        """See :class:`heatlens.batch.openers.Decoders`."""
        self._jobs.put((image_path, done))

    def close(self) -> None:
        """See :class:`heatlens.batch.openers.Decoders`."""
        for driver in self._drivers:
            driver.stop()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=5)

    def __enter__(self) -> DecoderProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Driver:
    """One thread of this process and its decoder process, which is replaced when it dies."""

    def __init__(self, imports: Sequence[str], timeout: float) -> None:
        self.opener = b""
        self._imports = imports
        self._timeout = timeout
        self._stopped = False
        self._ready = False
        self._guard = threading.Lock()  # between starting and stopping a process
        self._process, self._connection = self._start()

    def work(self, jobs: SimpleQueue[tuple[str, Callable[[Outcome], None]] | None]) -> None:
        """The thread: one image at a time until there is None."""
        while not self._stopped and (job := jobs.get()) is not None:
            image_path, done = job
            try:
                outcome = self._open(image_path)
            except BaseException as error:  # the pipeline waits for an answer, whatever happened
                outcome = error
            if not self._stopped:
                done(outcome)

    def stop(self) -> None:
        """Kill the process: it holds nothing that could be lost."""
        with self._guard:
            self._stopped = True
            self._end(0.0)

    def _open(self, image_path: str) -> Outcome:
        self._give(image_path)
        start = time.monotonic()
        try:
            if self._connection.poll(self._timeout):
                return _outcome(self._connection.recv_bytes())
            self._replace(patience=0.0)
            reason = f"decoding took longer than {self._timeout:g} seconds and was stopped"
        except (EOFError, OSError):
            reason = f"the decoder crashed ({_cause(self._replace())})"
        return Opened(failure=ItemError("decode", reason), seconds=time.monotonic() - start)

    def _give(self, image_path: str) -> None:
        """Hand the path to a process that is ready. SetupError when there is none to be had."""
        last = 0
        for _ in range(STARTS):
            try:
                if not self._ready:
                    self._make_ready()
                self._connection.send(image_path)
                return
            except (EOFError, OSError):  # it died with nothing to do: no image's fault
                last = self._replace()
        raise SetupError(f"the decoder processes die before their first image ({_cause(last)})")

    def _make_ready(self) -> None:
        self._connection.send_bytes(self.opener)
        if not self._connection.poll(START_TIMEOUT):
            raise SetupError(f"a decoder process was not ready after {START_TIMEOUT:g} seconds")
        problem = self._connection.recv()
        if problem:
            raise SetupError(f"the decoder processes cannot be started: {problem}")
        self._ready = True

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        here, there = Pipe()
        command = [sys.executable, "-c", _START, json.dumps(sys.path), str(there.fileno()), *self._imports]
        with there, stop_signals_held():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                pass_fds=[there.fileno()],
            )
        return process, here

    def _replace(self, patience: float = 5.0) -> int:
        """A new process in place of one that is dying, or (no ``patience``, seconds) hangs; the old one's status."""
        with self._guard:
            status = self._end(0.0 if self._stopped else patience)
            if not self._stopped:
                self._ready = False
                self._process, self._connection = self._start()
        return status

    def _end(self, patience: float) -> int:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)  # what it dies of is worth reporting
        self._process.kill()
        status = self._process.wait()
        self._connection.close()
        return status


def _outcome(reply: bytes) -> Outcome:
    kind, content = pickle.loads(reply)  # noqa: S301 - of our own child
    if kind == "failed":
        stage, reason, seconds = content
        return Opened(failure=ItemError(stage, reason), seconds=seconds)
    assert isinstance(content, Opened | Exception)
    return content


def _cause(status: int) -> str:
    """A child's exit status in words."""
    return ending_of(status) + (", perhaps for lack of memory" if status == -signal.SIGKILL else "")


def serve(handle: int, imports: Sequence[str]) -> None:
    """The decoder process: open what comes over the socket ``handle`` until its other end is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    step_back()
    with Connection(handle) as connection, suppress(EOFError, ConnectionError):
        for name in imports:
            with suppress(Exception):  # the opener's own imports will say it
                import_module(name)
        if "cv2" in sys.modules:
            sys.modules["cv2"].setNumThreads(1)
        try:
            open_image = pickle.loads(connection.recv_bytes())  # noqa: S301 - of our own parent
        except EOFError:
            return
        except Exception as error:
            connection.send(one_line(error))
            return
        connection.send("")
        while True:
            image_path = connection.recv()
            # A decoder that hangs in an orphan would hang for ever.
            signal.alarm(int(DECODE_TIMEOUT) + 60)
            reply = _reply(open_image, image_path)
            signal.alarm(0)
            connection.send_bytes(reply)


def _reply(open_image: Callable[[str], Opened], image_path: str) -> bytes:
    reply: tuple[str, Any]
    try:
        opened = open_image(image_path)
        failure = opened.failure
        # An ItemError does not survive pickling: its constructor wants two arguments.
        reply = ("opened", opened) if failure is None else ("failed", (failure.stage, failure.reason, opened.seconds))
        return pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL)
    except HeatlensError as error:
        return pickle.dumps(("error", error), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # what the stage keeps of this image cannot be sent
        return pickle.dumps(("failed", ("decode", one_line(error), 0.0)), protocol=pickle.HIGHEST_PROTOCOL)
