"""The runner: what is asked, minus what is finished, image by image, then the merge.

Order of a call: reader and plan, results folder, fingerprint, the shard's lock, what is outstanding; only
then the model. An image is the unit of work: its files are written, then its line in the ledger. A call with
nothing outstanding loads no model.

Exit codes: 0 done, 2 wrong configuration or data set, 3 more failures than MAX_FAILURE_RATE, 4 the
environment cannot run it, 75 stopped by a signal (SIGTERM, SIGINT, SIGUSR1, SIGUSR2) and resumable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.batch.closing import close_run
from heatlens.batch.fingerprint import ENGINE, FINGERPRINT, check_or_store, data_digest, make_fingerprint
from heatlens.batch.folder import Listing, claim, sweep, writing
from heatlens.batch.ledger import LEDGER_NAME, ImageRecord, LedgerWriter, read_finished
from heatlens.batch.lock import ShardLock, describe, live_locks
from heatlens.batch.outstanding import outstanding
from heatlens.batch.parts import Parts
from heatlens.batch.progress import Progress
from heatlens.batch.protocols import Explainer, Stage
from heatlens.batch.signals import StopSignals
from heatlens.batch.worker import ImageWorker, Opened
from heatlens.errors import DataSetError, SetupError, StoppedEarly

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.questions.plan import ImageTask, Plan

# So many failing images before the first success are a wrong mount, not bad data.
HOPELESS = 20


@dataclass(frozen=True)
class Job:
    """A call that is ready to work: everything but the model."""

    settings: Settings
    stage: Stage
    parts: Parts
    plan: Plan
    image_root: Path
    fingerprint: dict[str, Any]
    weights: dict[str, Any]
    started: float

    @property
    def results(self) -> Path:
        """The results folder."""
        return self.settings.results_dir

    @property
    def shard_folder(self) -> Path:
        """This process's part of ``shards/``."""
        return self.results / "shards" / f"{self.settings.shard_index:04d}-of-{self.settings.num_shards:04d}"


def run(settings: Settings, stage: Stage, parts: Parts | None = None) -> int:
    """Run one shard of ``stage`` and merge when it is the last; returns the exit code.

    HeatlensError (with its own exit code) for whatever keeps the run from working.
    """
    parts = parts or Parts(settings)
    with umask(settings.umask), StopSignals() as stop:
        try:
            job = prepare(settings, stage, parts, stop)
        except StoppedEarly as error:
            print(error, flush=True)
            return error.exit_code
        with ShardLock(job.shard_folder):
            try:
                _work(job, stop)
            except StoppedEarly as error:
                print(f"\n{error}", flush=True)
                return close_run(job, stopped=True)
            return close_run(job)


def prepare(settings: Settings, stage: Stage, parts: Parts, stop: StopSignals) -> Job:
    """Everything that can be wrong before the model is loaded, cheapest first."""
    started = time.monotonic()
    for line in settings.announcements:
        print(line)
    with stop.interruptible():
        reader = parts.reader()
        image_root = parts.image_root(reader)
        plan = parts.plan(reader, image_root)
        if plan.rows == 0:
            raise DataSetError(f"no row of {settings.dataset_path} is left by SPLIT, VIEW and QUESTION_TYPES")
        weights = dict(parts.weights())
        precision, batch_size = parts.resolved()
        fingerprint = make_fingerprint(
            stage=stage.name,
            settings=_fingerprint_settings(settings),
            data_digest=data_digest(reader.files()),
            weights=weights,
            precision=precision,
            batch_size=batch_size,
        )
    moved = claim(settings.results_dir, overwrite=settings.overwrite)
    if moved is not None:
        print(f"OVERWRITE=true: the earlier results are now in {moved}")
    with writing(settings.results_dir):
        check_or_store(settings.results_dir, FINGERPRINT, fingerprint)
    _refuse_other_shard_count(settings)
    return Job(settings, stage, parts, plan, image_root, fingerprint, weights, started)


def _fingerprint_settings(settings: Settings) -> dict[str, Any]:
    from heatlens.config import KEYS

    return {name: getattr(settings, name.lower()) for name, key in KEYS.items() if key.in_fingerprint}


