"""Two runs on the same heat maps."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from heatlens.errors import ConfigError
from heatlens.evaluate.bootstrap import summarise
from heatlens.evaluate.measure import Evaluation
from heatlens.evaluate.metrics import KEYS
from heatlens.evaluate.paired import compare_runs
from tests.evaluate.records import example_comparison


def evaluation(level, *, rows=60, seed=0, rule="otsu", name="one"):
    """Rows of 20 patients; numbers are ``level`` on top of what makes a row easy or hard."""
    hard = np.random.default_rng(0).random(rows) * 0.5
    own = np.random.default_rng(seed).random(rows) * 0.05
    table = {
        "source_image": [f"{row // 2}.jpg" for row in range(rows)],
        "output": [f"{name}/{row}.png" for row in range(rows)],
        "row": np.arange(rows) // 2,
        "question_id": [f"q{row}" for row in range(rows)],
        "region": [f"r{row % 2}" for row in range(rows)],
        "question": "Where?",
        "prompt": "it",
        "question_type": "open",
        "patient": [f"p{row // 3}" for row in range(rows)],
        "finding": ["Nodule" if row % 3 else "" for row in range(rows)],
        "target_share": 0.01,
        "target_size": "0.5-2%",
        **dict.fromkeys(KEYS, level + hard + own),
    }
    return Evaluation(pd.DataFrame(table), {"run": {"method": name}, "threshold_rule": rule})


def test_a_comparison_has_the_layout_that_others_build_on():
    found, example = (
        compare_runs(evaluation(0.1), evaluation(0.2, seed=1, name="two"), resamples=100),
        example_comparison(),
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == list(example)
    assert found["groups"]["all"]["all"].keys() == example["groups"]["all"]["all"].keys()
    ours = found["groups"]["all"]["all"]["metrics"]
    assert list(ours) == list(KEYS) == list(example["groups"]["all"]["all"]["metrics"])
    assert ours["iou"].keys() == example["groups"]["all"]["all"]["metrics"]["iou"].keys()
    assert (found["a"], found["b"]) == ({"method": "one"}, {"method": "two"})
    assert {name: part["n"] for name, part in found["groups"]["finding"].items()} == {"Nodule": 40, "(not named)": 20}
    assert found["notes"] == []


def test_the_difference_is_second_minus_first_of_the_same_heat_maps():
    a, b = evaluation(0.1), evaluation(0.2, seed=1)
    shuffled = Evaluation(b.rows.sample(frac=1, random_state=0), b.record)
    found = compare_runs(a, shuffled, seed=3, resamples=100)
    part = found["groups"]["all"]["all"]["metrics"]["iou"]
    difference = (b.rows["iou"] - a.rows["iou"]).to_numpy()
    alone = summarise(difference[:, None], a.rows["patient"].to_numpy(), seed=3, resamples=100)[0].as_dict()
    assert {key: part[key] for key in alone} == alone
    assert part["a_mean"] == pytest.approx(a.rows["iou"].mean(), abs=1e-4)
    assert part["b_mean"] == pytest.approx(b.rows["iou"].mean(), abs=1e-4)
    assert part["b_better"] == (difference > 0).sum() and part["a_better"] == 0 and part["equal"] == 0
    assert 0 < part["mean_low"] < part["mean"] < part["mean_high"]


def test_pairing_tells_apart_what_two_intervals_side_by_side_do_not():
    a, b = evaluation(0.1), evaluation(0.12, seed=1)
    part = compare_runs(a, b, resamples=300)["groups"]["all"]["all"]["metrics"]["iou"]
    one, other = (
        summarise(side.rows[["iou"]].to_numpy(), side.rows["patient"].to_numpy(), seed=0, resamples=300)[0]
        for side in (a, b)
    )
    assert part["mean_low"] > 0
    assert other.mean_low < one.mean_high
    assert part["mean_high"] - part["mean_low"] < 0.3 * (one.mean_high - one.mean_low)


def test_a_run_against_itself_is_no_difference():
    part = compare_runs(evaluation(0.1), evaluation(0.1), resamples=50)["groups"]["all"]["all"]["metrics"]["cnr"]
    assert part["mean"] == part["mean_low"] == part["mean_high"] == 0
    assert (part["equal"], part["a_better"], part["b_better"]) == (60, 0, 0)


def test_unmatched_heat_maps_are_counted():
    a, b = evaluation(0.1), evaluation(0.2)
    found = compare_runs(Evaluation(a.rows.iloc[5:], a.record), Evaluation(b.rows.iloc[:-3], b.record), resamples=20)
    assert (found["matched"], found["only_in_a"], found["only_in_b"]) == (52, 3, 5)


def test_rows_that_are_called_the_same_are_paired_in_their_order():
    a, b = evaluation(0.1), evaluation(0.2)
    for side in (a, b):
        side.rows[["source_image", "row", "region", "question_id"]] = ["a.jpg", 0, "", ""]
    found = compare_runs(a, Evaluation(b.rows.iloc[:50], b.record), resamples=20)
    assert (found["matched"], found["only_in_a"], found["only_in_b"]) == (50, 10, 0)
    assert found["groups"]["all"]["all"]["metrics"]["iou"]["mean"] == pytest.approx(0.1)


def test_nothing_in_common_is_an_error():
    a, b = evaluation(0.1), evaluation(0.1)
    b.rows["source_image"] = "elsewhere/" + b.rows["source_image"]
    with pytest.raises(ConfigError, match="no heat map in common"):
        compare_runs(a, b)


def test_numbers_that_one_side_does_not_have_do_not_count():
    a, b = evaluation(0.1), evaluation(0.2)
    b.rows.loc[:9, "cnr"] = np.nan
    part = compare_runs(a, b, resamples=20)["groups"]["all"]["all"]["metrics"]
    assert part["cnr"]["n"] == 50 and part["iou"]["n"] == 60
    assert part["cnr"]["a_mean"] == pytest.approx(a.rows["cnr"].iloc[10:].mean(), abs=1e-4)


def test_differences_that_are_not_the_methods_are_said():
    a, b = evaluation(0.1), evaluation(0.2, rule="p95")
    b.rows.loc[:3, "target_share"] = 0.02
    b.rows.loc[:1, "prompt"] = "something else"
    threshold, target, prompt = compare_runs(a, b, resamples=20)["notes"]
    assert "otsu and p95" in threshold
    assert target.startswith("4 of 60 heat maps have another target")
    assert prompt.startswith("2 of 60 heat maps were made with another prompt")
