"""GEMeX-ThinkVG: one Parquet file with XML-like responses, of the GEMeX authors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from heatlens.questions.readers.base import FileReader, place, type_of_file
from heatlens.questions.readers.draft import Draft, choices_in_question
from heatlens.questions.readers.jsonfiles import Record
from heatlens.questions.readers.layouts import LAYOUTS, look, unknown_layout
from heatlens.questions.readers.sources import SourceFile
from heatlens.questions.rows import (
    UNKNOWN_FRAME,
    QuestionRow,
    Region,
    question_type_by_shape,
    question_type_named,
)

_WANTED = ("image_path", "question", "question_type", "response", "choices", "q_id", "id")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LOCATION = re.compile(r"<location>(.*?)(?:</location>|\Z)", re.DOTALL)
_PIECE = re.compile(r"<ref>(?P<ref>.*?)</ref>|<box>(?P<box>.*?)</box>", re.DOTALL)
_NUMBERS = re.compile(r"\[([^\[\]]*)\]")


class ThinkVGReader(FileReader):
    """Rows of ThinkVG. The ``thinkVG`` column (reasoning) is never read from the file.

    Boxes exceed 224, and no frame is documented: their frame is ``unknown``.
    """

    suffixes = (".parquet", ".pq")

    def records(self, source: SourceFile) -> Iterator[Record]:
        """The rows of one Parquet file, with the columns that we read."""
        container, found = look(source)
        if container != "Parquet" or not LAYOUTS["thinkvg"].matches(found):
            raise unknown_layout("thinkvg", container, source, found)
        from heatlens.questions.readers.parquet import read_parquet

        return read_parquet(source, [name for name in _WANTED if name in found])

    def row(self, record: Record, source: SourceFile, number: int) -> QuestionRow:
        """One row of the file as ours."""
        data, draft = record.data or {}, Draft()
        response = draft.text(data.get("response"), "response")
        question = draft.text(data.get("question"), "question", required=True)
        identity = draft.label(data.get("q_id", data.get("id")), "id") or f"row{record.place}"
        choices = draft.choices(data.get("choices")) or choices_in_question(question)
        answer = match[1].strip() if (match := _ANSWER.search(response)) else ""
        if not match:
            draft.notes.append("the response holds no <answer>")
        return draft.row(
            number,
            place(source, record),
            image_path=draft.text(data.get("image_path"), "image_path", required=True),
            question_id=f"{source.stem}:{identity}",
            question=question,
            answer=answer,
            choices=choices,
            question_type=question_type_named(draft.label(data.get("question_type"), "question_type"))
            or type_of_file(source.stem)
            or question_type_by_shape(answer, choices),
            regions=_regions(response, draft),
        )


def _regions(response: str, draft: Draft) -> tuple[Region, ...]:
    """The location's references, each with its boxes: one region per box, and one for a name without any."""
    location = _LOCATION.search(response)
    names: list[str] = []
    boxes: list[Any] = []
    open_name: str | None = None  # a name that no box has followed yet
    last_name = ""
    for piece in _PIECE.finditer(location[1] if location else ""):
        if piece["ref"] is not None:
            if open_name is not None:
                names, boxes = [*names, open_name], [*boxes, None]
            open_name = last_name = piece["ref"].strip()
            continue
        found = [_numbers(text) for text in _NUMBERS.findall(piece["box"])] or [_numbers(piece["box"])]
        names, boxes, open_name = names + [last_name] * len(found), boxes + found, None
    if open_name is not None:
        names, boxes = [*names, open_name], [*boxes, None]
    return draft.regions(names, boxes, UNKNOWN_FRAME)


def _numbers(text: str) -> list[Any]:
    """ "1, 2.5, 3" as numbers; what is none stays a text, which the box check then names."""
    return [_number(part) for part in text.split(",")]


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
