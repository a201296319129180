"""The column names that DATASET=table understands. Case, blanks and hyphens do not matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

IMAGE = ("image", "image_path", "path", "file", "file_name", "filename")
QUESTION = ("question", "prompt", "text", "label_text")
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "image": IMAGE,
    "question": QUESTION,
    "answer": ("answer",),
    "question_id": ("question_id", "id", "q_id"),
    "region": ("region", "regions", "region_name"),
    "x1": ("x1", "x_min", "xmin"),
    "y1": ("y1", "y_min", "ymin"),
    "x2": ("x2", "x_max", "xmax"),
    "y2": ("y2", "y_max", "ymax"),
    "x": ("x",),
    "y": ("y",),
    "w": ("w", "width"),
    "h": ("h", "height"),
    "choices": ("choices", "options"),
    "question_type": ("question_type", "q_type"),
    "type": ("type", "content_type", "category_name"),
    "split": ("split",),
    "view": ("view", "viewposition", "view_position"),
}
"""Our name of a field -> the column names that mean it; where a table has several, the first wins."""


def plain(name: str) -> str:
    """A column name without case, outer blanks, and with _ for blanks and hyphens."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def mapping(names: Iterable[str]) -> dict[str, str]:
    """Our field name -> the table's own column name, for the columns that we understand."""
    own: dict[str, str] = {}
    for name in names:
        own.setdefault(plain(str(name)), name)
    fields = {}
    for field, synonyms in SYNONYMS.items():
        if known := next((own[name] for name in synonyms if name in own), None):
            fields[field] = known
    return fields


def usable(names: Iterable[str]) -> bool:
    """Whether a table with these columns has an image and a question."""
    return {"image", "question"} <= mapping(names).keys()


def touched(names: Iterable[str]) -> bool:
    """Whether at least one of the two is there."""
    return bool({"image", "question"} & mapping(names).keys())


def delimiter(header: str) -> str:
    """The delimiter that cuts a header line into the most columns: comma, tab or semicolon."""
    return max((",", "\t", ";"), key=header.count)
