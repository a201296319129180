"""What the runner costs the device, and how near it comes to the machine's floor for cheap methods.

    python benchmarks/batch_throughput.py --kind engine [--precision bf16] [--images 2] [--rounds 2]
    python benchmarks/batch_throughput.py --kind runner [--methods GradCAM LeGrad] [--images 24]

JPEGs of 2544 x 3056 pixels, overlays at 1024, in a temporary folder; every heat map and ledger line is made durable.
Rounds visit every way once, in turn forth and back; the first does not count. Printed are medians and interquartile
ranges over rounds; a ratio is the median of the rounds' own ratios.

* engine: BiomedCLIP's architecture with random weights, gScoreCAM. Masked forwards per second end to end (files in,
  files out) against the engine alone on the same images and questions.
* runner: the demo model and methods of one pass. Heat maps per second end to end, with all cores, against the floor:
  the same JPEGs decoded at the same scale and the same overlays encoded on all cores, nothing else: once by
  cv2.imencode, as everybody can, and once by the encoder that the program itself uses, which is several times faster.
  "runner alone" is the same with maps made beforehand: the runner beside a device that costs the cores nothing.
  On a CPU the model takes the same cores: a second ratio, of processor seconds, has the engine's own in its base.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from cam_speed import QUESTIONS, RANDOM_MODEL, load
from PIL import Image

from heatlens.batch.explainer import ModelExplainer
from heatlens.batch.ledger import LedgerWriter
from heatlens.batch.openers import FilmReader, Opener, start_decoders
from heatlens.batch.parts import available_cores, worker_counts
from heatlens.batch.pipeline import make_all
from heatlens.batch.protocols import Explanation
from heatlens.batch.signals import StopSignals
from heatlens.batch.worker import ImageWorker
from heatlens.config import load_settings
from heatlens.images.decode import read_film
from heatlens.models.clip import ClipAdapter
from heatlens.phantom.film import make_film
from heatlens.questions.plan import HeatMap, ImageTask
from heatlens.render.encode import encode_png
from heatlens.stages.attn_map import AttnMapStage

SIZE = (2544, 3056)
FIRST_FILM = 500_001
GRAIN = 4.0  # grey levels of noise: films of this size are not smooth, and smooth ones decode and encode too fast


@dataclass(frozen=True)
class Commits:
    """Every finished image goes into the ledger, as in a run."""

    ledger: LedgerWriter
    seconds: list[Any]

    def opened(self) -> None:
        pass

    def commit(self, record: Any) -> None:
        assert all(one.ok for one in record.heat_maps)
        self.ledger.append(record)
        self.seconds.append(record.seconds)


@dataclass(frozen=True)
class Recorded:
    """An explainer that answers at once, every image with the same maps: a device that costs the cores nothing."""

    maps: list[Explanation]
    group: int

    def explain(self, frames: Sequence[Any], prompts: Sequence[Sequence[str]]) -> list[list[Explanation]]:
        return [self.maps[: len(mine)] for _, mine in zip(frames, prompts, strict=True)]


class Spent(NamedTuple):
    """Seconds by the clock and of the processors."""

    clock: float
    cpu: float


class Site:
    """A temporary folder with films, tasks about them, and the pieces of a run of ``method``."""

    def __init__(self, folder: Path, args: argparse.Namespace, method: str, model: ClipAdapter | None) -> None:
        self.args, self.method, self.folder = args, method, folder
        self.images = write_films(folder / "images", args.images)
        self.settings = load_settings(
            None,
            {
                "DATASET": "table", "DATASET_PATH": "none.csv", "IMAGE_ROOT": str(folder / "images"),
                "RESULTS_DIR": str(folder / "results"), "MODEL": "demo", "DEVICE": args.device, "CAM_VERSION": method,
                "TOPK": str(args.k), "PRECISION": args.precision, "OUTPUT_SIZE": args.output_size,
            },
            {},
            "attn_map",
        )  # fmt: skip
        self.stage = AttnMapStage(self.settings)
        self.explainer = ModelExplainer(self.settings, model)
        self.questions = QUESTIONS[: args.questions]
        self.tasks = [ImageTask(name, tuple(self._heat_maps(name))) for name in self.images]
        self.heat_maps = len(self.tasks) * len(self.questions)
        self.opener = Opener(FilmReader(folder / "images"), self.stage, self.explainer.placer, self.explainer.grid)
        self.clocks: dict[str, float] = {}
        self._runs = 0

    def _heat_maps(self, image: str) -> list[HeatMap]:
        stem = Path(image).stem
        return [
            HeatMap(
                key=f"{stem}/{number}", row=number, region_index=0, number=number, output=f"{stem}_idx{number}",
                source="bench", question_id=str(number), question=text, answer="", choices=(), question_type="",
                content_type="", region="", boxes=(), prompt=text,
            )
            for number, text in enumerate(self.questions, 1)
        ]  # fmt: skip

    def end_to_end(self) -> Spent:
        """One whole run, from the first file to the last ledger line (processes and model are warm)."""
        return self._run(self.explainer)

    def runner_alone(self) -> Callable[[], Spent]:
        """A whole run with maps that were made beforehand."""
        opened = self.opener(self.images[0])
        assert opened.placed is not None
        (maps,) = self.explainer.explain([opened.placed.frame], [list(self.questions)])
        recorded = Recorded(maps, self.explainer.group)
        return lambda: self._run(recorded)

    def _run(self, explainer: Any) -> Spent:
        self._runs += 1
        results, args = self.folder / f"results{self._runs}", self.args
        seconds: list[dict[str, float]] = []
        stop = StopSignals()
        worker = ImageWorker(self.stage, explainer, results, stop)
        with start_decoders(args.readers, self.stage) as decoders, LedgerWriter(results / "ledger.jsonl") as ledger:
            decoders.open_with(self.opener)
            self._warm(decoders)

            start, cpu = time.perf_counter(), cpu_seconds()
            make_all(self.tasks, worker, Commits(ledger, seconds), stop, decoders=decoders, writers=args.writers)
            spent = Spent(time.perf_counter() - start, cpu_seconds() - cpu)
        assert len(seconds) == len(self.tasks)
        self.clocks = {name: sum(one[name] for one in seconds) for name in seconds[0]}
        return spent

    def _warm(self, decoders: Any) -> None:
        """Every process has imported what it needs: it has opened an image."""
        import threading

        for _ in range(2):
            gates = [threading.Event() for _ in range(max(1, decoders.readers))]
            for gate in gates:
                decoders.submit(self.images[0], lambda _, gate=gate: gate.set())
            for gate in gates:
                gate.wait()

    def engine_alone(self) -> Spent:
        """The explanations alone; the films are in memory, nothing is made of the maps."""
        opened = [self.opener(name) for name in self.images]
        frames = [one.placed.frame for one in opened if one.placed is not None]
        start, cpu = time.perf_counter(), cpu_seconds()
        for at in range(0, len(frames), self.explainer.group):
            part = frames[at : at + self.explainer.group]
            self.explainer.explain(part, [list(self.questions)] * len(part))
        return Spent(time.perf_counter() - start, cpu_seconds() - cpu)

    def overlays(self) -> list[np.ndarray]:
        """Some of the run's overlays, RGB."""
        overlays: list[np.ndarray] = []
        for task in self.tasks[:2]:
            opened = self.opener(task.image_path)
            assert opened.placed is not None
            for maps in self.explainer.explain([opened.placed.frame], [list(self.questions)]):
                for heat_map, answer in zip(task.heat_maps, maps, strict=True):
                    data = self.stage.make(opened.view, heat_map, answer).files[0].data
                    overlays.append(np.asarray(Image.open(io.BytesIO(data))))
        return overlays

    def floor(self, encode: Callable[[np.ndarray], object]) -> Callable[[], Spent]:
        """Decoding and encoding alone, on all cores: the overlays are made beforehand."""
        overlays = self.overlays()
        longest = self.opener.longest
        paths = [self.folder / "images" / name for name in self.images]

        def image(number: int) -> None:
            read_film(paths[number], longest)
            for one in range(len(self.questions)):
                encode(overlays[(number * len(self.questions) + one) % len(overlays)])

        def run() -> Spent:
            start, cpu = time.perf_counter(), cpu_seconds()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(image, range(len(paths))))
            return Spent(time.perf_counter() - start, cpu_seconds() - cpu)

        return run


