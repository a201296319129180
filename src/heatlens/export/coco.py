"""COCO's detection format: what pycocotools and most detection tools read.

    found.json           images, categories, and an annotation per found box
    found_results.json   the same boxes as the plain list that COCO.loadRes takes
    annotated.json       the data set's own boxes with the same image and category numbers; only where it has any

A heat map brings its own annotations: where two questions ask about one region of a film, the region's annotated box
stands there twice and may be found twice. Boxes are [x, y, width, height] in source pixels; numbers start at 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from heatlens.export.catalogue import Catalogue
from heatlens.export.rows import Row, Run

FOUND, RESULTS, ANNOTATED = "found.json", "found_results.json", "annotated.json"


def write_coco(run: Run, folder: Path, catalogue: Catalogue, label: str) -> dict[str, int]:
    """Write the files into ``folder``; returns counts: ``annotated`` boxes, and ``unusable`` ones left out."""
    counts = {"annotated": 0, "unusable": 0}
    with ExitStack() as stack:
        found, results, annotated = (stack.enter_context(_Items(folder / name)) for name in (FOUND, RESULTS, ANNOTATED))
        found.open_file(_head("boxes found in heat maps", label, catalogue))
        annotated.open_file(_head("boxes of the data set", label, catalogue))
        results.open_file(None)
        for row in run.rows(label, annotated=True):
            image, category = catalogue.images[row.image][0] + 1, catalogue.labels[row.label] + 1
            for box in row.found:
                plain = {**_placed(image, category, box.xyxy), "score": box.score}
                found.add({"id": found.count + 1, **plain, **_SHAPE, **_whence(row), "mass": box.mass})
                results.add(plain)
            for own in row.annotated:
                edges = tuple(round(edge, 2) for edge in own)
                annotated.add({"id": annotated.count + 1, **_placed(image, category, edges), **_SHAPE, **_whence(row)})
            counts["unusable"] += row.unusable
        counts["annotated"] = annotated.count
    if not counts["annotated"]:
        (folder / ANNOTATED).unlink()
    return counts


_SHAPE: dict[str, Any] = {"iscrowd": 0, "segmentation": []}


def _placed(image: int, category: int, edges: tuple[float, ...]) -> dict[str, Any]:
    x1, y1, x2, y2 = edges
    width, height = _rounded(x2 - x1), _rounded(y2 - y1)
    return {
        "image_id": image, "category_id": category, "bbox": [x1, y1, width, height], "area": _rounded(width * height),
    }  # fmt: skip


def _rounded(value: float) -> float:
    """Whole numbers stay whole, others keep hundredths of a pixel."""
    return value if isinstance(value, int) else round(value, 2)


def _whence(row: Row) -> dict[str, str]:
    return {"question_id": row.question_id, "overlay": row.overlay}


def _head(what: str, label: str, catalogue: Catalogue) -> dict[str, Any]:
    """The file's parts before the annotations; its images come one by one, so that no copy of them is needed."""
    images = (
        {"id": number + 1, "file_name": path, "width": size[0], "height": size[1]}
        for path, (number, size) in catalogue.images.items()
    )
    categories = ({"id": number + 1, "name": name} for name, number in catalogue.labels.items())
    info = {"description": f"heatlens: {what}", "labels": label}
    return {"info": info, "licenses": [], "images": images, "categories": categories}


class _Items:
    """A JSON file that ends in a list, written item by item: one line each."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._path = path
        self._stream: TextIO | None = None

    def __enter__(self) -> _Items:
        self._stream = self._path.open("w", encoding="ascii")
        return self

    def open_file(self, head: dict[str, Any] | None) -> None:
        """Everything before the first item: for None the file is nothing but the list."""
        self._closing = "\n]\n"
        if head is None:
            self._write("[")
            return
        self._closing = "\n]\n}\n"
        self._write("{\n")
        for name, value in head.items():
            self._write(f"{json.dumps(name)}: ")
            if isinstance(value, dict | list):
                self._write(json.dumps(value))
            else:
                self._list(value)
            self._write(",\n")
        self._write('"annotations": [')

    def add(self, item: dict[str, Any]) -> None:
        """One more item."""
        self._write(f"{',' if self.count else ''}\n{json.dumps(item)}")
        self.count += 1

    def _list(self, items: Iterable[dict[str, Any]]) -> None:
        self._write("[")
        for number, item in enumerate(items):
            self._write(f"{',' if number else ''}\n{json.dumps(item)}")
        self._write("\n]")

    def _write(self, text: str) -> None:
        assert self._stream is not None
        self._stream.write(text)

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        assert self._stream is not None
        with self._stream:
            if kind is None:
                self._write(self._closing)
