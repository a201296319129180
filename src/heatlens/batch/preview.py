"""``heatlens plan``: what a run would be, before it is: counts, names, time, disk, collisions, missing images."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from heatlens.batch.job import Request
from heatlens.batch.ledger import ImageRecord
from heatlens.batch.openers import FramePlacer, Opener
from heatlens.batch.production import production
from heatlens.batch.progress import duration
from heatlens.batch.protocols import Explanation, Stage
from heatlens.batch.signals import StopSignals
from heatlens.cam.protocols import PatchGrid
from heatlens.errors import SetupError
from heatlens.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.questions.plan import ImageTask, Plan

FIRST_NAMES = 5
SAMPLED_IMAGES = 500
NAMED_PATHS = 5

# A frame and grid to draw a made-up map with, where no model is loaded.
FRAME, GRID = 224, 14


@dataclass(frozen=True)
class Measured:
    """A short measurement: ``heat_maps`` took ``seconds`` and ``size`` bytes on disk."""

    heat_maps: int
    seconds: float
    size: int


class Counter:
    """Takes finished images and only counts: heat maps made, and the last reason why one was not."""

    def __init__(self) -> None:
        self.made = 0
        self.reason = ""

    def opened(self) -> None:
        """Nothing to count."""

    def commit(self, record: ImageRecord) -> None:
        """Count its heat maps."""
        for one in record.heat_maps:
            self.made += one.ok
            self.reason = self.reason if one.ok else f"{one.stage}: {one.reason}"


def preview(request: Request, plan: Plan, *, missing: str) -> dict[str, Any]:
    """Everything about a plan that needs no model, as plain values. ``missing``: ``all``, ``sample`` or ``none``."""
    settings = request.settings
    shards = [plan.shard_size(index, settings.num_shards) for index in range(settings.num_shards)]
    return {
        "dataset": str(settings.dataset_path),
        "files": [str(path) for path in request.reader.files()],
        "results": str(settings.results_dir),
        "rows": plan.rows,
        "bad_rows": plan.bad_row_count,
        "images": plan.image_count,
        "heat_maps": plan.heat_map_count,
        "shards": [{"images": images, "heat_maps": heat_maps} for images, heat_maps in shards],
        "first": _first_names(request.stage, plan),
        "collisions": plan.collisions(),
        "missing": _missing(request, plan, missing),
        "digest": plan.digest,
    }


def _first_names(stage: Stage, plan: Plan) -> list[str]:
    names = (stage.expected_files(one)[0] for task in plan.first(FIRST_NAMES) for one in task.heat_maps)
    return list(islice(names, FIRST_NAMES))


def _missing(request: Request, plan: Plan, how: str) -> dict[str, Any]:
    """Images that are not where IMAGE_ROOT says: of all, or of a sample that a fixed seed draws."""
    if how == "none":
        return {"checked": 0, "missing": 0, "examples": []}
    paths: Iterator[str] = plan.image_paths()
    if how == "sample" and plan.image_count > SAMPLED_IMAGES:
        wanted = set(np.random.default_rng(0).choice(plan.image_count, SAMPLED_IMAGES, replace=False).tolist())
        paths = (path for place, path in enumerate(paths) if place in wanted)
    checked, absent, examples = 0, 0, list[str]()
    for path in paths:
        checked += 1
        if not request.parts.is_there(request.image_root, path):
            absent += 1
            if len(examples) < NAMED_PATHS:
                examples.append(path)
    return {"checked": checked, "missing": absent, "examples": examples}


def measure(request: Request, plan: Plan, images: int, stop: StopSignals) -> Measured:
    """Make the heat maps of a few images in a temporary folder; loading and the first image are not counted.

    SetupError or ModelError where that is not possible.
    """
    with TemporaryDirectory(prefix=TEMPORARY_PREFIX) as name, production(request, Path(name), stop) as ready:
        first = plan.first(images + 1)

        def make(tasks: list[ImageTask]) -> Counter:
            counter = Counter()
            ready.make(tasks, counter)
            return counter

        make(first[:1])  # the first image pays for what is built on first use
        before, start = _size(Path(name)), time.perf_counter()
        counted = make(first[1:] or first)
        seconds, size = time.perf_counter() - start, _size(Path(name)) - before
    if not counted.made:
        raise SetupError(f"the measurement made no heat map ({counted.reason})")
    return Measured(counted.made, seconds, size)


def picture_bytes(request: Request, plan: Plan) -> float:
    """Bytes on disk of one heat map's files, by drawing a made-up map over the first image that can be opened."""
    stage, parts = request.stage, request.parts
    grid = PatchGrid(GRID, GRID, (FRAME / GRID, FRAME / GRID))
    opener = Opener(
        parts.film_reader(request.image_root), stage, FramePlacer(request.settings.preprocess, (FRAME, FRAME)), grid
    )
    values = np.random.default_rng(0).random((GRID, GRID), dtype=np.float32)
    for task in plan.first(10):
        opened = opener(task.image_path)
        if opened.failure is None:
            result = stage.make(opened.view, task.heat_maps[0], Explanation(values, 0.0))
            return float(sum(len(one.data) for one in result.files))
    return math.nan


