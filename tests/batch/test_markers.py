"""Done markers: what counts as finished, for which plan and which number of shards."""

from __future__ import annotations

import json
import os
import time

import pytest

from heatlens.batch.markers import (
    best_count,
    finished_shards,
    parse_shard_name,
    read_marker,
    remove_marker,
    shard_folders,
    shard_name,
    write_marker,
)


def finish(results, index, count, digest="plan"):
    folder = results / "shards" / shard_name(index, count)
    write_marker(folder, digest, made=10, failed=1)
    return folder


def test_a_marker_says_what_was_finished(tmp_path):
    folder = finish(tmp_path, 3, 8)
    assert folder.name == "0003-of-0008"
    data = json.loads((folder / "done.json").read_text())
    assert abs(data.pop("at") - time.time()) < 60
    assert data == {"plan": "plan", "made": 10, "failed": 1}
    assert [path.name for path in folder.iterdir()] == ["done.json"]


def test_only_markers_of_this_plan_and_number_count(tmp_path):
    for index in (0, 2):
        finish(tmp_path, index, 3)
    finish(tmp_path, 1, 3, "a smaller plan")
    finish(tmp_path, 0, 4)
    finish(tmp_path, 1, 4)
    assert finished_shards(tmp_path, "plan", 3) == {0, 2}
    assert finished_shards(tmp_path, "plan", 4) == {0, 1}
    assert finished_shards(tmp_path, "plan", 2) == set()
    assert finished_shards(tmp_path / "nowhere", "plan", 2) == set()


def test_a_number_of_shards_that_is_all_finished(tmp_path):
    assert best_count(tmp_path, "plan") is None
    for index in range(4):
        finish(tmp_path, index, 4)
    assert best_count(tmp_path, "plan") == 4
    assert best_count(tmp_path, "another plan") == 4  # unfinished, and the only one
    finish(tmp_path, 0, 2)
    assert best_count(tmp_path, "plan") == 4
    finish(tmp_path, 1, 2)
    assert best_count(tmp_path, "plan") == 2
    assert best_count(tmp_path, "another plan") is None
    finish(tmp_path, 1, 2, "another plan")
    assert best_count(tmp_path, "plan") == 4


def test_work_that_comes_back_takes_the_marker_away(tmp_path):
    folder = finish(tmp_path, 0, 1)
    remove_marker(folder)
    remove_marker(folder)
    assert finished_shards(tmp_path, "plan", 1) == set()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"7", b'{"plan": ["plan"]}', b"[" * 100_000])
def test_a_damaged_marker_counts_for_nothing(tmp_path, content):
    folder = finish(tmp_path, 0, 1)
    (folder / "done.json").write_bytes(content)
    assert finished_shards(tmp_path, "plan", 1) == set()
    finish(tmp_path, 0, 2)
    assert best_count(tmp_path, "plan") is None


def test_a_marker_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    folder = finish(tmp_path, 0, 1, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_marker(folder, "new", made=1, failed=0)
    assert read_marker(folder)["plan"] == "old"
    assert [path.name for path in folder.iterdir()] == ["done.json"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("0003-of-0008", (3, 8)),
        ("12345-of-20000", (12345, 20000)),
        ("0003-of-20000", (3, 20000)),
        ("0008-of-0008", None),
        ("3-of-8", None),
        ("00003-of-0008", None),
        ("plan", None),
        ("0003-of-0008.old", None),
    ],
)
def test_names_of_shard_folders(tmp_path, name, place):
    assert parse_shard_name(name) == place
    (tmp_path / "shards" / name).mkdir(parents=True)
    assert shard_folders(tmp_path) == ([place] if place else [])
