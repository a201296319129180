"""``heatlens evaluate --sanity``: the sanity checks on an experiment's own model, images and prompts.

Settings are read exactly as a run reads them. Nothing is written but the JSON file that --output asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.config import check_paths, load_settings, parse_arguments
from heatlens.config_help import KeyParser
from heatlens.errors import EXIT_FAILURES, EXIT_OK, ConfigError, DataSetError, ItemError
from heatlens.registry import find

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from heatlens.cam.engine import CamEngine
    from heatlens.config import Settings
    from heatlens.evaluate.layers import LayerGradient
    from heatlens.evaluate.sanity import PromptSensitivity, WeightRandomisation
    from heatlens.models.clip import ClipAdapter
    from heatlens.questions.plan import ImageTask

STAGE = "attn_map"
ROWS = 2000  # rows of the data set among which the images are looked for
USAGE = """\
usage: heatlens evaluate --sanity [--config FILE.conf] [--key value ...] [--images N] [--prompts N]
                         [--method NAME[,NAME...]] [--output FILE.json]

Do the maps depend on what is asked, and on what the model has learnt?

  --images N          images of the data set with at least two different prompts (default 3)
  --prompts N         prompts of each image, at most (default 4)
  --method NAME,...   CAM methods to check (default: CAM_VERSION)
  --output FILE.json  write all numbers

Every key of `heatlens run attn_map --help` works as a flag, in the environment and in the .conf. STOP_AFTER is
left aside (--images says how many) and SEED also seeds the random weights. For the demo:

  heatlens evaluate --sanity --config configs/demo/exp_00_phantom.conf

Exit codes: 0 every check passes, 2 wrong settings, 3 a check fails, 4 the environment cannot run it."""


@dataclass(frozen=True)
class Options:
    """What is not a key of the configuration. ``methods`` empty: CAM_VERSION."""

    images: int
    prompts: int
    methods: tuple[str, ...]
    output: Path | None


@dataclass(frozen=True)
class Case:
    """One image: its path in the data set, the prompts, and its pixels in the model's frame, uint8 (h, w, 3)."""

    image_path: str
    prompts: tuple[str, ...]
    frame: np.ndarray


