"""The end of a call: the shard's marker, the merge when all shards are done, ``run.json``, a few lines for people."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from heatlens.batch.apart import run_apart_if_large
from heatlens.batch.folder import sweep, writing
from heatlens.batch.ledger import ledger_paths
from heatlens.batch.lock import WaitingLock, clear_stale
from heatlens.batch.markers import finished_shards, remove_marker, shard_name, write_marker
from heatlens.batch.merge import FAILURES, MergeResult, merge
from heatlens.batch.retry import retry_command
from heatlens.batch.run_record import RUN_RECORD, RunRecord, finished_before, write_run_record
from heatlens.batch.tables import index_of
from heatlens.errors import EXIT_FAILURES, EXIT_OK, EXIT_STOPPED

if TYPE_CHECKING:
    from heatlens.batch.committer import Done
    from heatlens.batch.job import Job
    from heatlens.batch.signals import StopSignals

MERGE_FOLDER = Path("shards/merge")


def close_run(job: Job, stop: StopSignals, done: Done) -> int:
    """Nothing of this shard is outstanding any more: leave its marker, and merge if it was the last one."""
    if (code := _nothing_to_do(job)) is not None:
        clear_stale(job.results / MERGE_FOLDER)
        return code
    index, count = job.shard
    with writing(job.results):
        write_marker(job.shard_folder, job.plan.digest, made=done.all_made, failed=done.all_failed)
        finished = finished_shards(job.results, job.plan.digest, count)
    if len(finished) < count:
        print(
            f"shard {index} of {count} is finished: {done.all_made} heat maps, {done.all_failed} failures. "
            f"{_unfinished(finished, count)}; the shard that finishes last writes {index_of(job.stage.name)}"
        )
        return EXIT_OK
    return merge_run(job, stop)


def stop_run(job: Job, done: Done) -> int:
    """A signal ended the work: no tables, because they would not be complete.

    Only a run of one shard writes run.json here; of several, a slow one could overwrite the merge's.
    """
    if not done.planned:
        print("stopped before anything was changed; run the same command again")
        return EXIT_STOPPED
    if job.settings.num_shards == 1:
        numbers = {
            "rows": job.plan.rows,
            "bad_rows": job.plan.bad_row_count,
            "images": job.plan.image_count,
            "heat_maps": job.plan.heat_map_count,
            "made": done.all_made,
            "failed": done.all_failed,
            "missing": done.missing,
        }
        _record(job, RunRecord("partial", EXIT_STOPPED, numbers, (), (), {}))
    print(f"{done.all_made} heat maps are finished, {done.missing} are missing; run the same command again")
    return EXIT_STOPPED


def merge_run(job: Job, stop: StopSignals) -> int:
    """Tables and run.json of a run whose shards are all finished. Idempotent; of two processes one waits."""
    with WaitingLock(job.results / MERGE_FOLDER, purpose="the tables"):
        if (code := _nothing_to_do(job)) is not None:
            return code
        with writing(job.results), stop.interruptible():
            result = _merge(job)
        if not result.complete:
            return _say_missing(job, result)
        return _close_merged(job, result)


def merge_only(job: Job, stop: StopSignals) -> int:
    """``heatlens merge``: the tables if every shard is finished; otherwise which are not, and exit code 75."""
    _, count = job.shard
    finished = finished_shards(job.results, job.plan.digest, count)
    if len(finished) < count:
        print(f"{_unfinished(finished, count)}; run them with the same command and SHARD_INDEX, then merge again")
        return EXIT_STOPPED
    return merge_run(job, stop)


def _merge(job: Job) -> MergeResult:
    arguments = (job.plan, job.results, job.stage, retry_command(job.settings))
    return run_apart_if_large(ledger_paths(job.results), merge, *arguments)


def _close_merged(job: Job, result: MergeResult) -> int:
    _, count = job.shard
    finished = finished_shards(job.results, job.plan.digest, count)
    code = _exit_code(job, result.counts["failed"], result.counts["made"])
    warnings = run_warnings(job, result)
    status = "complete" if code == EXIT_OK else "failed"
    # Before the record: with it, the next call finds nothing to do, and so nothing to sweep.
    sweep(job.results, result.leftovers, idle={shard_name(index, count) for index in finished})
    _record(job, RunRecord(status, code, result.counts, result.tables, warnings, result.clocks))
    _report(job, result.counts, warnings, code)
    return code


def _say_missing(job: Job, result: MergeResult) -> int:
    """Markers of all shards, but files that are gone: somebody deleted some since."""
    with writing(job.results):
        remove_marker(job.shard_folder)
    named = ", ".join(f"{image} ({count})" for image, count in result.missing.items())
    print(f"{result.missing_total} finished heat maps are no longer there ({named}); run the same command again")
    return EXIT_STOPPED


def _nothing_to_do(job: Job) -> int | None:
    if not (record := finished_before(job.settings, job.plan)):
        return None
    code = _exit_code(job, float(record["counts"]["failed"]), float(record["counts"]["made"]))
    print("everything is finished already; nothing to do")
    _report(job, record["counts"], record["warnings"], code)
    return code


def _unfinished(finished: set[int], count: int) -> str:
    waiting = [str(index) for index in range(count) if index not in finished]
    more = f" and {len(waiting) - 20} more" if len(waiting) > 20 else ""
    return f"not finished: {'shard' if len(waiting) == 1 else 'shards'} {', '.join(waiting[:20])}{more} of {count}"


def _exit_code(job: Job, failed: float, made: float) -> int:
    total = failed + made
    return EXIT_FAILURES if total and failed / total > job.settings.max_failure_rate else EXIT_OK


def _record(job: Job, record: RunRecord) -> None:
    with writing(job.results):
        write_run_record(job, record, call_seconds=time.monotonic() - job.request.started)


def run_warnings(job: Job, result: MergeResult) -> list[str]:
    """What somebody who uses the results should know, each once, with its count."""
    from heatlens.questions.prompts import annotated_fields

    warnings = []
    if fields := annotated_fields(job.settings.prompt_template):
        names = ", ".join(f"{{{name}}}" for name in sorted(fields))
        warnings.append(
            f"PROMPT_TEMPLATE uses {names}: annotated knowledge reaches whoever sees the heat maps "
            "(BLIND=true leaves it out)"
        )
    texts = {
        "truncated_prompts": "prompts are longer than the model reads; their ends have no effect",
        "constant_maps": "maps are constant: nothing in the image speaks for the text",
        "halved_batches": "heat maps were made with smaller batches, because memory ran out: they equal those of "
        "BATCH_SIZE to rounding, not bit for bit",
        "whole_film_masks": "heat maps have no body mask, because none could be found that keeps the lungs",
        "beyond_this_run": "finished heat maps of an earlier, larger selection stay on disk but are not in "
        "these tables; that selection's command lists them again",
    }
    warnings += [f"{result.counts[name]} {text}" for name, text in texts.items() if result.counts[name]]
    if result.unreadable_lines:
        warnings.append(f"{result.unreadable_lines} damaged ledger lines were passed over")
    return warnings


def _report(job: Job, numbers: dict[str, int], warnings: list[str], code: int) -> None:
    results = job.results
    print(f"{numbers['made']} heat maps of {numbers['images']} images, {numbers['failed']} failures")
    print(f"  results   {results}")
    print(f"  manifest  {results / index_of(job.stage.name)}")
    print(f"  record    {results / RUN_RECORD}")
    if numbers["failed"]:
        print(f"  failures  {results / FAILURES} (reasons; RETRY_FAILED=true tries them again)")
    for text in warnings:
        print(f"  note      {text}")
    if code == EXIT_FAILURES:
        limit = job.settings.max_failure_rate
        print(f"more than MAX_FAILURE_RATE={limit:g} of all heat maps failed: exit code {code}")
