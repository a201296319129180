"""``--truth chestx-det10:FILE.json``: ChestX-Det10 (Liu et al., 2020), ten findings with boxes on NIH films.

A JSON list of {"file_name": "36199.png", "syms": ["Effusion", ...], "boxes": [[x1, y1, x2, y2], ...]}, syms and boxes
side by side, in pixels of the film (1024 x 1024 as published). An empty list is a film without findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.errors import ItemError
from heatlens.evaluate.truth.annotations import Annotation, AnnotationFile, Collected
from heatlens.evaluate.truth.reading import file_of, records, text, wrong_layout
from heatlens.questions.readers.draft import read_box

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun

NAME = "chestx-det10"
KEYS = ("file_name", "syms", "boxes")
KNOWN = "known is ChestX-Det10's JSON, a list of objects with file_name, syms and boxes"


def open_chestx_det10(path: Path | None, run: FinishedRun) -> AnnotationFile:  # noqa: ARG001
    """The findings and boxes of ChestX-Det10's JSON."""
    source = file_of(NAME, path, KNOWN)
    keys, rows = records(NAME, source, KNOWN)
    if not keys.issuperset(KEYS):
        wrong_layout(NAME, source, "a table", keys, KNOWN)
    collected = Collected()
    collected.take(source, rows, lambda data, place: _collect(data, place, collected))
    return AnnotationFile(NAME, source.path, collected)


def _collect(data: dict[str, Any], place: str, collected: Collected) -> None:
    image, names, boxes = text(data.get("file_name")), data.get("syms"), data.get("boxes")
    if not (isinstance(names, list) and isinstance(boxes, list) and len(names) == len(boxes)):
        raise ItemError("row", "syms and boxes are not two lists of one length")
    collected.add(image, None)
    for annotation in _annotations(names, boxes, place, collected):
        collected.add(image, annotation)


def _annotations(names: list[Any], boxes: list[Any], place: str, collected: Collected) -> Iterator[Annotation]:
    for name, listed in zip(names, boxes, strict=True):
        box, fault = read_box(listed)
        if box is None:
            collected.bad(place, f"the box of {text(name)!r} {fault}")
        elif not text(name):
            collected.bad(place, "a box without a name")
        else:
            yield Annotation(text(name), (text(name),), place, (box,))
