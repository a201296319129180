"""``heatlens status RESULTS_DIR``: how far a run is, what failed, and what to run next.

It reads only small files (progress.json, done.json and lock of every shard, run.json, fingerprint.json), writes
nothing and needs neither model nor tables, so it may be asked while a run is going on, on any host that sees the
folder. Whatever is missing or unreadable counts as unknown. ``--json`` prints what :func:`read_status` returns.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from heatlens.batch.fingerprint import FINGERPRINT
from heatlens.batch.lock import LOCK_NAME, heartbeat_age, is_stale, read_holder
from heatlens.batch.markers import MARKER_NAME, shard_folders, shard_name
from heatlens.batch.progress import PROGRESS_NAME
from heatlens.batch.run_record import RUN_RECORD
from heatlens.batch.status_text import next_steps, text_of
from heatlens.batch.tables import index_of
from heatlens.errors import EXIT_OK, ConfigError, one_line

PLAN_LOCK = Path("shards/plan") / LOCK_NAME
MERGE_LOCK = Path("shards/merge") / LOCK_NAME
TABLES = ("details.parquet", "failures.csv")
"""of every stage, beside its own index"""

# What a process of a run calls itself, and how a reader sees it.
STATES = ("running", "done", "stale", "failed", "stopped", "not started")

# Larger files are none of this program's.
_MOST_BYTES = 16 << 20


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; usage: heatlens status RESULTS_DIR [--json]")


def main(argv: list[str]) -> int:
    """``heatlens status RESULTS_DIR [--json]``; returns the exit code."""
    parser = _Parser(prog="heatlens status", description="How far is a run, and what is to be run next?")
    parser.add_argument("results", type=Path, help="the results folder of a run, finished or not")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    status = read_status(args.results)
    print(json.dumps(status, indent=1, allow_nan=False) if args.json else text_of(status))
    return EXIT_OK


def read_status(results: Path, now: float | None = None) -> dict[str, Any]:
    """Everything about the run in ``results`` as plain JSON data. ConfigError when there is none.

    ``now``: unix seconds, for tests. Keys: ``results``, ``now``, ``stage``, ``method``, ``state`` (``complete``;
    ``failed``: complete with too many failures; ``merging``, ``unmerged``, ``running``, ``unfinished``, ``planning``),
    ``plan``, ``num_shards``, ``totals``, ``shards``, ``other_divisions``, ``tables``, ``command``, ``merge_command``,
    ``next``.
    """
    results = results.absolute()
    folders = _folders(results)
    now = time.time() if now is None else now
    found = {place: _Found(results / "shards" / shard_name(*place), now) for place in folders}
    count = _current_count(found)
    plan = _current_plan([one for place, one in found.items() if place[1] == count])
    shards = [
        _shard(index, found.get((index, count)) or _Found(None, now), plan["digest"], now) for index in range(count)
    ]
    fingerprint = _read(results / FINGERPRINT)
    stage = _word(fingerprint.get("STAGE"))
    tables = _tables(results, stage, plan["digest"], [one for place, one in found.items() if place[1] == count])
    status: dict[str, Any] = {
        "results": str(results),
        "now": round(now, 1),
        "stage": stage,
        "method": _word(fingerprint.get("CAM_VERSION")),
        "plan": plan,
        "num_shards": count,
        "totals": _totals(shards, plan, tables),
        "shards": shards,
        "other_divisions": sorted({other for _, other in folders} - {count}),
        "tables": tables,
        "command": _command(found, "command"),
        "merge_command": _command(found, "merge_command"),
    }
    status["state"] = _run_state(status, results, now)
    status["next"] = next_steps(status)
    return status


def _folders(results: Path) -> list[tuple[int, int]]:
    """The run's shard folders. ConfigError when ``results`` holds no run."""
    try:
        folders = shard_folders(results) if results.is_dir() else []
        if folders or (results / FINGERPRINT).exists() or (results / RUN_RECORD).exists():
            return folders
        inside = sorted(path.parents[1] for path in results.glob(f"*/{FINGERPRINT}"))
        inside += sorted(path.parents[1] for path in results.glob(f"*/*/{FINGERPRINT}"))
    except OSError as error:
        raise ConfigError(f"{results} cannot be read: {one_line(error)}") from None
    if not results.exists():
        raise ConfigError(f"{results} does not exist; name the RESULTS_DIR of a run")
    if not results.is_dir():
        raise ConfigError(f"{results} is a file; name the RESULTS_DIR of a run, which is a folder")
    hint = "".join(f"\n  {path}" for path in inside[:10])
    raise ConfigError(f"{results} holds no run of this program" + (f". There are runs in{hint}" if hint else ""))


