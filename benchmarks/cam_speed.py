"""Maps per second: one question at a time as published, two libraries' ScoreCAM, this engine; and the bare model.

    python benchmarks/cam_speed.py [--quick | --full] [--device cuda] [--model MODEL]

One process, one model, the same images and questions for all. On a CPU one map the published way takes over a
minute, so every way times a stated sample of its own work and scales it up to whole maps:

* published: text, recorded forward and full backward, all masked images, weighted sum of one question in full,
  and CHUNKS chunks of its masked forwards (three times as many in half precision), scaled to k channels;
* grad-cam and torchcam: a call that sees CHUNKS chunks of channels, scaled to all channels of the layer;
* ours: a whole explain() of all questions at k=1, and CHUNKS more batches for each of the ceil(|U|/batch) batches
  of k channels; text once per distinct prompt, spread over the images. With --full, whole explain() calls at k;
* bare: forwards of plain images under inference_mode and the same autocast, at the best of several batch sizes, the
  weights cast by autocast or beforehand, whichever is faster in a scan; it is timed again with the rest.

|U| is the union of the k best channels of all questions of an image. Rounds visit every way once, in turn forth and
back; the first does not count. Printed are medians over rounds; a ratio is the median of the rounds' own ratios. Peak
memory is the highest resident size during explain() less that before it (CPU, Linux), or what CUDA's allocator says.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from cam_speed_published import LibraryScoreCAM, Published, PublishedLoop, Way, Work, encode, peak_growth, timed
from torch import Tensor

from heatlens.cam.engine import CamEngine
from heatlens.cam.halves import HalfWeights
from heatlens.cam.masked import MaskedForwards
from heatlens.cam.precision import autocast, resolve_batch_size, resolve_precision
from heatlens.images.geometry import FrameGeometry
from heatlens.models.clip import ClipAdapter
from heatlens.models.loading import load_clip
from heatlens.phantom.film import make_film

ROOT = Path(__file__).resolve().parent.parent
RANDOM_MODEL = "biomedclip-random"
FIRST_FILM = 500_000
BARE_BATCHES = {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (32, 64, 128, 256)}
CHUNKS = {"cpu": 1, "cuda": 8}  # per sample: a chunk takes a second on two cores, 40 ms on a GPU
PUBLISHED, FRUGAL, OURS, BARE = "published", "published, text once", "ours", "bare"
# Several questions about one film, with overlapping content, as a visual question answering set has them.
QUESTIONS = (
    "Is there pleural effusion in the left lung?",
    "Is there pleural effusion in the right lung?",
    "Where is the pleural effusion located?",
    "Is the left costophrenic angle blunted?",
    "What abnormality is seen in the left lower lung zone?",
    "What abnormality is seen in the right lower lung zone?",
    "Is there consolidation in the left lower lung zone?",
    "Is there evidence of pneumonia in the right lung?",
    "Is the heart enlarged?",
    "What is the size of the cardiac silhouette?",
    "Is there a pneumothorax on the left?",
    "Is there a pneumothorax on the right?",
    "Where does the tip of the endotracheal tube lie?",
    "Is the nasogastric tube in the stomach?",
    "Which side is the pacemaker on?",
    "Is there a nodule in the right upper lung zone?",
    "Is there a nodule in the left upper lung zone?",
    "Is there pulmonary oedema in both lungs?",
    "Is there atelectasis at the left lung base?",
    "Which lung is more opaque?",
)


def films(model: ClipAdapter, count: int, seed: int) -> Tensor:
    """Phantom films in the model's frame, normalised: (count, 3, H, W)."""
    frames = []
    for number in range(count):
        pixels = make_film(FIRST_FILM + seed + number).pixels
        frames.append(FrameGeometry.fit("letterbox", (pixels.shape[1], pixels.shape[0]), model.frame).place(pixels))
    return model.prepare(frames)


