"""Where a report may be written: the user's own files stay as they are."""

from __future__ import annotations

import json
import os

import pytest

from heatlens.errors import ConfigError, SetupError
from heatlens.evaluate.place import COMPARISON, REPORT, check_place

OURS = {
    REPORT: {"evaluated": 1, "groups": {}, "truth": {}},
    COMPARISON: {"matched": 1, "groups": {}, "a": {}, "b": {}},
}


@pytest.mark.parametrize("kind", [REPORT, COMPARISON], ids=["report", "comparison"])
def test_a_new_folder_an_empty_one_and_an_earlier_report_will_do(tmp_path, kind):
    check_place(tmp_path / "not" / "there", kind)
    assert not (tmp_path / "not").exists()
    check_place(tmp_path, kind)
    (tmp_path / "my notes.txt").write_text("mine")
    check_place(tmp_path, kind)
    (tmp_path / kind.record).write_text(json.dumps(OURS[kind]))
    for name in kind.names:
        if name != kind.record:
            (tmp_path / name).mkdir()
    check_place(tmp_path, kind)


@pytest.mark.parametrize("name", sorted({*REPORT.names, *COMPARISON.names}))
def test_what_is_somebody_elses_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"evaluated": "mine"}')
    for kind in (REPORT, COMPARISON):
        if name in kind.names:
            with pytest.raises(ConfigError, match=f"{name} is there"):
                check_place(tmp_path, kind)


def test_a_dangling_link_counts_as_a_file(tmp_path):
    (tmp_path / "report.md").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"report\.md is there"):
        check_place(tmp_path, REPORT)


def test_a_report_and_a_comparison_are_not_taken_for_each_other(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(OURS[REPORT]))
    (tmp_path / "plots").mkdir()
    with pytest.raises(ConfigError, match="plots is there"):
        check_place(tmp_path, COMPARISON)


@pytest.mark.parametrize("name", ["run.json", "shards"])
def test_the_folder_of_a_run_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="results folder of a run"):
        check_place(tmp_path, REPORT)


def test_a_file_on_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "deep" / "er"):
        with pytest.raises(ConfigError, match="not a folder"):
            check_place(place, REPORT)


def test_a_read_only_place_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SetupError, match="read-only; name another --output"):
        check_place(tmp_path / "report" / "evaluation", REPORT)
