"""Measure every heat map of a run against its target, and sum up: the numbers of ``heatlens evaluate``.

:attr:`Evaluation.record` is plain JSON (no NaN: ``None`` where a number cannot be given; figures with 4 decimals)::

    {"heat_maps": 812,                  # that the run made: evaluated + left out
     "evaluated": 800,
     "left_out": {"no annotation for it": 10, "the raw map is missing": 2},         # reason -> heat maps
     "left_out_examples": {"the raw map is missing": ["raw/a_idx1.png: ...", ...]},   # at most 3 each; not all reasons
     "patients": 65,
     "threshold_rule": "otsu",          # of iou, dice and boxes: BOX_THRESHOLD, or what --threshold said
     "boxes": "written by the run" | "found by evaluation" | "both",
     "tolerance_px_of_224": 8,
     "miou_thresholds": [0.1, 0.2, 0.3, 0.4, 0.5],
     "bootstrap": {"method": "percentile", "unit": "patient", "resamples": 2000, "level": 0.95, "seed": 0},
     "run": {...},                      # FinishedRun.describe()
     "truth": {...},                    # Cases.truth
     "notes": ["...", ...],             # sentences for the report
     "groups": {"all": {"all": G},
                "finding": {"Pleural Effusion": G, ...},    # most heat maps first; "(not named)" for those without
                "region": {...}, "question_type": {...},
                "target_size": {"< 0.5%": G, "0.5-2%": G, "2-10%": G, "> 10%": G}}}     # only those that occur

    G = {"n": 120, "patients": 31,
         "metrics": {"iou": S, ...},                  # every key of metrics.METRICS, in its order
         "baselines": {"centre": {"iou": S, ...}, "random": {...}, "body": {...}}}    # the same keys

    S = {"n": 120,                                   # heat maps that have this number (body: film was readable)
         "mean": 0.31, "mean_low": 0.27, "mean_high": 0.35,
         "median": 0.29, "median_low": 0.25, "median_high": 0.34}     # low, high: 95%; None for a single patient,
                      # and for medians that would take too long (see bootstrap)

``pointing`` and ``pointing_8`` are 1 for a hit and 0 for a miss, so their mean is the hit rate (the median says
little); of the baselines ``random`` and ``body`` they are the exact chance of a hit, between 0 and 1.

:attr:`Evaluation.rows` has a row per evaluated heat map: ``source_image``, ``output``, ``row``, ``question_id``,
``question``, ``region``, ``prompt``, ``question_type``, ``patient``, ``finding``, ``target_share`` (of the film, 0..1),
``target_size``, ``threshold``, ``constant``, then the metrics (``iou``) and the baselines' (``centre:iou``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatlens.errors import DataSetError
from heatlens.evaluate.baselines import BASELINES
from heatlens.evaluate.bootstrap import LEVEL, RESAMPLES, Summary, summarise
from heatlens.evaluate.cases import Case, Cases
from heatlens.evaluate.groups import TARGET_SIZE, groups_of, target_size
from heatlens.evaluate.measuring import FIGURES, NUMBERS, OWN, Found, Measuring, measuring_of
from heatlens.evaluate.metrics import KEYS, MIOU_THRESHOLDS, TOLERANCE
from heatlens.evaluate.workers import measured

if TYPE_CHECKING:
    import pandas as pd

    from heatlens.evaluate.finished_run import FinishedRun

EXAMPLES = 3
IDS = (
    "source_image", "output", "row", "question_id", "question", "region", "prompt", "question_type", "patient",
)  # fmt: skip

Progress = Callable[[int, int], None]


@dataclass
class Evaluation:
    """What was measured: one row per heat map, and the sums as plain JSON (layout: see the module)."""

    rows: pd.DataFrame
    record: dict[str, Any]


def evaluate_cases(
    cases: Cases,
    run: FinishedRun,
    *,
    workers: int,
    seed: int,
    resamples: int = RESAMPLES,
    rule: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure all ``cases`` of ``run`` in ``workers`` processes (1: in this one).

    ``seed``: of the bootstrap and the random baseline. ``rule``: a threshold in place of the run's BOX_THRESHOLD; boxes
    are then found anew. ``progress`` hears the heat maps done and their number. A heat map that cannot be measured is
    left out with its reason. DataSetError when none can be; SetupError when a process dies.
    """
    measuring = measuring_of(run, cases.items, seed, rule)
    left_out: Counter[str] = Counter(cases.left_out)
    examples: dict[str, list[str]] = {}
    done, numbers = _gathered(measured(measuring, cases.items, workers), cases.items, left_out, examples, progress)
    if not done:
        raise DataSetError(f"no heat map can be evaluated: {_reasons(left_out, examples)}")
    rows = _rows(cases.items, done, numbers)
    groups, more = _groups(rows, seed, resamples)
    record = {
        "heat_maps": len(rows) + sum(left_out.values()),
        "evaluated": len(rows),
        "left_out": dict(left_out),
        "left_out_examples": examples,
        "patients": int(rows["patient"].nunique()),
        "threshold_rule": measuring.rules.threshold,
        "boxes": _box_origin(cases.items, done, measuring),
        "tolerance_px_of_224": TOLERANCE,
        "miou_thresholds": list(MIOU_THRESHOLDS),
        "bootstrap": bootstrap_settings(seed, resamples),
        "run": run.describe(),
        "truth": cases.truth,
        "notes": [*cases.notes, *_notes(rows, measuring), *more],
        "groups": groups,
    }
    return Evaluation(rows, record)


