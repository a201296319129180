"""``--truth table:FILE``: a table of one's own, as CSV, TSV, JSON lines, JSON list or Parquet.

A row is one box or one mask: ``image``, ``label`` (optional), and ``x1, y1, x2, y2`` or ``x, y, w, h`` (the corner and
the sides) or ``mask`` (the path of a picture, beside the table). The numbers are pixels of the film; with ``width`` and
``height`` (optional) they are pixels of a picture of that size, and are scaled to the film. Rows of one image and one
label are one target. A row with an image and nothing else says: looked at, and nothing is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.errors import ItemError
from heatlens.evaluate.target import Box
from heatlens.evaluate.truth.annotations import Annotation, AnnotationFile, Collected
from heatlens.evaluate.truth.masks import FileMask
from heatlens.evaluate.truth.reading import beside, file_of, numbers, records, text, wrong_layout
from heatlens.questions.readers import columns

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun

NAME = "table"
KNOWN = "known is a table with image, label (optional), and x1,y1,x2,y2 or x,y,w,h or mask; optional width,height"
CORNERS, SIDES, FRAME = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("width", "height")
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "image": columns.IMAGE,
    "label": ("label", "finding", "name", "region", "class", "class_name", "label_text", "prompt"),
    "mask": ("mask", "mask_path"),
    **{edge: columns.SYNONYMS[edge] for edge in CORNERS},
    **{name: (name,) for name in SIDES},
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
}
"""Our name of a field -> the column names that mean it; where a table has several, the first wins."""


def open_table(path: Path | None, run: FinishedRun) -> AnnotationFile:  # noqa: ARG001
    """The boxes and masks of a table."""
    source = file_of(NAME, path, KNOWN)
    keys, rows = records(NAME, source, KNOWN)
    fields = _fields(keys)
    if "image" not in fields or not any(fields.keys() >= set(wanted) for wanted in (CORNERS, SIDES, ("mask",))):
        wrong_layout(NAME, source, "a table", keys, KNOWN)
    collected = Collected()

    def use(row: dict[str, Any], place: str) -> None:
        data = {field: row.get(name) for field, name in fields.items()}
        collected.add(text(data["image"]), _annotation(data, place, source.path.parent))

    collected.take(source, rows, use)
    return AnnotationFile(NAME, source.path, collected)


def _fields(names: set[str]) -> dict[str, str]:
    own: dict[str, str] = {}
    for name in sorted(names):
        own.setdefault(columns.plain(str(name)), name)
    found = {field: next((own[name] for name in known if name in own), None) for field, known in SYNONYMS.items()}
    return {field: name for field, name in found.items() if name is not None}


def _annotation(data: Mapping[str, Any], place: str, folder: Path) -> Annotation | None:
    label = text(data.get("label"))
    names = (label,) if label else ()
    if mask := text(data.get("mask")):
        return Annotation(label, names, place, mask=FileMask(folder / beside(mask)))
    box = _box(data)
    return None if box is None else Annotation(label, names, place, (box,), _frame(data))


def _box(data: Mapping[str, Any]) -> Box | None:
    """The row's box; None when all of its cells are empty. ItemError for half a box."""
    for fields in (CORNERS, SIDES):
        cells = [data.get(field) for field in fields]
        if all(text(cell) == "" for cell in cells):
            continue
        values = numbers(cells)
        if values is None:
            raise ItemError("row", f"{', '.join(fields)} are not all numbers")
        x, y, third, fourth = values
        box = (x, y, x + third, y + fourth) if fields is SIDES else (x, y, third, fourth)
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ItemError("row", "the box has no area")
        return box
    return None


def _frame(data: Mapping[str, Any]) -> tuple[float, float] | None:
    cells = [data.get(field) for field in FRAME]
    if all(text(cell) == "" for cell in cells):
        return None
    values = numbers(cells)
    if values is None or min(values) <= 0:
        raise ItemError("row", "width and height are not numbers above 0")
    return values[0], values[1]
