"""What dense CRF adds to a heat map: median milliseconds from the patch grid to the final map, with and without it.

    OMP_NUM_THREADS=1 python benchmarks/crf_cost.py

The film is a phantom, 2544 x 3056 pixels, or with --film a file; the picture has 1024 pixels along its longer side. For
every CRF_SIZE: the first map of a film, for which what depends on the film alone is computed, and a further one. Rounds
visit every way in turn. The last line: what a second thread gains.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from heatlens.batch.protocols import Placed
from heatlens.cam.protocols import PatchGrid
from heatlens.images.decode import read_film
from heatlens.images.film import Film
from heatlens.images.geometry import FrameGeometry
from heatlens.phantom.film import make_film
from heatlens.refine.crf import CrfOptions
from heatlens.settings import KEYS
from heatlens.stages.base import ImageView, final_map, map_statistics, open_view

SIZES = (224, 448, 1024)
GRID = PatchGrid(14, 14, (16.0, 16.0))


def options(size: int) -> CrfOptions:
    """The keys' defaults at another CRF_SIZE."""
    defaults = {
        name: KEYS[f"CRF_{name.upper()}"].kind.read(KEYS[f"CRF_{name.upper()}"].default, Path())
        for name in CrfOptions.__dataclass_fields__
    }
    return CrfOptions(**{**defaults, "size": size})


def view_of(film: Film, crf: CrfOptions | None) -> ImageView:
    """A film as a stage opens it."""
    geometry = FrameGeometry.fit("letterbox", film.size, (224, 224))
    placed = Placed(geometry, geometry.place(film.pixels))
    return open_view(film, placed, GRID, longest=1024, mask_body=True, crf=crf)


def maps(count: int) -> list[np.ndarray]:
    """Blobs here and there, as maps are."""
    rows, columns = np.mgrid[:14, :14]
    places = np.random.default_rng(0).uniform(3, 11, (count, 2))
    return [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 6).astype(np.float32) for y, x in places]


def milliseconds(view: ImageView, grid_map: np.ndarray) -> float:
    """One final map with its statistics, as a writer makes it."""
    start = time.perf_counter()
    map_statistics(view, grid_map, final_map(view, grid_map))
    return 1000 * (time.perf_counter() - start)


def measured(film: Film, rounds: int) -> dict[str, list[float]]:
    """Milliseconds by way."""
    found: dict[str, list[float]] = {}
    for grid_map in maps(rounds):
        found.setdefault("without", []).append(milliseconds(view_of(film, None), grid_map))
        for size in SIZES:
            view = view_of(film, options(size))
            found.setdefault(f"CRF_SIZE={size}, first map of a film", []).append(milliseconds(view, grid_map))
            found.setdefault(f"CRF_SIZE={size}, a further map", []).append(milliseconds(view, grid_map))
    return found


def speed_up(film: Film, rounds: int) -> float:
    """How many times as fast two threads refine maps of two views as one thread does."""
    crfs = [crf for _ in range(2) if (crf := view_of(film, options(448)).crf)]
    heat = np.random.default_rng(0).random((crfs[0].size[1], crfs[0].size[0]), dtype=np.float32)
    seconds = []
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda crf: crf.foreground(heat), crfs))
            start = time.perf_counter()
            list(pool.map(lambda crf: crf.foreground(heat), crfs * rounds))
            seconds.append(time.perf_counter() - start)
    return seconds[0] / seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    if chosen.rounds < 2:
        parser.error("--rounds: at least 2, the first map of a film does not count")
    cv2.setNumThreads(1)
    if chosen.film:
        film = read_film(chosen.film)
    else:
        pixels = make_film(500_001, long_side=1528).pixels
        film = Film(cv2.resize(pixels, (2544, 3056), interpolation=cv2.INTER_CUBIC), "png", 8)
    print("| way | ms | IQR |\n|---|---|---|")
    for way, times in measured(film, chosen.rounds).items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"| {way} | {middle:.1f} | {high - low:.1f} |")
    print(f"\ntwo threads at CRF_SIZE=448: {speed_up(film, chosen.rounds):.2f} times as fast as one")
    print(f"\ncrf_cost film={film.size[0]}x{film.size[1]} picture=1024 rounds={chosen.rounds}")


if __name__ == "__main__":
    main()
