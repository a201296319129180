"""YOLO's text format: a file per film with ``class cx cy w h`` in shares of its sides.

    labels/<image path without suffix>.txt   empty for a film without boxes
    classes.txt                              a name per line, class 0 first
    data.yaml, train.txt                     names and films for a trainer: link IMAGE_ROOT as images/ beside them

Rows of one film lie far apart in a run, so its boxes are first spooled to a file of fixed-size records and then read
film by film: in memory there are a number or two per box.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from heatlens.batch.run_record import image_root_of
from heatlens.export.catalogue import Catalogue
from heatlens.export.rows import Run, Size

LABELS_FOLDER, CLASSES, DATA, TRAIN = "labels", "classes.txt", "data.yaml", "train.txt"

_RECORD = np.dtype([("image", "<i4"), ("label", "<i4"), ("xyxy", "<i4", 4), ("score", "<f8")])
_CHUNK = 65_536


def write_yolo(run: Run, folder: Path, catalogue: Catalogue, label: str, *, scores: bool) -> dict[str, int]:
    """Write the files into ``folder``; returns counts: ``boxes`` written (one of a film's equal boxes of a class) and
    ``clashes``, films that keep their suffix in the name because another one would have the same."""
    names, clashes = file_names(list(catalogue.images))
    spool = folder / "boxes.spool"
    _spool(run, spool, catalogue, label)
    boxes = 0
    groups = _by_image(spool, len(catalogue.images))
    for (_, size), name, records in zip(catalogue.images.values(), names, groups, strict=True):
        lines = label_lines(records, size, scores=scores)
        path = folder / LABELS_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="ascii")
        boxes += len(lines)
    spool.unlink()
    _write_lists(run, folder, catalogue)
    return {"boxes": boxes, "clashes": clashes}


def file_names(images: list[str]) -> tuple[list[str], int]:
    """The label file of every image, relative to labels/, and how many keep their suffix: where two images differ in
    nothing else, neither gives it up."""
    kept: set[str] = set()
    while True:
        names = [f"{image if image in kept else PurePosixPath(image).with_suffix('')}.txt" for image in images]
        times = Counter(names)
        # Once more if that helps: x.png beside x.jpg keeps its suffix, and so meets x.png.bmp.
        equal = {image for image, name in zip(images, names, strict=True) if times[name] > 1} - kept
        if not equal:
            return names, len(kept)
        kept |= equal


def label_lines(records: NDArray[np.void], size: Size, *, scores: bool) -> list[str]:
    """The lines of one film's boxes in their order; of equal ones of a class the first place and the best score."""
    best: dict[tuple[int, ...], float] = {}
    for record in records:
        box = (int(record["label"]), *map(int, record["xyxy"]))
        best[box] = max(best.get(box, 0.0), float(record["score"]))
    width, height = size
    lines = []
    for (label, x1, y1, x2, y2), score in best.items():
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        numbers = [f"{number:.6f}" for number in (*shares, *((score,) if scores else ()))]
        lines.append(f"{label} {' '.join(numbers)}\n")
    return lines


def _spool(run: Run, path: Path, catalogue: Catalogue, label: str) -> None:
    """All boxes in the run's order as records."""
    with path.open("wb") as stream:
        waiting: list[tuple[int, int, tuple[int, ...], float]] = []
        for row in run.rows(label):
            image, number = catalogue.images[row.image][0], catalogue.labels[row.label]
            waiting += [(image, number, box.xyxy, box.score) for box in row.found]
            if len(waiting) >= _CHUNK:
                stream.write(np.array(waiting, _RECORD).tobytes())
                waiting.clear()
        stream.write(np.array(waiting, _RECORD).tobytes())


def _by_image(path: Path, images: int) -> Iterator[NDArray[np.void]]:
    """The records of every image, in the order of their numbers; within an image in the run's order."""
    if not path.stat().st_size:  # nothing to map
        yield from [np.empty(0, _RECORD)] * images
        return
    records = np.memmap(path, _RECORD, "r")
    numbers = np.array(records["image"])
    order = np.argsort(numbers, kind="stable")
    edges = np.searchsorted(numbers[order], np.arange(images + 1))
    for first, last in pairwise(edges):
        yield records[order[first:last]]


def _write_lists(run: Run, folder: Path, catalogue: Catalogue) -> None:
    (folder / CLASSES).write_text("".join(f"{name}\n" for name in catalogue.labels), encoding="utf-8")
    with (folder / TRAIN).open("w", encoding="utf-8") as stream:
        stream.writelines(f"./images/{image}\n" for image in catalogue.images)
    root = image_root_of(run.config)
    lines = [
        "# Boxes that were found in heat maps, not drawn by people. The paths are relative to this file's folder.",
        "# Link the films in before training:  ln -s IMAGE_ROOT images",
        "# Trainers want a val list: this is the same one, split it as the study needs.",
        *([f"# IMAGE_ROOT of the run: {json.dumps(str(root))}"] if root else []),
        f"train: {TRAIN}",
        f"val: {TRAIN}",
        "names:",
        # A JSON text is a YAML text.
        *(f"  {number}: {json.dumps(name, ensure_ascii=False)}" for name, number in catalogue.labels.items()),
    ]
    (folder / DATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
