"""Confidence intervals of means and medians by the percentile bootstrap over patients.

Heat maps of one patient are not independent: whole patients are drawn, with replacement, as many as there are, and a
patient drawn twice counts twice with all its heat maps (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
chapters 8 and 13; clusters: Davison & Hinkley, Bootstrap Methods, 1997, 3.8). The interval is that of the 2.5th to the
97.5th percentile of the resamples' figures. Two runs are compared by the differences of the same heat maps, so that
what they have in common cancels out. All columns share the resamples. A single patient has no interval.

It stays bounded in memory and time with millions of rows. A mean needs each patient's sum and count only. Of the rows
in order, a resample's median lies near the middle one: only rows around there (eight standard deviations of its place)
are looked at, and all of them for a resample whose median lies elsewhere, so the result is exact. Where so many rows
would have to be looked at that it took more than some seconds a column (few patients with very many heat maps), the
median has no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 1_000_000
"""elements of the largest array that is made at once"""
MOST_WORK = 1_000_000_000
"""rows of one column that are looked at in all resamples together: about five seconds"""
_DEVIATIONS = 8
_DECIMALS = 4

Floats = NDArray[np.float64]
Interval = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and median of ``n`` values with the ends of their intervals; None for what there is not."""

    n: int
    mean: float | None
    mean_low: float | None
    mean_high: float | None
    median: float | None
    median_low: float | None
    median_high: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values with 4 decimals."""
        return {key: round(value, _DECIMALS) if key != "n" and value is not None else value
                for key, value in asdict(self).items()}  # fmt: skip


def summarise(
    values: Floats, patients: Sequence[Any] | NDArray[Any], *, seed: int, resamples: int = RESAMPLES
) -> list[Summary]:
    """Each column of ``values`` (n, columns; NaN: no such number) with intervals. ``patients``: one per row."""
    table = np.asarray(values, dtype=np.float64)
    names, codes = np.unique(np.asarray(patients), return_inverse=True)
    columns = [_Column(table[:, number], codes, len(names)) for number in range(table.shape[1])]
    if len(names) < 2 or not columns:
        return [column.summary((None, None), (None, None)) for column in columns]
    means, medians = _resampled(columns, len(names), np.random.default_rng(seed), resamples)
    return [
        column.summary(_interval(means[:, number], column), _interval(medians[:, number], column))
        for number, column in enumerate(columns)
    ]


def paired(
    a: Floats, b: Floats, patients: Sequence[Any] | NDArray[Any], *, seed: int, resamples: int = RESAMPLES
) -> list[Summary]:
    """Mean and median of the differences ``b - a`` of the same heat maps, column by column (both (n, columns))."""
    return summarise(np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64), patients, seed=seed,
                     resamples=resamples)  # fmt: skip


class _Column:
    """One column's figures, and what its resamples need: ``sums`` and ``counts`` per patient, and the rows around the
    median in order (``window``), with each patient's count of rows before them."""

    def __init__(self, values: Floats, codes: NDArray[np.intp], patients: int) -> None:
        valid = ~np.isnan(values)
        values, codes = values[valid], codes[valid]
        order = np.argsort(values, kind="stable")
        self.n = len(values)
        self.values, self.codes = values[order], codes[order].astype(np.int32)
        self.counts = np.bincount(codes, minlength=patients).astype(np.float64)
        self.sums = np.bincount(codes, weights=values, minlength=patients)
        self.patients = int(np.count_nonzero(self.counts))
        self.window = self._window(patients)
        self.before = np.bincount(self.codes[: self.window.start], minlength=patients).astype(np.float64)

    def _window(self, patients: int) -> slice:
        """Where the medians of resamples lie among the rows in order, but for very few."""
        lower = np.bincount(self.codes[: self.n // 2], minlength=patients)
        spread = float(np.sqrt(patients * np.var(lower - self.counts / 2)))
        reach = int(_DEVIATIONS * spread) + 16
        return slice(max(self.n // 2 - reach, 0), min(self.n // 2 + reach, self.n))

    @property
    def width(self) -> int:
        """Rows in the window."""
        return self.window.stop - self.window.start

    def medians(self, weights: Floats) -> Floats:
        """The median of each resample; ``weights`` (resamples, patients) says how often a patient was drawn."""
        totals = weights @ self.counts
        before = weights @ self.before
        ahead = np.cumsum(weights[:, self.codes[self.window]], axis=1)
        ahead += before[:, None]
        # The two middle values: the same one where their number is odd.
        first, second = np.ceil(totals / 2), np.floor(totals / 2) + 1
        inside = (before < first) & (ahead[:, -1] >= second)
        values = self.values[self.window]
        places = [np.minimum((ahead < rank[:, None]).sum(axis=1), len(values) - 1) for rank in (first, second)]
        found = (values[places[0]] + values[places[1]]) / 2
        for number in np.flatnonzero(~inside & (totals > 0)):
            found[number] = self._median_of_all(weights[number])
        found[totals == 0] = np.nan
        return found

    def _median_of_all(self, weights: Floats) -> float:
        ahead = np.cumsum(weights[self.codes])
        low, high = np.searchsorted(ahead, [np.ceil(ahead[-1] / 2), np.floor(ahead[-1] / 2) + 1])
        return float((self.values[low] + self.values[high]) / 2)

    def summary(self, mean: Interval, median: Interval) -> Summary:
        if not self.n:
            return Summary(0, None, None, None, None, None, None)
        return Summary(self.n, float(self.values.mean()), *mean, float(np.median(self.values)), *median)


def _resampled(
    columns: list[_Column], patients: int, generator: np.random.Generator, resamples: int
) -> tuple[Floats, Floats]:
    """Means and medians, both (resamples, columns); NaN where a resample has no value, or none was looked for."""
    sums = np.stack([column.sums for column in columns], axis=1)
    counts = np.stack([column.counts for column in columns], axis=1)
    looked = [column.n > 0 and column.width * resamples <= MOST_WORK for column in columns]
    widest = max((column.width for column, wanted in zip(columns, looked, strict=True) if wanted), default=0)
    chunk = max(1, CHUNK // max(patients, widest, 1))
    means, medians = (np.full((resamples, len(columns)), np.nan) for _ in range(2))
    for start in range(0, resamples, chunk):
        part = slice(start, min(start + chunk, resamples))
        weights = _draw(part.stop - part.start, patients, generator)
        with np.errstate(invalid="ignore", divide="ignore"):
            means[part] = (weights @ sums) / (weights @ counts)
        for number, column in enumerate(columns):
            if looked[number]:
                medians[part, number] = column.medians(weights)
    return means, medians


def _draw(resamples: int, patients: int, generator: np.random.Generator) -> Floats:
    """How often each patient is drawn, (resamples, patients): each row sums up to their number."""
    drawn = generator.integers(patients, size=(resamples, patients))
    drawn += np.arange(resamples)[:, None] * patients
    counted = np.bincount(drawn.ravel(), minlength=resamples * patients)
    return counted.reshape(resamples, patients).astype(np.float64)


def _interval(figures: Floats, column: _Column) -> Interval:
    """The percentiles; nothing for a column of a single patient. Resamples without any of its patients do not count."""
    known = figures[~np.isnan(figures)]
    if column.patients < 2 or not len(known):
        return None, None
    low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
