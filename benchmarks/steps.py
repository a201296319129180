"""What one image and one row cost outside the model: median milliseconds per step, and the plan's time and memory.

    python benchmarks/steps.py [--rows 100000]

The film is a phantom of 2544 x 3056 pixels, the rows are synthetic GEMeX rows. One thread.
"""

from __future__ import annotations

import argparse
import json
import resource
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
from heatlens.questions.plan import make_plan
from heatlens.questions.readers.gemex import GemexReader
from heatlens.questions.select import Selection
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
    picture = resize_film(pixels, size)
    mask = np.ones((size[1], size[0]), dtype=bool)
    values, _ = normalise(geometry.map_to_source(grid_map, GRID, size)[0], mask)
    table = colour_table("jet")
    overlay = blend(picture, values, table, 0.5, mask=mask)
    return {
        "decode the JPEG": median_ms(lambda: read_film(jpeg)),
        "decode the same as PNG": median_ms(lambda: read_film(png)),
        "body mask": median_ms(lambda: body_mask(pixels)),
        "resize the film": median_ms(lambda: resize_film(pixels, size)),
        "place into the model's frame": median_ms(lambda: geometry.place(pixels)),
        "map to film pixels": median_ms(lambda: geometry.map_to_source(grid_map, GRID, size)),
        "colour and blend": median_ms(lambda: blend(picture, values, table, 0.5, mask=mask)),
        "encode the overlay as PNG": median_ms(lambda: encode_png(overlay)),
        "encode the 16-bit map": median_ms(lambda: encode_png16(values)),
    }


def plan_rows(folder: Path, rows: int) -> dict[str, float]:
    """Seconds to read and to plan ``rows`` rows of 12 to an image, and the memory that the plan adds in MiB."""
    path = folder / "open_ended_question.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            image = number // 12
            row = {
                "question": f"What does the film show in the left lower lung zone, case {number}?", "type": "disease",
                "answer": "No acute finding is seen.", "reason": "r" * 200, "visual_regions": ["left lower lung zone"],
                "visual_locations": [[120, 110, 180, 190]], "ori_report": "r" * 400, "q_id": number,
                "image_path": f"p10/p{10_000_000 + image}/s5{image:07d}/{image:08x}.jpg", "row_id": f"row_{image}",
            }  # fmt: skip
            stream.write(json.dumps(row) + "\n")
    start = time.perf_counter()
    count = sum(1 for _ in GemexReader(path).rows())
    reading = time.perf_counter() - start
    before, start = _peak(), time.perf_counter()
    plan = make_plan(
        GemexReader(path),
        regions="split",
        prompt_template="{question} {region}",
        selection=Selection(),
        stop_after=None,
    )
    assert count == rows == plan.rows
    return {"read_s": reading, "plan_s": time.perf_counter() - start, "plan_mib": _peak() - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        plan = plan_rows(Path(name), args.rows)
        steps = image_steps(Path(name))
    print("| step | ms |\n|---|---|")
    for step, value in steps.items():
        print(f"| {step} | {value:.1f} |")
    print(
        f"\nsteps film=2544x3056 overlay=852x1024 repeats={REPEATS} threads=1 rows={args.rows} "
        + " ".join(f"{key}={value:.1f}" for key, value in plan.items())
    )


if __name__ == "__main__":
    main()
