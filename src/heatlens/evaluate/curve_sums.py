"""What deletion and insertion curves come to: areas, means, intervals by patient. Plain arithmetic, no model.

The record::

    {"cases": 20, "patients": 12, "seed": 0, "resamples": 2000, "level": 0.95,
     "range_needed": 0.01, "normalised_cases": {"deletion": 18, "insertion": 17},
     "ends": {"whole": M, "emptied": M, "blurred": M},                       # cosine similarities
     "auc": {"deletion": {"map": M, "random": M, "centre": M}, "insertion": {...}},
     "auc_normalised": {the same},
     "difference": {"deletion": {"random": M, "centre": M}, "insertion": ...},     # normalised, map minus the other
     "curve": {"deletion": {"map": {"mean": [33], "low": [33], "high": [33]}, ...}, ...},
     "each": [{"output", "patient", "whole", "emptied", "blurred", "deletion": {"map": AUC, ...}, ...}]}

    M = {"n": 20, "mean": 0.31, "low": 0.27, "high": 0.35}    # None where it cannot be given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatlens.evaluate.bootstrap import LEVEL, RESAMPLES, summarise

if TYPE_CHECKING:
    from heatlens.evaluate.cases import Case

KINDS = ("deletion", "insertion")
ORDERS = ("map", "random", "centre")
RANGE_NEEDED = 0.01
"""cosine by which the whole film must score above the emptied (blurred) one, or a share of that range says nothing"""

Numbers = NDArray[np.float64]


def area(curves: Numbers) -> Numbers:
    """Area under curves (..., steps + 1) over 0..1 by the trapezoid rule."""
    steps = curves.shape[-1] - 1
    inner: Numbers = curves[..., 1:-1].sum(axis=-1)
    return (inner + (curves[..., 0] + curves[..., -1]) / 2) / steps


def normalised(areas: Numbers, low: Numbers, high: Numbers) -> Numbers:
    """Areas where a score of ``low`` is 0 and ``high`` is 1; NaN where the two lie too close, or the wrong way."""
    span = high - low
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(span >= RANGE_NEEDED, (areas - low) / span, np.nan)


@dataclass(frozen=True)
class Means:
    """Means with their intervals, by patient, as of all other numbers of the report."""

    patients: Sequence[str]
    seed: int

    def of(self, values: Numbers) -> list[dict[str, Any]]:
        """One figure per column of ``values`` (n, k); NaN are left out."""
        found = summarise(values, self.patients, seed=self.seed, resamples=RESAMPLES)
        ends = [(one.n, {"mean": one.mean, "low": one.mean_low, "high": one.mean_high}) for one in found]
        return [
            {"n": n, **{name: None if value is None else rounded(value) for name, value in named.items()}}
            for n, named in ends
        ]

    def figure(self, values: Numbers) -> dict[str, Any]:
        """The figure of one number per case (n,)."""
        return self.of(values[:, None])[0]


def rounded(value: float) -> float:
    """Four decimals, and no minus zero."""
    return round(float(value), 4) + 0.0


def summed(scores: Numbers, cases: Sequence[Case], seed: int) -> dict[str, Any]:
    """The record of ``scores`` (cases, kinds, orders, steps + 1), cosine similarities."""
    means = Means([case.patient for case in cases], seed)
    areas = area(scores)
    whole, emptied, blurred = scores[:, 0, 0, 0], scores[:, 0, 0, -1], scores[:, 1, 0, 0]
    shares = np.stack(
        [normalised(areas[:, kind], low[:, None], whole[:, None]) for kind, low in enumerate((emptied, blurred))],
        axis=1,
    )
    ends = {"whole": whole, "emptied": emptied, "blurred": blurred}
    return {
        "cases": len(cases),
        "patients": len(set(means.patients)),
        "seed": seed,
        "resamples": RESAMPLES,
        "level": LEVEL,
        "range_needed": RANGE_NEEDED,
        "normalised_cases": {kind: int(np.isfinite(shares[:, at, 0]).sum()) for at, kind in enumerate(KINDS)},
        "ends": {name: means.figure(values) for name, values in ends.items()},
        "auc": _figures(areas, means),
        "auc_normalised": _figures(shares, means),
        "difference": {
            kind: {
                other: means.figure(shares[:, at, 0] - shares[:, at, order])
                for order, other in enumerate(ORDERS)
                if order
            }
            for at, kind in enumerate(KINDS)
        },
        "curve": {
            kind: {order: _curve(scores[:, at, which], means) for which, order in enumerate(ORDERS)}
            for at, kind in enumerate(KINDS)
        },
        "each": [
            {
                "output": case.output,
                "patient": case.patient,
                **{name: rounded(values[number]) for name, values in ends.items()},
                **{
                    kind: {order: rounded(areas[number, at, which]) for which, order in enumerate(ORDERS)}
                    for at, kind in enumerate(KINDS)
                },
            }
            for number, case in enumerate(cases)
        ],
    }


def _figures(values: Numbers, means: Means) -> dict[str, Any]:
    return {
        kind: {order: means.figure(values[:, at, which]) for which, order in enumerate(ORDERS)}
        for at, kind in enumerate(KINDS)
    }


def _curve(scores: Numbers, means: Means) -> dict[str, list[float] | None]:
    found = means.of(scores)
    return {name: None if found[0][name] is None else [one[name] for one in found] for name in ("mean", "low", "high")}
