"""Who is summed up with whom."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.evaluate import groups
from heatlens.evaluate.groups import groups_of, target_size


@pytest.mark.parametrize(
    ("share", "name"),
    [
        (0.0, "< 0.5%"), (0.00499, "< 0.5%"), (0.005, "0.5-2%"), (0.0199, "0.5-2%"), (0.02, "2-10%"), (0.1, "2-10%"),
        (0.1001, "> 10%"), (1.0, "> 10%"),
    ],
)  # fmt: skip
def test_sizes_of_targets(share, name):
    assert target_size(share) == name


def table(findings, regions=None, types=None, sizes=None):
    n = len(findings)
    return pd.DataFrame(
        {
            "finding": findings,
            "region": regions or [""] * n,
            "question_type": types or ["open"] * n,
            "target_size": sizes or ["2-10%"] * n,
        }
    )


def test_most_heat_maps_come_first_and_sizes_in_their_order():
    found, notes = groups_of(
        table(["b", "a", "b", "", "a ", " b  b"], sizes=["> 10%", "< 0.5%", "> 10%", "> 10%", "2-10%", "> 10%"])
    )
    assert list(found) == ["all", "finding", "region", "question_type", "target_size"]
    assert list(found["finding"]) == ["a", "b", "(not named)", "b b"]
    assert found["finding"]["a"].tolist() == [1, 4]
    assert list(found["target_size"]) == ["< 0.5%", "2-10%", "> 10%"]
    assert found["region"] == {}  # none has a name
    assert notes == []


def test_of_very_many_names_the_largest_are_kept(monkeypatch):
    monkeypatch.setattr(groups, "MOST_GROUPS", 2)
    found, notes = groups_of(table(["a", "b", "b", "c", "c", "c"]))
    assert list(found["finding"]) == ["c", "b"]
    assert notes == ["by finding: the 2 with most heat maps of 3"]


@given(st.lists(st.sampled_from(["", "x", "y", "z"]), min_size=1, max_size=30))
def test_every_heat_map_is_in_one_group_of_its_grouping(names):
    found, _ = groups_of(table(names))
    for places in (found["all"], found["finding"], found["target_size"]):
        if places:
            assert sorted(np.concatenate(list(places.values())).tolist()) == list(range(len(names)))
