"""``heatlens export RESULTS_DIR``: the boxes of a finished bbox run as COCO or YOLO files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from heatlens.batch.run_record import umask_of
from heatlens.batch.runner import umask
from heatlens.errors import EXIT_OK, ConfigError
from heatlens.export.rows import LABELS, Run, open_run

USAGE = "export RESULTS_DIR [--format coco|yolo] [--labels region|question|prompt|type] [--scores] [--output DIR]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"export: {message}; usage: heatlens {USAGE}")


def main(argv: list[str]) -> int:
    """``heatlens export``; returns the exit code."""
    args = read_options(argv)
    run = open_run(args.results)
    target = args.output or args.results / "export" / args.format
    with umask(umask_of(run.config)):
        lines = (_coco if args.format == "coco" else _yolo)(run, target, args)
    print("\n".join([str(target), *(f"  {line}" for line in lines)]))
    return EXIT_OK


def read_options(argv: list[str]) -> argparse.Namespace:
    """The command line. ConfigError for a wrong one."""
    parser = _Parser(prog="heatlens export", description="The boxes of a finished bbox run as COCO or YOLO files.")
    parser.add_argument("results", type=Path, help="the results folder of a finished run of stage bbox")
    parser.add_argument("--format", choices=("coco", "yolo"), default="coco", help="default: %(default)s")
    parser.add_argument(
        "--labels", choices=LABELS, default="region", help="what a box's category is (default: %(default)s)"
    )
    parser.add_argument("--scores", action="store_true", help="yolo: each box's score as a sixth column")
    parser.add_argument("--output", type=Path, help="the folder to write (default: RESULTS_DIR/export/FORMAT)")
    args = parser.parse_args(argv)
    if args.scores and args.format != "yolo":
        raise ConfigError("export: --scores belongs to --format yolo; COCO results always have scores")
    return args


def _coco(run: Run, target: Path, args: argparse.Namespace) -> list[str]:
    from heatlens.export.catalogue import read_catalogue
    from heatlens.export.coco import ANNOTATED, FOUND, RESULTS, write_coco
    from heatlens.export.folder import new_export

    with new_export(target, (FOUND, RESULTS, ANNOTATED), _facts(args)) as folder:
        catalogue = read_catalogue(run, args.labels)
        counts = write_coco(run, folder, catalogue, args.labels)
    lines = [_summary(catalogue), f"{FOUND}, {RESULTS}: {catalogue.found} boxes that were found"]
    if counts["annotated"]:
        lines.append(f"{ANNOTATED}: {counts['annotated']} boxes of the data set")
    else:
        lines.append(f"no {ANNOTATED}: the data set has no boxes that can be placed on the films")
    if counts["unusable"]:
        lines.append(
            f"{counts['unusable']} of its boxes are left out: outside the film, or in a frame that is not known"
        )
    return lines


def _yolo(run: Run, target: Path, args: argparse.Namespace) -> list[str]:
    from heatlens.export.catalogue import read_catalogue
    from heatlens.export.folder import new_export
    from heatlens.export.yolo import CLASSES, DATA, LABELS_FOLDER, TRAIN, write_yolo

    # A trainer leaves labels.cache; images/ is what its user has linked in.
    ours = (LABELS_FOLDER, CLASSES, DATA, TRAIN, "labels.cache")
    with new_export(target, ours, _facts(args), kept=("images",)) as folder:
        catalogue = read_catalogue(run, args.labels)
        counts = write_yolo(run, folder, catalogue, args.labels, scores=args.scores)
    lines = [_summary(catalogue), f"{LABELS_FOLDER}/: {counts['boxes']} boxes; names in {CLASSES} and {DATA}"]
    if counts["clashes"]:
        lines.append(
            f"{counts['clashes']} films share their name but for the suffix: their label files keep it "
            "(a.dcm.txt), which trainers do not look for"
        )
    return lines


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    return {"format": args.format, "labels": args.labels, "scores": args.scores}


def _summary(catalogue: Any) -> str:
    return f"{catalogue.heat_maps} heat maps of {len(catalogue.images)} films, {len(catalogue.labels)} categories"