class Ours(Way):
    """This engine: all questions of ``together`` images in one explain(). ``chunks`` 0 times the whole of it.

    ``rates`` keeps masked forwards per second of explain(), all of its work included (texts are encoded before it);
    ``inner`` those of the masked forwards alone.
    """

    def __init__(self, work: Work, batch: int | None, precision: str, chunks: int, together: int = 1) -> None:
        self._engine = CamEngine(work.model, top_k=1 if chunks else work.k, batch_size=batch, precision=precision)
        super().__init__(OURS, precision, self._engine.batch_size, work.k)
        self._masked = MaskedForwards(work.model, batch_size=self.batch, precision=precision)
        self._work, self._chunks, self._together = work, chunks, together
        self.rates: list[float] = []
        self.inner: list[float] = []

    def sample(self, turn: int) -> None:
        work = self._work
        text, _ = timed(lambda: encode(work.model, work.target(turn).prompt), work.model.device)
        explain, forwards = self._sampled(turn) if self._chunks else self._whole(turn)
        self.rates.append(forwards / explain)
        self.seconds.append(explain / len(work.questions) + text / len(work.images))

    def forget(self) -> None:
        for sampled in (self.seconds, self.rates, self.inner):
            sampled.clear()

    def _whole(self, turn: int) -> tuple[float, float]:
        """Seconds and masked forwards of an image."""
        before, count = self._engine.masked_forwards, self._together
        images = torch.stack([self._work.image(turn + place) for place in range(count)])
        explain = partial(self._engine.explain, images, [self._work.targets] * count)
        seconds, _ = timed(explain, self._work.model.device)
        return seconds / count, (self._engine.masked_forwards - before) / count

    def _sampled(self, turn: int) -> tuple[float, float]:
        """The same of an image with the mean |U|: a whole explain() at k=1, and batches for the other channels."""
        work = self._work
        reference = work.references[turn % len(work.images)]
        channels = torch.arange(min(self._chunks * self.batch, work.channels), device=work.model.device)
        seconds, forwards = self._whole(turn)
        with half_weights(work.model, self.precision):  # cast once per explain(), which counted it already
            part, _ = timed(lambda: self._masked.channel_scores([reference], [channels]), work.model.device)
        per_batch = part / batches(len(channels), self.batch)
        self.inner.append(self.batch / per_batch)
        had = batches(round(forwards * self._together), self.batch) / self._together
        return seconds + (self._wanted() - had) * per_batch, work.mean_union

    def _wanted(self) -> float:
        """Masked batches of an image, on average, with the padding of the last one."""
        unions, count = self._work.unions, self._together
        groups = [sum(unions[(first + place) % len(unions)] for place in range(count)) for first in range(len(unions))]
        return statistics.fmean(batches(rows, self.batch) for rows in groups) / count


