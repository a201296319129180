"""A plan out of memory with the interface of questions.plan, and ledgers to hold against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from heatlens.batch.ledger import HeatMapRecord, ImageRecord, LedgerWriter
from heatlens.batch.tables import write_manifest
from heatlens.questions.plan import HeatMap
from heatlens.questions.rows import Region


@dataclass(frozen=True)
class Task:
    image_path: str
    heat_maps: tuple[HeatMap, ...]
    bad: tuple[Any, ...] = ()
    index: int = 0


class MemoryPlan:
    """Tasks as they are given; ``asked`` remembers which methods were called."""

    digest = "digest"

    def __init__(self, tasks: Sequence[Task], bad_rows: Sequence[Any] = ()) -> None:
        self.tasks = tuple(tasks)
        self._bad = tuple(bad_rows)
        self.rows = sum(len(task.heat_maps) for task in tasks) + len(bad_rows)
        self.image_count = len(tasks)
        self.heat_map_count = sum(len(task.heat_maps) + len(task.bad) for task in tasks)
        self.bad_row_count = len(bad_rows)
        self.asked: list[str] = []

    def images(self) -> Iterator[Task]:
        self.asked.append("images")
        return iter(self.tasks)

    def shard(self, index: int, count: int, only: Sequence[int] | None = None) -> Iterator[Task]:
        self.asked.append("shard")
        mine = (task for task in self.tasks if task.index % count == index)
        return (task for task in mine if only is None or task.index in only)

    def shard_size(self, index: int, count: int) -> tuple[int, int]:
        tasks = [task for task in self.tasks if task.index % count == index]
        return len(tasks), sum(len(task.heat_maps) for task in tasks)

    def bad_rows(self) -> Iterator[Any]:
        return iter(self._bad)


class Writes:
    """A stage that writes a manifest; its files are ``<output>.png``."""

    name = "attn_map"
    columns = {"map_max": float, "peak": int, "constant": bool, "note": str, "whole_film": bool}

    def expected_files(self, heat_map: HeatMap) -> tuple[str, ...]:
        return (f"{heat_map.output}.png",)

    def write_index(self, folder: Path, made: Iterator[Any]) -> list[Path]:
        return [write_manifest(folder, made)]


def key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def heat_map(row: int, image: str, number: int, question: str = "", region_index: int = 0) -> HeatMap:
    boxes = (Region("lung", (1.0, 2.5, 3.0, row + 0.1), "source"),) if row % 2 else ()
    return HeatMap(
        key=key(row, image, number), row=row, region_index=region_index, number=number,
        output=f"{image}_idx{number}", source=f"data.csv:{row}", question_id=f"q{row}",
        question=question or f'Question {row}, "really"?\nWhere', answer=f"ä{row}" if row % 3 else "",
        choices=("A: ö", "B") if row % 2 else (), question_type="open_ended", content_type="",
        region="lung" if row % 2 else "", boxes=boxes,
        prompt=f"prompt {row}", notes=("a box was left out",) if row % 5 == 0 else (),
    )  # fmt: skip


def bad(row: int, image: str, region_index: int = -1) -> Any:
    return SimpleNamespace(
        row=row, source=f"data.csv:{row}", image_path=image, question_id=f"q{row}", question="?",
        region="heart" if region_index >= 0 else "", reason=f"data.csv:{row}: no good", region_index=region_index,
    )  # fmt: skip


def made(one: HeatMap, **changes: Any) -> HeatMapRecord:
    """The record of a heat map that was made; its numbers depend on its row."""
    row = one.row
    statistics = {"map_max": row / 3 if row % 4 else None, "peak": row, "constant": row % 7 == 0, "note": f"ß{row}"}
    values: dict[str, Any] = {
        "key": one.key, "status": "ok", "output": f"{one.output}.png", "score": 0.1 * row,
        "prompt_truncated": row % 3 == 0, "statistics": statistics, "warnings": ("of the engine",) if row % 2 else (),
    }  # fmt: skip
    return HeatMapRecord(**{**values, **changes})


def failed(one: HeatMap, reason: str = "no answer", stage: str = "explain") -> HeatMapRecord:
    return HeatMapRecord(one.key, "failed", stage=stage, reason=reason)


def image_record(image: str, records: Sequence[HeatMapRecord], at: int = 1000) -> ImageRecord:
    shared = {"geometry": f'{{"size": "{image}"}}', "whole_film": image.endswith("3")}
    return ImageRecord(image, tuple(records), shared, {"read": 0.25, "explain": 1.5}, 100.0, at)


def write_ledger(results: Path, shard: str, records: Sequence[ImageRecord]) -> Path:
    path = results / "shards" / shard / "ledger.jsonl"
    with LedgerWriter(path) as writer:
        for record in records:
            writer.append(record)
    return path


def touch(results: Path, one: HeatMap) -> None:
    path = results / f"{one.output}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