class _Found:
    """A shard folder's three small files, read once. ``folder`` None: there is no such folder."""

    def __init__(self, folder: Path | None, now: float) -> None:
        self.progress = _read(folder / PROGRESS_NAME) if folder else {}
        self.marker = _read(folder / MARKER_NAME) if folder else {}
        self.holder: dict[str, Any] | None = None
        self.heartbeat: float | None = None
        self.live = False
        self.written = 0.0
        if folder is None:
            return
        lock = folder / LOCK_NAME
        with suppress(OSError):
            self.holder = read_holder(lock, tries=1)
        if self.holder is not None:
            self.heartbeat = heartbeat_age(lock, now)
            self.live = not is_stale(self.holder, lock, now)
        with suppress(OSError):
            self.written = (folder / PROGRESS_NAME).stat().st_mtime

    @property
    def time(self) -> float:
        """When this folder last heard of a plan, by its processes' clocks."""
        return max(_number(self.progress.get("updated")), _number(self.marker.get("at")))

    @property
    def plan(self) -> str:
        """The plan's digest of the newer record."""
        newer = self.progress if _number(self.progress.get("updated")) >= _number(self.marker.get("at")) else {}
        return _word(_dict(newer.get("plan")).get("digest")) or _word(self.marker.get("plan"))


def _current_count(found: dict[tuple[int, int], _Found]) -> int:
    """The number of shards of the latest call; one that lives comes before any other."""
    latest = max(((one.live, one.time, count) for (_, count), one in found.items()), default=(False, 0.0, 0))
    return latest[2]


def _current_plan(found: list[_Found]) -> dict[str, Any]:
    newest = max(found, key=lambda one: one.time, default=None)
    digest = newest.plan if newest else ""
    totals: dict[str, Any] = {}
    for one in found:
        described = _dict(one.progress.get("plan"))
        totals = described if described.get("digest") == digest else totals
    return {"digest": digest, **{name: _count(totals.get(name)) for name in ("rows", "images", "heat_maps")}}


def _shard(index: int, found: _Found, digest: str, now: float) -> dict[str, Any]:
    """One shard: state, numbers (heat maps; None: unknown), who has it, and a remark."""
    progress = found.progress if _dict(found.progress.get("plan")).get("digest") == digest else {}
    marker = found.marker if found.marker.get("plan") == digest else {}
    state, note = _shard_state(found, progress, marker, now)
    running = state == "running" and _is_of(progress, found.holder)
    failed = _whole(progress.get("failed_before")) + _whole(progress.get("failed"))
    finished = sum(_whole(progress.get(name)) for name in ("finished_before", "made", "failed"))
    made = finished - failed
    if marker and not running:
        made, failed = _whole(marker.get("made")), _whole(marker.get("failed"))
    holder = found.holder if state in ("running", "stale") else None
    who = holder or (progress if state in ("stopped", "failed", "stale") else {})
    planned = _dict(progress.get("planned"))
    return {
        "shard": index,
        "state": state,
        "made": max(made, 0),
        "failed": failed,
        "finished": max(made, 0) + failed,
        "planned": made + failed if marker and not planned else _count(planned.get("heat_maps")),
        "images": _count(planned.get("images")),
        "rate": _number(progress.get("rate")) if running and not marker else None,
        "eta_s": _optional(progress.get("eta_s")) if running and not marker else None,
        "device_wait_share": _optional(progress.get("device_wait_share")),
        "host": _word(who.get("host")),
        "pid": _count(who.get("pid")),
        "slurm_job": _word(who.get("slurm_task")) or _word(who.get("slurm_job")),
        "heartbeat_s": None if found.heartbeat is None or not holder else round(max(found.heartbeat, 0.0), 1),
        "updated": _optional(progress.get("updated")),
        "note": note,
    }


def _shard_state(found: _Found, progress: dict[str, Any], marker: dict[str, Any], now: float) -> tuple[str, str]:
    said = _word(progress.get("state"))
    if found.live:
        if marker:
            return "running", "finished; at the tables"
        if not _is_of(progress, found.holder):
            return "running", "starting"
        late = now - _number(progress.get("updated"))
        return "running", "no news, but a heartbeat" if late > 300 else ""
    if marker:
        return "done", ""
    if found.holder is not None:
        return "stale", "its process is gone"
    if not progress:
        earlier = found.marker or found.progress
        return "not started", "has work of another plan, which counts when it starts" if earlier else ""
    if said == "failed":
        return "failed", _word(progress.get("reason")) or "ended with an error"
    if said == "running":
        return "stale", "its process is gone"
    return "stopped", "" if said == "stopped" else "has all heat maps, but did not say it is finished"


