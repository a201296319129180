"""The command ``heatlens``: sub-commands, each imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from heatlens import __version__
from heatlens.errors import ConfigError
from heatlens.guard import guarded
from heatlens.registry import GRAD_CAM_PREFIX, KINDS, METHODS, nearest_hint


@dataclass(frozen=True)
class Command:
    """A sub-command: its usage, what it does, and ``module:function`` (argv -> exit code)."""

    usage: str
    summary: str
    target: str

    def load(self) -> Callable[[list[str]], int]:
        module, _, function = self.target.partition(":")
        return getattr(import_module(module), function)  # type: ignore[no-any-return]


COMMANDS = {
    "run": Command("run STAGE [--config FILE.conf] [--key value ...]", "run a stage", "heatlens.cli:run_stage"),
    "plan": Command(
        "plan [CONF] [--dry-run] [--measure IMAGES | --rate R] [--missing all|sample|none] [--json] [--key value ...]",
        "what a run would be: images, heat maps, shards, names, time, disk, missing images",
        "heatlens.batch.commands:plan_command",
    ),
    "status": Command(
        "status RESULTS_DIR [--json]",
        "how far a run is, and what to run next",
        "heatlens.batch.status:main",
    ),
    "merge": Command(
        "merge [CONF] [--key value ...]",
        "write the tables of a run whose shards are all finished",
        "heatlens.batch.commands:merge_command",
    ),
    "config": Command(
        "config [--reference] [CONF] [--stage STAGE] [--key value ...]",
        "print the resolved settings with their origins, or the documentation",
        "heatlens.cli:show_config",
    ),
    "figure": Command(
        "figure RESULTS_DIR [--pick TEXT] [--output FILE.png] [--height PIXELS]",
        "film | map | overlay of one heat map of a run with SAVE_RAW_CAM=true",
        "heatlens.report.figure:main",
    ),
    "evaluate": Command(
        "evaluate RESULTS_DIR [--truth FORMAT[:PATH]] [--curves N] ... | A B | --sanity [--config FILE.conf] ...",
        "do the maps point at the right place? Which of two runs does better? Do maps depend on prompt and weights?",
        "heatlens.evaluate.command:main",
    ),
    "export": Command(
        "export RESULTS_DIR [--format coco|yolo] [--labels region|question|prompt|type] [--scores] [--output DIR]",
        "the boxes of a finished bbox run as COCO or YOLO files",
        "heatlens.export.command:main",
    ),
    "submit": Command(
        "submit [CONF] [--shards N] [--stage STAGE] [--dry-run] [--parsable] [--key value ...] [-- sbatch options]",
        "send a run to Slurm, as an array of shards with a merge job behind it",
        "heatlens.cluster.submit:main",
    ),
    "fetch-model": Command(
        "fetch-model [MODEL] --to FOLDER [--revision REVISION] [--verify]",
        "fill a folder with a model's files for machines without internet, digests checked",
        "heatlens.cluster.fetch:main",
    ),
    "doctor": Command(
        "doctor [--config FILE.conf] [--key value ...] [--model [NAME]] [--json]",
        "is everything here that a run needs? With --model: are the weights the right ones?",
        "heatlens.doctor:main",
    ),
    "list": Command(
        "list methods|datasets|colormaps|models|stages|truths",
        "print the names a key can take",
        "heatlens.cli:show_list",
    ),
}

MODELS = {
    "demo": "the small CLIP that comes with the program, trained on its phantom films",
    "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224": "BiomedCLIP, the default",
    "hf-hub:OWNER/NAME": "any open_clip model of the hub, or CLIP or SigLIP of the transformers library",
    "FOLDER or local-dir:FOLDER": "weights with open_clip_config.json, or config.json of transformers' CLIP or SigLIP",
    "NAME/TAG": "an architecture and tag of open_clip, such as ViT-B-32/openai",
}


def usage() -> str:
    """The text of ``heatlens --help``."""
    lines = [f"heatlens {__version__}: where does the model look?", "", "usage: heatlens COMMAND ...", ""]
    for command in COMMANDS.values():
        lines += [f"  heatlens {command.usage}", f"      {command.summary}"]
    lines += ["  heatlens --version", "", "heatlens run STAGE --help lists every key of a stage."]
    return "\n".join(lines)


def run_stage(argv: list[str]) -> int:
    """``heatlens run STAGE ...``: what the stage's script in its folder does."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"which stage? {nearest_hint('', KINDS['stage'])}")
    return _stage_main()(argv[0], argv[1:])


def _stage_main() -> Callable[[str, list[str]], int]:
    from heatlens.stages.main import main as stage_main

    return stage_main


def show_config(argv: list[str]) -> int:
    """``heatlens config``: the documentation page, or every key's value and origin."""
    from heatlens.config import KEYS, reference_markdown, settings_of
    from heatlens.config_help import resolved_lines

    if argv in (["-h"], ["--help"]):
        print(f"usage: heatlens {COMMANDS['config'].usage}\n\n{COMMANDS['config'].summary}")
        return 0
    if argv == ["--reference"]:
        print(reference_markdown(), end="")
        return 0
    settings = settings_of(argv)
    for line in settings.announcements:
        print(f"note: {line}", file=sys.stderr)
    print("\n".join(resolved_lines(settings, KEYS)))
    return 0


def show_list(argv: list[str]) -> int:
    """``heatlens list KIND``: names with one line each."""
    kinds = {f"{kind}s": table for kind, table in KINDS.items()}
    if argv == ["methods"]:
        print("\n".join(method_lines()))
        return 0
    if len(argv) == 1 and argv[0] in kinds:
        rows = {entry.name: entry.summary for entry in kinds[argv[0]].values()}
    elif argv == ["models"]:
        rows = MODELS
    else:
        raise ConfigError(f"heatlens list {' '.join(argv)}: {nearest_hint(' '.join(argv), [*kinds, 'models'])}")
    width = max(map(len, rows))
    for name, summary in rows.items():
        print(f"{name:<{width}}  {summary}")
    return 0


def method_lines() -> list[str]:
    """What ``heatlens list methods`` prints: name, needs and paper; what it is; its formula."""
    width = max(map(len, METHODS)) + 2
    needs = max(len(", ".join(entry.needs)) for entry in METHODS.values()) + 2
    lines = [f"{'CAM_VERSION':<{width}}{'NEEDS':<{needs}}PAPER"]
    for entry in METHODS.values():
        lines += ["", f"{entry.name:<{width}}{', '.join(entry.needs) or 'one forward':<{needs}}{entry.paper}"]
        lines += [f"{'':<{width}}{text}" for text in (entry.summary, entry.formula, entry.shapes)]
    lines += ["", f"{GRAD_CAM_PREFIX}NAME, e.g. {GRAD_CAM_PREFIX}FinerCAM: a method of the grad-cam package"]
    lines += [
        "",
        "A: the target layer's activations, g: dS/dA, S: the score of the text, c: channel, ij: cell, M: mask,",
    ]
    lines += ["T: texts, L: layers, n: tokens; (h,w): the layer's grid, (H,W): the frame."]
    return lines


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"heatlens {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise ConfigError(f"unknown command {argv[0]!r}; {nearest_hint(argv[0], list(COMMANDS))}")
    return COMMANDS[argv[0]].load()(argv[1:])


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``heatlens`` and ``python -m heatlens.cli``; returns the exit code."""
    return guarded(lambda: _dispatch(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
