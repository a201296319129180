"""The end of a call: the merge when all shards are done, ``run.json``, and a few lines for people."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from heatlens.batch.folder import Listing, sweep, writing
from heatlens.batch.merge import FAILURES, Outcome, collect, write_tables
from heatlens.batch.retry import retry_command
from heatlens.batch.run_record import RUN_RECORD, counts, finished_before, write_run_record
from heatlens.batch.tables import MANIFEST
from heatlens.errors import EXIT_FAILURES, EXIT_OK, EXIT_STOPPED

if TYPE_CHECKING:
    from heatlens.batch.runner import Job


def close_run(job: Job, *, stopped: bool = False) -> int:
    """Merge if everything is finished; say what there is and how to go on. Returns the exit code."""
    if not stopped and (record := finished_before(job.settings, job.plan)):
        code = _exit_code(job, float(record["counts"]["failed"]), float(record["counts"]["made"]))
        print("everything is finished already; nothing to do")
        _report(job, record["counts"], record["warnings"], code)
        return code
    with writing(job.results):
        outcome = collect(job.plan, job.results, job.stage)
    if stopped or not outcome.complete:
        return _close_unfinished(job, outcome, stopped=stopped)
    code = _exit_code(job, len(outcome.failures), len(outcome.made))
    tables = write_tables(outcome, job.results, job.stage, retry_command(job.settings))
    _record(job, outcome, "complete" if code == EXIT_OK else "failed", code, tables)
    sweep(job.results, Listing(job.results))
    _report(job, counts(job.plan, outcome), run_warnings(job, outcome), code)
    return code


def _close_unfinished(job: Job, outcome: Outcome, *, stopped: bool) -> int:
    """A stop, or other shards are still at work: no tables, because they would not be complete.

    Only a run of one shard writes run.json here; of several, a slow one could overwrite the merge's.
    """
    missing = sum(outcome.missing.values())
    if stopped:
        if job.settings.num_shards == 1:
            _record(job, outcome, "partial", EXIT_STOPPED, [])
        print(f"{len(outcome.made)} heat maps are finished, {missing} are missing; run the same command again")
        return EXIT_STOPPED
    print(
        f"shard {job.shard_folder.name} is finished; {missing} heat maps of the other shards are missing "
        f"({_waiting_for(job, outcome)}). The shard that finishes last writes {MANIFEST}"
    )
    return EXIT_OK


def _waiting_for(job: Job, outcome: Outcome) -> str:
    shards = job.settings.num_shards
    waiting = []
    for index in range(shards):
        left = sum(outcome.missing.get(task.image_path, 0) for task in job.plan.shard(index, shards))
        if left:
            waiting.append(f"SHARD_INDEX={index}: {left}")
    return ", ".join(waiting[:8]) + (", ..." if len(waiting) > 8 else "")


def _exit_code(job: Job, failed: float, made: float) -> int:
    total = failed + made
    return EXIT_FAILURES if total and failed / total > job.settings.max_failure_rate else EXIT_OK


def _record(job: Job, outcome: Outcome, status: str, code: int, tables: list[Path]) -> None:
    with writing(job.results):
        write_run_record(
            job.settings,
            job.plan,
            outcome,
            status=status,
            exit_code=code,
            fingerprint=job.fingerprint,
            weights=job.weights,
            tables=tables,
            warnings=run_warnings(job, outcome),
            call_seconds=time.monotonic() - job.started,
        )


def run_warnings(job: Job, outcome: Outcome) -> list[str]:
    """What somebody who uses the results should know, each once, with its count."""
    from heatlens.questions.prompts import annotated_fields

    numbers = counts(job.plan, outcome)
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
    warnings += [f"{numbers[name]} {text}" for name, text in texts.items() if numbers[name]]
    if outcome.finished.unreadable_lines:
        warnings.append(f"{outcome.finished.unreadable_lines} damaged ledger lines were passed over")
    return warnings


def _report(job: Job, numbers: dict[str, int], warnings: list[str], code: int) -> None:
    results = job.results
    print(f"{numbers['made']} heat maps of {numbers['images']} images, {numbers['failed']} failures")
    print(f"  results   {results}")
    print(f"  manifest  {results / MANIFEST}")
    print(f"  record    {results / RUN_RECORD}")
    if numbers["failed"]:
        print(f"  failures  {results / FAILURES} (reasons; RETRY_FAILED=true tries them again)")
    for text in warnings:
        print(f"  note      {text}")
    if code == EXIT_FAILURES:
        limit = job.settings.max_failure_rate
        print(f"more than MAX_FAILURE_RATE={limit:g} of all heat maps failed: exit code {code}")
