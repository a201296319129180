"""Intervals against scipy, against a plain loop, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from heatlens.evaluate import bootstrap
from heatlens.evaluate.bootstrap import paired, summarise


def clustered(generator, patients=30, columns=1, most=8, rounding=7):
    """Values with a patient's own level in them, (n, columns), and the patients."""
    counts = generator.integers(1, most + 1, patients)
    owners = np.repeat(np.arange(patients), counts)
    values = generator.normal(size=(len(owners), columns)) + generator.normal(size=(patients, columns))[owners]
    return values.round(rounding), owners


def by_hand(values, owners, seed, resamples):
    """The same draws, row by row."""
    names = np.unique(owners)
    rows = [values[owners == name] for name in names]
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(resamples):
        drawn = np.concatenate([rows[place] for place in generator.integers(len(names), size=len(names))])
        drawn = drawn[~np.isnan(drawn)]
        made.append((drawn.mean(), np.median(drawn)) if len(drawn) else (np.nan, np.nan))
    return np.nanpercentile(made, [2.5, 97.5], axis=0)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 40),
    st.integers(1, 30),
    st.sampled_from([0, 1, 7]),
    st.sampled_from([0, 0.4]),
)
@settings(max_examples=40, deadline=None)
def test_both_intervals_are_those_of_a_plain_loop(seed, patients, most, rounding, missing):
    generator = np.random.default_rng(seed)
    values, owners = clustered(generator, patients, 1, most, rounding)
    values[generator.random(values.shape) < missing] = np.nan
    known = ~np.isnan(values[:, 0])
    found = summarise(values, owners, seed=seed, resamples=60)[0]
    assert found.n == known.sum()
    if len(np.unique(owners[known])) < 2:
        assert found.mean_low is found.mean_high is found.median_low is found.median_high is None
        return
    assert found.mean == pytest.approx(values[known].mean())
    assert found.median == pytest.approx(np.median(values[known]))
    (mean_low, median_low), (mean_high, median_high) = by_hand(values[:, 0], owners, seed, 60)
    ours = (found.mean_low, found.mean_high, found.median_low, found.median_high)
    assert ours == pytest.approx((mean_low, mean_high, median_low, median_high), abs=1e-9)


def test_a_median_outside_the_window_is_still_exact(monkeypatch):
    values, owners = clustered(np.random.default_rng(1), 60, 1, 40)
    exact = by_hand(values[:, 0], owners, 3, 200)
    looked = []
    plain = bootstrap._Column._median_of_all
    monkeypatch.setattr(bootstrap, "_DEVIATIONS", 0.5)
    monkeypatch.setattr(
        bootstrap._Column, "_median_of_all", lambda self, weights: looked.append(1) or plain(self, weights)
    )
    found = summarise(values, owners, seed=3, resamples=200)[0]
    assert looked
    assert (found.median_low, found.median_high) == pytest.approx(exact[:, 1], abs=1e-12)


