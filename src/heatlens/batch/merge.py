"""The merge: manifest, details and failures from the plan and the ledgers, never appended to by hand.

What a merge covers is exactly what its command asked for: the plan after selection and STOP_AFTER. So the
same command always gives the same tables, whatever was run in this folder before. A command that asks for
less than an earlier one (STOP_AFTER=5 after 7) gets tables of what it asked for; the other heat maps stay on
disk and in the ledgers, the run says how many there are (``run.json``: counts.beyond_this_run and a warning),
and the larger command brings them back into the tables within seconds, without making anything again.

A heat map of the plan ends up in the manifest and details (made) or in failures.csv (not made): never in
both, never in neither. A row that could not be planned is one line in failures.csv.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from heatlens.batch.details import write_details
from heatlens.batch.folder import Listing, writing
from heatlens.batch.ledger import Finished, HeatMapRecord, read_finished
from heatlens.batch.outstanding import is_made
from heatlens.batch.protocols import Failure, MadeMap, Stage
from heatlens.batch.tables import write_csv

if TYPE_CHECKING:
    from heatlens.questions.plan import HeatMap, Plan

FAILURES = "failures.csv"
FAILURE_COLUMNS = ("image_path", "question_id", "question", "region", "stage", "reason", "retry")


@dataclass
class Outcome:
    """What the ledgers say about a plan: what is made, what failed, what is missing."""

    made: list[MadeMap] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    beyond: int = 0
    finished: Finished = field(default_factory=Finished)

    @property
    def complete(self) -> bool:
        """Is every heat map of the plan either made or recorded as a failure?"""
        return not self.missing

    @property
    def failure_rate(self) -> float:
        """Failures as a share of everything that was asked for, 0..1."""
        total = len(self.made) + len(self.failures) + sum(self.missing.values())
        return len(self.failures) / total if total else 0.0


def collect(plan: Plan, results: Path, stage: Stage) -> Outcome:
    """Hold the plan against the ledgers and the files on disk; everything in data-set order."""
    finished = read_finished(results)
    listing = Listing(results)
    outcome = Outcome(finished=finished)
    outcome.failures = [
        Failure(bad.row, -1, bad.image_path, bad.question_id, bad.question, bad.region, "row", bad.reason)
        for bad in plan.bad_rows
    ]
    planned = set()
    for task in plan.images:
        for heat_map in task.heat_maps:
            planned.add(heat_map.key)
            record = finished.get(heat_map.key)
            if record is not None and is_made(record, heat_map, listing, stage):
                outcome.made.append(MadeMap(task.image_path, heat_map, record))
            elif record is not None and not record.ok:
                outcome.failures.append(_failure(task.image_path, heat_map, record))
            else:
                outcome.missing[task.image_path] = outcome.missing.get(task.image_path, 0) + 1
    outcome.made.sort(key=lambda one: (one.heat_map.row, one.heat_map.region_index))
    outcome.failures.sort(key=lambda one: (one.row, one.region_index))
    outcome.beyond = sum(1 for key, record in finished.records.items() if record.ok and key not in planned)
    return outcome


def write_tables(outcome: Outcome, results: Path, stage: Stage, retry: str) -> list[Path]:
    """Write all tables, each replaced atomically; the stage's own (the manifest) last. Returns paths."""
    with writing(results):
        details = write_details(results, iter(outcome.made), stage.columns)
        failures = results / FAILURES
        write_csv(failures, FAILURE_COLUMNS, _failure_rows(outcome.failures, retry))
        return [details, failures, *stage.write_index(results, iter(outcome.made))]


def _failure_rows(failures: list[Failure], retry: str) -> Iterator[tuple[str, ...]]:
    for one in failures:
        yield one.image_path, one.question_id, one.question, one.region, one.stage, one.reason, retry


def _failure(image_path: str, heat_map: HeatMap, record: HeatMapRecord) -> Failure:
    return Failure(
        row=heat_map.row,
        region_index=heat_map.region_index,
        image_path=image_path,
        question_id=heat_map.question_id,
        question=heat_map.question,
        region=heat_map.region,
        stage=record.stage,
        reason=record.reason,
    )
