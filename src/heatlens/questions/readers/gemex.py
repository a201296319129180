"""GEMeX: JSON lines, one file per question type (arXiv 2411.16778, the authors' public sample)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from heatlens.questions.readers.base import FileReader, place, reading, type_of_file
from heatlens.questions.readers.draft import Draft
from heatlens.questions.readers.jsonfiles import Record, json_container
from heatlens.questions.readers.layouts import checked_json
from heatlens.questions.readers.sources import SourceFile, cut_blocks
from heatlens.questions.rows import LETTERBOX_224, QuestionRow, question_type_by_shape

if TYPE_CHECKING:
    from heatlens.questions.readers.plain import PlainRows

BLOCK_BYTES = 1 << 20
"""Of lines that are read as columns, or row by row if one of them is odd. Half of it costs a tenth more."""
CHANCES = 2
"""Blocks in a row that may be odd before the rest of a piece is taken for odd."""


class GemexReader(FileReader):
    """Rows of GEMeX. ``reason`` and ``ori_report`` are never looked at.

    ``question_id`` is "<file stem>:<q_id>", for q_id counts the questions of one file. The question type is
    told by the file's name, or by the row's shape where the name says nothing. Boxes are in ``letterbox224``.
    """

    suffixes = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")

    def records(self, source: SourceFile) -> Iterator[Record]:
        """The JSON objects of one file (lines, or one list)."""
        return checked_json("gemex", source)

    def has_lines(self, source: SourceFile) -> bool:
        """JSON lines can be cut, one list cannot."""
        return json_container(source) == "JSON lines"

    def blocks(self, piece: SourceFile) -> Iterator[tuple[SourceFile, PlainRows | None]]:
        """Blocks of lines; those with nothing but plain rows have their columns.

        Looking in vain costs time, so a piece with one odd block after another is not looked at to its end.
        """
        from heatlens.questions.readers.plain import read_plain

        question_type = type_of_file(piece.stem)
        if piece.span is None or not question_type:
            yield piece, None
            return
        chances = CHANCES
        with reading(piece):
            for block, lines in cut_blocks(piece, BLOCK_BYTES):
                assert block.span is not None
                if not chances:
                    yield replace(block, span=block.span._replace(end=piece.span.end)), None
                    return
                rows = read_plain(lines, block, question_type)
                chances = min(CHANCES, chances + 1) if rows else chances - 1
                yield block, rows

    def row(self, record: Record, source: SourceFile, number: int) -> QuestionRow:
        """One GEMeX object as a row."""
        data, draft = record.data or {}, Draft()
        choices = draft.choices(data.get("choices"))
        identity = draft.label(data.get("q_id"), "q_id") or f"row{record.place}"
        return draft.row(
            number,
            place(source, record),
            image_path=draft.text(data.get("image_path"), "image_path", required=True),
            question_id=f"{source.stem}:{identity}",
            question=draft.text(data.get("question"), "question", required=True),
            answer=draft.answer(data.get("answer")),
            choices=choices,
            question_type=type_of_file(source.stem) or question_type_by_shape(data.get("answer"), choices),
            content_type=draft.label(data.get("type"), "type"),
            regions=draft.regions(data.get("visual_regions"), data.get("visual_locations"), LETTERBOX_224),
        )
