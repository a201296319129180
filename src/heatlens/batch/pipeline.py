"""The pipeline of a shard: decoders read ahead, this thread explains, writer threads make, encode and write.

One thread, the caller's, decides everything; the others only report to its inbox, so that no lock is held where a
stop signal may strike. All queues are bounded: so many images opened ahead, so many heat maps waiting to be
written; where writing is slower, the device waits for it, and where decoding is, for that (the ``wait`` clock).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from heatlens.batch.ledger import HeatMapRecord, ImageRecord
from heatlens.batch.openers import Decoders, Opened, Outcome, step_back
from heatlens.batch.signals import StopSignals
from heatlens.batch.worker import Answers, ImageWorker, all_failed, peak_rss_mib
from heatlens.errors import StoppedEarly

if TYPE_CHECKING:
    from heatlens.questions.plan import ImageTask

QUEUED = 3
"""heat maps per writer, made or waiting to be, at which the device waits; a stop signal has to wait for them"""


class Commits(Protocol):
    """Where finished images go."""

    def opened(self) -> None:
        """An image could be opened: a record with an ``explain`` clock will follow. From the main thread."""
        ...

    def commit(self, record: ImageRecord) -> None:
        """All files of the image are durable. From one thread at a time, in no particular order."""
        ...


def make_all(
    tasks: Iterable[ImageTask],
    worker: ImageWorker,
    commits: Commits,
    stop: StopSignals,
    *,
    decoders: Decoders,
    writers: int,
) -> None:
    """Make every heat map of ``tasks`` and commit each image once all of its files are durable.

    A stop signal raises StoppedEarly: what was
    explained by then is written and committed first. Any other error, here or in a thread, ends the work at once:
    what was not begun is dropped, and the first error rises.
    """
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)  # the writers are threads enough
    pipeline = _Pipeline(tasks, worker, commits, stop, decoders, writers)
    try:
        pipeline.run()
    except StoppedEarly:
        pipeline.finish()
        raise
    except BaseException:
        pipeline.abandon()
        raise
    pipeline.finish()


@dataclass
class _Slot:
    """An image that is being opened or waits for the device."""

    task: ImageTask
    opened: Opened | None = None


@dataclass
class _Work:
    """An image whose heat maps are being made. ``done`` is called by the writers, ``record`` by the last of them."""

    task: ImageTask
    opened: Opened
    answers: Answers
    seconds: dict[str, float]
    records: dict[int, HeatMapRecord] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def done(self, position: int, record: HeatMapRecord, seconds: float) -> bool:
        """Keep a heat map's record; was it the last one?"""
        with self.guard:
            self.records[position] = record
            self.seconds["write"] += seconds
            return len(self.records) == len(self.task.heat_maps)

    def record(self) -> ImageRecord:
        """The image's line of the ledger."""
        records = tuple(self.records[position] for position in range(len(self.task.heat_maps)))
        return ImageRecord(self.task.image_path, records, self.opened.statistics, self.seconds, peak_rss_mib())


class _Written(Enum):
    """Message of a writer: one less in its queue."""

    HEAT_MAP = auto()
    FAILED_IMAGE = auto()


# Messages: (slot's number, what came of its image), or one of the writers'.
_Message = tuple[int, Outcome] | _Written


