"""The ledger: what a shard has finished, as JSON lines that are only ever appended.

``shards/<index>-of-<count>/ledger.jsonl`` gets one line per image, after the image's files are durable, with
one fsync. A line::

    {"image": "files/p10/...jpg",
     "image_statistics": {"geometry": "...", "body_fraction": 0.81, ...},
     "heat_maps": [{"key": "...", "status": "ok", "output": "files/...png", "score": 21.3,
                    "statistics": {...}, "warnings": [...], "prompt_truncated": false},
                   {"key": "...", "status": "failed", "stage": "decode", "reason": "..."}],
     "seconds": {"read": 0.1, "explain": 2.0, "write": 0.1}, "peak_rss_mib": 812, "at": 1760000000}

``at`` is when the line was written, in Unix seconds. A crash can tear the last line only; it is ignored by
readers and cut off before the next append. What is finished is the union of all shard folders' ledgers, so
the number of shards may change between calls: :mod:`heatlens.batch.finished` says which of several lines
about one heat map counts.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
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
    """One line of the ledger. ``at`` is 0 until the line is written, which sets it."""

    image: str
    heat_maps: tuple[HeatMapRecord, ...]
    image_statistics: Mapping[str, Statistic] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0
    at: int = 0

    @property
    def failed(self) -> bool:
        """Did nothing of this image succeed?"""
        return not any(record.ok for record in self.heat_maps)


class LedgerWriter:
    """Appends lines to one ledger; use as a context manager. Only the holder of the shard's lock may.

    Threads may share a writer: their lines follow one another.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> LedgerWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(self.path)
        # Unbuffered: after a failed write nothing may linger that a later close would write.
        self._stream = self.path.open("ab", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._one_at_a_time:
            self._stream.close()

    def append(self, record: ImageRecord) -> None:
        """One durable line. After a failed write (disk full) the torn part is cut again and OSError rises."""
        content = {**_to_json(record), "at": record.at or round(time.time())}
        line = json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"
        with self._one_at_a_time:
            self._write(line)

    def _write(self, line: bytes) -> None:
        start = self.path.stat().st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._stream.write(rest) :]
            os.fsync(self._stream.fileno())
        except OSError:
            os.truncate(self.path, start)
            raise


def ledger_paths(results: Path) -> list[Path]:
    """Every shard folder's ledger, in name order."""
    return sorted((results / "shards").glob(f"*-of-*/{LEDGER_NAME}"))


def read_ledger(path: Path) -> Iterator[ImageRecord]:
    """The records of one ledger, streamed; damaged lines are passed over."""
    for content in read_lines(path):
        if content is not None:
            yield _from_json(content)


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The whole lines of one ledger as they are, streamed; None stands for a damaged one.

    Damaged: no JSON or not a record, like the blocks of zeros that a power failure leaves. What such a line
    recorded is simply made again. A last line without its line break is torn and left out.
    """
    with path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
                yield content if _is_record(content) else None
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                yield None


def _is_record(content: Any) -> bool:
    """Has it everything that readers need, in the right types? May raise instead of saying no."""
    return (
        isinstance(content["image"], str)
        and isinstance(content.get("image_statistics", {}), dict)
        and isinstance(content.get("seconds", {}), dict)
        and isinstance(content.get("peak_rss_mib", 0), (int, float))
        and isinstance(content.get("at", 0), int)
        and all(map(_is_heat_map, content["heat_maps"]))
    )


def _is_heat_map(entry: Any) -> bool:
    if entry["status"] == "ok":
        return (
            entry["key"].__class__ is str
            and entry["output"].__class__ is str
            and entry["score"].__class__ in _NUMBERS
            and entry.get("statistics", _NOTHING).__class__ is dict
            and entry.get("warnings", _NONE).__class__ is list
        )
    return entry["key"].__class__ is entry["stage"].__class__ is entry["reason"].__class__ is str


_NUMBERS = (float, int, type(None))
_NOTHING: dict[str, Any] = {}
_NONE: list[str] = []


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
        at=data.get("at", 0),
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
