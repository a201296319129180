"""A small finished run, written by hand: run.json, details.parquet and raw maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heatlens.batch.details import details_schema
from heatlens.batch.fingerprint import FORMAT_VERSION
from heatlens.evaluate.finished_run import FinishedRun, read_run
from heatlens.files import digest_file

SOURCE = (200, 240)
BOX_COLUMNS = {"found_boxes": str}


def row(number: int, **values: Any) -> dict[str, Any]:
    """A heat map's details; ``source``: the film's size."""
    size = values.pop("source", SOURCE)
    image = values.pop("image", f"files/p10/p10000{number:03d}/s5/film{number}.jpg")
    return {
        "image_path": f"{Path(image).with_suffix('')}_idx1.png",
        "source_image": image,
        "row": number,
        "source": f"data.jsonl:{number + 1}",
        "question_id": f"q{number}",
        "question": f"Where is finding {number}?",
        "answer": "There.",
        "choices": [],
        "question_type": "open_ended",
        "content_type": "location",
        "region": "right lung",
        "boxes": json.dumps([{"name": "right lung", "box": [10, 20, 60, 80], "frame": "source"}]),
        "prompt": f"finding {number} right lung",
        "prompt_truncated": False,
        "score": 1.0,
        "geometry": json.dumps({"source": size}),
        "warnings": [],
        **values,
    }


def write_run(
    folder: Path, rows: list[dict[str, Any]], *, stage: str = "attn_map", group: int = 1000, **config: Any
) -> Path:
    """A results folder. ``group``: rows of a row group. Raw maps are there unless SAVE_RAW_CAM=False."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = BOX_COLUMNS if stage == "bbox" else {}
    table = pa.Table.from_pylist(rows, details_schema(columns))
    pq.write_table(table, folder / "details.parquet", row_group_size=group)
    config = {"SAVE_RAW_CAM": True, "BOX_THRESHOLD": "otsu", "DATASET_PATH": str(folder.parent), **config}
    record = {
        "status": "complete",
        "exit_code": 0,
        "stage": stage,
        "counts": {"made": len(rows), "failed": 0},
        "config": {key: {"value": value, "origin": "flag"} for key, value in config.items()},
        "fingerprint": {"FORMAT_VERSION": FORMAT_VERSION},
        "files": {"details.parquet": digest_file(folder / "details.parquet")},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    if config["SAVE_RAW_CAM"]:
        for one in rows:
            width, height = json.loads(one["geometry"])["source"]
            write_map(folder / "raw" / one["image_path"], np.full((height // 2, width // 2), 0.5))
    return folder


def write_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), (values * 65535).round().astype(np.uint16))


def finished(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> FinishedRun:
    return read_run(write_run(folder / "results", rows, **keys))


def change_record(folder: Path, **values: Any) -> None:
    path = folder / "run.json"
    record = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps(record), encoding="utf-8")
