"""Two runs on the same heat maps: which one points better?

Rows belong together when image, row, region and question id are the same (where several are, in their order). What is
summed up is the difference b - a of a heat map: what makes it easy or hard for both cancels out, so the intervals are
narrower than those of the two runs side by side.

:func:`compare_runs` gives plain JSON::

    {"a": {...}, "b": {...},            # FinishedRun.describe() of both
     "matched": 780, "only_in_a": 20, "only_in_b": 0, "patients": 65,
     "threshold_rule": {"a": "otsu", "b": "otsu"},
     "bootstrap": {"method": "percentile, paired", ...},
     "notes": ["..."],
     "groups": {"all": {"all": P}, "finding": {"Nodule": P, ...}}}

    P = {"n": 120, "patients": 31, "metrics": {"iou": D, ...}}
    D = {"n", "mean", "mean_low", "mean_high", "median", "median_low", "median_high",      # of b - a
         "a_mean", "b_mean",            # of the heat maps that have the number in both
         "b_better", "a_better", "equal"}     # heat maps
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatlens.errors import ConfigError
from heatlens.evaluate.bootstrap import RESAMPLES, paired
from heatlens.evaluate.groups import groups_of
from heatlens.evaluate.measure import Evaluation, bootstrap_settings
from heatlens.evaluate.metrics import KEYS

if TYPE_CHECKING:
    import pandas as pd

SAME = ["source_image", "row", "region", "question_id"]
_NTH = "nth"
Floats = NDArray[np.float64]


def compare_runs(a: Evaluation, b: Evaluation, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The differences ``b - a`` of all heat maps that both have. ConfigError when there is none."""
    both = _joined(a.rows, b.rows)
    if both.empty:
        raise ConfigError(
            "the two runs have no heat map in common that was evaluated (same image, row, region and question id): "
            f"{len(a.rows)} in the first, {len(b.rows)} in the second"
        )
    groups, more = groups_of(both.rename(columns=lambda name: name.removesuffix("_a")))
    return {
        "a": a.record["run"],
        "b": b.record["run"],
        "matched": len(both),
        "only_in_a": len(a.rows) - len(both),
        "only_in_b": len(b.rows) - len(both),
        "patients": int(both["patient_a"].nunique()),
        "threshold_rule": {"a": a.record["threshold_rule"], "b": b.record["threshold_rule"]},
        "bootstrap": bootstrap_settings(seed, resamples, "percentile, paired"),
        "notes": [*_notes(a, b, both), *(note for note in more if note.startswith("by finding"))],
        "groups": {
            by: {name: _group(both.iloc[places], seed, resamples) for name, places in groups[by].items()}
            for by in ("all", "finding")
        },
    }


def _joined(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Rows of both side by side, columns with ``_a`` and ``_b``, in the order of ``a``."""
    sides = [rows.assign(**{_NTH: rows.groupby(SAME, sort=False).cumcount()}) for rows in (a, b)]
    on = [*SAME, _NTH]
    left, right = (
        side.rename(columns={name: name + end for name in side.columns if name not in on})
        for side, end in zip(sides, ("_a", "_b"), strict=True)
    )
    return left.merge(right, on=on, how="inner", validate="one_to_one")


def _group(both: pd.DataFrame, seed: int, resamples: int) -> dict[str, Any]:
    first, second = (both[[key + end for key in KEYS]].to_numpy(dtype=np.float64) for end in ("_a", "_b"))
    patients = both["patient_a"].to_numpy()
    summaries = paired(first, second, patients, seed=seed, resamples=resamples)
    return {
        "n": len(both),
        "patients": len(set(patients)),
        "metrics": {
            key: {**summary.as_dict(), **_sides(first[:, number], second[:, number])}
            for number, (key, summary) in enumerate(zip(KEYS, summaries, strict=True))
        },
    }


def _sides(first: Floats, second: Floats) -> dict[str, Any]:
    """Both means, and how many heat maps are better in which."""
    known = ~(np.isnan(first) | np.isnan(second))
    one, other = first[known], second[known]
    return {
        "a_mean": round(float(one.mean()), 4) if len(one) else None,
        "b_mean": round(float(other.mean()), 4) if len(one) else None,
        "b_better": int(np.count_nonzero(other > one)),
        "a_better": int(np.count_nonzero(one > other)),
        "equal": int(np.count_nonzero(one == other)),
    }


def _notes(a: Evaluation, b: Evaluation, both: pd.DataFrame) -> list[str]:
    """Differences between the runs that are not the method's."""
    notes = []
    rules = a.record["threshold_rule"], b.record["threshold_rule"]
    if rules[0] != rules[1]:
        notes.append(f"the thresholds differ ({rules[0]} and {rules[1]}): IoU, Dice and boxes differ by that too")
    # Rounding to pixels may differ with OUTPUT_SIZE; another target does more.
    far = ~np.isclose(both["target_share_a"], both["target_share_b"], rtol=0.1, atol=1e-4)
    if count := int(far.sum()):
        notes.append(
            f"{count} of {len(both)} heat maps have another target in the second run: compare with one --truth"
        )
    if count := int((both["prompt_a"] != both["prompt_b"]).sum()):
        notes.append(f"{count} of {len(both)} heat maps were made with another prompt in the second run")
    return notes
