"""Progress for people: a bar on a terminal, otherwise one plain line every half minute at most."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

_LINE_INTERVAL_S = 30.0


class Progress:
    """Counts heat maps; use as a context manager. ``total`` heat maps are to be made in this call."""

    def __init__(self, total: int, stream: TextIO | None = None, interval: float = _LINE_INTERVAL_S) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self._stream = stream or sys.stderr
        self._interval = interval
        self._start = self._last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, unit="map", file=self._stream, dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, made: int, failed: int) -> None:
        """An image is finished: ``made`` heat maps are written, ``failed`` are recorded as failures."""
        self.done += made + failed
        self.failed += failed
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.failed} failed" if self.failed else "", refresh=False)
            self._bar.update(made + failed)
            return
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            print(self.line(now - self._start), file=self._stream, flush=True)

    def line(self, seconds: float) -> str:
        """``120/1000 heat maps, 2 failed, 3.1/s, 4 min left`` after ``seconds`` of work."""
        rate = self.done / seconds if seconds > 0 else 0.0
        left = f", {_duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        return f"{self.done}/{self.total} heat maps, {self.failed} failed, {rate:.2g}/s{left}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
