"""What ``heatlens status`` says to people: a few lines, one table, and the commands to go on with."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from heatlens.batch.progress import duration, show_rate
from heatlens.batch.tables import index_of

WIDTH = 100

# So many shards are shown one by one; more are put together by state.
ONE_BY_ONE = 16

_REASONS = 5
_IDLE = ("stale", "failed", "stopped", "not started")
_STATE_WORDS = {
    "complete": "complete",
    "failed": "complete, with more failures than MAX_FAILURE_RATE allows",
    "merging": "all heat maps are settled; the tables are being written",
    "unmerged": "all heat maps are settled; the tables are missing",
    "running": "running",
    "unfinished": "not finished, and nobody is at work",
    "planning": "being planned",
}

Status = dict[str, Any]


def text_of(status: Status) -> str:
    """The whole answer as text, at most 100 columns but for paths and commands."""
    blocks = ["\n".join(_head(status)), "\n".join(_table(status)), "\n".join(_reasons(status))]
    blocks += [_step(step) for step in status["next"]]
    return "\n\n".join(block for block in blocks if block)


def _head(status: Status) -> list[str]:
    what = ", ".join(word for word in (status["stage"], status["method"]) if word)
    lines = [
        f"results    {status['results']}",
        f"run        {what}{': ' if what else ''}{_STATE_WORDS[status['state']]}",
    ]
    totals = status["totals"]
    if totals["heat_maps"] is not None or totals["finished"]:
        lines.append(f"heat maps  {_progress(totals)}")
    if status["num_shards"]:
        states = totals["shards"]
        parts = ", ".join(f"{number:,} {state}" for state, number in states.items() if number)
        lines.append(f"shards     {status['num_shards']:,}: {parts}")
    lines.append(f"tables     {_tables(status['tables'])}")
    if status["other_divisions"]:
        others = ", ".join(map(str, status["other_divisions"]))
        lines.append(f"note       earlier calls split this run into {others} shards; what they finished counts")
    return lines


def _progress(totals: dict[str, Any]) -> str:
    planned, finished = totals["heat_maps"], totals["finished"]
    text = f"{finished:,} settled" if planned is None else f"{finished:,} of {planned:,}{_percent(finished, planned)}"
    text += f", {totals['failed']:,} failed"
    if totals["rate"] > 0:
        text += f", {show_rate(totals['rate'])}"
    return text + (f", {duration(totals['eta_s'])} left" if totals["eta_s"] else "")


def _percent(finished: int, planned: int) -> str:
    # Rounded down: 100% is said of nothing unfinished.
    return f" ({int(1000 * finished / planned) / 10:.1f}%)" if planned else ""


def _tables(tables: dict[str, Any]) -> str:
    if tables["current"]:
        return ", ".join(tables["files"])
    if any(tables["files"].values()):
        return "of an earlier state of this run"
    return "not yet: the shard that finishes last writes them"


def _table(status: Status) -> list[str]:
    shards = status["shards"]
    if not shards or (len(shards) == 1 and shards[0]["state"] == "done"):
        return []
    if len(shards) <= ONE_BY_ONE:
        rows = [("shard", *_COLUMNS, "seen", "")]
        rows += [(str(one["shard"]), *_cells([one]), _seen(one, status["now"]), _where(one)) for one in shards]
        return _aligned(rows)
    rows = [("shards", *_COLUMNS, "", "which")]
    for state in status["totals"]["shards"]:
        if group := [one for one in shards if one["state"] == state]:
            rows.append((f"{len(group):,}", *_cells(group), "", _which(group)))
    return _aligned(rows)


_COLUMNS = ("state", "settled", "of", "failed", "rate", "left")


def _cells(group: list[dict[str, Any]]) -> tuple[str, str, str, str, str, str]:
    """The columns of one shard, or of several with one state; what nobody knows is left empty."""
    planned = [one["planned"] for one in group]
    known = sum(number for number in planned if number is not None)
    rates = [one["rate"] for one in group if one["rate"]]
    etas = [one["eta_s"] for one in group if one["eta_s"]]
    started = any(number is not None for number in planned)
    return (
        group[0]["state"],
        f"{sum(one['finished'] for one in group):,}" if started else "",
        f"{known:,}" if started and None not in planned else "",
        f"{sum(one['failed'] for one in group):,}" if started else "",
        show_rate(sum(rates)) if rates else "",
        duration(max(etas)) if etas else "",
    )


def _seen(one: dict[str, Any], now: float) -> str:
    """How long ago the shard's process gave a sign of life; nothing for a shard that is finished."""
    if one["heartbeat_s"] is not None:
        return f"{duration(one['heartbeat_s'])} ago"
    if one["state"] not in ("stopped", "stale", "failed") or not one["updated"]:
        return ""
    return f"{duration(max(now - one['updated'], 0.0))} ago"


def _where(one: dict[str, Any]) -> str:
    """Who has the shard or had it, and a remark."""
    job = f" job {one['slurm_job']}" if one["slurm_job"] else ""
    who = f"{one['host'].partition('.')[0]} pid {one['pid']}{job}" if one["host"] else ""
    note = "" if one["state"] == "failed" else one["note"]
    return "; ".join(part for part in (who, note) if part)