def _refuse_other_shard_count(settings: Settings) -> None:
    for folder, holder in live_locks(settings.results_dir).items():
        if not folder.endswith(f"-of-{settings.num_shards:04d}"):
            raise SetupError(
                f"NUM_SHARDS={settings.num_shards}, but shard {folder} of {settings.results_dir} is being "
                f"worked on by {describe(holder)}; two ways of sharing the work would do it twice"
            )


def _work(job: Job, stop: StopSignals) -> None:
    """Make what is outstanding in this shard. The lock is held."""
    settings = job.settings
    listing = Listing(job.results)
    with writing(job.results):
        todo = outstanding(
            job.plan.shard(settings.shard_index, settings.num_shards),
            read_finished(job.results),
            listing,
            job.stage,
            retry_failed=settings.retry_failed,
            is_there=lambda image_path: job.parts.is_there(job.image_root, image_path),
        )
        sweep(job.results, listing)
    stop.check()
    if not todo:
        return
    total = sum(len(task.heat_maps) for task in todo)
    print(f"{total} heat maps of {len(todo)} images to make; loading the model", flush=True)
    with stop.interruptible():
        explainer = job.parts.explainer()
    try:
        with writing(job.results):
            check_or_store(job.results, ENGINE, explainer.settings())
        with LedgerWriter(job.shard_folder / LEDGER_NAME) as ledger, Progress(total) as progress:
            _make_all(job, explainer, todo, _Committer(job, ledger, progress), stop)
    finally:
        explainer.close()


def _make_all(
    job: Job, explainer: Explainer, todo: Sequence[ImageTask], committer: _Committer, stop: StopSignals
) -> None:
    worker = ImageWorker(
        job.stage, explainer, lambda path: job.parts.open_film(job.image_root, path), job.results, stop
    )
    threaded = job.settings.num_workers > 0
    with closing(_read_ahead(todo, worker.open, threaded=threaded)) as images:
        for task, opened in images:
            stop.check()
            committer.commit(worker.finish(task, opened))
    committer.close()


class _Committer:
    """Puts records into the ledger; holds failures back until something has succeeded.

    When the first images all fail, IMAGE_ROOT is wrong. Failures that were recorded then would count as
    finished work once it is right.
    """

    def __init__(self, job: Job, ledger: LedgerWriter, progress: Progress) -> None:
        self._job = job
        self._ledger = ledger
        self._progress = progress
        self._held: list[ImageRecord] = []
        self._succeeded = False

    def commit(self, record: ImageRecord) -> None:
        """The image's files are durable; now its line is."""
        failed = sum(1 for heat_map in record.heat_maps if not heat_map.ok)
        self._progress.advance(len(record.heat_maps) - failed, failed)
        self._held.append(record)
        self._succeeded = self._succeeded or not record.failed
        if self._succeeded:
            self.close()
        elif len(self._held) >= HOPELESS:
            raise SetupError(self._hopeless())

    def close(self) -> None:
        """Write what is held back."""
        with writing(self._job.results):
            for record in self._held:
                self._ledger.append(record)
        self._held.clear()

    def _hopeless(self) -> str:
        last = self._held[-1].heat_maps[0]
        return (
            f"the first {HOPELESS} images all failed, so nothing was recorded. "
            f"Last: {last.stage}: {last.reason}\n"
            f"Is IMAGE_ROOT={self._job.image_root} the right folder, and is it mounted here?"
        )


def _read_ahead(
    tasks: Sequence[ImageTask], read: Callable[[ImageTask], Opened], *, threaded: bool
) -> Generator[tuple[ImageTask, Opened], None, None]:
    """Each task with its opened image; while one is explained, a thread decodes the next."""
    if not threaded:
        yield from ((task, read(task)) for task in tasks)
        return
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
    try:
        ahead = pool.submit(read, tasks[0])
        for position, task in enumerate(tasks):
            opened = ahead.result()
            if position + 1 < len(tasks):
                ahead = pool.submit(read, tasks[position + 1])
            yield task, opened
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def umask(octal: str) -> Iterator[None]:
    """Results are derived from restricted data: nobody else may read them unless UMASK says so."""
    before = os.umask(int(octal, 8))
    try:
        yield
    finally:
        os.umask(before)
