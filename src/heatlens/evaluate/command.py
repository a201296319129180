"""``heatlens evaluate``: do the maps of a finished run point at the right place? And of two runs: which does better?

``--sanity`` without a results folder is :mod:`heatlens.evaluate.sanity_command`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.config_help import KeyParser
from heatlens.errors import EXIT_FAILURES, EXIT_OK, ConfigError, HeatlensError, SetupError
from heatlens.registry import TRUTHS, find
from heatlens.settings import THRESHOLD

if TYPE_CHECKING:
    from heatlens.evaluate.cases import Cases
    from heatlens.evaluate.finished_run import FinishedRun
    from heatlens.evaluate.measure import Evaluation

MATCHES = ("auto", "region", "question", "prompt", "image")
DEFAULT_FOLDER = Path("report/evaluation")
DEFAULT_COMPARISON = Path("report/comparison")
USAGE = f"""\
usage: heatlens evaluate RESULTS_DIR [options]      do a run's heat maps point at their targets?
       heatlens evaluate A B [options]              two runs with the same questions: B minus A, map by map
       heatlens evaluate --sanity [--config FILE.conf] [--key value ...]     do maps depend on prompt and weights?
                                                    (its own page: heatlens evaluate --sanity --help)

Reads the maps of a run with SAVE_RAW_CAM=true, compares each with the place it should point at, and writes
report.md, report.json, per_map.csv and plots/. Beside every figure stand what pointing at the middle, at random
and anywhere in the body would get, and its 95% interval, by patient.

  --truth FORMAT[:PATH]  where the targets are from (default own: the boxes of the run's own data set):
                         {", ".join(TRUTHS)}; `heatlens list truths`
  --match HOW            an annotation's label is the heat map's region, question or prompt, or any of its image's
                         will do (image); auto tries region, question, prompt. {", ".join(MATCHES)}
  --threshold RULE       heat above which a pixel counts for IoU, Dice and boxes: otsu, a share of the maximum such
                         as 0.65, or a percentile such as p95 (default: the run's BOX_THRESHOLD)
  --recompute            of a run without raw maps: make them once more, in RESULTS_DIR/report/recomputed
  --image-root DIR       where the films are now, if they were moved
  --sample N             only N heat maps, drawn at random
  --seed N               of --sample, bootstrap and random baselines (default: the run's SEED)
  --curves N             of one run: deletion and insertion curves of N heat maps; needs model and films
  --sanity               of one run: the sanity checks too, with its model, data set and method
  --workers N            processes that read maps (default: as many as there are CPUs)
  --output DIR           default: RESULTS_DIR/{DEFAULT_FOLDER}; of two runs: B/{DEFAULT_COMPARISON}
  --json                 print the record (report.json) and nothing else on stdout

  heatlens evaluate Bounding_Box/results/demo/exp_00_phantom --truth phantom --curves 20

Exit codes: 0 done, 2 wrong arguments or annotations, 3 a sanity check fails, 4 the environment cannot run it.
What is measured and how to read it: docs/evaluation.md"""


@dataclass(frozen=True)
class Options:
    """The command line. ``folders``: one run, or A and B. None: the default."""

    folders: tuple[Path, ...]
    truth: str
    match: str
    threshold: str | None
    recompute: bool
    image_root: Path | None
    sample: int | None
    seed: int | None
    curves: int
    sanity: bool
    workers: int | None
    output: Path | None
    as_json: bool
    command: str


def main(argv: list[str]) -> int:
    """``heatlens evaluate ...``; returns the exit code."""
    if _only_sanity(argv):
        from heatlens.evaluate.sanity_command import main as sanity

        return sanity(argv)
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return EXIT_OK
    options = read_options(argv)
    return _compare(options) if len(options.folders) == 2 else _evaluate(options)


def _only_sanity(argv: list[str]) -> bool:
    """--sanity, and no results folder: at the head, or right behind the switch, which takes no value."""
    if "--sanity" not in argv:
        return False
    behind = argv[argv.index("--sanity") + 1 :][:1]
    return all(word.startswith("-") for word in [*argv[:1], *behind])


def read_options(argv: list[str]) -> Options:
    """The command line, checked. ConfigError names what is wrong and what is allowed."""
    parser = KeyParser(prog="heatlens evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--truth", default="own")
    parser.add_argument("--match", default="auto")
    parser.add_argument("--image-root", type=Path)
    parser.add_argument("--output", type=Path)
    for name in ("threshold", "sample", "seed", "curves", "workers"):
        parser.add_argument(f"--{name}")
    for name in ("recompute", "sanity", "json"):
        parser.add_argument(f"--{name}", action="store_true")
    found, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        _refuse(parser, unknown[0])
    options = Options(
        folders=_folders(found.folders),
        truth=_truth(found.truth),
        match=_match(found.match),
        threshold=_threshold(found.threshold),
        recompute=found.recompute,
        image_root=found.image_root,
        sample=_whole("sample", found.sample, 1),
        seed=_whole("seed", found.seed, 0, 2**32 - 1),
        curves=_whole("curves", found.curves, 1) or 0,
        sanity=found.sanity,
        workers=_whole("workers", found.workers, 1, 256),
        output=found.output,
        as_json=found.json,
        command=shlex.join(["heatlens", "evaluate", *argv]),
    )
    _check_together(options)
    return options


def _refuse(parser: KeyParser, word: str) -> None:
    if word.startswith("--") and word.partition("=")[0] not in ("--config",):
        parser.split([word])  # raises, with the nearest flag
    raise ConfigError(f"{word}: a finished run has its settings in run.json; --config goes with --sanity alone")


def _folders(words: list[str]) -> tuple[Path, ...]:
    if not words:
        raise ConfigError(f"evaluate: say what is to be evaluated: RESULTS_DIR, A B, or --sanity\n\n{USAGE}")
    if len(words) > 2:
        raise ConfigError(f"evaluate takes one results folder, or two to compare; got {len(words)}: {', '.join(words)}")
    return tuple(Path(word) for word in words)


def _truth(text: str) -> str:
    name = text.partition(":")[0]
    if not name.strip():
        raise ConfigError(f"--truth={text}: FORMAT or FORMAT:PATH; formats: {', '.join(TRUTHS)}")
    try:
        find("truth", name)
    except ConfigError as error:
        raise ConfigError(f"--truth={text}: {error}") from None
    return text


def _match(text: str) -> str:
    if text not in MATCHES:
        raise ConfigError(f"--match={text}: allowed: {', '.join(MATCHES)}")
    return text


def _threshold(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return THRESHOLD.read(text, Path())
    except ValueError as error:
        raise ConfigError(f"--threshold={text}: {error}") from None


def _whole(name: str, text: str | None, least: int, most: int = 10**9) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
        raise ConfigError(f"--{name}={text}: allowed: a whole number from {least} to {most}")
    return int(text)


def _check_together(options: Options) -> None:
    if len(options.folders) == 2:
        for name, given in (("--curves", options.curves), ("--sanity", options.sanity)):
            if given:
                raise ConfigError(f"{name} is for one run; leave it out, or evaluate A and B one by one")
        if options.folders[0].resolve() == options.folders[1].resolve():
            raise ConfigError(f"A and B are the same folder, {options.folders[0]}: nothing to compare")
    if options.output is not None and (str(options.output) in ("", ".") or options.output.is_file()):
        raise ConfigError(f"--output={options.output}: name a folder of its own for the report")
    if options.image_root is not None and not options.image_root.is_dir():
        raise ConfigError(f"--image-root={options.image_root}: no such folder")


def _evaluate(options: Options) -> int:
    from heatlens.evaluate.place import REPORT, check_place
    from heatlens.evaluate.report import summary_lines, write_report

    output = options.output or options.folders[0] / DEFAULT_FOLDER
    check_place(output, REPORT)
    run = _opened(options.folders[0], options)
    with _umask([run]):
        cases = _cases(run, options)
        evaluation = _measured(cases, run, options)
        record = evaluation.record
        record["command"] = options.command
        failure = _ask_the_model(run, cases, options, record)
        written = write_report(evaluation, output)
    _print(options, record, [*summary_lines(record), "", *map(str, written)])
    if failure is not None:
        raise failure
    failed = options.sanity and not record["sanity"]["passed"]
    return EXIT_FAILURES if failed else EXIT_OK


def _ask_the_model(run: FinishedRun, cases: Cases, options: Options, record: dict[str, Any]) -> HeatlensError | None:
    """Curves and sanity checks, into ``record``. What keeps them from working costs no other figure: it is returned."""
    try:
        if options.curves:
            from heatlens.evaluate.curves import curves_of_run

            _note(f"deletion and insertion curves of {options.curves} heat maps")
            record["curves"] = curves_of_run(run, cases.items, count=options.curves, seed=_seed(run, options))
        if options.sanity:
            record["sanity"] = _sanity(run)
    except HeatlensError as error:
        record["notes"].append(f"curves or sanity checks could not be made: {error}")
        return error
    return None


def _compare(options: Options) -> int:
    from heatlens.evaluate.compare_report import comparison_lines, settings_that_differ, write_comparison
    from heatlens.evaluate.paired import compare_runs
    from heatlens.evaluate.place import COMPARISON, check_place

    output = options.output or options.folders[1] / DEFAULT_COMPARISON
    check_place(output, COMPARISON)
    runs = [_opened(folder, options) for folder in options.folders]
    with _umask(runs):
        evaluations = [_measured(_cases(run, options), run, options) for run in runs]
        first, second = evaluations
        record = compare_runs(first, second, seed=_seed(runs[1], options))
        record["command"] = options.command
        record["folders"] = [str(folder) for folder in options.folders]
        record["settings"] = settings_that_differ(runs[0].config, runs[1].config)
        written = write_comparison(record, output)
    _print(options, record, [*comparison_lines(record), "", *map(str, written)])
    return EXIT_OK


def _opened(folder: Path, options: Options) -> FinishedRun:
    """The finished run with raw maps, made once more if that was asked for."""
    from heatlens.evaluate.finished_run import read_run, recomputed

    run = read_run(folder, options.image_root)
    if run.has_raw_maps:
        return run
    if not options.recompute:
        raise SetupError(
            f"{folder} was run with SAVE_RAW_CAM=false: its maps were not kept, and a picture's colours are no "
            "numbers. --recompute makes them once more (model, data set and films are needed), in "
            f"{folder / 'report' / 'recomputed'}"
        )
    with _quiet_stdout(options):
        return recomputed(run)


def _cases(run: FinishedRun, options: Options) -> Cases:
    from heatlens.evaluate.cases import find_cases
    from heatlens.evaluate.truth.base import open_truth

    truth = None if options.truth == "own" else open_truth(options.truth, run)
    return find_cases(run, truth, options.match, sample=options.sample, seed=_seed(run, options))


def _measured(cases: Cases, run: FinishedRun, options: Options) -> Evaluation:
    from tqdm import tqdm

    from heatlens.batch.parts import available_cores
    from heatlens.evaluate.measure import evaluate_cases

    workers = available_cores() if options.workers is None else options.workers
    _note(f"{run.folder}: {len(cases.items)} heat maps to measure")
    with tqdm(total=len(cases.items), unit=" maps", disable=None) as bar:

        def progress(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        return evaluate_cases(
            cases, run, workers=workers, seed=_seed(run, options), rule=options.threshold, progress=progress
        )


def _sanity(run: FinishedRun) -> dict[str, Any]:
    """The checks with their usual numbers of images and prompts; their tables go to stderr."""
    from heatlens.config import check_paths
    from heatlens.evaluate.curves import settings_of_run
    from heatlens.evaluate.sanity_command import check, read_options

    settings = settings_of_run(run)
    check_paths(settings)
    with redirect_stdout(sys.stderr):
        return check(settings, read_options(["--sanity"])[0])


def _seed(run: FinishedRun, options: Options) -> int:
    return int(run.config.get("SEED") or 0) if options.seed is None else options.seed


@contextmanager
def _umask(runs: Sequence[FinishedRun]) -> Iterator[None]:
    """Questions and maps are restricted data, in a report as in its runs: who may not read one, not read this."""
    from heatlens.batch.run_record import umask_of
    from heatlens.batch.runner import umask

    together = 0
    for run in runs:
        together |= int(umask_of(run.config), 8)
    with umask(f"{together:o}"):
        yield


@contextmanager
def _quiet_stdout(options: Options) -> Iterator[None]:
    """With --json stdout is the record's alone: what processes of their own print goes to stderr, too."""
    if not options.as_json:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _print(options: Options, record: dict[str, Any], lines: list[str]) -> None:
    if options.as_json:
        print(json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False))
    else:  # not every terminal knows these two signs
        print("\n".join(lines).replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-"))
