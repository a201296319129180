"""Done markers: which shards of a run have nothing left to do.

``shards/0003-of-0008/done.json`` is written when shard 3 of 8 is finished::

    {"plan": "<digest of plan and selection>", "made": 200690, "failed": 7, "at": 1764000000}

It counts for that plan and that number of shards only. So the markers of a smaller run (STOP_AFTER=5) never
complete a larger one, and those of 8 shards never complete a run of 4. ``made`` and ``failed`` are of the whole
shard, whichever calls made them; ``at`` is in unix seconds.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from heatlens.files import atomic_write

MARKER_NAME = "done.json"

_SHARD_NAME = re.compile(r"(\d{4,6})-of-(\d{4,6})")


def shard_name(index: int, count: int) -> str:
    """``0003-of-0008``: the name of a shard's folder in ``shards/``."""
    return f"{index:04d}-of-{count:04d}"


def parse_shard_name(name: str) -> tuple[int, int] | None:
    """(index, number of shards) of a shard folder's name; None for any other name."""
    if not (match := _SHARD_NAME.fullmatch(name)):
        return None
    index, count = int(match[1]), int(match[2])
    return (index, count) if index < count and shard_name(index, count) == name else None


def shard_folders(results: Path) -> list[tuple[int, int]]:
    """(index, number of shards) of every shard folder that there is, sorted. One listing."""
    try:
        with os.scandir(results / "shards") as entries:
            found = [parse_shard_name(entry.name) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(one for one in found if one is not None)


def write_marker(shard_folder: Path, plan_digest: str, *, made: int, failed: int) -> None:
    """Say that this shard is finished. OSError when it cannot be written."""
    data = {"plan": plan_digest, "made": made, "failed": failed, "at": round(time.time())}
    atomic_write(shard_folder / MARKER_NAME, json.dumps(data) + "\n")


def remove_marker(shard_folder: Path) -> None:
    """The shard has work again."""
    (shard_folder / MARKER_NAME).unlink(missing_ok=True)


def read_marker(shard_folder: Path) -> dict[str, Any]:
    """A shard's marker; an empty dict when there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        data = json.loads((shard_folder / MARKER_NAME).read_text(encoding="utf-8"))
        return data if isinstance(data, dict) else {}
    return {}


def finished_shards(results: Path, plan_digest: str, count: int) -> set[int]:
    """Those of ``count`` shards whose marker is of this plan."""
    return {
        index
        for index in range(count)
        if read_marker(results / "shards" / shard_name(index, count)).get("plan") == plan_digest
    }


def best_count(results: Path, plan_digest: str) -> int | None:
    """A number of shards all of which are finished with this plan, the smallest; else the only number of shards that
    the folder knows; None when there is none or are several."""
    present: dict[int, int] = {}
    for _, count in shard_folders(results):
        present[count] = present.get(count, 0) + 1
    for count in sorted(present):
        if present[count] == count and len(finished_shards(results, plan_digest, count)) == count:
            return count
    return min(present) if len(present) == 1 else None
