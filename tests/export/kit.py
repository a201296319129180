"""A finished bbox run written by hand: a few lines of boxes.jsonl, details.parquet and run.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# image, size, region, found [(xyxy, score, mass)], the data set's boxes [(box, frame)]
ROWS: list[tuple[str, tuple[int, int], str, list, list]] = [
    ("files/p10/a.jpg", (400, 200), "left  lung", [((10, 20, 110, 80), 0.81, 0.5), ((0, 0, 400, 200), 0.7, 0.2)],
     [((10.0, 20.0, 110.0, 80.0), "source")]),
    ("b/ü.png", (100, 300), "", [((99, 299, 100, 300), 1.0, 1.0)], []),
    ("c.dcm", (224, 224), "trachea", [],
     [((20.5, 30.25, 60.0, 90.0), "letterbox224"), ((1.0, 1.0, 9.0, 9.0), "unknown")]),
    ("files/p10/a.jpg", (400, 200), "left lung", [((10, 20, 110, 80), 0.9, 0.4)],
     [((10.0, 20.0, 110.0, 80.0), "source")]),
    ("c.png", (50, 60), 'a: "quoted"\nname', [((5, 6, 25, 36), 0.5, 0.25)], [((0.1, 0.1, 0.5, 0.6), "relative")]),
]  # fmt: skip
CONFIG = {"UMASK": "027", "IMAGE_ROOT": "/data/films", "DATASET_PATH": "/data/table.csv"}


def write_run(folder: Path, rows: Sequence[tuple] = ROWS, *, stage: str = "bbox", status: str = "complete") -> Path:
    """A results folder with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, details = [], []
    for number, (image, size, region, found, annotated) in enumerate(rows):
        overlay = f"{Path(image).with_suffix('')}_idx{number}.png"
        asked = {"question_id": f"q{number}", "question": f"Where {number % 2}?", "region": region}
        boxes = [
            {"xyxy": box, "xyxy_224": [0, 0, 1, 1], "score": score, "mass": mass, "padding": [0, 0, 0, 0]}
            for box, score, mass in found
        ]
        lines.append(
            {"image_path": image, "overlay": overlay, **asked, "answer": "", "prompt": region, "image_size": size,
             "threshold": 0.5, "boxes": boxes, "reason": "" if boxes else "no pixel is above the threshold"}
        )  # fmt: skip
        own = [{"name": region, "box": box, "frame": frame} for box, frame in annotated]
        details.append(
            {"image_path": overlay, "source_image": image, "boxes": json.dumps(own), "question_type": "single_choice",
             "content_type": "size" if number else ""}
        )  # fmt: skip
    (folder / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
    pq.write_table(pa.Table.from_pylist(details), folder / "details.parquet")
    config = {key: {"value": value, "origin": "default"} for key, value in CONFIG.items()}
    (folder / "run.json").write_text(json.dumps({"stage": stage, "status": status, "config": config}))
    return folder


def change_line(folder: Path, number: int, **fields: Any) -> None:
    """Other values in line ``number`` (from 1) of boxes.jsonl; Ellipsis takes a field away."""
    path = folder / "boxes.jsonl"
    lines = path.read_text(encoding="ascii").splitlines()
    data = json.loads(lines[number - 1]) | fields
    lines[number - 1] = json.dumps({name: value for name, value in data.items() if value is not ...})
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def tree(folder: Path) -> dict[str, str]:
    """Every file below: relative path -> text."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}