class _Pipeline:
    """The state of :func:`make_all`. Everything without an underscore in front is called by the main thread."""

    def __init__(
        self,
        tasks: Iterable[ImageTask],
        worker: ImageWorker,
        commits: Commits,
        stop: StopSignals,
        decoders: Decoders,
        writers: int,
    ) -> None:
        self._tasks = enumerate(task for task in tasks if task.heat_maps)
        self._worker, self._stop, self._decoders = worker, stop, decoders
        self._commits = commits
        self._committing = threading.Lock()
        self._group = max(1, worker.explainer.group)
        # Beyond the group that is next: one image per decoder, and one that is ready.
        self._ahead = self._group + (decoders.readers + 1 if decoders.readers else 0)
        self._slots: dict[int, _Slot] = {}
        self._exhausted = False
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._errors: list[BaseException] = []
        self._most_queued = QUEUED * max(1, writers)
        self._queued = dict.fromkeys(_Written, 0)
        self._pool = ThreadPoolExecutor(max(1, writers), thread_name_prefix="write", initializer=step_back)

    def run(self) -> None:
        """Until there is no task left; writers may still be at work then."""
        while group := self.next_group():
            start = time.monotonic()
            answers = self._worker.explain([(slot.task, opened) for slot, opened, _ in group])
            share = (time.monotonic() - start) / len(group)
            for (slot, opened, waited), mine in zip(group, answers, strict=True):
                seconds = {"read": opened.seconds, "explain": share, "write": 0.0, "wait": waited}
                self.write(_Work(slot.task, opened, mine, seconds))

    def next_group(self) -> list[tuple[_Slot, Opened, float]]:
        """The images to explain next, each with its share of the time that was waited; empty at the end."""
        start = time.monotonic()
        while True:
            self._read_inbox()
            self._fill()
            ready = [number for number, slot in self._slots.items() if slot.opened is not None][: self._group]
            wanted = min(self._group, len(self._slots))
            if not wanted and self._exhausted:
                return []
            if wanted and len(ready) == wanted and self._queued[_Written.HEAT_MAP] < self._most_queued:
                share = (time.monotonic() - start) / wanted
                slots = [self._slots.pop(number) for number in ready]
                return [(slot, slot.opened, share) for slot in slots if slot.opened is not None]
            with self._stop.interruptible():
                message = self._inbox.get()
            self._take(message)

    def write(self, work: _Work) -> None:
        """Hand an explained image to the writers."""
        for position in range(len(work.task.heat_maps)):
            self._queue(_Written.HEAT_MAP, partial(self._make, work, position))

    def finish(self) -> None:
        """Wait for the writers; the first error of any of them rises."""
        self._pool.shutdown(wait=True)
        self._raise_errors()

    def abandon(self) -> None:
        """Drop what no writer has begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        """Have images opened, as far ahead as is allowed; failed ones count until they are on record."""
        while not self._exhausted and len(self._slots) + self._queued[_Written.FAILED_IMAGE] < self._ahead:
            self._stop.check()
            number, task = next(self._tasks, (-1, None))
            if task is None:
                self._exhausted = True
                return
            self._slots[number] = _Slot(task)
            with self._stop.interruptible():
                self._decoders.submit(task.image_path, partial(self._report, number))

    def _report(self, number: int, outcome: Outcome) -> None:
        """Called by a decoder's thread."""
        self._inbox.put((number, outcome))

    def _read_inbox(self) -> None:
        self._stop.check()
        self._raise_errors()
        while True:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            self._take(message)

    def _take(self, message: _Message) -> None:
        self._raise_errors()
        if isinstance(message, _Written):
            self._queued[message] -= 1
            return
        number, outcome = message
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome.failure is None:
            self._slots[number].opened = outcome
            self._commits.opened()
            return
        record = all_failed(self._slots.pop(number).task, outcome.failure, {"read": outcome.seconds})
        self._queue(_Written.FAILED_IMAGE, partial(self._commit_alone, record))

    def _raise_errors(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _queue(self, kind: _Written, step: Callable[[], None]) -> None:
        self._queued[kind] += 1
        self._pool.submit(self._guarded, kind, step)

    def _guarded(self, kind: _Written, step: Callable[[], None]) -> None:
        """One step of a writer. Its error ends the run; steps that come after it do nothing."""
        if self._errors:
            return
        try:
            step()
        except BaseException as error:
            self._errors.append(error)
        self._inbox.put(kind)

    def _make(self, work: _Work, position: int) -> None:
        start = time.monotonic()
        heat_map = work.task.heat_maps[position]
        record = self._worker.make(work.opened.view, heat_map, work.answers[heat_map.prompt])
        if work.done(position, record, time.monotonic() - start):
            self._commit_alone(work.record())

    def _commit_alone(self, record: ImageRecord) -> None:
        with self._committing:
            self._commits.commit(record)
