"""The ledger: what a shard has finished, as JSON lines that are only ever appended.

``shards/<index>-of-<count>/ledger.jsonl`` gets one line per image, after the image's files are durable, with
one fsync. A line::

    {"image": "files/p10/...jpg",
     "image_statistics": {"geometry": "...", "body_fraction": 0.81, ...},
     "heat_maps": [{"key": "...", "status": "ok", "output": "files/...png", "score": 21.3,
                    "statistics": {...}, "warnings": [...], "prompt_truncated": false},
                   {"key": "...", "status": "failed", "stage": "decode", "reason": "..."}],
     "seconds": {"read": 0.1, "explain": 2.0, "write": 0.1}, "peak_rss_mib": 812}

A crash can tear the last line only; it is ignored by readers and cut off before the next append. What is
finished is the union of all shard folders' ledgers, so the number of shards may change between calls. Within
one ledger a later line replaces an earlier one; between ledgers ``ok`` beats ``failed``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from heatlens.batch.protocols import Statistic

LEDGER_NAME = "ledger.jsonl"


@dataclass(frozen=True, slots=True)
class HeatMapRecord:
    """One heat map as the ledger keeps it. ``stage`` and ``reason`` are set when ``status`` is ``failed``."""

    key: str
    status: str
    output: str = ""
    stage: str = ""
    reason: str = ""
    score: float | None = None
    prompt_truncated: bool = False
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Was the heat map made?"""
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One line of the ledger."""

    image: str
    heat_maps: tuple[HeatMapRecord, ...]
    image_statistics: Mapping[str, Statistic] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0

    @property
    def failed(self) -> bool:
        """Did nothing of this image succeed?"""
        return not any(record.ok for record in self.heat_maps)


class LedgerWriter:
    """Appends lines to one ledger; use as a context manager. Only the holder of the shard's lock may."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> LedgerWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(self.path)
        # Unbuffered: after a failed write nothing may linger that a later close would write.
        self._stream = self.path.open("ab", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def append(self, record: ImageRecord) -> None:
        """One durable line. After a failed write (disk full) the torn part is cut again and OSError rises."""
        line = json.dumps(_to_json(record), separators=(",", ":")).encode("ascii") + b"\n"
        start = self.path.stat().st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._stream.write(rest) :]
            os.fsync(self._stream.fileno())
        except OSError:
            os.truncate(self.path, start)
            raise


@dataclass
class Finished:
    """All heat maps that some ledger knows, by key, and the run's clocks."""

    records: dict[str, HeatMapRecord] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0
    unreadable_lines: int = 0

    def get(self, key: str) -> HeatMapRecord | None:
        """The record of a heat map, None when no ledger has it."""
        return self.records.get(key)


def ledger_paths(results: Path) -> list[Path]:
    """Every shard folder's ledger, in name order."""
    return sorted((results / "shards").glob(f"*-of-*/{LEDGER_NAME}"))


def read_finished(results: Path) -> Finished:
    """Read every ledger of a results folder."""
    finished = Finished()
    for path in ledger_paths(results):
        own: dict[str, HeatMapRecord] = {}
        for record in read_ledger(path, finished):
            for heat_map in record.heat_maps:
                own[heat_map.key] = heat_map
            for clock, seconds in record.seconds.items():
                finished.seconds[clock] = finished.seconds.get(clock, 0.0) + seconds
            finished.peak_rss_mib = max(finished.peak_rss_mib, record.peak_rss_mib)
        for key, heat_map in own.items():
            if heat_map.ok or key not in finished.records:
                finished.records[key] = heat_map
    return finished


def read_ledger(path: Path, finished: Finished | None = None) -> Iterator[ImageRecord]:
    """The whole lines of one ledger. A last line without its line break is torn and left out."""
    with path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            try:
                yield _from_json(json.loads(line))
            except (ValueError, KeyError, TypeError):
                # Blocks of zeros after a power failure. What they recorded is simply made again.
                if finished is not None:
                    finished.unreadable_lines += 1


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            step = min(1 << 16, position)
            stream.seek(position - step)
            found = stream.read(step).rfind(b"\n")
            if found >= 0:
                position = position - step + found + 1
                break
            position -= step
        if position != end:
            stream.truncate(position)
            os.fsync(stream.fileno())


def _to_json(record: ImageRecord) -> dict[str, Any]:
    return {
        "image": record.image,
        "image_statistics": {name: finite(value) for name, value in record.image_statistics.items()},
        "heat_maps": [_heat_map_to_json(heat_map) for heat_map in record.heat_maps],
        "seconds": {name: round(value, 4) for name, value in record.seconds.items()},
        "peak_rss_mib": round(record.peak_rss_mib, 1),
    }


def _heat_map_to_json(record: HeatMapRecord) -> dict[str, Any]:
    if not record.ok:
        return {"key": record.key, "status": record.status, "stage": record.stage, "reason": record.reason}
    return {
        "key": record.key,
        "status": record.status,
        "output": record.output,
        "score": finite(record.score),
        "prompt_truncated": record.prompt_truncated,
        "statistics": {name: finite(value) for name, value in record.statistics.items()},
        "warnings": list(record.warnings),
    }


def finite(value: Any) -> Any:
    """NaN and infinity have no JSON: they become None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(data: dict[str, Any]) -> ImageRecord:
    shared = data.get("image_statistics", {})
    return ImageRecord(
        image=data["image"],
        heat_maps=tuple(_heat_map_from_json(entry, shared) for entry in data["heat_maps"]),
        image_statistics=shared,
        seconds=data.get("seconds", {}),
        peak_rss_mib=data.get("peak_rss_mib", 0.0),
    )


def _heat_map_from_json(data: dict[str, Any], shared: Mapping[str, Statistic]) -> HeatMapRecord:
    if data["status"] != "ok":
        return HeatMapRecord(data["key"], "failed", stage=data["stage"], reason=data["reason"])
    return HeatMapRecord(
        key=data["key"],
        status="ok",
        output=data["output"],
        score=data["score"],
        prompt_truncated=bool(data.get("prompt_truncated", False)),
        statistics={**shared, **data.get("statistics", {})},
        warnings=tuple(data.get("warnings", ())),
    )
