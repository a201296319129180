"""What a method costs: seconds per image with ten questions, for every method of the registry.

    python benchmarks/method_costs.py [--model MODEL] [--device cuda] [--repeats 3]

The model is BiomedCLIP's architecture with random weights unless --model names another. Medians over the repeats;
texts are encoded beforehand. RISE runs with --masks masks and is scaled to its 4,000. Prints one Markdown table and one
line that describes it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from cam_speed import QUESTIONS, films, load
from cam_speed_published import timed

from heatlens.cam.engine import CamEngine
from heatlens.errors import HeatlensError
from heatlens.registry import METHODS

RISE_MASKS = 4000


def cost(model, image, targets, method: str, args: argparse.Namespace) -> float:
    """Median seconds of one explain() of all questions."""
    engine = CamEngine(model, method=method, top_k=args.k, masks=args.masks, precision=args.precision)
    repeats = 1 if "masked forwards" in METHODS[method].needs else args.repeats
    seconds = [timed(lambda: engine.explain(image, [targets]), model.device)[0] for _ in range(repeats)]
    return statistics.median(seconds) * (RISE_MASKS / args.masks if method == "RISE" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="biomedclip-random")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", help="of the masked forwards, as PRECISION")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--k", type=int, default=300)
    parser.add_argument("--masks", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = load(args.model, args.device, seed=0)
    image = films(model, 1, seed=0)
    targets = [model.target(question) for question in QUESTIONS[: args.questions]]
    started = time.perf_counter()
    CamEngine(model, method="GradCAM").explain(image, [targets])  # the first call of a process is slower
    rows = []
    for method in METHODS:
        try:
            rows.append((method, cost(model, image, targets, method, args)))
        except HeatlensError as error:
            print(f"{method}: {error}", file=sys.stderr)
    print(f"| method | seconds per image with {args.questions} questions | heat maps per second |\n|---|---|---|")
    for method, seconds in sorted(rows, key=lambda row: row[1]):
        print(f"| {method} | {seconds:.2f} | {args.questions / seconds:.2f} |")
    print(
        f"\nmethod_costs model={model.name} device={model.device} dtype_of_masked_forwards="
        f"{CamEngine(model, method='EigenCAM', precision=args.precision).precision} questions={args.questions} "
        f"k={args.k} masks={RISE_MASKS} (timed with {args.masks}) repeats={args.repeats} "
        f"threads={torch.get_num_threads()} torch={torch.__version__} seconds={time.perf_counter() - started:.0f}"
    )


if __name__ == "__main__":
    main()
