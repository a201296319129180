"""What one image and one heat map cost outside the model: median milliseconds per step.

    OMP_NUM_THREADS=1 python benchmarks/steps.py

The film is a phantom of 2544 x 3056 pixels. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from heatlens.cam.protocols import PatchGrid
from heatlens.images.bodymask import body_mask
from heatlens.images.decode import read_film
from heatlens.images.geometry import FrameGeometry
from heatlens.phantom.film import make_film
from heatlens.render.colormaps import colour_table
from heatlens.render.encode import encode_png, encode_png16
from heatlens.render.overlay import blend, normalise, output_size, resize_film

REPEATS = 9
GRID = PatchGrid(14, 14, (16.0, 16.0))


def median_ms(step: Callable[[], object]) -> float:
    """Median of REPEATS calls, after one that does not count."""
    step()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def image_steps(folder: Path) -> dict[str, float]:
    """Every step from the file to the encoded overlay."""
    pixels = cv2.resize(make_film(500_001, long_side=1528).pixels, (2544, 3056), interpolation=cv2.INTER_CUBIC)
    jpeg, png = folder / "film.jpg", folder / "film.png"
    cv2.imwrite(str(jpeg), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
    cv2.imwrite(str(png), pixels)
    source = (pixels.shape[1], pixels.shape[0])
    size = output_size(source, 1024)
    geometry = FrameGeometry.fit("letterbox", source, (224, 224))
    grid_map = np.random.default_rng(0).random((14, 14), dtype=np.float32)
    half = read_film(jpeg, 1024).pixels
    picture = resize_film(half, size)
    mask = np.ones((size[1], size[0]), dtype=bool)
    values, _ = normalise(geometry.map_to_source(grid_map, GRID, size)[0], mask)
    table = colour_table("jet")
    overlay = blend(picture, values, table, 0.5, mask=mask)
    return {
        "decode the JPEG at half its size: enough for the overlay": median_ms(lambda: read_film(jpeg, 1024)),
        "decode the JPEG whole": median_ms(lambda: read_film(jpeg)),
        "decode the same as PNG": median_ms(lambda: read_film(png)),
        "body mask": median_ms(lambda: body_mask(half)),
        "resize the film": median_ms(lambda: resize_film(half, size)),
        "place into the model's frame": median_ms(lambda: geometry.place(half)),
        "map to film pixels": median_ms(lambda: geometry.map_to_source(grid_map, GRID, size)),
        "colour and blend": median_ms(lambda: blend(picture, values, table, 0.5, mask=mask)),
        "encode the overlay as PNG": median_ms(lambda: encode_png(overlay)),
        "encode the 16-bit map": median_ms(lambda: encode_png16(values)),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        steps = image_steps(Path(name))
    print("| step | ms |\n|---|---|")
    for step, value in steps.items():
        print(f"| {step} | {value:.1f} |")
    print(f"\nsteps film=2544x3056 overlay=852x1024 repeats={REPEATS} threads=1")


if __name__ == "__main__":
    main()