def write_films(folder: Path, count: int) -> list[str]:
    """Phantoms with film grain, as JPEGs of quality 90; at most eight different ones."""
    folder.mkdir(parents=True, exist_ok=True)
    names, data = [], []
    for number in range(count):
        if number < 8:
            small = make_film(FIRST_FILM + number, long_side=764).pixels
            film = cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC).astype(np.float32)
            film += np.random.default_rng(number).normal(0, GRAIN, film.shape).astype(np.float32)
            encoded = cv2.imencode(".jpg", film.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            data.append(encoded.tobytes())
        names.append(f"film{number:03}.jpg")
        (folder / names[-1]).write_bytes(data[number % 8])
    return names


def cpu_seconds() -> float:
    """Of this process and its running children, by all of their threads: what a busy machine does not change much."""
    return time.process_time() + sum(map(_seconds_of, _children()))


def _children() -> list[int]:
    """The children's numbers; none where the system does not list them (outside Linux)."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(number) for one in lists for number in one.read_text().split()]


def _seconds_of(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alternate(
    ways: dict[str, Callable[[], Spent]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds per way and round, by the clock and of the processors."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in ways if turn % 2 else reversed(ways):
            spent = ways[name]()
            if turn:
                clock[name].append(spent.clock)
                cpu[name].append(spent.cpu)
    return clock, cpu


def spread(values: Sequence[float]) -> str:
    """Median (IQR)."""
    if len(values) < 2:
        return f"{values[0]:.4g} IQR=0"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.4g} IQR={high - low:.2g}"


def report(site: Site, times: Any, unit: str, work: float, bases: Sequence[str], target: float) -> None:
    """Print what was measured; ``target`` is the aim against the first of ``bases``."""
    args, (seconds, cpu) = site.args, times
    shared = (
        f"method={site.method} precision={site.explainer.settings()['precision']} images={len(site.tasks)} "
        f"questions_per_image={len(site.questions)} film={SIZE[0]}x{SIZE[1]} output_size={args.output_size} "
        f"readers={args.readers} writers={args.writers} torch_threads={torch.get_num_threads()} "
        f"cores={os.cpu_count()} rounds={args.rounds}"
    )
    for way in seconds:
        rate, used = spread([work / one for one in seconds[way]]), spread([one / work for one in cpu[way]])
        print(f"way='{way}' {unit}_per_s={rate} cpu_s_each={used} {shared}")
    clocks = " ".join(f"{name}_s={value:.2f}" for name, value in site.clocks.items())
    for base in bases:
        for way in [way for way in ("end to end", "runner alone") if way in seconds]:
            ratios = [alone / whole for alone, whole in zip(seconds[base], seconds[way], strict=True)]
            reached = "reached" if statistics.median(ratios) >= target else "missed"
            aim = f", target {target} {reached}; last run: {clocks}" if base == bases[0] else ""
            print(f"ratio {way} / {base}: {spread(ratios)}{aim}", flush=True)
        if "runner alone" in cpu:
            parts = zip(cpu["end to end"], cpu[base], cpu["engine alone"], strict=True)
            shares = [(floor + engine) / whole for whole, floor, engine in parts]
            print(f"ratio of processor seconds, end to end / ({base} + engine): {spread(shares)}", flush=True)


def measure_engine(args: argparse.Namespace, folder: Path) -> None:
    model = load(RANDOM_MODEL, args.device, 0)
    site = Site(folder, args, "gScoreCAM", model)
    for question in site.questions:
        model.target(question)  # texts are encoded once per run
    before = site.explainer.masked_forwards
    seconds = alternate({"end to end": site.end_to_end, "engine alone": site.engine_alone}, args.rounds)
    forwards = (site.explainer.masked_forwards - before) / (2 * (args.rounds + 1))
    report(site, seconds, "masked_forwards", forwards, ["engine alone"], 0.95 if args.device == "cpu" else 0.90)


def measure_runner(args: argparse.Namespace, folder: Path) -> None:
    for method in args.methods:
        site = Site(folder / method, args, method, None)
        ways = {
            "end to end": site.end_to_end,
            "runner alone": site.runner_alone(),
            "decode + OpenCV encode": site.floor(lambda overlay: cv2.imencode(".png", overlay)),
            "decode + own encode": site.floor(encode_png),
            "engine alone": site.engine_alone,
        }
        seconds = alternate(ways, args.rounds)
        floors = [way for way in ways if way.startswith("decode")]
        report(site, seconds, "heat_maps", site.heat_maps, floors, 0.80)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("engine", "runner"), required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--methods", nargs="+", default=["GradCAM", "LeGrad"])
    parser.add_argument("--k", type=int, default=300)
    parser.add_argument("--images", type=int, help="default 1 (engine), 32 (runner)")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--output-size", default="1024")
    parser.add_argument("--rounds", type=int, help="default 2 (engine), 5 (runner)")
    parser.add_argument("--readers", type=int, help="default: as many as a run takes")
    parser.add_argument("--writers", type=int, help="default: as many as a run takes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch; default: all cores")
    parser.add_argument("--opencv-threads", type=int, help="of this process; default: OpenCV's own")
    args = parser.parse_args()
    readers, writers = worker_counts(None, available_cores(), gpu=args.device != "cpu")
    args.readers = readers if args.readers is None else args.readers
    args.writers = writers if args.writers is None else args.writers
    args.images = args.images or (1 if args.kind == "engine" else 32)
    args.rounds = args.rounds or (2 if args.kind == "engine" else 5)
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.opencv_threads is not None:
        cv2.setNumThreads(args.opencv_threads)
    others, started = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        (measure_engine if args.kind == "engine" else measure_runner)(args, Path(name))
    print(
        f"batch_throughput kind={args.kind} device={args.device} opencv_threads={cv2.getNumThreads()} "
        f"load_before={others:.1f} seconds={time.perf_counter() - started:.0f}"
    )


if __name__ == "__main__":
    main()
