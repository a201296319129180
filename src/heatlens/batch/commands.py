"""``heatlens plan`` and ``heatlens merge``: the run's own settings, without the run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.config import check_paths, settings_of
from heatlens.config_help import KeyParser
from heatlens.errors import EXIT_OK, ConfigError, HeatlensError, StoppedEarly
from heatlens.registry import find

if TYPE_CHECKING:
    from heatlens.batch.job import Request
    from heatlens.batch.signals import StopSignals
    from heatlens.config import Settings
    from heatlens.questions.plan import Plan

PLAN_USAGE = """\
usage: heatlens plan [CONF] [--dry-run] [--measure IMAGES | --rate R] [--missing all|sample|none] [--json]
                     [--stage STAGE] [--key value ...]

What would a run of CONF be? Images, questions, heat maps, shards, first names, time and disk, colliding names,
missing images.

  --dry-run           write nothing; otherwise the plan is kept in RESULTS_DIR, where the run's tasks find it
  --measure IMAGES    load the model and make the heat maps of so many images (and one before them) to estimate
                      time and disk (default 1; 0: no estimate)
  --rate R            heat maps per second of one device, instead of a measurement
  --missing HOW       look for all images, for a sample of 500 (default), or for none
  --json              print one JSON object

Every key of `heatlens run STAGE --help` works as a flag, in the environment and in CONF; NUM_SHARDS cuts the plan."""

MERGE_USAGE = """\
usage: heatlens merge [CONF] [--stage STAGE] [--key value ...]

Write vqa_manifest.csv, details.parquet, failures.csv and run.json of a run whose shards are all finished. The shard
that finishes last does this by itself; a job that waits for all of them makes sure. Where NUM_SHARDS is not given, a
finished division into shards is looked for.

Exit codes: 0 done, 3 too many failures, 75 shards are unfinished (they are named), 2 and 4 as in a run."""


@dataclass(frozen=True)
class PlanOptions:
    """What is not a key. ``rate``: heat maps per second, 0 when they are to be measured on ``measure`` images."""

    dry_run: bool
    measure: int
    rate: float
    missing: str
    as_json: bool


def plan_command(argv: list[str]) -> int:
    """``heatlens plan ...``; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(PLAN_USAGE)
        return EXIT_OK
    options, rest = read_plan_options(argv)
    return _with_settings(rest, lambda settings, stop: _plan(settings, options, stop))


def merge_command(argv: list[str]) -> int:
    """``heatlens merge ...``; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(MERGE_USAGE)
        return EXIT_OK
    return _with_settings(argv, _merge)


def read_plan_options(argv: list[str]) -> tuple[PlanOptions, list[str]]:
    """The command's own options, and the arguments that are settings. ConfigError for a wrong value."""
    parser = KeyParser(prog="heatlens plan", add_help=False, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--measure", default="1")
    parser.add_argument("--rate", default="")
    parser.add_argument("--missing", default="sample")
    parser.add_argument("--json", action="store_true")
    found, rest = parser.parse_known_args(argv)
    if not found.measure.isdecimal() or int(found.measure) > 1000:
        raise ConfigError(f"--measure={found.measure}: allowed: a whole number from 0 to 1000")
    if found.missing not in ("all", "sample", "none"):
        raise ConfigError(f"--missing={found.missing}: allowed: all, sample, none")
    options = PlanOptions(found.dry_run, int(found.measure), _rate(found.rate), found.missing, found.json)
    return options, rest


def _rate(text: str) -> float:
    if not text:
        return 0.0
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"--rate={text}: allowed: a number above 0, heat maps per second of one device")
    return rate


def _with_settings(argv: list[str], command: Callable[[Settings, StopSignals], int]) -> int:
    settings = settings_of(argv)
    check_paths(settings)

    # After the checks: wrong settings must not wait for heavy imports.
    from heatlens.batch.runner import umask
    from heatlens.batch.signals import StopSignals

    with umask(settings.umask), StopSignals() as stop:
        try:
            return command(settings, stop)
        except StoppedEarly as error:
            print(error, flush=True)
            return error.exit_code


def _plan(settings: Settings, options: PlanOptions, stop: StopSignals) -> int:
    from heatlens.batch.job import Request, prepare
    from heatlens.batch.parts import Parts
    from heatlens.batch.planning import passing_plan

    parts, stage = Parts(settings), find("stage", settings.stage).load()(settings)
    if not options.dry_run:
        job = prepare(settings, stage, parts, stop, device=False)
        _show(job.request, job.plan, options, stop)
        return EXIT_OK
    with stop.interruptible():
        request = Request.of(settings, stage, parts, model=False)
    arguments = (parts, request.reader, request.image_root, request.data_digest)
    with stop.interruptible(), passing_plan(*arguments) as plan:
        _show(request, plan, options, stop)
    return EXIT_OK


def _show(request: Request, plan: Plan, options: PlanOptions, stop: StopSignals) -> None:
    from heatlens.batch.preview import estimate, picture_bytes, preview, preview_text

    found: dict[str, Any] = preview(request, plan, missing=options.missing)
    found["dry_run"] = options.dry_run
    found["estimate"] = None
    if options.rate:
        found["estimate"] = estimate(plan, request.settings, options.rate, picture_bytes(request, plan), 0)
    elif options.measure:
        found["estimate"] = _measured(request, plan, options.measure, stop)
    print(json.dumps(found, indent=1) if options.as_json else preview_text(found))


def _measured(request: Request, plan: Plan, images: int, stop: StopSignals) -> dict[str, Any] | None:
    """The estimate, or None with a note when the model is not here: counts and names are worth having without."""
    from heatlens.batch.preview import estimate, measure

    try:
        with stop.interruptible():
            made = measure(request, plan, images, stop)
    except StoppedEarly:
        raise
    except HeatlensError as error:
        print(f"note: no estimate of time and disk: {error}", file=sys.stderr)
        return None
    return estimate(plan, request.settings, made.heat_maps / made.seconds, made.size / made.heat_maps, made.heat_maps)


def _merge(settings: Settings, stop: StopSignals) -> int:
    from heatlens.batch.closing import merge_only
    from heatlens.batch.job import prepare
    from heatlens.batch.markers import best_count
    from heatlens.batch.parts import Parts

    results: Path = settings.results_dir
    if not (results / "shards").is_dir():
        raise ConfigError(f"RESULTS_DIR={results} holds no run; the same CONF and keys as the run's are needed")
    stage = find("stage", settings.stage).load()(settings)
    # OVERWRITE would move away what is to be merged.
    settings = settings.model_copy(update={"overwrite": False})
    job = prepare(settings, stage, Parts(settings), stop, device=False)
    if settings.origins.get("NUM_SHARDS") == "default" and (count := best_count(results, job.plan.digest)):
        job = job.cut_into(count)
    return merge_only(job, stop)