def _gathered(
    results: Iterable[tuple[list[int], Found]],
    items: Sequence[Case],
    left_out: Counter[str],
    examples: dict[str, list[str]],
    progress: Progress | None,
) -> tuple[list[int], NDArray[np.float64]]:
    """The places that were measured, in order, and all numbers; what failed is added to the other two."""
    numbers = np.full((len(items), len(NUMBERS)), np.nan)
    done: list[int] = []
    heard = 0
    for places, found in results:
        numbers[places] = found.numbers
        bad = {places[at] for at, _, _ in found.failed}
        done += [place for place in places if place not in bad]
        for at, reason, text in found.failed:
            left_out[reason] += 1
            if len(examples.setdefault(reason, [])) < EXAMPLES:
                output, raw = items[places[at]].output, str(items[places[at]].raw)
                examples[reason].append(f"{output}: {text.replace(raw, 'its map')}")
        heard += len(places)
        if progress is not None:
            progress(heard, len(items))
    return sorted(done), numbers


def bootstrap_settings(seed: int, resamples: int, method: str = "percentile") -> dict[str, Any]:
    """How the intervals were made, for the record."""
    return {"method": method, "unit": "patient", "resamples": resamples, "level": LEVEL, "seed": seed}


def _rows(items: Sequence[Case], done: Sequence[int], numbers: NDArray[np.float64]) -> pd.DataFrame:
    """The evaluated heat maps in the run's order."""
    import pandas as pd

    table: dict[str, Any] = {name: [getattr(items[place], name) for place in done] for name in IDS}
    table["finding"] = [items[place].target.finding for place in done]
    kept = numbers[done]
    table |= {name: kept[:, NUMBERS.index(name)] for name in OWN}
    table[TARGET_SIZE] = [target_size(share) for share in table["target_share"]]
    table["constant"] = table["constant"].astype(bool)
    table |= {name: kept[:, NUMBERS.index(name)] for name in FIGURES}
    return pd.DataFrame(table)


def _groups(rows: pd.DataFrame, seed: int, resamples: int) -> tuple[dict[str, Any], list[str]]:
    """The sums by grouping and name, and notes."""
    values, patients = rows[list(FIGURES)].to_numpy(), rows["patient"].to_numpy()
    groupings, notes = groups_of(rows)
    known: dict[bytes, dict[str, Any]] = {}  # a group may be all of them: the same figures, made once

    def group(places: NDArray[np.intp]) -> dict[str, Any]:
        key = places.tobytes()
        if key not in known:
            known[key] = _group(values[places], patients[places], seed, resamples)
        return known[key]

    return {by: {name: group(places) for name, places in names.items()} for by, names in groupings.items()}, notes


def _group(values: NDArray[np.float64], patients: NDArray[Any], seed: int, resamples: int) -> dict[str, Any]:
    summaries = dict(zip(FIGURES, summarise(values, patients, seed=seed, resamples=resamples), strict=True))
    return {
        "n": len(values),
        "patients": len(set(patients)),
        "metrics": _plain(summaries, ""),
        "baselines": {name: _plain(summaries, f"{name}:") for name in BASELINES},
    }


def _plain(summaries: Mapping[str, Summary], before: str) -> dict[str, Any]:
    return {key: summaries[before + key].as_dict() for key in KEYS}


def _notes(rows: pd.DataFrame, measuring: Measuring) -> list[str]:
    """What a reader of the numbers should know."""
    notes = []
    if constant := int(rows["constant"].sum()):
        notes.append(f"{constant} of {len(rows)} maps are constant: they show no place and count as misses with 0")
    if dark := int(rows["body:iou"].isna().sum()):
        also = ", and their thresholds count the pixels around the body" if measuring.masked else ""
        notes.append(f"the films of {dark} of {len(rows)} heat maps cannot be read: no body baseline for them{also}")
    if whole := int(rows["cnr"].isna().sum()):
        notes.append(f"{whole} of {len(rows)} heat maps have no CNR: the target is the whole film, or nothing varies")
    images = rows.drop_duplicates("source_image")
    if unnamed := int((images["patient"] == images["source_image"]).sum()):
        notes.append(
            f"the paths of {unnamed} of {len(images)} images name no patient: each counts as a patient of its own, and "
            "where patients have several images the intervals are too narrow"
        )
    if rows["patient"].nunique() < 2:
        notes.append("all heat maps are of one patient: there are no intervals")
    return notes


def _box_origin(items: Sequence[Case], done: Sequence[int], measuring: Measuring) -> str:
    """Whose boxes were measured."""
    written = {measuring.own_boxes and items[place].found is not None for place in done}
    return "both" if len(written) == 2 else "written by the run" if written == {True} else "found by evaluation"


def _reasons(left_out: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> str:
    """Why nothing is left, in one line."""
    if not left_out:
        return "the run made none"
    parts = [f"{reason} ({count})" for reason, count in left_out.items()]
    first = next(iter(examples.values()), None)
    return "; ".join(parts) + (f"; e.g. {first[0]}" if first else "")
