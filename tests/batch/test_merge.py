"""Out of core, and still the bytes of the plain way: everything in memory, sorted, written row by row."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import pickle
import random
import struct
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heatlens.batch import merge as merge_module
from heatlens.batch import spool
from heatlens.batch.details import details_schema
from heatlens.batch.ledger import read_ledger
from heatlens.batch.merge import FAILURE_COLUMNS, merge
from heatlens.batch.tables import csv_line, valid_text
from heatlens.errors import SetupError
from tests.batch.plans import (
    MemoryPlan,
    Task,
    Writes,
    bad,
    failed,
    heat_map,
    image_record,
    made,
    touch,
    write_ledger,
)

RETRY = "python run.py --retry-failed true"
TABLES = ("details.parquet", "failures.csv", "vqa_manifest.csv")


def details_bytes(rows: list[tuple[str, Any, Any]], columns: dict[str, type]) -> bytes:
    """The plain way: dictionaries, one table per 8192 of them."""
    buffer = io.BytesIO()
    schema = details_schema(columns)
    rest = iter(rows)
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        while part := list(islice(rest, 8192)):
            writer.write_table(pa.Table.from_pylist([details_row(*one, columns) for one in part], schema=schema))
    return buffer.getvalue()


def details_row(image: str, asked: Any, record: Any, columns: dict[str, type]) -> dict[str, Any]:
    texts = {
        name: valid_text(getattr(asked, name))
        for name in ("source", "question_id", "question", "answer", "question_type", "content_type", "region", "prompt")
    }
    boxes = json.dumps([{"name": box.name, "box": box.box, "frame": box.frame} for box in asked.boxes])
    return {
        "image_path": valid_text(record.output), "source_image": valid_text(image), "row": asked.row, **texts,
        "choices": [valid_text(choice) for choice in asked.choices], "boxes": boxes,
        "prompt_truncated": record.prompt_truncated, "score": record.score,
        **{name: record.statistics.get(name) for name in columns},
        "geometry": record.statistics.get("geometry") or "",
        "warnings": [valid_text(text) for text in (*record.warnings, *asked.notes)],
    }  # fmt: skip


def plainly(plan: MemoryPlan, records: dict[str, Any]) -> dict[str, bytes]:
    """The three tables; ``records`` by key, as a ledger gives them back, are those that count."""
    asked = [(task.image_path, one) for task in plan.tasks for one in task.heat_maps]
    good = [(image, one, records[one.key]) for image, one in asked if records[one.key].ok]
    good.sort(key=lambda one: (one[1].row, one[1].region_index))
    not_made = [(image, one, records[one.key]) for image, one in asked if not records[one.key].ok]
    not_made += [
        (one.image_path, one, SimpleNamespace(stage="row", reason=one.reason))
        for one in (*plan.bad_rows(), *(one for task in plan.tasks for one in task.bad))
    ]
    lines = [
        (one.row, one.region_index, image, one.question_id, one.question, one.region, why.stage, why.reason)
        for image, one, why in not_made
    ]
    failures = csv_line(FAILURE_COLUMNS) + "".join(csv_line((*line[2:], RETRY)) for line in sorted(lines))
    manifest = csv_line(("image_path", "question", "answer")) + "".join(
        csv_line((record.output, one.question, one.answer)) for _, one, record in good
    )
    details = details_bytes(good, Writes.columns)
    return dict(zip(TABLES, (details, failures.encode(), manifest.encode()), strict=True))


def many(images: int, per_image: int) -> MemoryPlan:
    """Rows scattered over images, several regions of some rows, bad rows among them."""
    rows = list(range(images * per_image))
    random.Random(3).shuffle(rows)
    tasks = []
    for index in range(images):
        image = f"f{index % 7}/i{index}"
        mine = sorted(rows[index * per_image : (index + 1) * per_image])
        maps = [heat_map(row, image, number + 1) for number, row in enumerate(mine)]
        maps += [heat_map(mine[-1], image, per_image + 1, region_index=2)]
        wrong = (bad(mine[-1], image, 1),) if index % 3 == 0 else ()
        tasks.append(Task(image, tuple(maps), wrong, index))
    return MemoryPlan(tasks, [bad(len(rows) + 5, "../up"), bad(-1, "")])


def records_of(plan: MemoryPlan, *, each: int = 11) -> dict[str, list[Any]]:
    """Image -> records: every ``each``-th heat map failed."""
    return {
        task.image_path: [
            failed(one, f"no {one.row},\n") if one.row % each == 1 else made(one) for one in task.heat_maps
        ]
        for task in plan.tasks
    }  # fmt: skip


def store(results: Path, plan: MemoryPlan, *, shards: int = 1, seed: int = 0, files: bool = True) -> dict[str, Any]:
    """Ledgers of so many shards with shuffled lines, and the files; returns the records by key."""
    lines = [image_record(image, records) for image, records in records_of(plan).items()]
    random.Random(seed).shuffle(lines)
    for index in range(shards):
        write_ledger(results, f"{index:04d}-of-{shards:04d}", lines[index::shards])
    known = {}
    for path in results.glob("shards/*/ledger.jsonl"):
        known |= {one.key: one for record in read_ledger(path) for one in record.heat_maps}
    for task in plan.tasks:
        for one in task.heat_maps:
            if files and known[one.key].ok:
                touch(results, one)
    return known


def tables(results: Path) -> dict[str, bytes]:
    return {name: (results / name).read_bytes() for name in TABLES if (results / name).exists()}


def leftovers(results: Path) -> list[Path]:
    return [path for path in results.rglob("*") if "tmp" in path.name]


def run(plan: MemoryPlan, results: Path, stage: Any = None) -> Any:
    return merge(plan, results, stage or Writes(), RETRY)  # type: ignore[arg-type]


@pytest.mark.parametrize("shards", [1, 5])
def test_the_bytes_of_the_plain_way(tmp_path, shards):
    plan = many(40, 6)
    known = store(tmp_path, plan, shards=shards, seed=shards)
    result = run(plan, tmp_path)
    assert tables(tmp_path) == plainly(plan, known)
    assert result.complete
    assert [path.name for path in result.tables] == list(TABLES)
    assert leftovers(tmp_path) == []
    made_ones = [one for one in known.values() if one.ok]
    assert result.counts == {
        "rows": plan.rows, "bad_rows": 16, "images": 40, "heat_maps": 280, "made": len(made_ones),
        "failed": 16 + 280 - len(made_ones), "missing": 0, "beyond_this_run": 0,
        "constant_maps": sum(bool(one.statistics["constant"]) for one in made_ones), "halved_batches": 0,
        "truncated_prompts": sum(one.prompt_truncated for one in made_ones),
        "whole_film_masks": sum(bool(one.statistics["whole_film"]) for one in made_ones),
    }  # fmt: skip
    assert result.counts["constant_maps"] > 0 < result.counts["whole_film_masks"]
    assert result.clocks == {"explain_s": 60.0, "read_s": 10.0, "total_s": 70.0, "peak_rss_mib": 100.0}
    assert pickle.loads(pickle.dumps(result)) == result
    assert run(plan, tmp_path) == result


def test_more_than_fits_into_one_part(tmp_path, monkeypatch):
    """Several buckets, row groups, and batches in one bucket."""
    monkeypatch.setattr(spool, "SPAN", 5000)
    monkeypatch.setattr(spool, "_TOGETHER", 700)
    monkeypatch.setattr(spool, "_WAITING", 1500)
    plan = many(1800, 10)
    known = store(tmp_path, plan, shards=3, files=False)
    monkeypatch.setattr(merge_module.Listing, "has_all", lambda self, names: True)
    run(plan, tmp_path)
    assert tables(tmp_path) == plainly(plan, known)
    assert pq.ParquetFile(tmp_path / "details.parquet").num_row_groups > 2


def test_numbers_come_back_bit_for_bit(tmp_path):
    awkward = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, 2.0**53 + 2, 1e23, None, 3]
    maps = [heat_map(row, "a", row + 1) for row in range(len(awkward))]
    records = [made(one, score=value, statistics={"map_max": value, "peak": 2**62 + one.row})
               for one, value in zip(maps, awkward, strict=True)]  # fmt: skip
    write_ledger(tmp_path, "0000-of-0001", [image_record("a", records)])
    for one in maps:
        touch(tmp_path, one)
    run(MemoryPlan([Task("a", tuple(maps))]), tmp_path)
    table = pq.read_table(tmp_path / "details.parquet")
    for name in ("score", "map_max"):
        bits = [value if value is None else struct.pack("<d", value) for value in table[name].to_pylist()]
        assert bits == [value if value is None else struct.pack("<d", value) for value in awkward]
    assert table["peak"].to_pylist() == [2**62 + row for row in range(len(awkward))]


def test_any_text_and_any_folder_name(tmp_path):
    results = tmp_path / "it's [a] *folder? key=value {x,y}"
    questions = ["nul \0 here", "lone \ud800", 'q",\r\n', "日本 \N{GRINNING FACE}", "x" * 70_000]
    maps = [heat_map(row, "a", row + 1, text) for row, text in enumerate(questions)]
    plan = MemoryPlan([Task("a", tuple(maps), (bad(2, "lone \udfff", 1),))])
    records = [made(maps[0], warnings=("nul \0", "lone \ud800")), *map(made, maps[1:4]), failed(maps[4], "why \udc00")]
    path = write_ledger(results, "0000-of-0001", [image_record("a", records)])
    for one in maps:
        touch(results, one)
    run(plan, results)
    known = {one.key: one for record in read_ledger(path) for one in record.heat_maps}
    assert tables(results) == plainly(plan, known)


def test_missing_heat_maps_write_nothing(tmp_path):
    plan = many(30, 4)
    known = store(tmp_path, plan)
    gone = [one for task in plan.tasks[2:27] for one in task.heat_maps[:2] if known[one.key].ok]
    for one in gone:
        (tmp_path / f"{one.output}.png").unlink()
    result = run(plan, tmp_path)
    assert not result.complete
    assert result.missing_total == result.counts["missing"] == len(gone)
    assert len(result.missing) == 20
    assert set(result.missing.values()) <= {1, 2}
    assert result.tables == ()
    assert tables(tmp_path) == {}
    assert leftovers(tmp_path) == []
    assert result.counts["heat_maps"] == 150


def test_finished_heat_maps_beyond_the_plan_are_counted(tmp_path):
    plan = many(30, 4)
    store(tmp_path, plan)
    beyond = sum(one.row % 11 != 1 for task in plan.tasks[10:] for one in task.heat_maps)
    result = run(MemoryPlan(plan.tasks[:10]), tmp_path)
    assert result.complete
    assert result.counts["beyond_this_run"] == beyond
    assert result.counts["images"] == 10


def test_a_retried_failure_that_was_made_is_made(tmp_path):
    one, two = heat_map(0, "a", 1), heat_map(1, "a", 2)
    plan = MemoryPlan([Task("a", (one, two))])
    write_ledger(tmp_path, "0000-of-0002", [image_record("a", [failed(one), failed(two, "old")], 5)])
    write_ledger(tmp_path, "0000-of-0001", [image_record("a", [made(one), failed(two, "new")], 9)])
    touch(tmp_path, one)
    assert run(plan, tmp_path).counts["made"] == 1
    assert b",new," in (tmp_path / "failures.csv").read_bytes()


def test_made_then_lost_then_failed_in_another_ledger_is_a_failure(tmp_path):
    """Otherwise it would be missing for ever."""
    one = heat_map(0, "a", 1)
    plan = MemoryPlan([Task("a", (one,))])
    write_ledger(tmp_path, "0000-of-0002", [image_record("a", [made(one)], 5)])
    write_ledger(tmp_path, "0000-of-0001", [image_record("a", [failed(one, "now broken")], 9)])
    result = run(plan, tmp_path)
    assert (result.complete, result.counts["failed"]) == (True, 1)
    assert b"now broken" in (tmp_path / "failures.csv").read_bytes()
    touch(tmp_path, one)
    assert run(plan, tmp_path).counts["made"] == 1
    assert b"now broken" not in (tmp_path / "failures.csv").read_bytes()


def test_a_stage_sees_what_was_asked_and_recorded_and_need_not_look_at_all(tmp_path):
    seen = []

    class Peeks(Writes):
        def write_index(self, folder, made):
            seen.extend(islice(made, 3))
            assert not (folder / "details.parquet").exists()
            return []

    plan = many(10, 4)
    known = store(tmp_path, plan)
    result = run(plan, tmp_path, Peeks())
    assert [path.name for path in result.tables] == ["details.parquet", "failures.csv"]
    assert tables(tmp_path)["details.parquet"] == plainly(plan, known)["details.parquet"]
    asked = {one.output: (task.image_path, one) for task in plan.tasks for one in task.heat_maps}
    for one in seen:
        image, wanted = asked[one.heat_map.output]
        assert one.source_image == image
        for name in ("row", "region_index", "number", "question", "answer", "choices", "region", "boxes", "prompt"):
            assert getattr(one.heat_map, name) == getattr(wanted, name)
        record = known[wanted.key]
        assert (one.record.output, one.record.score) == (record.output, record.score)
        assert one.record.statistics == {**dict.fromkeys(Writes.columns), **record.statistics}


def test_a_stage_that_fails_leaves_the_old_tables(tmp_path):
    class Breaks(Writes):
        def write_index(self, folder, made):
            next(made)
            raise ZeroDivisionError

    plan = many(10, 4)
    store(tmp_path, plan)
    (tmp_path / "details.parquet").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        run(plan, tmp_path, Breaks())
    assert (tmp_path / "details.parquet").read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_lines_added_while_the_tables_are_made_change_nothing(tmp_path, monkeypatch):
    plan = many(10, 4)
    known = store(tmp_path, plan, shards=2)
    real = merge_module.read_keys

    def and_another_line(results):
        found = real(results)
        one = plan.tasks[0].heat_maps[0]
        write_ledger(results, "0000-of-0002", [image_record("late", [made(one, score=99.0)])])
        return found

    monkeypatch.setattr(merge_module, "read_keys", and_another_line)
    run(plan, tmp_path)
    assert tables(tmp_path) == plainly(plan, known)


def test_a_ledger_that_goes_away_is_an_error(tmp_path, monkeypatch):
    plan = many(10, 4)
    store(tmp_path, plan)
    real = merge_module.read_keys

    def and_cut(results):
        found = real(results)
        (path,) = results.glob("shards/*/ledger.jsonl")
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
        return found

    monkeypatch.setattr(merge_module, "read_keys", and_cut)
    with pytest.raises(SetupError, match="a ledger changed"):
        run(plan, tmp_path)
    assert "vqa_manifest.csv" not in tables(tmp_path)
    assert leftovers(tmp_path) == []


class Full(io.FileIO):
    """A file on a disk that has room for so many bytes."""

    room = 1000

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("where", ["asked", "recorded", 1, 2, 3])
def test_a_full_disk_is_said_and_leaves_the_old_tables(tmp_path, monkeypatch, capfd, where):
    """Wherever it happens: in a temporary file (by name), in failures.csv, the manifest, details.parquet."""
    plan = many(40, 6)
    store(tmp_path, plan)
    run(plan, tmp_path)
    before = tables(tmp_path)
    real_open, real_fdopen, tables_opened, full = Path.open, os.fdopen, [], []

    def opening(path, mode, **more):
        if path.name != where:
            return real_open(path, mode, **more)
        full.append(Full(path, "w"))
        return full[-1]

    def fdopening(handle, mode):
        tables_opened.append(handle)
        if len(tables_opened) != where:
            return real_fdopen(handle, mode)
        full.append(Full(handle, "w"))
        return full[-1]

    monkeypatch.setattr(Path, "open", opening)
    monkeypatch.setattr(os, "fdopen", fdopening)
    with pytest.raises(SetupError, match="the disk is full"):
        run(plan, tmp_path)
    monkeypatch.undo()
    gc.collect()
    assert len(full) == 1
    assert leftovers(tmp_path) == []
    assert tables(tmp_path) == before
    assert capfd.readouterr().err == ""


def test_an_empty_plan_gives_empty_tables(tmp_path):
    result = run(MemoryPlan([]), tmp_path)
    assert result.complete
    table = pq.read_table(tmp_path / "details.parquet")
    assert (table.num_rows, table.schema) == (0, details_schema(Writes.columns))
    assert (tmp_path / "vqa_manifest.csv").read_text() == "image_path,question,answer\n"
