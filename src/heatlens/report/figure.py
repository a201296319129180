"""``heatlens figure``: film | map | overlay of one heat map, side by side, for a README or a paper.

It reads a finished run with SAVE_RAW_CAM=true and changes nothing in it. The three panels have the same pixels:
the film at the output's size, the final map in the run's colours with its scale, and the overlay as written.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from heatlens.batch.run_record import RUN_RECORD, image_root_of
from heatlens.errors import ConfigError, SetupError
from heatlens.files import atomic_write
from heatlens.images.decode import read_film
from heatlens.images.locate import locate_image
from heatlens.render.colormaps import colour_table, colourise
from heatlens.render.encode import encode_png
from heatlens.render.overlay import resize_film

Rgb = NDArray[np.uint8]
GAP = 16
CAPTION = 40
BAR = 72  # width of the scale and its numbers
_TITLES = ("film", "map", "overlay")


@dataclass(frozen=True)
class Panels:
    """The three pictures, uint8 (h, w, 3) each and of one size, the colour table (256, 3) and the text below."""

    film: Rgb
    heat: Rgb
    overlay: Rgb
    table: Rgb
    text: str


def main(argv: list[str]) -> int:
    """``heatlens figure RESULTS_DIR [--pick IMAGE_PATH] [--output FILE.png] [--height PIXELS]``."""
    parser = argparse.ArgumentParser(prog="heatlens figure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="the results folder of a run with SAVE_RAW_CAM=true")
    parser.add_argument("--pick", default="", help="image_path of the manifest, or a part of it or of the question")
    parser.add_argument("--output", type=Path, help="the PNG to write (default: figure.png in the results folder)")
    parser.add_argument("--height", type=int, default=480, help="height of a panel in pixels (default %(default)s)")
    args = parser.parse_args(argv)
    output = args.output or args.results / "figure.png"
    atomic_write(output, encode_png(compose(read_panels(args.results, args.pick, args.height))))
    print(output)
    return 0


def read_panels(results: Path, pick: str, height: int) -> Panels:
    """The panels of the first heat map whose image_path or question contains ``pick``."""
    config = _config(results)
    row = _pick(results, pick)
    raw = results / "raw" / Path(row["image_path"]).with_suffix(".png")
    values = cv2.imread(str(raw), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise SetupError(f"{raw} is missing: a figure needs a run with SAVE_RAW_CAM=true")
    size = (round(height * values.shape[1] / values.shape[0]), height)
    film = read_film(locate_image(image_root_of(config) or Path(), row["source_image"])).pixels
    table = colour_table(config["COLORMAP"])
    return Panels(
        film=_rgb(resize_film(film, size)),
        heat=resize_film(colourise((values / 65535).astype(np.float32), table), size),
        overlay=_rgb(resize_film(read_film(results / row["image_path"]).pixels, size)),
        table=table,
        text=row["prompt"],
    )


def _config(results: Path) -> dict[str, Any]:
    try:
        record = json.loads((results / RUN_RECORD).read_text(encoding="utf-8"))
        return {key: entry["value"] for key, entry in record["config"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        raise SetupError(f"{results} holds no finished run (run.json is missing or unreadable)") from None


def _pick(results: Path, pick: str) -> dict[str, Any]:
    import pandas as pd

    details = pd.read_parquet(results / "details.parquet")
    wanted = details["image_path"].str.contains(pick, regex=False) | details["question"].str.contains(pick, regex=False)
    if not wanted.any():
        raise ConfigError(f"--pick {pick!r}: no heat map of {results} has it in its image_path or question")
    return {str(key): value for key, value in details[wanted].iloc[0].items()}


def _rgb(pixels: Rgb) -> Rgb:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def compose(panels: Panels) -> Rgb:
    """White canvas, titles above, panels, the scale at the right, the text below: uint8 (H, W, 3)."""
    height, width = panels.film.shape[:2]
    lines = textwrap.wrap(panels.text, max(20, (3 * width + 2 * GAP) // 11)) or [""]
    total = (4 * GAP + 3 * width + BAR, 2 * GAP + CAPTION + height + CAPTION * len(lines))
    canvas = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=22)
    for number, picture in enumerate((panels.film, panels.heat, panels.overlay)):
        left = GAP + number * (width + GAP)
        draw.text((left, GAP), _TITLES[number], fill="black", font=font)
        canvas.paste(Image.fromarray(picture), (left, GAP + CAPTION))
    _draw_scale(canvas, panels.table, 3 * (width + GAP) + GAP, GAP + CAPTION, height)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + CAPTION + height + 10 + number * CAPTION), line, fill="black", font=font)
    return np.asarray(canvas)


def _draw_scale(canvas: Image.Image, table: Rgb, left: int, top: int, height: int) -> None:
    """The colour bar, 1 at the top."""
    bar = np.repeat(table[np.linspace(255, 0, height).round().astype(int)][:, None], 18, axis=1)
    canvas.paste(Image.fromarray(bar), (left, top))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=18)
    for value in (0.0, 0.5, 1.0):
        draw.text((left + 26, top + (1 - value) * (height - 20)), f"{value:g}", fill="black", font=font)