def main(argv: list[str]) -> int:
    """``heatlens evaluate --sanity ...``; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return EXIT_OK
    options, rest = read_options(argv)
    settings = load_settings(*parse_arguments(STAGE, rest), os.environ, STAGE)
    check_paths(settings)
    for line in settings.announcements:
        print(f"note: {line}", file=sys.stderr)

    # After the checks: wrong settings must not wait for heavy imports.
    from heatlens.batch.runner import umask
    from heatlens.files import atomic_write

    with umask(settings.umask):  # prompts and films are restricted data, here as in a run
        record = check(settings, options)
        if options.output is not None:
            atomic_write(options.output, json.dumps(record, indent=2, allow_nan=False) + "\n")
            print(f"all numbers: {options.output}")
    return EXIT_OK if record["passed"] else EXIT_FAILURES


def read_options(argv: list[str]) -> tuple[Options, list[str]]:
    """The command's own options, and the arguments that are settings. ConfigError for a wrong value."""
    parser = KeyParser(prog="heatlens evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("--sanity", action="store_true")
    parser.add_argument("--images", default="3")
    parser.add_argument("--prompts", default="4")
    parser.add_argument("--method")
    parser.add_argument("--output")
    found, rest = parser.parse_known_args(argv)
    if found.output == "":
        raise ConfigError("--output is empty: name the JSON file to write")
    output = None if found.output is None else Path(found.output)
    if output is not None and output.is_dir():
        raise ConfigError(f"--output={output}: this is a folder; name the JSON file to write")
    return Options(_whole(found, "images", 1), _whole(found, "prompts", 2), _methods(found.method), output), rest


def _whole(found: argparse.Namespace, name: str, least: int) -> int:
    text = getattr(found, name)
    if not text.isdecimal() or not least <= int(text) <= 10_000:
        raise ConfigError(f"--{name}={text}: allowed: a whole number from {least} to 10000")
    return int(text)


def _methods(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("--method is empty: name one or more, with commas between; `heatlens list methods`")
    try:
        return tuple(dict.fromkeys(find("method", name).name for name in names))
    except ConfigError as error:
        raise ConfigError(f"--method: {error}") from None


def check(settings: Settings, options: Options) -> dict[str, Any]:
    """Run every check, print tables and verdicts; all numbers, with ``passed``."""
    from heatlens.batch.explainer import build_engine, load_model

    model = load_model(settings)
    # A layer without gradient is a finding here, not a reason to stop.
    engines = [  # all first: a method that cannot work says so before any work
        build_engine(model, settings, method=name, allow_zero_gradient=True)
        for name in options.methods or (settings.cam_version,)
    ]
    cases = gather(settings, options, model)
    images = model.prepare([case.frame for case in cases])
    targets = [[model.target(prompt) for prompt in case.prompts] for case in cases]
    print(
        f"sanity checks of {settings.model} at {model.target_layer_name}: {len(cases)} images, "
        f"{sum(len(case.prompts) for case in cases)} prompts"
    )
    layers = _layers(model, needed=any(engine.method.needs_live_layer for engine in engines))
    methods = [_method(engine, images, targets, settings.seed) for engine in engines]
    checks = [layers, *(part for one in methods for part in (one["prompts"], one["weights"]))]
    failed = sum(one["verdict"]["state"] == "FAILS" for one in checks)
    print(f"\n{failed} of {len(checks)} checks fail" if failed else f"\nno check of {len(checks)} fails")
    return {
        "passed": not failed,
        "model": model.identity(),
        "images": [{"image_path": case.image_path, "prompts": case.prompts} for case in cases],
        "preprocess": settings.preprocess,
        "layers": layers,
        "methods": methods,
    }


def gather(settings: Settings, options: Options, model: ClipAdapter) -> list[Case]:
    """The first images with two different prompts, opened and placed as a run does it; the others are named."""
    from heatlens.batch.fingerprint import data_digest
    from heatlens.batch.parts import Parts
    from heatlens.batch.planning import passing_plan
    from heatlens.images.geometry import FrameGeometry

    parts = Parts(settings.model_copy(update={"stop_after": ROWS}))
    reader = parts.reader()
    root = parts.image_root(reader)
    read = parts.film_reader(root)
    cases: list[Case] = []
    skipped: list[str] = []
    with passing_plan(parts, reader, root, data_digest(reader.files())) as plan:
        for task in plan.images():
            if len(cases) == options.images:
                break
            prompts = _different_prompts(task, options.prompts, model)
            if len(prompts) < 2:
                skipped.append(f"{task.image_path}: no two prompts that the model can tell apart")
                continue
            try:
                film = read(task.image_path, None)
            except ItemError as error:
                skipped.append(f"{task.image_path}: {error.reason}")
                continue
            geometry = FrameGeometry.fit(settings.preprocess, source=film.size, frame=model.frame)
            cases.append(Case(task.image_path, prompts, geometry.place(film.pixels)))
    if skipped:
        more = f" (and {len(skipped) - 3} more)" if len(skipped) > 3 else ""
        print(f"skipped: {'; '.join(skipped[:3])}{more}", file=sys.stderr)
    if not cases:
        raise DataSetError(
            f"none of the {plan.image_count} images of the first {plan.rows} selected rows of "
            f"{settings.dataset_path} can be opened and has two different prompts"
        )
    if len(cases) < options.images:
        print(f"note: only {len(cases)} of --images={options.images} images were found", file=sys.stderr)
    return cases


def _different_prompts(task: ImageTask, count: int, model: ClipAdapter) -> tuple[str, ...]:
    """The image's first prompts that differ for the model: after truncation and lower case some are one."""
    found: dict[str, Tensor] = {}
    for prompt in dict.fromkeys(heat_map.prompt for heat_map in task.heat_maps):
        if len(found) == count:
            break
        text = model.encode_text(prompt)
        if not any(text.equal(other) for other in found.values()):
            found[prompt] = text
    return tuple(found)


def _layers(model: ClipAdapter, *, needed: bool) -> dict[str, Any]:
    from heatlens.evaluate.layers import layer_gradients
    from heatlens.evaluate.sanity import layers_verdict

    rows = layer_gradients(model)
    alive = [row.name for row in rows if row.usable]
    advice = alive[-1] if alive else model.default_layer_name
    verdict = layers_verdict(rows, model.target_layer_name, advice, needed=needed)
    print("\nLayers: does the score have a gradient at the patches?")
    _print_table(["layer", "channels with gradient", "usable", ""], [_layer_cells(row) for row in rows])
    print(verdict)
    return {"verdict": asdict(verdict), "rows": [{**asdict(row), "usable": row.usable} for row in rows]}


def _layer_cells(row: LayerGradient) -> list[str]:
    mark = "<- TARGET_LAYER" if row.chosen else ""
    return [row.name, f"{row.with_gradient} of {row.channels}", "yes" if row.usable else "no", mark]


def _method(engine: CamEngine, images: Tensor, targets: Sequence[Sequence[Any]], seed: int) -> dict[str, Any]:
    """Both checks of one method; its maps of the trained model serve both."""
    from heatlens.evaluate.sanity import PromptSensitivity, compare_prompts, weight_randomisation

    name = engine.method.name
    maps = engine.explain(images, targets)
    prompts = compare_prompts(name, maps) if engine.method.uses_target else PromptSensitivity(name, uses_target=False)
    _print_prompts(prompts)
    weights = weight_randomisation(engine, images, targets, seed=seed, originals=maps)
    _print_weights(weights)
    return {
        "method": name,
        "settings": engine.settings(),
        "prompts": {"verdict": asdict(prompts.verdict()), **prompts.figures(), "each": _each(prompts.pairs)},
        "weights": {
            "verdict": asdict(weights.verdict()),
            "seed": seed,
            "stages": [
                {"stage": stage.stage, **stage.figures(), "each": _each(stage.likeness)} for stage in weights.stages
            ],
        },
    }


def _each(items: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(item) for item in items]


def _print_prompts(found: PromptSensitivity) -> None:
    print(f"\n{found.method}, prompts: do different prompts give different maps?")
    if found.uses_target:
        figures = found.figures()
        rows = [
            [f"{name} correlation", _number(figures[f"{kind}_mean"]), _number(figures[f"{kind}_max"])]
            for name, kind in (("Pearson", "pearson"), ("Spearman (ranks)", "spearman"))
        ]
        _print_table([f"{figures['pairs']} pairs of {figures['maps']} maps", "mean", "largest"], rows)
    print(found.verdict())


def _print_weights(found: WeightRandomisation) -> None:
    print(f"\n{found.method}, weights: do the maps change when the weights become random? (likeness to the original)")
    rows = []
    for stage in found.stages:
        figures = stage.figures()
        means = [_number(figures[kind]) for kind in ("spearman_mean", "pearson_mean", "ssim_mean", "spearman_max")]
        rows.append([f"+ {stage.stage}", f"{stage.weights:,}", *means, str(figures["constant"])])
    if rows:
        _print_table(
            ["random, from the output on", "weights", "Spearman", "Pearson", "SSIM", "largest Spearman", "constant"],
            rows,
        )
    print(found.verdict())


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns side by side, the first flush left, the others flush right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for first, *others in [head, *rows]:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        print(f"  {'  '.join([first.ljust(widths[0]), *cells])}".rstrip())
