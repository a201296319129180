"""The merge: manifest, details and failures from the plan and the ledgers, never appended to by hand.

What a merge covers is exactly what its command asked for: the plan after selection and STOP_AFTER. So the
same command always gives the same tables, whatever was run in this folder before. A command that asks for
less than an earlier one (STOP_AFTER=5 after 7) gets tables of what it asked for; the other heat maps stay on
disk and in the ledgers, the run says how many there are (``run.json``: counts.beyond_this_run and a warning),
and the larger command brings them back into the tables within seconds, without making anything again.

A heat map of the plan ends up in the manifest and details (made) or in failures.csv (not made): never in
both, never in neither. A row that could not be planned is one line in failures.csv.

Out of core: plan and ledgers are streamed into temporary files, and from there, joined and in data-set order,
into the tables. What stays in memory is a key and a row number per heat map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from heatlens.batch.details import (
    ASKED,
    DETAILS,
    ORDER,
    PLACE,
    POSITION,
    asked_row,
    details_table,
    recorded_row,
    recorded_schema,
    write_details,
)
from heatlens.batch.finished import (
    CONSTANT,
    FAILED,
    FAILED_LATER,
    HALVED,
    MISSING,
    OK,
    STATE,
    TRUNCATED,
    WHOLE_FILM,
    FinishedKeys,
    packed,
    read_keys,
)
from heatlens.batch.folder import Listing, writing
from heatlens.batch.ledger import read_lines
from heatlens.batch.protocols import Stage
from heatlens.batch.spool import ROWS, Spool, exactly
from heatlens.batch.tables import write_csv
from heatlens.errors import SetupError
from heatlens.files import temporary_folder

if TYPE_CHECKING:
    from heatlens.questions.plan import BadRow, HeatMap, ImageTask, Plan

Item = TypeVar("Item")
Part = TypeVar("Part", bound=Sized)

FAILURES = "failures.csv"
FAILURE_COLUMNS = ("image_path", "question_id", "question", "region", "stage", "reason", "retry")
MISSING_NAMED = 20
"""Images with missing heat maps that are named."""

_REMARKS = {
    "constant_maps": CONSTANT,
    "halved_batches": HALVED,
    "truncated_prompts": TRUNCATED,
    "whole_film_masks": WHOLE_FILM,
}
_TEXTS = [(name, pa.string()) for name in FAILURE_COLUMNS[:-1]]
_FAILED = pa.schema([*POSITION, *PLACE, *_TEXTS])
_REASONS = pa.schema([*POSITION, ("stage", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class MergeResult:
    """How the plan stands. ``tables`` are the files written: none unless ``complete``.

    ``counts``: ``rows`` selected; ``bad_rows``, rows and heat maps that the plan itself finds impossible;
    ``images`` with heat maps; ``heat_maps`` that can be made = ``made`` + ``failed`` - ``bad_rows`` +
    ``missing``; ``failed``, lines of failures.csv; ``beyond_this_run``, finished heat maps that the plan does
    not ask for; and how many of the made ones have which remark.
    ``missing`` names up to MISSING_NAMED images with their numbers of missing heat maps. ``clocks``: seconds
    over all images ("read_s", ..., "total_s"), and "peak_rss_mib". ``leftovers``: what killed processes left
    half-written beside the pictures.
    """

    counts: dict[str, int]
    missing: dict[str, int]
    clocks: dict[str, float]
    unreadable_lines: int
    leftovers: tuple[Path, ...] = ()
    tables: tuple[Path, ...] = ()

    @property
    def missing_total(self) -> int:
        """Heat maps neither made nor recorded as failures."""
        return self.counts["missing"]

    @property
    def complete(self) -> bool:
        """Is every heat map of the plan either made or recorded as a failure?"""
        return not self.missing_total


def merge(plan: Plan, results: Path, stage: Stage, retry: str) -> MergeResult:
    """Write all tables if nothing is missing, each replaced atomically; the stage's own (the manifest) last.

    ``retry`` is the command for failures.csv. SetupError when the results cannot be written.
    """
    with writing(results), temporary_folder(results / "shards") as folder:
        finished, fates = read_keys(results)
        survey = _Survey(finished, Listing(results), stage)
        with Spool(folder / "asked", ASKED) as asked, Spool(folder / "failed", _FAILED) as failed:
            survey.walk(plan, asked, failed)
        result = survey.result(plan)
        if not result.complete:
            return result
        recorded, reasons = _records(survey, fates, folder, stage.columns)
        del finished, survey, fates
        failures = _write_failures(results, failed, reasons, result.counts["failed"], retry)
        others = _write_made(stage, results, asked, recorded, result.counts["made"])
        return replace(result, tables=(results / DETAILS, failures, *others))


class _Survey:
    """Holds the plan against the finished keys and the files on disk, and counts.

    ``rows``: for every finished key the row of the plan that asks for it, -1 where none does.
    """

    def __init__(self, finished: FinishedKeys, listing: Listing, stage: Stage) -> None:
        self.finished = finished
        self.rows = np.full(len(finished), -1, np.int64)
        self._listing = listing
        self._stage = stage
        self._counts = dict.fromkeys(("images", "made", "failed", "missing", "bad_rows", *_REMARKS), 0)
        self._missing: dict[str, int] = {}
        self._place = 0

    def walk(self, plan: Plan, asked: Spool, failed: Spool) -> None:
        """Go through the plan; made heat maps go to ``asked``, all failures to ``failed``."""
        for tasks in _in_parts(plan.images()):
            known = iter(self._look_up([heat_map for task in tasks for heat_map in task.heat_maps]))
            for task in tasks:
                self._counts["images"] += bool(task.heat_maps)
                for heat_map in task.heat_maps:
                    position, code = next(known)
                    self._take(task, heat_map, position, code, asked, failed)
                for bad in task.bad:
                    self._bad(bad, failed)
        for bad in plan.bad_rows():
            self._bad(bad, failed)

    def _look_up(self, heat_maps: Sequence[HeatMap]) -> Iterator[tuple[int, int]]:
        """(position, code) of each in the finished keys; (-1, 0) where no ledger has it."""
        positions = self.finished.positions(packed([one.key for one in heat_maps]))
        known = positions >= 0
        self.rows[positions[known]] = np.array([one.row for one in heat_maps], np.int64)[known]
        codes = np.zeros(len(positions), np.uint8)
        codes[known] = self.finished.codes[positions[known]]
        return zip(positions.tolist(), codes.tolist(), strict=True)

    def _take(self, task: ImageTask, heat_map: HeatMap, position: int, code: int, asked: Spool, failed: Spool) -> None:
        self._place += 1
        state = code & STATE
        if state == OK and self._listing.has_all(self._stage.expected_files(heat_map)):
            self._counts["made"] += 1
            for name, bit in _REMARKS.items():
                self._counts[name] += bool(code & bit)
            asked.add(heat_map.row, asked_row(position, self._place, task, heat_map))
        elif state in (FAILED, MISSING) or code & FAILED_LATER:
            self._counts["failed"] += 1
            failed.add(heat_map.row, (position, *self._failure(heat_map, task.image_path), None, None))
            self._listing.look_into(self._stage.expected_files(heat_map)[0].rpartition("/")[0])
        else:
            self._counts["missing"] += 1
            if task.image_path in self._missing or len(self._missing) < MISSING_NAMED:
                self._missing[task.image_path] = self._missing.get(task.image_path, 0) + 1

    def _bad(self, bad: BadRow, failed: Spool) -> None:
        self._place += 1
        self._counts["failed"] += 1
        self._counts["bad_rows"] += 1
        failed.add(bad.row, (-1, *self._failure(bad, bad.image_path), "row", bad.reason))

    def _failure(self, one: HeatMap | BadRow, image_path: str) -> tuple[int | str, ...]:
        return one.row, one.region_index, self._place, image_path, one.question_id, one.question, one.region

    def result(self, plan: Plan) -> MergeResult:
        """The counts so far."""
        found = self._counts
        known = (self.finished.codes & STATE) == OK
        counts = {
            "rows": plan.rows,
            "bad_rows": found["bad_rows"],
            "images": found["images"],
            "heat_maps": found["made"] + found["failed"] - found["bad_rows"] + found["missing"],
            "made": found["made"],
            "failed": found["failed"],
            "missing": found["missing"],
            "beyond_this_run": int(np.count_nonzero(known & (self.rows < 0))),
            **{name: found[name] for name in _REMARKS},
        }
        leftovers = tuple(sorted(self._listing.temporaries))
        return MergeResult(counts, self._missing, _clocks(self.finished), self.finished.unreadable_lines, leftovers)


def _in_parts(tasks: Iterable[ImageTask]) -> Iterator[list[ImageTask]]:
    """Tasks in lists of about ROWS heat maps: keys are looked up many at a time."""
    part: list[ImageTask] = []
    count = 0
    for task in tasks:
        part.append(task)
        count += len(task.heat_maps) + 1
        if count >= ROWS:
            yield part
            part, count = [], 0
    if part:
        yield part


def _clocks(finished: FinishedKeys) -> dict[str, float]:
    return {
        **{f"{name}_s": round(seconds, 3) for name, seconds in sorted(finished.clocks.items())},
        "total_s": round(sum(finished.clocks.values()), 3),
        "peak_rss_mib": round(finished.peak_rss_mib, 1),
    }


def _records(
    survey: _Survey, fates: Mapping[Path, NDArray[np.uint8]], folder: Path, columns: Mapping[str, type]
) -> tuple[Spool, Spool]:
    """The records that count and that the plan asks for: (made heat maps, why the others failed)."""
    with Spool(folder / "recorded", recorded_schema(columns)) as recorded, Spool(folder / "why", _REASONS) as reasons:
        for part in _in_parts_of(ROWS, (one for path, fate in fates.items() for one in _that_count(path, fate))):
            positions = survey.finished.positions(packed([entry["key"] for entry, _ in part]))
            rows = survey.rows[positions]
            for (entry, shared), position, row in zip(part, positions.tolist(), rows.tolist(), strict=True):
                if row < 0:
                    continue
                if entry["status"] == "ok":
                    recorded.add(row, recorded_row(position, entry, shared, columns))
                else:
                    reasons.add(row, (position, entry["stage"], entry["reason"]))
    return recorded, reasons


def _that_count(path: Path, fate: NDArray[np.uint8]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(heat map, its image's statistics) of one ledger; lines added since it was judged are left out."""
    start = 0
    for content in read_lines(path):
        if content is not None:
            entries = content["heat_maps"]
            for index in np.flatnonzero(fate[start : start + len(entries)]).tolist():
                yield entries[index], content.get("image_statistics", {})
            start += len(entries)


