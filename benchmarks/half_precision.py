"""Do masked forwards in half precision keep the maps? Held-out phantom findings, each precision against fp32.

    python benchmarks/half_precision.py [--findings 30] [--methods gScoreCAM ScoreCAM] [--precisions bf16 fp16]

Films and prompts are those of pointing_demo.py, the model is the demo's. Printed per method and precision: the lowest
correlation of a map with its fp32 twin, and in how many cases the hottest patch is the same. A CPU only emulates
fp16: it takes a multiple of the time there. Prints one Markdown table and one line that describes it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from cam_speed import note
from pointing_demo import films

from heatlens.cam.engine import CamEngine
from heatlens.cam.protocols import PatchGrid
from heatlens.images.geometry import FrameGeometry
from heatlens.models.clip import ClipAdapter
from heatlens.models.loading import load_clip
from heatlens.registry import find

Work = list[tuple[torch.Tensor, list]]


def placed(model: ClipAdapter, args: argparse.Namespace) -> Work:
    """[(image (1, 3, H, W), targets), ...], one entry per film."""
    work = []
    for film, asked in films(args):
        height, width = film.pixels.shape
        frame = FrameGeometry.fit("letterbox", (width, height), model.frame).place(film.pixels)
        work.append((model.prepare([frame]), [model.target(prompt) for _, prompt in asked]))
    return work


def all_maps(model: ClipAdapter, method: str, precision: str, work: Work, args: argparse.Namespace) -> np.ndarray:
    """The maps (N, h, w) of all findings."""
    started = time.perf_counter()
    engine = CamEngine(model, method=method, top_k=args.top_k, masks=args.masks, precision=precision)
    found = torch.cat([engine.explain(image, [targets])[0] for image, targets in work]).numpy()
    note(f"{method} {precision}: {time.perf_counter() - started:.0f} s")
    return found


def hottest_patch(values: np.ndarray, grid: PatchGrid) -> tuple[int, int]:
    """Row and column of the patch with the maximum of a map (h, w) that is as fine as the grid, or finer (RISE)."""
    row, col = np.unravel_index(values.argmax(), values.shape)
    return int(row) * grid.rows // values.shape[0], int(col) * grid.cols // values.shape[1]


def compared(exact: np.ndarray, rough: np.ndarray, grid: PatchGrid) -> str:
    """The last three cells of a row. The correlation is given as its distance from 1, too: it is near."""
    pairs = list(zip(exact, rough, strict=True))
    lowest = min(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1] for one, other in pairs)
    same = sum(hottest_patch(one, grid) == hottest_patch(other, grid) for one, other in pairs)
    return f"{lowest:.7f} | {1 - lowest:.1e} | {same} of {len(pairs)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--findings", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="held-out seeds start at 1000000")
    parser.add_argument("--methods", nargs="+", default=["gScoreCAM", "ScoreCAM"])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp16"], choices=["bf16", "fp16"])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--top-k", type=int, default=160, help="as in configs/demo/exp_00_phantom.conf")
    parser.add_argument("--masks", type=int, default=4000, help="of RISE")
    args = parser.parse_args()
    started = time.perf_counter()
    model = load_clip(args.model)
    work = placed(model, args)
    rows = []
    for method in (find("method", name).name for name in args.methods):
        exact = all_maps(model, method, "fp32", work, args)
        for precision in args.precisions:
            cells = compared(exact, all_maps(model, method, precision, work, args), model.grid)
            rows.append(f"| {method} | {precision} | {cells} |")
            note(rows[-1])  # the next one may take minutes
    print(
        "| method | precision | lowest correlation with fp32 | 1 minus it | same hottest patch |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))
    print(
        f"\nhalf_precision model={args.model} device={model.device} films={len(work)} findings={args.findings} "
        f"first_seed={args.first_seed} top_k={args.top_k} masks={args.masks} threads={torch.get_num_threads()} "
        f"torch={torch.__version__} seconds={time.perf_counter() - started:.0f}"
    )


if __name__ == "__main__":
    main()
