"""A synthetic data set in GEMeX's layout, of GEMeX's size: four JSON-lines files, no image, no report.

    python benchmarks/gemex_rows.py FOLDER [--rows 1605575] [--images 151025] [--seed 0]

Other benchmarks import :func:`write`. The same numbers and seed give the same bytes. A row has about 780 bytes,
two thirds of them in ``reason`` and ``ori_report`` as in GEMeX; every image has at least one question, the others
are spread at random; a row points at one to four regions with boxes in the 224 x 224 frame.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

ROWS, IMAGES = 1_605_575, 151_025
FILES = ("closed_ended_question", "multi_choice_question", "open_ended_question", "single_choice_question")
_SHARES = (0.25, 0.15, 0.35, 0.25)
_CONTENTS = ("disease", "abnormality", "finding", "size", "location", "severity")
_REGIONS = (
    "right lung", "left lung", "right upper lung zone", "left upper lung zone", "right mid lung zone",
    "left mid lung zone", "right lower lung zone", "left lower lung zone", "right hilar structures",
    "left hilar structures", "right apical zone", "left apical zone", "right costophrenic angle",
    "left costophrenic angle", "right hemidiaphragm", "left hemidiaphragm", "trachea", "spine", "aortic arch",
    "mediastinum", "upper mediastinum", "svc", "cardiac silhouette", "cavoatrial junction", "right atrium",
    "descending aorta", "carina", "abdomen",
)  # fmt: skip
_FINDINGS = (
    "pleural effusion", "atelectasis", "consolidation", "pulmonary edema", "pneumothorax", "cardiomegaly",
    "a support device", "an interstitial pattern",
)  # fmt: skip
_FILLER = "Invented words stand where the authors give their reasoning and the report of the study. "
_BATCH = 50_000


def write(folder: Path, rows: int = ROWS, images: int = IMAGES, seed: int = 0) -> list[Path]:
    """Write ``rows`` questions about ``images`` images into ``folder``; returns the four files, sorted by name."""
    if not 1 <= images <= rows:
        raise ValueError(f"{images} images of {rows} rows: every image needs a row")
    folder.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(seed)
    spread = dice.integers(images, size=rows - images, dtype=np.int32)
    image_of_row = np.sort(np.concatenate([np.arange(images, dtype=np.int32), spread]))
    paths = [folder / f"{name}.jsonl" for name in FILES]
    streams = [path.open("w", encoding="ascii") for path in paths]
    counts = [0] * len(FILES)
    try:
        for start in range(0, rows, _BATCH):
            _write_batch(streams, counts, image_of_row[start : start + _BATCH].tolist(), dice)
    finally:
        for stream in streams:
            stream.close()
    return paths


def _write_batch(streams: list, counts: list[int], images: list[int], dice: np.random.Generator) -> None:
    """Append one row for each entry of ``images`` to the files; ``counts`` numbers the questions of each file."""
    size = len(images)
    kinds = dice.choice(len(FILES), size=size, p=_SHARES).tolist()
    boxes = _boxes(dice, size)
    places = dice.choice((1, 2, 3, 4), size=size, p=(0.6, 0.25, 0.1, 0.05)).tolist()
    draws = dice.integers(1 << 30, size=size).tolist()
    lines: list[list[str]] = [[] for _ in FILES]
    for image, kind, count, draw, box in zip(images, kinds, places, draws, boxes, strict=True):
        counts[kind] += 1
        names = [_REGIONS[(draw + 5 * step) % len(_REGIONS)] for step in range(count)]
        lines[kind].append(_line(image, kind, counts[kind], draw, names, box))
    for stream, text in zip(streams, lines, strict=True):
        stream.write("".join(text))


def _boxes(dice: np.random.Generator, size: int) -> list[list[list[int]]]:
    """Four boxes per row: x1, y1, x2, y2 in 0..224."""
    corner = dice.integers(0, 160, size=(size, 4, 2))
    extent = dice.integers(8, 64, size=(size, 4, 2))
    boxes: list[list[list[int]]] = np.concatenate([corner, corner + extent], axis=2).tolist()
    return boxes


def image_path(image: int) -> str:
    """MIMIC-CXR's path of image number ``image``."""
    subject, study, name = 10_000_000 + image * 61 % 9_999_991, 50_000_000 + image, image * 2_654_435_761 % (1 << 32)
    dicom = f"{name:08x}-{image:08x}-{name ^ 0x5BD1E995:08x}-{image * 40503 % (1 << 32):08x}-{name:08x}"
    return f"p{subject // 1_000_000}/p{subject}/s{study}/{dicom}.jpg"


def _line(image: int, kind: int, number: int, draw: int, names: list[str], boxes: list[list[int]]) -> str:
    """One row as a line of JSON. Nothing in it needs escaping, so no encoder is asked."""
    finding = _FINDINGS[draw % 7919 % len(_FINDINGS)]
    content = _CONTENTS[draw % 104_729 % len(_CONTENTS)]
    answers = ('"Yes."', '["A", "C"]', f'"There is {finding} in the {names[0]}."', '"B"')
    choices = ""
    if kind in (1, 3):
        choices = f'"choices": ["A: {finding}", "B: no {finding}", "C: {names[-1]}", "D: cannot be told"], '
    regions = ", ".join([f'"{name}"' for name in names])
    return (
        f'{{"question": "Does the film show {finding} in the {names[0]} (case {number})?", "type": "{content}", '
        f'"answer": {answers[kind]}, {choices}"reason": "{_FILLER}", "visual_regions": [{regions}], '
        f'"visual_locations": {boxes[: len(names)]}, "ori_report": "{_FILLER[draw % 40 :]}{_FILLER * 2}", '
        f'"image_path": "{image_path(image)}", "q_id": {number}, "row_id": "row_{image}"}}\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    paths = write(args.folder, args.rows, args.images, args.seed)
    facts = {
        "rows": args.rows, "images": args.images, "seed": args.seed,
        "gb": round(sum(path.stat().st_size for path in paths) / 1e9, 3),
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    print("gemex_rows", json.dumps(facts))


if __name__ == "__main__":
    main()
