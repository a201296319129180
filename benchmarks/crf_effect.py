"""What dense CRF does to maps of phantom findings: two finished runs of the demo experiment with raw maps, one without
and one with it, against the findings' exact masks.

    for skip in true false; do
        python -m heatlens.cli run attn_map --config configs/demo/exp_00_phantom.conf --stop-after "" \\
            --skip-crf $skip --results-dir /tmp/skip-$skip
    done
    python benchmarks/crf_effect.py /tmp/skip-true /tmp/skip-false

Counted are the heat maps whose prompt names a finding that the film has. IoU: of the pixels above THRESHOLD of the
map's maximum. Hits: the maximum lies on the mask, strictly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from heatlens.evaluate.pointing import point

THRESHOLD = 0.65  # BOX_THRESHOLD's default
DEMO = Path(__file__).resolve().parents[1] / ".demo" / "phantom"


def findings(phantom: Path) -> dict[str, dict[str, Path]]:
    """Film -> finding's name -> its mask's file."""
    rows = map(json.loads, (phantom / "truth.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["image_path"]: {one["name"]: phantom / one["mask"] for one in row["findings"]} for row in rows}


def measured(without: Path, refined: Path, phantom: Path) -> Iterator[tuple[str, float, float, bool, bool]]:
    """(finding, IoU without, IoU with, hit without, hit with) of every heat map that has a target."""
    masks = findings(phantom)
    table = pd.read_parquet(without / "details.parquet", columns=["source_image", "image_path", "prompt"])
    for source, output, prompt in table.itertuples(index=False):
        film = next((mine for path, mine in masks.items() if source.endswith(path)), {})
        for name in (name for name in film if name in prompt.lower()):
            pairs = [numbers(folder / "raw" / output, film[name]) for folder in (without, refined)]
            (iou, hit), (refined_iou, refined_hit) = pairs
            yield name, iou, refined_iou, hit, refined_hit


def numbers(raw: Path, mask_file: Path) -> tuple[float, bool]:
    """IoU and strict hit of one map."""
    values = cv2.imread(str(raw), cv2.IMREAD_UNCHANGED).astype(np.float32) / 65535
    mask = cv2.imread(str(mask_file), cv2.IMREAD_GRAYSCALE) > 0
    mask = cv2.resize(mask.astype(np.uint8), values.shape[::-1], interpolation=cv2.INTER_AREA) > 0
    hot = values > THRESHOLD
    return float((hot & mask).sum() / (hot | mask).sum()), point(values, mask).hit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("without", type=Path)
    parser.add_argument("refined", type=Path)
    parser.add_argument("--phantom", type=Path, default=DEMO)
    chosen = parser.parse_args()
    columns = ["finding", "IoU", "IoU with CRF", "hits", "hits with CRF"]
    table = pd.DataFrame(measured(chosen.without, chosen.refined, chosen.phantom), columns=columns)
    groups = [(name, mine) for name, mine in table.groupby("finding")] + [("all", table)]
    print("| finding (heat maps) | IoU without | with | on the finding without | with |\n|---|---|---|---|---|")
    for name, mine in groups:
        means = mine[columns[1:]].mean()
        print(
            f"| {name} ({len(mine)}) | {means.iloc[0]:.2f} | {means.iloc[1]:.2f} "
            f"| {means.iloc[2]:.0%} | {means.iloc[3]:.0%} |"
        )


if __name__ == "__main__":
    main()