def _in_parts_of(size: int, items: Iterator[Item]) -> Iterator[list[Item]]:
    while part := list(islice(items, size)):
        yield part


def _write_made(stage: Stage, results: Path, asked: Spool, recorded: Spool, expected: int) -> Sequence[Path]:
    """details.parquet and the stage's own tables, in one go; returns the latter."""
    rows = exactly(_all_there(_made(asked, recorded, stage.columns), expected))
    with closing(write_details(results, rows, stage.columns)) as made:
        paths = stage.write_index(results, made)
        for _ in made:  # a stage need not look at all of them
            pass
    return paths


def _made(asked: Spool, recorded: Spool, columns: Mapping[str, type]) -> Iterator[pa.Table]:
    """The made heat maps in data-set order, bucket by bucket."""
    for bucket in asked.buckets():
        questions, answers = asked.table(bucket, by=ORDER), recorded.table(bucket, by=["position"])
        wanted, known = questions["position"].to_numpy(), answers["position"].to_numpy()
        places = np.searchsorted(known, wanted)
        there = places < len(known)
        there[there] = known[places[there]] == wanted[there]
        yield details_table(questions.filter(pa.array(there)), answers.take(places[there]), columns)


def _write_failures(results: Path, failed: Spool, reasons: Spool, expected: int, retry: str) -> Path:
    path = results / FAILURES
    lines = (line for table in _all_there(_failures(failed, reasons), expected) for line in table)
    write_csv(path, FAILURE_COLUMNS, ((*line, retry) for line in lines))
    return path


def _failures(failed: Spool, reasons: Spool) -> Iterator[list[tuple[str, ...]]]:
    """The lines of failures.csv in data-set order, bucket by bucket."""
    for bucket in failed.buckets():
        found = reasons.table(bucket, by=["position"]).to_pydict()
        why = dict(zip(found["position"], zip(found["stage"], found["reason"], strict=True), strict=True))
        table = failed.table(bucket, by=ORDER).select(["position", *FAILURE_COLUMNS[:-1]])
        lines = []
        for position, *texts, stage, reason in zip(*table.to_pydict().values(), strict=True):
            if reason is not None:
                lines.append((*texts, stage, reason))
            elif position in why:
                lines.append((*texts, *why[position]))
        yield lines


def _all_there(parts: Iterable[Part], expected: int) -> Iterator[Part]:
    """The parts; SetupError instead of an end when they do not hold ``expected`` rows."""
    count = 0
    for part in parts:
        count += len(part)
        yield part
    if count != expected:
        raise SetupError(
            f"the tables would have {count} rows where {expected} were counted: "
            "a ledger changed at the same time. The same command tries again"
        )