def _is_of(progress: dict[str, Any], holder: dict[str, Any] | None) -> bool:
    """Was this progress written by the process that has the lock now?"""
    return bool(holder) and all(progress.get(name) == (holder or {}).get(name) for name in ("host", "pid"))


def _tables(results: Path, stage: str, digest: str, found: list[_Found]) -> dict[str, Any]:
    """What run.json says, and whether the tables are there and of this plan."""
    record = _read(results / RUN_RECORD)
    files = {name: (results / name).is_file() for name in (index_of(stage), *TABLES)}
    recorded = _word(record.get("plan_digest"))
    try:
        newer = (results / RUN_RECORD).stat().st_mtime >= max((one.written for one in found), default=0.0)
    except OSError:
        newer = False
    merged = record.get("status") in ("complete", "failed") and all(files.values())
    counts = _dict(record.get("counts"))
    return {
        "status": _word(record.get("status")),
        "exit_code": _count(record.get("exit_code")),
        "current": merged and (recorded == digest if recorded and digest else newer),
        "made": _count(counts.get("made")),
        "failed": _count(counts.get("failed")),
        "files": files,
    }


def _totals(shards: list[dict[str, Any]], plan: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    """Heat maps of the whole run; ``rate`` per second of all running shards together, ``eta_s`` at this rate."""
    made, failed = (sum(one[name] for one in shards) for name in ("made", "failed"))
    planned = plan["heat_maps"]
    if tables["current"] and tables["made"] is not None and all(one["state"] != "running" for one in shards):
        made, failed = tables["made"], tables["failed"] or 0
        planned = planned or made + failed
    rate = sum(one["rate"] or 0.0 for one in shards)
    left = planned - made - failed if planned is not None else None
    etas = [one["eta_s"] for one in shards if one["state"] == "running" and one["eta_s"] is not None]
    # All that is unfinished is being worked on: then the slowest shard decides.
    all_at_work = all(one["state"] in ("running", "done") for one in shards)
    eta = max(etas, default=None) if all_at_work else (left / rate if left and rate > 0 else None)
    return {
        "heat_maps": planned,
        "finished": made + failed,
        "made": made,
        "failed": failed,
        "rate": round(rate, 4),
        "eta_s": None if eta is None else round(max(eta, 0.0), 1),
        "shards": {state: sum(1 for one in shards if one["state"] == state) for state in STATES},
    }


def _run_state(status: dict[str, Any], results: Path, now: float) -> str:
    shards, tables = status["totals"]["shards"], status["tables"]
    at_work = shards["running"]
    all_done = status["num_shards"] > 0 and shards["done"] == status["num_shards"]
    if tables["current"] and not at_work and (all_done or not status["shards"] or _settled(status)):
        return "complete" if tables["status"] == "complete" else "failed"
    if all_done:
        return "merging" if _is_live(results / MERGE_LOCK, now) else "unmerged"
    if at_work:
        merging = all(one["state"] == "done" or "tables" in one["note"] for one in status["shards"])
        return "merging" if merging else "running"
    return "planning" if _is_live(results / PLAN_LOCK, now) else "unfinished"


def _is_live(lock: Path, now: float) -> bool:
    with suppress(OSError):
        holder = read_holder(lock, tries=1)
        return holder is not None and not is_stale(holder, lock, now)
    return False


def _settled(status: dict[str, Any]) -> bool:
    """Tables of this very plan vouch for it, whatever became of the markers."""
    return all(one["state"] in ("done", "stopped", "not started") for one in status["shards"])


def _command(found: dict[tuple[int, int], _Found], name: str) -> str:
    newest = max(found.values(), key=lambda one: _number(one.progress.get("updated")), default=None)
    return _word(newest.progress.get(name), most=100_000) if newest else ""


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file; an empty dict for anything else. Readers never wait for writers."""
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _MOST_BYTES:
            data = json.loads(path.read_text(encoding="utf-8"))
            return data if isinstance(data, dict) else {}
    return {}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    """A finite number, 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e15 or math.isnan(value):
        return 0.0
    return float(value)


def _whole(value: object) -> int:
    return max(int(_number(value)), 0)


def _count(value: object) -> int | None:
    return None if value is None else _whole(value)


def _optional(value: object) -> float | None:
    return None if value is None else _number(value)


def _word(value: object, most: int = 300) -> str:
    """Text on one line that any terminal can show."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    text = str(value)[:most].encode("utf-8", "replace").decode("utf-8")
    return "".join(sign if sign.isprintable() else " " for sign in text).strip()
