"""The report of a comparison: compare.md, compare.json and the forest plot of B minus A, map by map.

The record's layout is that of :mod:`heatlens.evaluate.paired`, with ``command``, ``folders`` (A, B) and ``settings``
(KEY -> [A's value, B's value]) added.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from heatlens.evaluate.markup import (
    NONE,
    code,
    columns,
    counted,
    escaped,
    escaped_long,
    interval,
    mean_cell,
    number,
    one_line_of,
    plain,
    table,
)
from heatlens.evaluate.metrics import METRICS
from heatlens.evaluate.report import FEWEST_PATIENTS, writing_into
from heatlens.files import atomic_write

WHERE_ONLY = {
    "RESULTS_DIR", "OVERWRITE", "RETRY_FAILED", "NUM_WORKERS", "NUM_SHARDS", "SHARD_INDEX", "UMASK", "MAX_FAILURE_RATE",
    "CONTAINER_RUNTIME", "CONTAINER_IMAGE", "SAVE_RAW_CAM", "STOP_AFTER",
}  # fmt: skip
"""keys that decide how and where a run is done, and nothing about a heat map"""
BY_FINDING = ("pointing_8", "iou", "box_iou", "cnr")
SHOWN = 40
PICTURE = "differences.png"

Record = Mapping[str, Any]


def settings_that_differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """KEY -> [A's value, B's value] of what may make the maps differ."""
    keys = sorted({*first, *second} - WHERE_ONLY)
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}


def write_comparison(record: Record, folder: Path) -> list[Path]:
    """Write all files into ``folder`` and return their paths."""
    from heatlens.evaluate.plots import PlotsMissing, draw_differences

    missing = ""
    with writing_into(folder):
        try:
            draw_differences(record["groups"], (record["folders"][0], record["folders"][1]), folder / "plots" / PICTURE)
        except PlotsMissing as error:
            missing = str(error)
        atomic_write(folder / "compare.json", json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False) + "\n")
        atomic_write(folder / "compare.md", comparison_text(record, missing))
    return [folder / name for name in ("compare.md", "compare.json", *([] if missing else [f"plots/{PICTURE}"]))]


def comparison_text(record: Record, missing: str = "") -> str:
    """compare.md. ``missing``: why there is no plot."""
    picture = f"> {escaped_long(missing)}" if missing else f"![B minus A](plots/{PICTURE})"
    findings = record["groups"].get("finding", {})
    sections = [
        ["# Two runs on the same heat maps: B minus A", "", *_lead(record)],
        ["## What differs between the runs", "", *_settings(record)],
        ["## All heat maps", "", *_all_table(record), "", picture],
        *([["## By finding", "", *_finding_table(findings)]] if findings else []),
        ["## How to read it", "", READING],
        *([["## The command", "", f"    {one_line_of(record['command'])}"]] if record.get("command") else []),
    ]
    return "\n\n".join("\n".join(lines).strip("\n") for lines in sections) + "\n"


READING = """\
* A difference is taken heat map by heat map, B minus A, and then averaged: what makes a heat map easy or hard for both
  runs cancels out. Above 0: B is better, in every metric.
* Differences of shares are in percentage points (pp).
* "contains 0": with these patients the sign of the difference is open. That is no proof that the runs are equal.
* Many differences are looked at here: one of twenty whose truth is 0 lies outside its interval by chance.
  An interval of fewer than ten patients is too narrow to say much, and nothing is set in bold there.
* What the figures are, and what they do not show, stands in each run's own report (heatlens evaluate RESULTS_DIR)."""


def _lead(record: Record) -> Iterator[str]:
    first, second = record["folders"]
    yield f"* A: {code(first)} ({_named(record['a'])})"
    yield f"* B: {code(second)} ({_named(record['b'])})"
    how = record["bootstrap"]
    yield (
        f"* {counted(record['matched'], 'heat map')} of {counted(record['patients'], 'patient')} in both; only in A "
        f"{record['only_in_a']:,}, only in B {record['only_in_b']:,}: left out"
    )
    rules = record["threshold_rule"]
    same = "both" if rules["a"] == rules["b"] else f"A {code(rules['a'])}, B"
    yield f"* Threshold of IoU, Dice and boxes: {same} {code(rules['b'])}"
    yield (
        f"* Intervals: {how['level']:.0%} {escaped(how['method'])} bootstrap, {how['resamples']:,} resamples of whole "
        f"{escaped(how['unit'])}s, seed {how['seed']}"
    )
    yield from (f"* Note: {escaped_long(note)}" for note in record["notes"])
    yield from ["", verdict("pointing_8", record["groups"]["all"]["all"])]