class Bare(Way):
    """The model alone: forwards of plain images. ``cast``: half-precision weights are made beforehand, once."""

    unit = "forward"

    def __init__(self, work: Work, batch: int, precision: str, rows: int, *, cast: bool) -> None:
        super().__init__(f"{BARE}, weights cast beforehand" if cast else BARE, precision, batch, 0)
        self._model = work.model
        self._images = work.images[torch.arange(batch, device=work.images.device) % len(work.images)]
        self._repeats = max(1, rows // batch)
        self._weights = half_weights(work.model, precision) if cast else contextlib.nullcontext()

    def sample(self, turn: int) -> None:
        del turn  # plain images cost the same
        with self._weights:
            seconds, _ = timed(self._forwards, self._model.device)
        self.seconds.append(seconds / (self._repeats * self.batch))

    @torch.inference_mode()
    def _forwards(self) -> None:
        for _ in range(self._repeats):
            with autocast(self.precision, self._images.device.type):
                self._model.forward(self._images)


def half_weights(model: ClipAdapter, precision: str) -> contextlib.AbstractContextManager[object]:
    """Inside it the model's matrices are half-precision copies, made once."""
    return HalfWeights(model, precision)


def batches(rows: int, size: int) -> int:
    return -(-rows // size)


def best_bare(work: Work, precision: str, sizes: Sequence[int], rows: int) -> Bare:
    """The fastest (batch size, weights) of a quick look: the best of three calls, after one that does not count."""
    casts = (False,) if precision == "fp32" else (False, True)
    tried = [Bare(work, size, precision, rows, cast=cast) for size in sizes for cast in casts]
    take_rounds(tried, 3)
    for way in tried:
        note(f"{way.label} {precision} batch={way.batch}: {1 / min(way.seconds):.2f} forwards/s")
    return min(tried, key=lambda way: min(way.seconds))


def chunks_of(args: argparse.Namespace, kind: str, precision: str = "fp32") -> int:
    """Masked batches per sample; on a CPU more in half precision, for about the same seconds."""
    faster = 3 if kind == "cpu" and precision != "fp32" else 1
    return args.chunks or CHUNKS.get(kind, 1) * faster


def all_ways(work: Work, precisions: Sequence[str], args: argparse.Namespace) -> list[Way]:
    """Every row; the best bare forward of each precision comes last."""
    kind = work.model.device.type
    batch = resolve_batch_size(args.batch_size, str(work.model.device))
    chunks = partial(chunks_of, args, kind)

    def published(precision: str, *, frugal: bool) -> Way:
        loop = PublishedLoop(work.model, k=work.k, batch=batch, precision=precision, frugal=frugal)
        return Published(FRUGAL if frugal else PUBLISHED, loop, work, chunks(precision))

    ways = [published("fp32", frugal=False), *(published(precision, frugal=True) for precision in precisions)]
    for library in ("grad-cam", "torchcam"):
        try:
            ways.append(LibraryScoreCAM(library, work, batch, chunks()))
        except ImportError as error:
            print(f"no row for {library}: {error}")
    for precision in precisions:
        sampled = 0 if args.full else chunks(precision)
        ways.append(Ours(work, args.batch_size, precision, sampled, args.together))
    for precision in precisions:
        sizes = args.bare_batches or BARE_BATCHES.get(kind, (8,))
        ways.append(best_bare(work, precision, sizes, chunks(precision) * batch))
    return ways


def take_rounds(ways: Sequence[Way], rounds: int) -> None:
    """One round that does not count, then ``rounds`` of them, in turn forth and back."""
    for turn in range(rounds + 1):
        start = time.perf_counter()
        for way in ways if turn % 2 else reversed(ways):
            if turn == 1:
                way.forget()
            way.sample(turn)
        note(f"round {turn} of {rounds}: {time.perf_counter() - start:.0f} s")


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    if len(values) < 2:
        return values[0], 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low


def row(way: Way, work: Work, args: argparse.Namespace) -> str:
    """One line that describes itself."""
    median, iqr = spread(way.seconds)
    channels = f" k={way.k} |U|={work.mean_union:.1f}" if way.unit == "map" else ""
    return (
        f"way='{way.label}' model={work.model.name} device={work.model.device} dtype={way.precision} "
        f"images={len(work.images)} questions_per_image={len(work.questions)}{channels} batch={way.batch} "
        f"seed={args.seed} samples={len(way.seconds)} median_s_per_{way.unit}={median:.4g} IQR_s={iqr:.2g} "
        f"{way.unit}s_per_s={1 / median:.4g}"
    )


def ratios(ways: Sequence[Way], work: Work) -> list[str]:
    """What the rows say against the targets."""
    found = {(way.label, way.precision): way.seconds for way in ways}
    ours = {way.precision: way for way in ways if isinstance(way, Ours)}
    sharing = 0.95 * len(work.questions) * work.k / work.mean_union
    # What to call the other, its label, its precision, ours, the target.
    wanted: list[tuple[str, str, str, str, float | None]] = []
    wanted += [(f"'{FRUGAL}'", FRUGAL, precision, precision, sharing) for precision in ours]
    for half in list(ours)[1:]:
        wanted += [(OURS, OURS, "fp32", half, 2.5), (f"'{FRUGAL}'", FRUGAL, "fp32", half, 2.5 * sharing)]
    wanted.append((f"'{PUBLISHED}' (text again for every chunk)", PUBLISHED, "fp32", "fp32", None))
    lines = []
    for name, label, theirs, mine, target in wanted:
        gain = [slow / fast for slow, fast in zip(found[label, theirs], found[OURS, mine], strict=True)]
        lines.append(_verdict(f"maps per second, {OURS} {mine} / {name} {theirs}", gain, target))
    return lines + [line for way in ours.values() for line in _bare_ratios(way, ways, work.model.device.type)]


def _bare_ratios(mine: Ours, ways: Sequence[Way], kind: str) -> list[str]:
    best = next(way for way in ways if isinstance(way, Bare) and way.precision == mine.precision)
    target = 0.96 if kind != "cuda" else 0.90 if mine.precision != "fp32" else None
    against = f"per second / {best.label} forwards per second at batch {best.batch}, {mine.precision}"
    share = [rate * seconds for rate, seconds in zip(mine.rates, best.seconds, strict=True)]
    lines = [_verdict(f"masked forwards of the whole explain() {against}", share, target)]
    if mine.inner:
        share = [rate * seconds for rate, seconds in zip(mine.inner, best.seconds, strict=True)]
        lines.append(_verdict(f"masked forwards alone {against}", share, None))
    return lines


def _verdict(name: str, values: Sequence[float], target: float | None) -> str:
    median, iqr = spread(values)
    goal = "" if target is None else f", target {target:.3g} {_reached(median >= target)}"
    return f"ratio {name}: {median:.4g} (IQR {iqr:.2g}){goal}"


def _reached(yes: bool) -> str:
    return "reached" if yes else "missed"


def check(work: Work, precisions: Sequence[str], args: argparse.Namespace) -> list[str]:
    """With few channels, for one image: are the maps of explain() those of the loop? And its peak memory."""
    lines, first = [], torch.empty(0)
    for precision in precisions:
        engine = CamEngine(work.model, top_k=args.check_k, batch_size=args.batch_size, precision=precision)
        grown, (maps,) = peak_growth(partial(engine.explain, work.images[:1], [work.targets]), work.model.device)
        goal = "not measured here" if grown is None else f"{grown:.0f} MB, target 1000 MB {_reached(grown < 1000)}"
        lines.append(f"memory, peak of explain() above the model, {precision} batch={engine.batch_size}: {goal}")
        if precision == "fp32":
            first = maps
            counts = f"masked_forwards={engine.masked_forwards} |U|={work.union(0, args.check_k)}"
            loop = PublishedLoop(work.model, k=args.check_k, batch=engine.batch_size, precision="fp32", frugal=True)
            lines.append(f"check fp32 k={args.check_k} {counts} {_against(loop, maps, work)}")
        else:
            both = torch.stack([first.flatten(1), maps.flatten(1)], dim=1)
            lowest = min(float(torch.corrcoef(pair)[0, 1]) for pair in both)
            lines.append(f"check {precision} k={args.check_k}: lowest correlation of a map with fp32={lowest:.5f}")
    return lines


def _against(loop: PublishedLoop, maps: Tensor, work: Work) -> str:
    expected = torch.stack([loop.map(work.images[0], question) for question in work.questions])
    difference, among = float((maps - expected).abs().max()), float((expected.amax(0) - expected.amin(0)).max())
    return (
        f"maps={len(maps)} largest difference from '{FRUGAL}'={difference:.2g} "
        f"(largest value {expected.max():.3g}, largest difference between questions {among:.2g})"
    )


def load(model: str, device: str, seed: int) -> ClipAdapter:
    """What --model names, or BiomedCLIP's architecture with random weights by way of a temporary folder (784 MB)."""
    if model != RANDOM_MODEL:
        return load_clip(model, device=device)
    sys.path.insert(0, str(ROOT))
    from tests.biomedclip import write_model_folder

    logging.disable(logging.WARNING)  # "initialized randomly" is what is wanted here
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_clip(str(write_model_folder(Path(folder), seed=seed)), device=device)
    logging.disable(logging.NOTSET)
    loaded.name = RANDOM_MODEL
    return loaded


def precisions_of(device: str) -> list[str]:
    """fp32, the half precision that ``auto`` takes there, and on a GPU the other one."""
    found = ["fp32", resolve_precision("auto", device), *(["fp16"] if device.startswith("cuda") else [])]
    return list(dict.fromkeys(found))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=RANDOM_MODEL, help="as MODEL; default BiomedCLIP's shape, random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: all cores")
    parser.add_argument("--images", type=int, default=8, help="all are asked the same questions")
    parser.add_argument("--questions", type=int, default=10, help=f"per image, at most {len(QUESTIONS)}")
    parser.add_argument("--k", type=int, default=300)
    parser.add_argument("--batch-size", type=int, help="of every way but the bare one; default as BATCH_SIZE")
    parser.add_argument("--bare-batches", type=int, nargs="+", help="batch sizes to try for the bare forward")
    parser.add_argument("--together", type=int, default=1, help="images in one explain() of ours; a run passes one")
    parser.add_argument("--chunks", type=int, help="masked batches per sample")
    parser.add_argument("--rounds", type=int, help="default 9, with --quick 3")
    parser.add_argument("--check-k", type=int, help="channels per question when maps are compared (16; 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two minutes: few rounds, one bare batch size")
    parser.add_argument("--full", action="store_true", help="time whole explain() calls of ours: minutes per round")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 9)
    args.check_k = args.check_k or (2 if args.quick else 16)
    if args.quick and not args.bare_batches:
        args.bare_batches = [resolve_batch_size(args.batch_size, args.device)]
    return args