def _which(group: list[dict[str, Any]]) -> str:
    text = ranges(one["shard"] for one in group)
    silent = [one["shard"] for one in group if one["state"] == "running" and one["note"].startswith("no news")]
    waiting = [one["device_wait_share"] for one in group if one["state"] == "running" and one["device_wait_share"]]
    rated = [one for one in group if one["rate"]]
    if len(rated) > 1:
        slowest = min(rated, key=lambda one: float(one["rate"]))
        text += f"; slowest: {slowest['shard']} with {show_rate(slowest['rate'])}"
    if silent:
        text += f"; heartbeat but no news: {ranges(silent)}"
    if waiting and max(waiting) > 0.1:
        text += f"; their devices wait up to {100 * max(waiting):.0f}% of the time"
    return text


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns: the second to the left, numbers to the right, the last wrapped to the width."""
    used = [column for column in range(len(rows[0]) - 1) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
    lines = []
    for row in rows:
        cells = (
            row[column].ljust(widths[column]) if column == 1 else row[column].rjust(widths[column]) for column in used
        )
        left = "  ".join(cells)
        room = max(WIDTH - len(left) - 2, 30)
        wrapped = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        lines.append(f"{left}  {wrapped[0]}".rstrip())
        lines += [" " * (len(left) + 2) + rest for rest in wrapped[1:]]
    return lines


def _reasons(status: Status) -> list[str]:
    """Why shards ended with an error, each reason once."""
    reasons: dict[str, list[int]] = {}
    for one in status["shards"]:
        if one["state"] == "failed":
            reasons.setdefault(one["note"], []).append(one["shard"])
    lines = []
    for reason, indices in list(reasons.items())[:_REASONS]:
        name = "shard" if len(indices) == 1 else "shards"
        lines += textwrap.wrap(f"{name} {ranges(indices)} failed: {reason}", WIDTH, subsequent_indent="  ")
    return lines


def _step(step: dict[str, Any]) -> str:
    # Commands are not wrapped: they are for pasting.
    text = textwrap.wrap(step["text"], WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*text, *(f"  {line}" for line in step["commands"])])


def next_steps(status: Status) -> list[dict[str, Any]]:
    """What to run next: ``text`` for people, ``commands`` for a shell, ``shards`` (SHARD_INDEX) they are about."""
    state = status["state"]
    if state == "planning":
        return [_next("The questions are being planned; nothing to start.")]
    if state == "unmerged":
        merge = [status["merge_command"]] if status["merge_command"] else _commands(status, [0])
        return [_next("All shards are finished. Write the tables with:", merge)]
    if state == "merging":
        return []
    if state in ("complete", "failed"):
        return _after_the_end(status)
    idle = [one["shard"] for one in status["shards"] if one["state"] in _IDLE]
    if not idle:
        return [] if status["shards"] else [_next("Nothing has been made yet. Run:", _commands(status, []))]
    busy = status["totals"]["shards"]["running"]
    which = "The run is" if status["num_shards"] == 1 else f"{_shards_are(idle)}"
    text = f"{which} not finished, and no process is at work on {'it' if len(idle) == 1 else 'them'}."
    text += " Unless a job for it is queued, continue" if busy else " Continue"
    text += f" (as a Slurm array: --array={ranges(idle)})" if status["num_shards"] > 1 else ""
    return [_next(f"{text} with:", _commands(status, idle), idle)]


def _after_the_end(status: Status) -> list[dict[str, Any]]:
    steps = []
    if failed := status["totals"]["failed"]:
        guilty = [one["shard"] for one in status["shards"] if one["failed"]]
        indices = guilty or [one["shard"] for one in status["shards"]]
        text = f"{failed:,} failures: {Path(status['results']) / 'failures.csv'} has the reasons. To try them again:"
        steps.append(_next(text, _commands(status, indices, "RETRY_FAILED=true "), indices))
    if status["state"] == "complete":
        steps.append(_next("The next stage reads:", [str(Path(status["results"]) / index_of(status["stage"]))]))
    return steps


def _next(text: str, commands: list[str] | None = None, shards: list[int] | None = None) -> dict[str, Any]:
    return {"text": text, "commands": commands or [], "shards": shards or []}


def _shards_are(indices: list[int]) -> str:
    return f"Shard {indices[0]} is" if len(indices) == 1 else f"Shards {ranges(indices)} are"


def _commands(status: Status, indices: list[int], before: str = "") -> list[str]:
    """The stored command for some shards, as one line of a shell."""
    command = status["command"]
    if not command:
        return ["# the command that started this run is not on record; give it once more"]
    count = status["num_shards"]
    if count <= 1 or not indices:
        return [f"{before}{command}"]
    if len(indices) == 1:
        return [f"{before}SHARD_INDEX={indices[0]} NUM_SHARDS={count} {command}"]
    words = " ".join(text if "-" not in text else f"$(seq {text.replace('-', ' ')})" for text in _spans(indices))
    return [f"for i in {words}; do {before}SHARD_INDEX=$i NUM_SHARDS={count} {command}; done"]


def ranges(indices: Iterable[int]) -> str:
    """``0-3,7,12-15``: as Slurm's --array takes them."""
    return ",".join(_spans(indices))


def _spans(indices: Iterable[int]) -> list[str]:
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return [str(first) if first == last else f"{first}-{last}" for first, last in spans]