def _named(run: Record) -> str:
    return ", ".join(escaped(run[name]) for name in ("method", "model") if run.get(name)) or "not named"


def verdict(key: str, part: Record) -> str:
    """A sentence on the difference of one metric in a group, from its numbers alone."""
    figures = part["metrics"][key]
    label, low, high = METRICS[key].label, figures["mean_low"], figures["mean_high"]
    difference = f"{label}: B minus A is {number(key, figures['mean'], sign=True)}"
    if low is None or high is None:
        return f"{difference}; there is no interval (a single patient), so nothing can be said about other patients."
    between = f"{difference} {interval(key, low, high, sign=True)}."
    if part["patients"] < FEWEST_PATIENTS:
        return f"{between} An interval of {counted(part['patients'], 'patient')} says little."
    if low <= 0 <= high:
        return f"{between} The interval contains 0: these heat maps do not tell which run is better."
    better = "B" if low > 0 else "A"
    return f"{between} The interval does not contain 0: **{better} is better** in this figure, for patients like these."


def _settings(record: Record) -> list[str]:
    differing = record.get("settings", {})
    if not differing:
        return ["No setting that has a say in the maps."]
    rows = [[code(key), *(code(plain(value)) if value not in (None, "") else NONE for value in values)]
            for key, values in differing.items()]  # fmt: skip
    return table(["key", "A", "B"], rows)


def _zero(figures: Record) -> str:
    if figures["mean_low"] is None:
        return "no interval"
    return "contains 0" if figures["mean_low"] <= 0 <= figures["mean_high"] else ""


def _all_table(record: Record) -> list[str]:
    everything = record["groups"]["all"]["all"]
    rows = [
        [METRICS[key].label, number(key, figures["a_mean"]), number(key, figures["b_mean"]),
         _marked(key, everything), _zero(figures),
         f"{figures['b_better']:,}", f"{figures['a_better']:,}", f"{figures['equal']:,}"]
        for key, figures in everything["metrics"].items()
    ]  # fmt: skip
    head = ["metric", "A", "B", "B minus A [95%]", "interval", "maps: B better", "A better", "equal"]
    return table(head, rows)


def _finding_table(findings: Mapping[str, Record]) -> list[str]:
    rows = []
    for name, part in list(findings.items())[:SHOWN]:
        cells = [_marked(key, part) for key in BY_FINDING]
        rows.append([escaped(name), f"{part['n']:,}", f"{part['patients']:,}", *cells])
    more = len(findings) - len(rows)
    head = ["finding", "heat maps", "patients", *(METRICS[key].label for key in BY_FINDING)]
    return [
        *table(head, rows),
        "",
        "B minus A [95%]; bold where the interval does not contain 0 and is of at least ten patients."
        + (f" {more:,} more in compare.json." if more > 0 else ""),
    ]


def _marked(key: str, part: Record) -> str:
    figures = part["metrics"][key]
    text = mean_cell(key, figures, sign=True)
    return text if _zero(figures) or part["patients"] < FEWEST_PATIENTS else f"**{text}**"


def comparison_lines(record: Record) -> Sequence[str]:
    """The table on the terminal."""
    rows = [
        [METRICS[key].label, number(key, figures["a_mean"]), number(key, figures["b_mean"]),
         mean_cell(key, figures, sign=True), _zero(figures)]
        for key, figures in record["groups"]["all"]["all"]["metrics"].items()
    ]  # fmt: skip
    first, second = record["folders"]
    return [
        f"A: {plain(first)}",
        f"B: {plain(second)}",
        f"{counted(record['matched'], 'heat map')} of {counted(record['patients'], 'patient')} in both "
        f"(only in A {record['only_in_a']:,}, only in B {record['only_in_b']:,}); 95% intervals by patient",
        "",
        *columns(["", "A", "B", "B minus A [95%]", ""], rows),
        "",
        verdict("pointing_8", record["groups"]["all"]["all"]).replace("**", ""),
    ]
