"""What PNG encoders cost, and how large their files are: ours beside OpenCV's and Pillow's.

    OMP_NUM_THREADS=1 python benchmarks/encoders.py [PNG...]

The pictures are the PNGs that are named, overlays and maps of a run, or else four phantom films of 2544 x 3056 pixels
with a smooth map over each, drawn at 852 x 1024, and those maps as 16-bit grey. One thread; the encoders take turns,
and each picture must come back unchanged. Printed are medians over rounds of the CPU milliseconds per picture.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heatlens.cam.protocols import PatchGrid
from heatlens.images.geometry import FrameGeometry
from heatlens.phantom.film import make_film
from heatlens.render.colormaps import colour_table
from heatlens.render.overlay import blend, normalise, output_size, resize_film
from heatlens.render.png import png

Picture = NDArray[np.uint8] | NDArray[np.uint16]
SIZE = (2544, 3056)
FIRST_FILM = 500_001
GRAIN = 4.0  # grey levels of noise, as in batch_throughput.py
GRID = PatchGrid(14, 14, (16.0, 16.0))
UP = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)


def by_opencv(*parameters: int) -> Callable[[Picture], bytes]:
    def encode(picture: Picture) -> bytes:
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
        return bytes(cv2.imencode(".png", bgr, parameters)[1].data)

    return encode


def by_pillow(level: int) -> Callable[[Picture], bytes]:
    def encode(picture: Picture) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG", compress_level=level)
        return stream.getvalue()

    return encode


ENCODERS: dict[str, Callable[[Picture], bytes]] = {
    "ours (ISA-L)": png,
    "OpenCV, as it is": by_opencv(),
    "OpenCV, filter UP": by_opencv(*UP),
    "Pillow, compress_level=1": by_pillow(1),
    "Pillow, as it is": by_pillow(6),
}


def read(path: Path) -> Picture:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels


def made() -> list[Picture]:
    """Overlays and 16-bit maps of films with grain."""
    size = output_size(SIZE, 1024)
    everywhere = np.ones((size[1], size[0]), dtype=bool)
    geometry = FrameGeometry.fit("letterbox", SIZE, (224, 224))
    pictures: list[Picture] = []
    for number in range(4):
        rng = np.random.default_rng(number)
        film = cv2.resize(make_film(FIRST_FILM + number, long_side=764).pixels, SIZE, interpolation=cv2.INTER_CUBIC)
        film = (film + rng.normal(0, GRAIN, film.shape)).clip(0, 255).astype(np.uint8)
        heat, _ = geometry.map_to_source(rng.random((14, 14), dtype=np.float32), GRID, size)
        values, _ = normalise(heat, everywhere)
        pictures.append(blend(resize_film(film, size), values, colour_table("jet"), 0.5, mask=everywhere))
        pictures.append(np.rint(values * 65535).astype(np.uint16))
    return pictures


def measure(pictures: Sequence[Picture], rounds: int) -> dict[str, tuple[float, int]]:
    """Milliseconds and bytes per picture, by encoder."""
    seconds: dict[str, list[float]] = {name: [] for name in ENCODERS}
    sizes: dict[str, int] = {}
    for turn in range(rounds):
        for name in list(ENCODERS)[:: -1 if turn % 2 else 1]:
            start = time.process_time()
            files = [ENCODERS[name](picture) for picture in pictures]
            seconds[name].append(time.process_time() - start)
            sizes[name] = sum(map(len, files)) // len(files)
            if turn == 0:
                for file, picture in zip(files, pictures, strict=True):
                    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), picture), name
    return {name: (1000 * statistics.median(seconds[name]) / len(pictures), sizes[name]) for name in ENCODERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    pictures = [read(path) for path in args.pictures] or made()
    kinds = {"overlay": [p for p in pictures if p.ndim == 3], "map": [p for p in pictures if p.ndim == 2]}
    found = {kind: measure(some, args.rounds) for kind, some in kinds.items() if some}
    print(f"| encoder | {' | '.join(f'{kind}: ms | kB' for kind in found)} |\n|---|{'---|---|' * len(found)}")
    for name in ENCODERS:
        cells = " | ".join(f"{found[kind][name][0]:.1f} | {found[kind][name][1] / 1000:.0f}" for kind in found)
        print(f"| {name} | {cells} |")
    print(f"\nencoders pictures={ {kind: len(some) for kind, some in kinds.items()} } rounds={args.rounds} threads=1")


if __name__ == "__main__":
    main()
