"""What the engine does for one image, step by step: median milliseconds of a call, and their interquartile range.

    python benchmarks/engine_steps.py [--device cuda] [--model MODEL] [--rounds 9]

The model is BiomedCLIP's architecture with random weights unless --model names another; the image is a phantom film.
Timed are the engine's own functions: the reference pass without and with targets (a backward each), painting one
batch of masked images, the bare forward of as many plain images, a whole masked batch (painting, forward, scoring),
scoring its outputs, and casting the weights to half precision, once there and back. Rounds visit every step in turn,
forth and back; the first does not count. Texts are encoded beforehand.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from cam_speed import QUESTIONS, RANDOM_MODEL, films, half_weights, load, note, precisions_of, spread, take_rounds
from cam_speed_published import Way, timed
from torch import Tensor

from heatlens.cam.capture import reference_pass
from heatlens.cam.masked import MaskedForwards, Scores, Segment, channel_masks
from heatlens.cam.precision import autocast, resolve_batch_size
from heatlens.models.clip import ClipAdapter

BARE, MASKED = "bare forward", "masked batch: painting, forward, scoring"


class Step(Way):
    """One row: the seconds of a call of ``run``. ``cast``: the weights are half-precision copies, made before it."""

    unit = "call"

    def __init__(
        self, label: str, run: Callable[[], object], *, on: torch.device, precision: str = "fp32", rows: int = 0,
        targets: int = 0, cast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:  # fmt: skip
        super().__init__(label, precision, rows, 0)
        self.targets = targets
        self._run, self._on, self._cast = run, on, cast

    def sample(self, turn: int) -> None:
        del turn  # every call does the same
        with self._cast():
            seconds, _ = timed(self._run, self._on)
        self.seconds.append(seconds)


class Bench:
    """One image, its ``targets``, its reference pass, and the first ``rows`` channels as one batch."""

    def __init__(self, model: ClipAdapter, questions: int, rows: int, seed: int) -> None:
        self.model = model
        self.images = films(model, 1, seed)
        self.targets = [model.target(question) for question in QUESTIONS[:questions]]
        (self.reference,) = reference_pass(model, self.images, [self.targets], gradients=True)
        self.rows = rows
        self.batch = self.images.repeat(rows, 1, 1, 1)
        self.segment = Segment(0, torch.arange(rows, device=model.device))

    def steps(self, precisions: list[str]) -> Iterator[Step]:
        """Every row, in the order of the table."""
        row = partial(Step, on=self.model.device)
        for count in dict.fromkeys((0, 1, len(self.targets))):
            yield row("reference pass", partial(self.refer, count), rows=1, targets=count)
        yield row("painting masked images", self.paint, rows=self.rows)
        for precision in precisions:
            batched = partial(row, precision=precision, rows=self.rows)
            cast = partial(half_weights, self.model, precision)
            yield batched(BARE, partial(self.forward, precision), cast=cast)
            if precision != "fp32":
                yield batched(f"{BARE}, autocast casts the weights", partial(self.forward, precision))
            masked = MaskedForwards(self.model, batch_size=self.rows, precision=precision)
            run = partial(masked.channel_scores, [self.reference], [self.segment.keys])
            yield batched(MASKED, run, targets=len(self.targets), cast=cast)
            score = partial(self.score, self.forward(precision))
            yield batched("scoring", score, targets=len(self.targets))
        for precision in precisions[1:]:
            yield row("casting the weights, there and back", partial(self.cast, precision), precision=precision)

    def refer(self, count: int) -> None:
        reference_pass(self.model, self.images, [self.targets[:count]], gradients=True)

    @torch.inference_mode()
    def paint(self) -> None:
        """What the engine writes into a batch for one image's channels."""
        variants = torch.zeros_like(self.batch)
        masks = channel_masks(self.reference.activations[self.segment.keys], (variants.shape[2], variants.shape[3]))
        torch.mul(self.reference.image, masks, out=variants)

    @torch.inference_mode()
    def forward(self, precision: str) -> Tensor:
        with autocast(precision, self.model.device.type):
            return self.model.forward(self.batch)

    @torch.inference_mode()
    def score(self, outputs: Tensor) -> None:
        Scores([self.targets], [len(self.reference.activations)], self.model).take([self.segment], outputs)

    def cast(self, precision: str) -> None:
        with half_weights(self.model, precision):
            pass


def line(step: Step, model: ClipAdapter) -> str:
    """One line that describes itself."""
    median, iqr = spread([1000 * seconds for seconds in step.seconds])
    size = f" rows={step.batch} targets={step.targets}" if step.batch else ""
    return (
        f"step='{step.label}' model={model.name} device={model.device} dtype={step.precision}{size} "
        f"samples={len(step.seconds)} median_ms={median:.4g} IQR_ms={iqr:.2g}"
    )


def ratios(steps: list[Step]) -> Iterator[str]:
    """A masked batch against the bare forward of as many rows: the median of the rounds' own ratios."""
    found = {(step.label, step.precision): step.seconds for step in steps}
    for precision in dict.fromkeys(step.precision for step in steps):
        pairs = zip(found[MASKED, precision], found[BARE, precision], strict=True)
        median, iqr = spread([masked / bare for masked, bare in pairs])
        yield f"ratio masked batch / bare forward {precision}: {median:.4g} (IQR {iqr:.2g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=RANDOM_MODEL, help="as MODEL; default BiomedCLIP's shape, random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--questions", type=int, default=10, help=f"at most {len(QUESTIONS)}")
    parser.add_argument("--batch-size", type=int, help="rows of a masked batch; default as BATCH_SIZE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started, others = time.perf_counter(), os.getloadavg()[0]  # figures of a machine that was busy mean little
    model = load(args.model, args.device, args.seed)
    note(f"model loaded: {time.perf_counter() - started:.0f} s")
    bench = Bench(model, args.questions, resolve_batch_size(args.batch_size, args.device), args.seed)
    steps = list(bench.steps(precisions_of(args.device)))
    take_rounds(steps, args.rounds)
    for text in (*(line(step, model) for step in steps), *ratios(steps)):
        print(text)
    print(
        f"engine_steps torch={torch.__version__} threads={torch.get_num_threads()} layer={model.target_layer_name} "
        f"rounds={args.rounds} seed={args.seed} load_before={others:.1f} seconds={time.perf_counter() - started:.0f}"
    )


if __name__ == "__main__":
    main()
