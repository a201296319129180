"""``--truth ms-cxr:FILE.csv``: MS-CXR (Boecking et al., ECCV 2022), 1,162 phrases with boxes on MIMIC-CXR films.

One row per box: category_name, label_text (the phrase), path (files/p10/.../x.jpg), x, y, w, h (the box's corner and
sides), image_width, image_height (the picture that was annotated). Rows of one phrase are one target.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.errors import ItemError
from heatlens.evaluate.truth.annotations import Annotation, AnnotationFile, Collected
from heatlens.evaluate.truth.reading import file_of, numbers, records, text, wrong_layout

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun

NAME = "ms-cxr"
COLUMNS = ("category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
KNOWN = f"known is MS-CXR's CSV with {', '.join(COLUMNS)}"


def open_ms_cxr(path: Path | None, run: FinishedRun) -> AnnotationFile:  # noqa: ARG001
    """The phrases and boxes of MS-CXR's CSV."""
    source = file_of(NAME, path, KNOWN)
    keys, rows = records(NAME, source, KNOWN)
    if not keys.issuperset(COLUMNS):
        wrong_layout(NAME, source, "a table", keys, KNOWN)
    collected = Collected()
    collected.take(source, rows, lambda data, place: collected.add(text(data.get("path")), _annotation(data, place)))
    return AnnotationFile(NAME, source.path, collected)


def _annotation(data: dict[str, Any], place: str) -> Annotation:
    values = numbers(data.get(name) for name in COLUMNS[3:])
    if values is None:
        raise ItemError("row", f"{', '.join(COLUMNS[3:])} are not all numbers")
    x, y, width, height, *frame = values
    if not min(width, height, *frame) > 0:
        raise ItemError("row", "a box or a picture without area")
    finding = text(data.get("category_name"))
    names = tuple(name for name in (text(data.get("label_text")), finding) if name)
    return Annotation(finding, names, place, ((x, y, x + width, y + height),), (frame[0], frame[1]))
