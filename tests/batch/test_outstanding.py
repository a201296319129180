"""What is left of a shard, streamed: the same on every pass, counted at most once."""

from __future__ import annotations

import pytest

from heatlens.batch.finished import FinishedKeys
from heatlens.batch.folder import Listing
from heatlens.batch.outstanding import Outstanding
from tests.batch.plans import MemoryPlan, Task, Writes, bad, failed, heat_map, image_record, made, touch, write_ledger


def tasks() -> list[Task]:
    found = []
    for index in range(6):
        image = f"f{index % 2}/i{index}"
        maps = tuple(heat_map(10 * index + number, image, number + 1) for number in range(3))
        found.append(Task(image, maps, (), index * 2))
    return found


def left(results, plan, shard=(0, 1), *, retry=False, there=(), finished=None) -> Outstanding:
    return Outstanding(
        plan, shard, finished or FinishedKeys.read(results), Listing(results), Writes(),
        retry_failed=retry, is_there=lambda path: path in there,
    )  # fmt: skip


def shape(outstanding: Outstanding) -> dict[str, list[int]]:
    return {task.image_path: [one.number for one in task.heat_maps] for task in outstanding}


@pytest.fixture
def begun(tmp_path):
    """Image 0 is made, of image 1 one heat map failed, image 2 was not there, image 3 lost a file."""
    plan = MemoryPlan(tasks())
    first, second, third, fourth, *_ = plan.tasks
    gone = [failed(one, "gone", "locate") for one in third.heat_maps]
    mixed = [failed(second.heat_maps[0]), *map(made, second.heat_maps[1:])]
    write_ledger(tmp_path, "0000-of-0001", [
        image_record(first.image_path, [made(one) for one in first.heat_maps]),
        image_record(second.image_path, mixed),
        image_record(third.image_path, gone),
        image_record(fourth.image_path, [made(one) for one in fourth.heat_maps]),
    ])  # fmt: skip
    for task in (first, second, fourth):
        for one in task.heat_maps:
            touch(tmp_path, one)
    (tmp_path / f"{fourth.heat_maps[1].output}.png").unlink()
    return tmp_path, plan


REST = {"f0/i4": [1, 2, 3], "f1/i5": [1, 2, 3]}


def test_a_fresh_run_is_not_counted_first(tmp_path):
    plan = MemoryPlan([*tasks(), Task("all/bad", (), (bad(99, "all/bad", 0),), 20)])
    outstanding = left(tmp_path, plan)
    assert plan.asked == []
    assert (outstanding.images, outstanding.heat_maps, outstanding.failed_before) == (7, 18, 0)
    assert [task.image_path for task in outstanding] == [task.image_path for task in plan.tasks[:6]]


def test_what_is_finished_is_left_out(begun):
    results, plan = begun
    outstanding = left(results, plan)
    assert shape(outstanding) == {"f1/i3": [2], **REST}
    assert shape(outstanding) == {"f1/i3": [2], **REST}
    assert (outstanding.images, outstanding.heat_maps, outstanding.failed_before) == (3, 7, 4)
    assert plan.asked == ["shard"] * 3


def test_failures_are_retried_when_asked_for(begun):
    results, plan = begun
    outstanding = left(results, plan, retry=True)
    assert shape(outstanding) == {"f1/i1": [1], "f0/i2": [1, 2, 3], "f1/i3": [2], **REST}
    assert outstanding.failed_before == 0


def test_an_image_that_was_missing_and_is_there_now(begun):
    results, plan = begun
    assert shape(left(results, plan, there={"f0/i2", "f1/i1"})) == {"f0/i2": [1, 2, 3], "f1/i3": [2], **REST}


def test_an_image_is_looked_for_once(begun):
    results, plan = begun
    looked = []
    Outstanding(
        plan, (0, 1), FinishedKeys.read(results), Listing(results), Writes(),
        retry_failed=False, is_there=lambda path: bool(looked.append(path)),
    )  # fmt: skip
    assert looked == ["f0/i2"]


def test_shards_share_the_work(begun):
    results, plan = begun
    halves = [shape(left(results, plan, (index, 4))) for index in (0, 2)]
    assert halves == [{"f0/i4": [1, 2, 3]}, {"f1/i3": [2], "f1/i5": [1, 2, 3]}]


def test_nothing_left(tmp_path):
    plan = MemoryPlan(tasks()[:1])
    write_ledger(tmp_path, "0000-of-0001", [image_record("f0/i0", [made(one) for one in plan.tasks[0].heat_maps])])
    for one in plan.tasks[0].heat_maps:
        touch(tmp_path, one)
    outstanding = left(tmp_path, plan)
    assert (outstanding.images, list(outstanding)) == (0, [])
