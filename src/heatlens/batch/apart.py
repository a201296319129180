"""A function in a process of its own, so that the memory it took goes back to the system.

The child is a fresh interpreter (nothing is forked: threads and CUDA contexts do not survive that). Request
and answer travel over pipes; standard output and error are the parent's. Only the parent decides when to
stop: the child does not listen to signals, but ends when its request pipe closes, which is what the parent
does when it is stopped, and what the system does when the parent is killed. It then leaves by an exception,
so that temporary files are removed.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, TypeVar

from heatlens.batch.signals import SIGNALS, ending_of, stop_signals_held
from heatlens.errors import HeatlensError, SetupError, StoppedEarly

Result = TypeVar("Result")

# Seconds that a child has to clean up before it is killed. Slurm's own patience is 30 s by default.
GRACE_S = 8.0

# Bytes of input from which on a process of its own pays: starting one takes about a second.
LARGE = 64 << 20

_BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from heatlens.batch.apart import serve; serve(int(sys.argv[1]))"
)


class _ChildTraceback(Exception):
    """Where an unexpected error was raised: the child's traceback as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run_apart_if_large(files: Iterable[Path], function: Callable[..., Result], *args: Any) -> Result:
    """:func:`run_apart` where ``files``, which the function reads, are large; a call where they are not."""
    large = sum(path.stat().st_size for path in files) >= LARGE
    return run_apart(function, *args) if large else function(*args)


def run_apart(function: Callable[..., Result], *args: Any) -> Result:
    """``function(*args)`` in a child process; its result, or its exception with class and text.

    Function, arguments and result must be picklable. A child that dies without an answer is a SetupError.
    When an exception (StoppedEarly, out of a signal handler) interrupts the wait, the child is ended first.
    """
    request = pickle.dumps(sys.path) + pickle.dumps((function, args))
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as answers:
        try:
            with stop_signals_held():  # the child starts with them held, and is never killed by one
                child = _start(writing)
        finally:
            os.close(writing)
        try:
            _send(child, request)
            answer = answers.read()
        finally:
            code = _end(child)
    return _result(answer, code, getattr(function, "__name__", "a step"))


def _start(writing: int) -> subprocess.Popen[bytes]:
    command = [sys.executable or "python3", "-c", _BOOT, str(writing)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(writing,))


def _send(child: subprocess.Popen[bytes], request: bytes) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # it died already: the missing answer says so
        child.stdin.write(request)
        child.stdin.flush()


def _end(child: subprocess.Popen[bytes]) -> int:
    """Close the request pipe, which ends a child that is still at work; kill it when that takes too long."""
    assert child.stdin is not None
    with suppress(BrokenPipeError):
        child.stdin.close()
    try:
        return child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return child.returncode


def _result(answer: bytes, code: int, name: str) -> Any:
    try:
        kind, *content = pickle.loads(answer)  # noqa: S301 - our own child's
    except (EOFError, pickle.UnpicklingError):
        raise SetupError(f"a helper process ({name}) {_end_in_words(code)}") from None
    if kind == "result":
        return content[0]
    error, trace = content
    if isinstance(error, tuple):
        error = _rebuilt(*error)
    if isinstance(error, HeatlensError):
        raise error
    raise error from _ChildTraceback(trace)


def _end_in_words(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by the system, most likely because memory ran out; give the job more memory"
    if code < 0:
        return f"ended by {ending_of(code)}"
    return f"ended without an answer ({ending_of(code)}); its messages are above"


def _rebuilt(kind: type[HeatlensError], args: tuple[Any, ...], state: dict[str, Any]) -> HeatlensError:
    """An error of ours from its parts: some have constructors that take other things than the text."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


def serve(writing: int) -> None:
    """The child: read the request, work, answer. Called by the interpreter that :func:`run_apart` starts."""
    os.set_inheritable(writing, False)
    ending = threading.Event()
    _deaf_but_for(ending)
    requests = sys.stdin.buffer
    try:
        function, args = pickle.load(requests)  # noqa: S301 - our own parent's
        threading.Thread(target=_watch, args=(requests, ending), daemon=True).start()
        data = pickle.dumps(("result", function(*args)))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        data = pickle.dumps(("error", _picklable(error), traceback.format_exc()))
    with suppress(BrokenPipeError), os.fdopen(writing, "wb") as answers:
        answers.write(data)


def _deaf_but_for(ending: threading.Event) -> None:
    """Ignore stop signals; SIGINT raises StoppedEarly once ``ending`` is set."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if ending.is_set():
            raise StoppedEarly("stopped together with the process that asked for this")

    for number in SIGNALS:
        signal.signal(number, handle if number == signal.SIGINT else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _watch(requests: BinaryIO, ending: threading.Event) -> None:
    """Wait for the end of the request pipe; then end the work, by force when it does not end by itself."""
    requests.read()
    ending.set()
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)
    threading.Event().wait(GRACE_S - 1)
    os._exit(1)


def _picklable(error: BaseException) -> Any:
    if isinstance(error, HeatlensError):
        return type(error), error.args, dict(error.__dict__)
    try:
        return pickle.loads(pickle.dumps(error))  # noqa: S301 - does it survive the way?
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
