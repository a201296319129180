"""The three ways to say from which heat on a pixel belongs to a box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.boxes.threshold import threshold_of
from heatlens.settings import KEYS

RAMP = np.linspace(0, 1, 101, dtype=np.float32).reshape(1, -1)
ALL = np.ones((1, 101), bool)


@pytest.mark.parametrize(("rule", "value"), [("0.5", 0.5), (".25", 0.25), ("p95", 0.95), ("P2.5", 0.025), ("p0", 0.0)])
def test_shares_and_percentiles_of_a_ramp(rule: str, value: float) -> None:
    assert threshold_of(rule, RAMP, ALL) == pytest.approx(value, abs=1e-6)


def test_only_pixels_inside_count() -> None:
    inside = RAMP <= 0.5
    assert threshold_of("p50", RAMP, inside) == pytest.approx(0.25)
    assert threshold_of("0.5", RAMP, inside) == pytest.approx(0.25)
    assert threshold_of("otsu", RAMP, inside) == pytest.approx(0.25, abs=0.01)


def best_split(levels: np.ndarray) -> float:
    """Largest variance between two classes, over all splits: Otsu's criterion, written out."""
    best = 0.0
    for level in range(255):
        cold, hot = levels[levels <= level], levels[levels > level]
        if len(cold) and len(hot):
            best = max(best, len(cold) * len(hot) * (cold.mean() - hot.mean()) ** 2)
    return best


@given(st.lists(st.integers(0, 255), min_size=2, max_size=60).filter(lambda one: len(set(one)) > 1))
def test_otsu_parts_the_values_best(numbers: list[int]) -> None:
    levels = np.array(numbers)
    values = (levels / 255).astype(np.float32).reshape(1, -1)
    threshold = threshold_of("otsu", values, np.ones(values.shape, bool))
    cold, hot = levels[values[0] <= threshold], levels[values[0] > threshold]
    assert len(cold) * len(hot) * (cold.mean() - hot.mean()) ** 2 == pytest.approx(best_split(levels))


@pytest.mark.parametrize("text", ["otsu", "Otsu", "0.5", ".5", "0.05", "p95", "P5", "p99.5", "p0"])
def test_every_rule_that_the_key_allows_is_understood(text: str) -> None:
    assert KEYS["BOX_THRESHOLD"].kind.accepts(text)
    assert 0 <= threshold_of(text, RAMP, ALL) <= 1
