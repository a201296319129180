"""From finished images to the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from heatlens.batch.folder import writing
from heatlens.batch.ledger import ImageRecord, LedgerWriter
from heatlens.batch.lock import ShardLock
from heatlens.batch.progress import Progress
from heatlens.errors import SetupError

if TYPE_CHECKING:
    from heatlens.batch.job import Job

# So many failing images before the first success are a wrong mount, not bad data.
HOPELESS = 20


@dataclass
class Done:
    """Heat maps of this shard: what the call found finished, and what it added."""

    planned: int = 0
    outstanding: int = 0
    failed_before: int = 0
    made: int = 0
    failed: int = 0

    def found(self, planned: int, outstanding: int, failed: int) -> None:
        """Before the work: how many of the ``planned`` are ``outstanding``, and how many are finished failures."""
        self.planned, self.outstanding, self.failed_before = planned, outstanding, failed

    @property
    def all_made(self) -> int:
        """Heat maps that are there."""
        return self.planned - self.outstanding - self.failed_before + self.made

    @property
    def all_failed(self) -> int:
        """Heat maps that are recorded as failures."""
        return self.failed_before + self.failed

    @property
    def missing(self) -> int:
        """Heat maps still to be made."""
        return self.outstanding - self.made - self.failed


class Committer:
    """Puts records into the ledger; holds failures back until something has succeeded.

    When the first images all fail, IMAGE_ROOT is wrong. Failures that were recorded then would count as
    finished work once it is right. Images are finished in any order, so one that was opened and is still being
    explained or written is waited for. :meth:`commit` is called by one thread at a time.
    """

    def __init__(self, job: Job, ledger: LedgerWriter, lock: ShardLock, progress: Progress, done: Done) -> None:
        self._job = job
        self._ledger = ledger
        self._lock = lock
        self._progress = progress
        self._done = done
        self._held: list[ImageRecord] = []
        self._succeeded = False
        self._opened = 0
        self._opened_held = 0

    def opened(self) -> None:
        """An image could be opened; its record will come. Called by the main thread."""
        self._opened += 1

    def commit(self, record: ImageRecord) -> None:
        """The image's files are durable; now its line is. SetupError when the shard's lock was lost."""
        self._held.append(record)
        self._opened_held += "explain" in record.seconds
        self._succeeded = self._succeeded or not record.failed
        if self._succeeded:
            self.close()
        elif len(self._held) >= HOPELESS and self._opened == self._opened_held:
            raise SetupError(self._hopeless())

    def close(self) -> None:
        """Write what is held back."""
        with writing(self._job.results):
            while self._held:
                self._lock.check()
                record = self._held[0]
                self._ledger.append(record)
                del self._held[0]
                self._count(record)

    def _count(self, record: ImageRecord) -> None:
        failed = sum(1 for heat_map in record.heat_maps if not heat_map.ok)
        made = len(record.heat_maps) - failed
        self._done.made += made
        self._done.failed += failed
        self._progress.advance(made, failed, record.seconds)

    def _hopeless(self) -> str:
        last = self._held[-1].heat_maps[0]
        return (
            f"the first {HOPELESS} images all failed, so nothing was recorded. "
            f"Last: {last.stage}: {last.reason}\n"
            f"Is IMAGE_ROOT={self._job.request.image_root} the right folder, and is it mounted here?"
        )
