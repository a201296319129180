"""Held-out findings to measure pointing on: films of seeds that neither training nor tuning has seen.

As objects (`cases`), and as a data set in a folder, one question per finding (DATASET=phantom_findings):

    folder/
        findings.jsonl    one row per finding: image, question (its prompt), answer and type (its name), region, box
        files/, masks/, truth.jsonl, complete.json    as heatlens.phantom.dataset writes them

    python -m heatlens.phantom.heldout FOLDER --seeds training --findings 200

makes a folder of other seeds: what is tuned, is tuned on training or validation seeds, never on held-out ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from heatlens.errors import EXIT_OK, ConfigError, DataSetError
from heatlens.guard import guarded
from heatlens.phantom.dataset import (
    FORMAT,
    SHARED,
    TRUTH,
    read_marker,
    save_film,
    save_lines,
    write_marker,
    write_whole,
)
from heatlens.phantom.film import SEEDS, Finding, PhantomFilm, make_film
from heatlens.phantom.language import prompt_for

Case = tuple[PhantomFilm, Finding, str]

FINDINGS = "findings.jsonl"
COUNT = 200
"""findings of the data set that is written on first use"""
LONG_SIDE = 1200
"""pixels along a film's longer side"""


def cases(n_findings: int, first_seed: int = SEEDS["held out"].start, *, long_side: int = LONG_SIDE) -> Iterator[Case]:
    """Yield (film, finding, prompt) for the first `n_findings` findings of the films from `first_seed` on.

    Films are those of the demo's size; all findings of a film come one after another and share the film object.
    """
    seed, left = first_seed, n_findings
    while left > 0:
        film = make_film(seed, long_side=long_side)
        for finding in film.findings[:left]:
            yield film, finding, prompt_for(finding)
        left -= len(film.findings)
        seed += 1


def ensure_findings(folder: Path) -> Path:
    """The findings in `folder`, at once when it is complete, whatever its seeds; else COUNT held-out ones are
    written. Returns the folder."""
    folder = Path(folder)
    marker = read_marker(folder) or {}
    if (marker.get("format"), (folder / FINDINGS).is_file()) != (FORMAT, True):
        # A folder of an older format is made again as it was.
        number, first = marker.get("findings"), marker.get("first_seed")
        known = isinstance(number, int) and isinstance(first, int)
        write_findings(folder, *((number, first) if known else (COUNT, SEEDS["held out"].start)))
    return folder


def write_findings(folder: Path, n_findings: int, first_seed: int) -> None:
    """Write the data set beside its place and move it there when it is complete."""
    if "films" in (read_marker(folder) or {}):
        raise DataSetError(f"{folder} holds the films of DATASET=phantom; name an empty or a new folder")
    write_whole(folder, SHARED | {FINDINGS}, lambda work: _write(work, n_findings, first_seed))


def _write(folder: Path, n_findings: int, first_seed: int) -> None:
    rows: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for _, group in groupby(cases(n_findings, first_seed), key=lambda case: case[0].seed):
        asked = list(group)
        truth.append(save_film(asked[0][0], folder))
        rows += [
            _row(f"f{len(rows) + number}", truth[-1]["image_path"], finding, prompt)
            for number, (_, finding, prompt) in enumerate(asked)
        ]
    save_lines(folder / FINDINGS, rows)
    save_lines(folder / TRUTH, truth)
    write_marker(folder, {"format": FORMAT, "findings": n_findings, "first_seed": first_seed})


def _row(question_id: str, image: str, finding: Finding, prompt: str) -> dict[str, Any]:
    """A question as DATASET=table has it. The finding's name is both answer and type: the region is a place."""
    x1, y1, x2, y2 = finding.box
    return {
        "image": image, "question_id": question_id, "question": prompt, "answer": finding.name, "type": finding.name,
        "region": finding.region, "x1": x1, "y1": y1, "x2": x2, "y2": y2,
    }  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")


def main(argv: list[str] | None = None) -> int:
    """``python -m heatlens.phantom.heldout FOLDER [--seeds NAME] [--findings N] [--first SEED]``."""
    parser = _Parser(prog="python -m heatlens.phantom.heldout", description="A folder for DATASET=phantom_findings.")
    parser.add_argument("folder", type=Path, help="a new or an empty folder, or one that this command made before")
    parser.add_argument("--seeds", choices=list(SEEDS), default="held out", help="default: %(default)s")
    parser.add_argument("--findings", type=int, default=COUNT, help="how many (default %(default)s)")
    parser.add_argument("--first", type=int, help="the first film's seed (default: the first of --seeds)")
    args = parser.parse_args(argv)
    seeds = SEEDS[args.seeds]
    first = seeds.start if args.first is None else args.first
    if args.findings < 1 or first not in seeds or first + 4 * args.findings not in seeds:
        raise ConfigError(
            f"--findings {args.findings} --first {first}: {args.seeds} seeds are {seeds.start} to {seeds.stop - 1}, "
            "and every finding may need up to four of them"
        )
    write_findings(args.folder, args.findings, first)
    print(f"{args.folder}: {args.findings} findings of {args.seeds} seeds, from {first} on")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(guarded(main))
