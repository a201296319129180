"""The pointing table: which method, at which layer, points at held-out phantom findings?

    python benchmarks/pointing_demo.py --findings 300
    python benchmarks/pointing_demo.py --methods all --masks 500

Films come from seeds that neither training nor tuning has seen. A film goes through the very path of a run
(letterbox, one engine pass for all its findings, map back to film pixels); the maximum of the map, before the
body mask, is compared with the finding's exact mask. Prints one Markdown table and one line that describes it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from heatlens.cam.engine import CamEngine
from heatlens.cam.precision import resolve_precision
from heatlens.evaluate.pointing import centre_baseline, point, random_baseline
from heatlens.images.geometry import FrameGeometry
from heatlens.models.clip import ClipAdapter
from heatlens.models.loading import load_clip
from heatlens.phantom.heldout import cases
from heatlens.registry import METHODS, find

TOLERANCE = 8.0
BLOCKS = "visual.trunk.blocks"
# (method, layer, does the layer need the override?)
ROWS = [
    ("gScoreCAM", f"{BLOCKS}[-1].norm1", False),
    ("gScoreCAM", f"{BLOCKS}[-2]", False),
    ("gScoreCAM", f"{BLOCKS}[-1].norm2", True),
    ("GradCAM", f"{BLOCKS}[-1].norm1", False),
    ("GradCAM", f"{BLOCKS}[-2]", False),
]


@dataclass
class Row:
    """Hits by finding: name -> list of (strict, tolerant) as numbers in 0..1."""

    name: str
    hits: dict[str, list[tuple[float, float]]]

    def rate(self, finding: str | None = None) -> tuple[float, float, int]:
        pairs = [pair for name, pairs in self.hits.items() for pair in pairs if finding in (None, name)]
        strict, tolerant = np.mean(pairs, axis=0)
        return float(strict), float(tolerant), len(pairs)


def films(args: argparse.Namespace) -> list[tuple[object, list[tuple[object, str]]]]:
    """[(film, [(finding, prompt), ...]), ...]: the cases, grouped by film."""
    found = cases(args.findings, args.first_seed)
    return [
        (film, [(finding, prompt) for _, finding, prompt in group])
        for film, group in ((next(iter(items))[0], items) for items in _grouped(found))
    ]


def _grouped(found: Iterator[tuple]) -> Iterator[list[tuple]]:
    for _, group in groupby(found, key=lambda case: id(case[0])):
        yield list(group)


def measure(model: ClipAdapter, method: str, layer: str, override: bool, work: list, args: argparse.Namespace) -> Row:
    """One row of the table."""
    placed = load_clip(args.model, target_layer=layer) if layer != model.target_layer_name else model
    engine = CamEngine(
        placed,
        method=method,
        top_k=args.top_k,
        masks=args.masks,
        precision=args.precision,
        allow_zero_gradient=override,
    )
    hits: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for film, asked in work:
        height, width = film.pixels.shape
        geometry = FrameGeometry.fit("letterbox", (width, height), placed.frame)
        frame = placed.prepare([geometry.place(film.pixels)])
        (maps,) = engine.explain(frame, [[placed.target(prompt) for _, prompt in asked]])
        for (finding, _), one in zip(asked, maps, strict=True):
            values, _ = geometry.map_to_source(one.numpy(), engine.grid, (width, height))
            outcome = point(values, finding.mask)
            hits[finding.name].append((outcome.hit(), outcome.hit(TOLERANCE)))
    return Row(f"{method} at `{layer.removeprefix('visual.trunk.')}`", dict(hits))


def baselines(work: list) -> list[Row]:
    """The film's centre, and a random pixel (its exact chance)."""
    centre: dict[str, list[tuple[float, float]]] = defaultdict(list)
    chance: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _, asked in work:
        for finding, _ in asked:
            middle = centre_baseline(finding.mask)
            centre[finding.name].append((middle.hit(), middle.hit(TOLERANCE)))
            chance[finding.name].append((random_baseline(finding.mask), random_baseline(finding.mask, TOLERANCE)))
    return [Row("film centre", dict(centre)), Row("random pixel", dict(chance))]


def table(rows: list[Row]) -> str:
    """Markdown: one line per row, one column per finding; hits within the tolerance, strict ones in brackets."""
    names = sorted({name for row in rows for name in row.hits})
    counts = {name: rows[0].rate(name)[2] for name in names}
    head = ["", f"all ({rows[0].rate()[2]})", *(f"{name} ({counts[name]})" for name in names)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row.rate(), *(row.rate(name) for name in names)]
        lines.append(f"| {row.name} | " + " | ".join(f"{100 * t:.1f} ({100 * s:.1f})" for s, t, _ in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--findings", type=int, default=300)
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="held-out seeds start at 1000000")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--top-k", type=int, default=160, help="as in configs/demo/exp_00_phantom.conf")
    parser.add_argument("--precision", default="auto", help="of the masked forwards, as PRECISION")
    parser.add_argument("--rows", type=int, default=len(ROWS), help="only the first N rows of the table")
    parser.add_argument("--methods", help="these methods (or all) at the default layer, instead of the usual rows")
    parser.add_argument("--masks", type=int, default=4000, help="of RISE")
    args = parser.parse_args()
    started = time.perf_counter()
    model = load_clip(args.model)
    work = films(args)
    rows = []
    names = list(METHODS) if args.methods == "all" else (args.methods or "").split(",")
    wanted = [(find("method", name).name, model.default_layer_name, False) for name in names if name]
    for row in wanted or ROWS[: args.rows]:
        rows.append(measure(model, *row, work, args))
        print(f"{rows[-1].name}: {100 * rows[-1].rate()[1]:.1f}%", file=sys.stderr, flush=True)
    rows += baselines(work)
    print(table(rows))
    print(
        f"\npointing_demo model={args.model} device={model.device} "
        f"dtype={resolve_precision(args.precision, str(model.device))} films={len(work)} "
        f"findings={rows[0].rate()[2]} first_seed={args.first_seed} top_k={args.top_k} masks={args.masks} "
        f"tolerance={TOLERANCE:g}px_of_224 torch={torch.__version__} seconds={time.perf_counter() - started:.0f} "
        f"first_row_hits={100 * rows[0].rate()[1]:.1f}%"
    )


if __name__ == "__main__":
    main()
