"""The runner: what is asked, minus what is finished, image by image, then the merge.

Order of a call: what is asked and whether it fits the results folder, the plan, the shard's lock, what is
outstanding; only then the model. An image is the unit of work: its files are written, then its line in the
ledger. A call with nothing outstanding loads no model.

Exit codes: 0 done, 2 wrong configuration or data set, 3 more failures than MAX_FAILURE_RATE, 4 the
environment cannot run it, 75 stopped by a signal (SIGTERM, SIGINT, SIGUSR1, SIGUSR2) and resumable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from heatlens.batch.closing import close_run, stop_run
from heatlens.batch.committer import Committer, Done
from heatlens.batch.fingerprint import ENGINE, check_or_store
from heatlens.batch.finished import FinishedKeys
from heatlens.batch.folder import Listing, sweep, writing
from heatlens.batch.job import Job, prepare
from heatlens.batch.ledger import LEDGER_NAME, LedgerWriter
from heatlens.batch.lock import ShardLock
from heatlens.batch.markers import remove_marker
from heatlens.batch.outstanding import Outstanding
from heatlens.batch.parts import Parts
from heatlens.batch.planning import sweep_plans
from heatlens.batch.production import production
from heatlens.batch.progress import PROGRESS_NAME, Progress, ShardFacts
from heatlens.batch.protocols import Stage
from heatlens.batch.retry import run_command
from heatlens.batch.signals import StopSignals
from heatlens.errors import StoppedEarly

if TYPE_CHECKING:
    from heatlens.config import Settings


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
        with ShardLock(job.shard_folder) as lock:
            done = Done()
            try:
                _work(job, lock, stop, done)
                return close_run(job, stop, done)
            except StoppedEarly as error:
                print(f"\n{error}", flush=True)
                return stop_run(job, done)


def _work(job: Job, lock: ShardLock, stop: StopSignals, done: Done) -> None:
    """Make what is outstanding in this shard. The lock is held."""
    settings, listing = job.settings, Listing(job.results)
    with writing(job.results), stop.interruptible():
        todo = Outstanding(
            job.plan,
            job.shard,
            FinishedKeys.read(job.results),
            listing,
            job.stage,
            retry_failed=settings.retry_failed,
            is_there=lambda image_path: job.request.parts.is_there(job.request.image_root, image_path),
        )
    sweep(job.results, listing.temporaries, idle={job.shard_folder.name})
    sweep_plans(job.results)
    done.found(todo.planned, todo.heat_maps, todo.failed_before)
    stop.check()
    if not todo.images:
        return
    with writing(job.results):
        remove_marker(job.shard_folder)
    print(f"{todo.heat_maps} heat maps of {todo.images} images to make; loading the model", flush=True)
    _make(job, lock, stop, todo, done)


def _make(job: Job, lock: ShardLock, stop: StopSignals, todo: Outstanding, done: Done) -> None:
    start = time.monotonic()
    with production(job.request, job.results, stop) as ready:
        print(f"model loaded in {time.monotonic() - start:.1f} s", flush=True)
        with writing(job.results):
            check_or_store(job.results, ENGINE, ready.explainer.settings())
        record = job.shard_folder / PROGRESS_NAME
        with (
            LedgerWriter(job.shard_folder / LEDGER_NAME) as ledger,
            Progress(todo.heat_maps, record=record, facts=_facts(job, done)) as progress,
        ):
            committer = Committer(job, ledger, lock, progress, done)
            ready.make(todo, committer)
            committer.close()


def _facts(job: Job, done: Done) -> ShardFacts:
    plan = job.plan
    return ShardFacts(
        results=job.results,
        stage=job.settings.stage,
        shard=job.shard,
        images=plan.shard_size(*job.shard)[0],
        heat_maps=done.planned,
        finished_before=done.planned - done.outstanding,
        failed_before=done.failed_before,
        plan_digest=plan.digest,
        plan_rows=plan.rows,
        plan_images=plan.image_count,
        plan_heat_maps=plan.heat_map_count,
        command=run_command(job.settings),
    )


@contextmanager
def umask(octal: str) -> Iterator[None]:
    """Results are derived from restricted data: nobody else may read them unless UMASK says so."""
    before = os.umask(int(octal, 8))
    try:
        yield
    finally:
        os.umask(before)
