"""Progress: a bar on a terminal, otherwise one plain line every half minute, and ``progress.json`` for programs.

``shards/<index>-of-<count>/progress.json`` is replaced atomically every 15 s and at the end::

    {"state": "running" | "done" | "stopped" | "failed", "reason": "...",
     "host": ..., "pid": ..., "slurm_job": ..., "slurm_task": ..., "started": ..., "updated": ...,
     "stage": ..., "shard": 3, "shards": 8, "planned": {"images": ..., "heat_maps": ...},
     "finished_before": ..., "failed_before": ..., "total": ..., "made": ..., "failed": ...,
     "rate": ..., "eta_s": ..., "device_wait_share": ...,
     "plan": {"digest": ..., "rows": ..., "images": ..., "heat_maps": ...},
     "command": "...", "merge_command": "...", "results": "..."}

Times are unix seconds; ``total``, ``made`` and ``failed`` are heat maps of this call, ``planned`` is the whole
shard, ``plan`` the whole run; ``rate`` is in heat maps per second over the last minutes. ``state`` is what the
process last said: one that was killed still says "running", and its lock tells.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from heatlens.batch.lock import identity
from heatlens.errors import StoppedEarly, one_line
from heatlens.files import atomic_write

PROGRESS_NAME = "progress.json"
LINE_INTERVAL_S = 30.0
RECORD_INTERVAL_S = 15.0

# The rate looks back at least so long and over so many heat maps, and never further than the history.
WINDOW_S = 300.0
WINDOW_HEAT_MAPS = 20
HISTORY_S = 3600.0
_SAMPLE_S = 5.0

# Without a finished heat map for so long, the line says so.
_SILENCE_S = 180.0

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


@dataclass(frozen=True)
class ShardFacts:
    """What progress.json says beside the counts. ``shard``: (index, number of shards).

    ``images`` and ``heat_maps`` are the shard's, those with ``plan_`` the whole run's; ``finished_before`` counts
    heat maps that earlier calls settled (``failed_before`` of them as failures). ``command`` continues the run in
    a shell: with SHARD_INDEX and NUM_SHARDS left out, because a reader sets both in front of it. ``merge_command``
    writes the tables; without one, ``command`` does so for any finished shard.
    """

    results: Path
    stage: str
    shard: tuple[int, int]
    images: int
    heat_maps: int
    finished_before: int
    failed_before: int
    plan_digest: str
    plan_rows: int
    plan_images: int
    plan_heat_maps: int
    command: str
    merge_command: str = ""

    def as_json(self) -> dict[str, Any]:
        """The part of progress.json that stays the same."""
        return {
            "stage": self.stage,
            "shard": self.shard[0],
            "shards": self.shard[1],
            "planned": {"images": self.images, "heat_maps": self.heat_maps},
            "finished_before": self.finished_before,
            "failed_before": self.failed_before,
            "plan": {
                "digest": self.plan_digest,
                "rows": self.plan_rows,
                "images": self.plan_images,
                "heat_maps": self.plan_heat_maps,
            },
            "command": self.command,
            "merge_command": self.merge_command,
            "results": str(self.results),
        }


class Rate:
    """Heat maps per second over the last minutes; since the start while there is no such history."""

    def __init__(self, now: float) -> None:
        self._samples = deque([(now, 0)])

    def note(self, now: float, done: int) -> None:
        """``done`` heat maps are finished at ``now`` (seconds of any clock)."""
        if now - self._samples[-1][0] < _SAMPLE_S:
            return
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] > HISTORY_S:
            self._samples.popleft()

    def per_second(self, now: float, done: int) -> float:
        """The rate at ``now``, 0 when nothing was finished."""
        then, before = self._samples[0]
        for moment, count in reversed(self._samples):
            if now - moment >= WINDOW_S and done - count >= WINDOW_HEAT_MAPS:
                then, before = moment, count
                break
        return (done - before) / (now - then) if now > then else 0.0


class Progress:
    """Counts heat maps; use as a context manager. ``total`` heat maps are to be made in this call.

    Any thread may call :meth:`advance`. Everything that is shown or written is done by a thread of its own, so
    that a slow terminal or file server holds nobody up; nothing that goes wrong there ends a run. ``record`` is
    the progress.json to keep, with ``facts``.
    """

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        interval: float = LINE_INTERVAL_S,
        *,
        record: Path | None = None,
        facts: ShardFacts | None = None,
        clock: Callable[[], float] = time.monotonic,
        background: bool = True,
    ) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self._explained_s = self._waited_s = 0.0
        self._stream = stream or sys.stderr
        self._interval = interval
        self._record = record
        self._facts = facts.as_json() if facts is not None else {}
        self._clock = clock
        self._background = background
        self._counting = threading.Lock()
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._bar: Any = None
        self._last_line = self._last_record = self._last_done = self._clock()
        self._rate = Rate(self._last_done)
        self._started = time.time()

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, file=self._stream, dynamic_ncols=True, bar_format=_BAR)
        self._write("running")
        if self._background:
            self._thread = threading.Thread(target=self._keep_showing, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._refresh_bar()
                self._bar.close()
        self._write(_state_after(error), one_line(error) if error is not None else "")

    def advance(self, made: int, failed: int, seconds: Mapping[str, float] | None = None) -> None:
        """``made`` heat maps are written, ``failed`` are recorded as failures.

        ``seconds`` are their image's clocks as the ledger has them: ``explain``, and ``wait``, the device's.
        """
        with self._counting:
            self.done += made + failed
            self.failed += failed
            self._last_done = self._clock()
            if seconds is not None:
                self._explained_s += seconds.get("explain", 0.0)
                self._waited_s += seconds.get("wait", 0.0)

    def tick(self) -> None:
        """Show and write what is due. The thread does this every second."""
        now = self._clock()
        self._rate.note(now, self.done)
        with suppress(OSError, ValueError):  # the terminal or the pipe has gone
            if self._bar is not None:
                self._refresh_bar()
            elif now - self._last_line >= self._interval:
                self._last_line = now
                print(self.line(), file=self._stream, flush=True)
        if now - self._last_record >= RECORD_INTERVAL_S:
            self._last_record = now
            self._write("running")

    def line(self) -> str:
        """``120/1000 heat maps, 2 failed, 3.1/s, 4 min left``."""
        return f"{self.done}/{self.total} heat maps, {self.failed} failed, {self._pace()}"

    def rate(self) -> float:
        """Heat maps per second over the last minutes."""
        return self._rate.per_second(self._clock(), self.done)

    def device_wait_share(self) -> float | None:
        """The share of its time, 0..1, that the device waited for images; None while nobody knows."""
        together = self._explained_s + self._waited_s
        return round(self._waited_s / together, 4) if together > 0 else None

    def _pace(self) -> str:
        rate, silence = self.rate(), self._clock() - self._last_done
        left = f", {duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        silent = f" (none for {duration(silence)})" if silence >= _SILENCE_S else ""
        return f"{show_rate(rate)}{left}{silent}"

    def _keep_showing(self) -> None:
        while not self._ended.wait(1.0):
            self.tick()

    def _refresh_bar(self) -> None:
        self._bar.n = self.done
        failed = f", {self.failed} failed" if self.failed else ""
        self._bar.set_postfix_str(f"{self._pace()}{failed}", refresh=False)
        self._bar.refresh()

    def _write(self, state: str, reason: str = "") -> None:
        """Replace progress.json. That it could not be written must not end a run."""
        if self._record is None:
            return
        with self._writing, suppress(OSError, ValueError):
            if state == "running" and self._ended.is_set():
                return  # the last word is the end's
            atomic_write(self._record, json.dumps(self._content(state, reason)) + "\n")

    def _content(self, state: str, reason: str) -> dict[str, Any]:
        rate, me = self.rate(), identity()
        with self._counting:
            done, failed = self.done, self.failed
        return {
            "state": state,
            "reason": reason,
            **{name: me[name] for name in ("host", "pid", "slurm_job", "slurm_task")},
            "started": round(self._started, 1),
            "updated": round(time.time(), 1),
            **self._facts,
            "total": self.total,
            "made": done - failed,
            "failed": failed,
            "rate": round(rate, 4),
            "eta_s": round((self.total - done) / rate, 1) if rate > 0 else None,
            "device_wait_share": self.device_wait_share(),
        }


def _state_after(error: BaseException | None) -> str:
    if error is None:
        return "done"
    return "stopped" if isinstance(error, (StoppedEarly, KeyboardInterrupt)) else "failed"


def show_rate(rate: float) -> str:
    """``48/s``, ``3.1/s`` or, below one in ten seconds, ``3.5/min``."""
    if 0 < rate < 0.1:
        return f"{rate * 60:.2g}/min"
    return f"{rate:.0f}/s" if rate >= 9.95 else f"{rate:.1f}/s"


def duration(seconds: float) -> str:
    """A duration as people say it: ``40 s``, ``12 min``, ``6.9 h``, ``3.2 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
