"""Stopping in good order: SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 end a run with exit code 75.

Slurm sends SIGTERM (or the signal of ``--signal``) some seconds before it kills. The image in flight is
dropped if it is being explained, which can take minutes on a CPU, and finished if its files are being
written.
Ctrl-C means the same, because the run can be continued in the same way; a second Ctrl-C ends at once.

With ``HEATLENS_WATCH_STDIN=1`` the end of standard input is a SIGTERM, too: a container's launcher holds its other
end, so that the work does not go on when the launcher was killed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from heatlens.errors import StoppedEarly

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


WATCH_STDIN = "HEATLENS_WATCH_STDIN"


def ending_of(status: int) -> str:
    """A child's exit status in words: ``exit code 1``, ``signal SIGSEGV``."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """A child that is started inside has them blocked: one that comes before it can ignore them does not kill it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignals:
    """Remembers a stop signal; use as a context manager around a run (a no-op outside the main thread)."""

    def __init__(self) -> None:
        self.received = ""
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
            if os.environ.get(WATCH_STDIN) == "1":
                threading.Thread(target=self._watch_stdin, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def check(self) -> None:
        """Raise StoppedEarly when a signal has come."""
        if self.received:
            raise StoppedEarly(f"stopped by {self.received}; the same command continues")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises StoppedEarly at once: only around work that leaves nothing half-done."""
        self.check()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False
        # A library may have swallowed the exception.
        self.check()

    def _watch_stdin(self) -> None:
        """Not ``sys.stdin.read``: its lock would be held when the interpreter ends."""
        with suppress(OSError):
            while os.read(0, 1 << 12):
                pass
        if self._before:  # the run is still going on
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        again = bool(self.received)
        self.received = signal.Signals(number).name
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._interruptible:
            self._interruptible = False  # a second signal must not interrupt the clean-up
            self.check()
