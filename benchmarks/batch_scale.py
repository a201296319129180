"""A data set of GEMeX's size: its plan, a shard's start, memory and stop, next to one of 10,000 rows.

    python benchmarks/batch_scale.py [--rows 1605575] [--seconds 60] [--keep FOLDER]

Synthetic questions (benchmarks/gemex_rows.py), one film under as many names as are needed, the demo model with
GradCAM: the numbers are the runner's. Everything is the real command in a process of its own. Memory: "all" sums the
proportional set sizes of the command and its children, "own" is the command's resident set; both peaks, sampled
four times a second.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
from gemex_rows import IMAGES, ROWS, write

from heatlens.phantom.film import make_film
from heatlens.questions.readers.gemex import GemexReader

ROOT = Path(__file__).resolve().parents[1]
SMALL = 10_000
FILMS = 3000
"""images of the data set, in its order, that exist: more than a shard makes before it is stopped"""


@dataclass
class Watched:
    """A running command with its clocks and memory; ``lines`` are (seconds since the start, text)."""

    command: Sequence[str]
    seconds: float = 0.0
    cpu: float = 0.0
    peak_all: float = 0.0
    peak_own: float = 0.0
    code: int = 0
    lines: list[tuple[float, str]] = field(default_factory=list)

    def start(self) -> Watched:
        """Start it; :meth:`wait` must follow."""
        self._before, self.started = os.times(), time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._sample)]
        for thread in self._threads:
            thread.start()
        return self

    def wait(self) -> Watched:
        """Until it has ended."""
        self.code = self.process.wait()
        self.seconds = time.perf_counter() - self.started
        after = os.times()
        self.cpu = after.children_user + after.children_system
        self.cpu -= self._before.children_user + self._before.children_system
        for thread in self._threads:
            thread.join()
        return self

    def said(self, pattern: str) -> tuple[float, str] | None:
        """The first line that matches, with its time."""
        return next(((at, text) for at, text in list(self.lines) if re.search(pattern, text)), None)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.lines.append((time.perf_counter() - self.started, text.rstrip()))

    def _sample(self) -> None:
        while self.process.poll() is None:
            total = sum(_memory(pid, "smaps_rollup", "Pss:") for pid in _family(self.process.pid))
            self.peak_all = max(self.peak_all, total)
            self.peak_own = max(self.peak_own, _memory(self.process.pid, "status", "VmRSS:"))
            time.sleep(0.25)


def _family(pid: int) -> list[int]:
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _memory(pid: int, name: str, label: str) -> float:
    with suppress(OSError, StopIteration):
        text = Path(f"/proc/{pid}/{name}").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(label)).split()[1]) / 1024
    return 0.0


def make_data(folder: Path, rows: int, images: int, film: bytes) -> Path:
    """Questions in ``folder``, and the first images of the data set as links to one film."""
    write(folder, rows, images)
    original = folder / "film.jpg"
    original.write_bytes(film)
    found: dict[str, None] = {}
    for row in GemexReader(folder).rows():
        found.setdefault(row.image_path.lstrip("/"))
        if len(found) == min(FILMS, images):
            break
    for name in found:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(original, folder / name)
    return folder


def command(verb: Sequence[str], data: Path, results: Path, **keys: object) -> list[str]:
    """A heatlens command on ``data``."""
    flags = {
        "dataset": "gemex", "dataset_path": data, "image_root": data, "results_dir": results, "model": "demo",
        "cam_version": "GradCAM", "device": "cpu", **keys,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "heatlens.cli", *verb, *words]


def plan_row(name: str, data: Path, results: Path, *more: str) -> Watched:
    """``heatlens plan`` without a measurement; ``--dry-run`` makes the plan, prints it and removes it."""
    done = Watched(command(["plan", "--measure", "0", "--missing", "none", *more], data, results)).start().wait()
    assert done.code == 0, done.lines
    print(
        f"batch_scale step=plan what={name} seconds={done.seconds:.1f} cpu_seconds={done.cpu:.1f} "
        f"peak_all_mib={done.peak_all:.0f}",
        flush=True,
    )
    return done


def shard_row(name: str, data: Path, results: Path, seconds: float) -> Watched:
    """A shard that works for ``seconds`` and is then asked to stop."""
    before = _ledger_size(results)
    work = Watched(command(["run", "attn_map"], data, results)).start()
    while not (loaded := work.said("model loaded")) or _ledger_size(results) == before:
        assert work.process.poll() is None, work.lines
        time.sleep(0.02)
    first = time.perf_counter() - work.started
    time.sleep(seconds)
    asked = time.perf_counter()
    work.process.send_signal(signal.SIGTERM)
    work.wait()
    stopping = time.perf_counter() - asked
    end = work.said("heat maps are finished|is finished")
    print(
        f"batch_scale step=shard what={name} command_to_model_loaded_s={loaded[0]:.1f} "
        f"model_loaded_to_first_image_on_record_s={first - loaded[0]:.2f} stop_s={stopping:.2f} exit_code={work.code} "
        f"peak_own_mib={work.peak_own:.0f} peak_all_mib={work.peak_all:.0f} said={end[1] if end else ''!r}",
        flush=True,
    )
    return work


def _ledger_size(results: Path) -> int:
    return sum(path.stat().st_size for path in results.glob("shards/*/ledger.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    film = cv2.imencode(".jpg", cv2.resize(make_film(1, long_side=1528).pixels, (2544, 3056)))[1].tobytes()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        sizes = {"small": SMALL, "large": args.rows}
        own = {}
        for name, rows in sizes.items():
            images = max(1, round(rows * IMAGES / ROWS))
            data = folder / f"data-{name}"
            if not data.exists():
                make_data(data, rows, images, film)
            size = sum(path.stat().st_size for path in data.glob("*.jsonl"))
            what = f"{rows}_rows_{images}_images_{size / 1e9:.2f}_GB"
            plan_row(f"made_dry_run_{what}", data, folder / f"results-{name}", "--dry-run")
            plan_row(f"made_{what}", data, folder / f"results-{name}")
            plan_row(f"reused_{what}", data, folder / f"results-{name}")
            own[name] = shard_row(what, data, folder / f"results-{name}", args.seconds)
            shard_row(f"continued_{what}", data, folder / f"results-{name}", args.seconds / 4)
    for kind in ("peak_own", "peak_all"):
        ratio = getattr(own["large"], kind) / getattr(own["small"], kind)
        print(f"batch_scale step=memory what={kind}_large_over_small ratio={ratio:.3f}")


if __name__ == "__main__":
    main()