def test_the_window_is_small_beside_many_rows():
    owners = np.arange(40_000) // 2
    column = bootstrap._Column(np.random.default_rng(0).random(40_000), owners, 20_000)
    assert column.width < 4_000


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_one_row_per_patient_is_the_plain_bootstrap_of_scipy(statistic):
    values = np.random.default_rng(5).gamma(2.0, size=80)
    theirs = scipy.stats.bootstrap(
        (values,), getattr(np, statistic), n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    ours = summarise(values[:, None], np.arange(80), seed=0, resamples=20_000)[0]
    width = theirs.high - theirs.low
    assert getattr(ours, f"{statistic}_low") == pytest.approx(theirs.low, abs=0.04 * width)
    assert getattr(ours, f"{statistic}_high") == pytest.approx(theirs.high, abs=0.04 * width)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """200 studies of 40 patients with several maps each, which share the patient's level; the truth is 0."""
    generator = np.random.default_rng(11)
    held = np.zeros(4)
    for number in range(200):
        values, owners = clustered(generator, 40)
        found = summarise(values, owners, seed=number, resamples=300)[0]
        naive = summarise(values, np.arange(len(owners)), seed=number, resamples=300)[0]
        held += [
            found.mean_low <= 0 <= found.mean_high,
            found.median_low <= 0 <= found.median_high,
            naive.mean_low <= 0 <= naive.mean_high,
            naive.median_low <= 0 <= naive.median_high,
        ]
    mean, median, naive_mean, naive_median = held / 200
    assert 0.88 <= mean <= 0.99 and 0.88 <= median <= 0.99
    assert naive_mean < 0.8 and naive_median < 0.85  # rows drawn one by one promise too much


def test_paired_intervals_are_narrower_than_the_two_side_by_side():
    generator = np.random.default_rng(2)
    first, owners = clustered(generator, 40)
    second = first + 0.2 + generator.normal(scale=0.1, size=first.shape)
    found = paired(first, second, owners, seed=0)[0]
    one, other = (summarise(side, owners, seed=0)[0] for side in (first, second))
    assert found.mean == pytest.approx(other.mean - one.mean)
    assert found.mean_low > 0.15 and found.mean_high < 0.25
    assert found.mean_high - found.mean_low < 0.2 * (one.mean_high - one.mean_low)
    assert found.median_low > 0.1


def test_a_difference_needs_the_number_on_both_sides():
    first, second = np.array([[0.0], [np.nan], [1.0]]), np.array([[1.0], [5.0], [np.nan]])
    found = paired(first, second, ["a", "b", "c"], seed=0)[0]
    assert (found.n, found.mean, found.mean_low) == (1, 1.0, None)


def test_the_same_seed_gives_the_same_whatever_the_order_the_columns_and_the_memory(monkeypatch):
    generator = np.random.default_rng(0)
    values, owners = clustered(generator, 25, columns=3)
    names = np.array([f"patient{owner}" for owner in owners])
    found = summarise(values, names, seed=4, resamples=100)
    assert found == summarise(values, names, seed=4, resamples=100)
    assert found != summarise(values, names, seed=5, resamples=100)
    order = generator.permutation(len(owners))
    for one, other in zip(found, summarise(values[order], names[order], seed=4, resamples=100), strict=True):
        assert one.as_dict() == other.as_dict()
    assert summarise(values[:, 1:2], names, seed=4, resamples=100)[0].as_dict() == found[1].as_dict()
    monkeypatch.setattr(bootstrap, "CHUNK", 200)
    for one, other in zip(found, summarise(values, names, seed=4, resamples=100), strict=True):
        assert one.as_dict() == other.as_dict()


def test_a_single_patient_has_figures_but_no_interval():
    found = summarise(np.array([[1.0], [2.0], [6.0]]), ["p"] * 3, seed=0)[0]
    ends = dict.fromkeys(["mean_low", "mean_high", "median_low", "median_high"])
    assert found.as_dict() == {"n": 3, "mean": 3.0, "median": 2.0, **ends}


def test_no_value_at_all_has_no_figures():
    found = summarise(np.full((4, 1), np.nan), ["a", "b", "c", "d"], seed=0)[0]
    assert found.n == 0 and set(found.as_dict().values()) == {0, None}


def test_no_variation_is_an_interval_of_no_width():
    found = summarise(np.full((6, 1), 0.25), list("aabbcc"), seed=0)[0]
    assert {found.mean, found.mean_low, found.mean_high, found.median, found.median_low, found.median_high} == {0.25}


def test_figures_have_four_decimals():
    found = summarise(np.array([[1 / 3], [2 / 3]]), ["a", "b"], seed=0)[0].as_dict()
    assert found["mean"] == 0.5 and found["mean_low"] == 0.3333 and found["mean_high"] == 0.6667


def test_a_median_that_would_take_minutes_has_no_interval(monkeypatch):
    values, owners = clustered(np.random.default_rng(0), 20)
    monkeypatch.setattr(bootstrap, "MOST_WORK", 10)
    found = summarise(values, owners, seed=0)[0]
    assert found.median is not None and found.median_low is None is found.median_high
    assert found.mean_low is not None