def estimate(plan: Plan, settings: Settings, rate: float, size: float, measured: int) -> dict[str, Any]:
    """Time and disk of the whole run at ``rate`` heat maps/s per device and ``size`` bytes per heat map."""
    seconds = plan.heat_map_count / rate
    return {
        "heat_maps_per_second": rate,
        "measured_heat_maps": measured,
        "seconds": seconds,
        "seconds_per_shard": seconds / settings.num_shards,
        "bytes": None if math.isnan(size) else plan.heat_map_count * size,
    }


def preview_text(found: dict[str, Any]) -> str:
    """The preview as aligned lines for people."""
    shards = found["shards"]
    loads = [shard["heat_maps"] for shard in shards]
    cut = f"{len(shards)} of {_span(loads)} heat maps" if len(shards) > 1 else "1"
    rows = [
        ("data set", f"{found['dataset']} ({_count(len(found['files']), 'file')})"),
        (
            "questions",
            f"{found['rows']:,}" + (f", {found['bad_rows']:,} of them unusable" if found["bad_rows"] else ""),
        ),
        ("images", f"{found['images']:,}"),
        ("heat maps", f"{found['heat_maps']:,}"),
        ("shards", cut),
        *(("first" if place == 0 else "", name) for place, name in enumerate(found["first"])),
        *_estimate_rows(found["estimate"], len(shards)),
        *_collision_rows(found["collisions"]),
        *_missing_rows(found["missing"]),
        ("results", found["results"] + (" (nothing was written: --dry-run)" if found["dry_run"] else "")),
    ]
    return "\n".join(f"{name:<11} {text}" for name, text in rows)


def _estimate_rows(found: dict[str, Any] | None, shards: int) -> list[tuple[str, str]]:
    if found is None:
        return [("time", "not estimated (--measure IMAGES or --rate R)")]
    how = f"measured on {found['measured_heat_maps']}" if found["measured_heat_maps"] else "given"
    together = f"; {duration(found['seconds_per_shard'])} with {shards} shards at once" if shards > 1 else ""
    size = "unknown: no image could be opened" if found["bytes"] is None else _bytes(found["bytes"])
    rate = f"{found['heat_maps_per_second']:.3g} heat maps/s, {how}"
    return [("time", f"{duration(found['seconds'])} on one device ({rate}){together}"), ("disk", size)]


def _collision_rows(found: list[str]) -> list[tuple[str, str]]:
    lines = found or ["none: every image's name is its own"]
    return [("collisions" if place == 0 else "", line) for place, line in enumerate(lines)]


def _missing_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    if not found["checked"]:
        return [("missing", "not looked for")]
    if not found["missing"]:
        return [("missing", f"none: all {found['checked']:,} images that were looked for are there")]
    text = f"{found['missing']:,} of {found['checked']:,} images looked for are not under IMAGE_ROOT"
    return [("missing", text), *(("", example) for example in found["examples"])]


def _span(loads: list[int]) -> str:
    low, high = min(loads), max(loads)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