def measure(model: ClipAdapter, args: argparse.Namespace) -> Iterator[str]:
    """The lines of the report, as they come."""
    work = Work(model, films(model, args.images, args.seed), QUESTIONS[: args.questions], args.k)
    precisions = precisions_of(str(model.device))
    note(f"|U| of the images: {work.unions}")
    yield from check(work, precisions, args)  # first: freed memory of other ways would hide what explain() takes
    ways = all_ways(work, precisions, args)
    take_rounds(ways, args.rounds)
    yield from (row(way, work, args) for way in ways)
    yield from ratios(ways, work)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    started, others = time.perf_counter(), os.getloadavg()[0]  # figures of a machine that was busy mean little
    model = load(args.model, args.device, args.seed)
    note(f"model loaded: {time.perf_counter() - started:.0f} s")
    for line in measure(model, args):
        print(line, flush=True)
    chip = f" gpu='{torch.cuda.get_device_name(model.device)}'" if model.device.type == "cuda" else ""
    print(
        f"cam_speed torch={torch.__version__} threads={torch.get_num_threads()}{chip} layer={model.target_layer_name} "
        f"chunks_per_sample={','.join(str(chunks_of(args, model.device.type, one)) for one in ('fp32', 'bf16'))} "
        f"rounds={args.rounds} images_together={args.together} "
        f"load_before={others:.1f} "
        f"ours={'whole explain() calls' if args.full else 'sampled'} seconds={time.perf_counter() - started:.0f}"
    )


if __name__ == "__main__":
    main()
