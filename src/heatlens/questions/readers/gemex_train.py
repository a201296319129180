"""GEMeX's training format: one JSON list of conversations, of the same authors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from heatlens.questions.readers.base import FileReader, place, type_of_file
from heatlens.questions.readers.draft import Draft, choices_in_question, kind_of
from heatlens.questions.readers.jsonfiles import Record, json_container
from heatlens.questions.readers.layouts import checked_json
from heatlens.questions.readers.sources import SourceFile
from heatlens.questions.rows import LETTERBOX_224, QuestionRow, question_type_by_shape, question_type_named

_IMAGE_TOKEN = re.compile(r"<image>[ \t]*\r?\n?|\r?\n[ \t]*<image>[ \t]*\Z")
_ANSWER = re.compile(r"<answer>\s*:?(?P<answer>.*?)(?=</answer>|<reason>|<location>|\Z)", re.DOTALL | re.IGNORECASE)
_NEXT_TAG = re.compile(r"</?(?:answer|reason|location)>", re.IGNORECASE)
_LOCATION = re.compile(r"<location>\s*:?(?P<boxes>.*?)(?=</location>|<answer>|<reason>|\Z)", re.DOTALL | re.IGNORECASE)


class GemexTrainReader(FileReader):
    """Rows of the training list. A conversation with several questions gives a row for each.

    The question is the human's text without the ``<image>`` token and its line break; choices written into it
    stay there and are listed in ``choices`` too. The reasoning in the answer is dropped. Region names are
    absent: regions have a box and an empty name. ``row_id`` counts images, so ids are "<file stem>:<item>".
    """

    suffixes = (".json", ".json.gz")

    def records(self, source: SourceFile) -> Iterator[Record]:
        """One record per question: the conversation's turns as ``human`` and ``gpt``."""
        for item in checked_json("gemex_train", source):
            if item.data is None:
                yield item
                continue
            pairs = list(_turns(item.data.get("conversations"))) or [(None, None)]
            for turn, (human, gpt) in enumerate(pairs, start=1):
                identity = f"{item.place}" if turn == 1 else f"{item.place}.{turn}"
                yield item._replace(data={**item.data, "human": human, "gpt": gpt, "identity": identity})

    def has_lines(self, source: SourceFile) -> bool:
        """JSON lines can be cut, one list cannot."""
        return json_container(source) == "JSON lines"

    def row(self, record: Record, source: SourceFile, number: int) -> QuestionRow:
        """One question and answer of a conversation as a row."""
        data, draft = record.data or {}, Draft()
        question = _IMAGE_TOKEN.sub(
            "", draft.text(data["human"], "question (the human's turn)", required=True), count=1
        )
        if data["human"] is not None and not question.strip():
            draft.problems.append("question is empty")
        reply = draft.text(data["gpt"], "the answer (gpt's turn)")
        answer, choices = answer_of(reply), choices_in_question(question)
        return draft.row(
            number,
            place(source, record),
            image_path=draft.text(_single(data.get("image")), "image", required=True),
            question_id=f"{source.stem}:{data['identity']}",
            question=question,
            answer=answer,
            choices=choices,
            question_type=question_type_named(draft.label(data.get("q_type"), "q_type"))
            or type_of_file(source.stem)
            or question_type_by_shape(answer, choices),
            regions=draft.regions(None, boxes_of(reply, draft), LETTERBOX_224),
        )


def _turns(conversations: Any) -> Iterator[tuple[Any, Any]]:
    """(human's value, gpt's value) pairs; a human's turn without a reply has None."""
    turns = [turn for turn in conversations if isinstance(turn, dict)] if isinstance(conversations, list) else []
    for index, turn in enumerate(turns):
        if turn.get("from") in ("human", "user"):
            following = turns[index + 1] if index + 1 < len(turns) else {}
            answered = following.get("from") not in ("human", "user")
            yield turn.get("value"), following.get("value") if answered else None


def _single(image: Any) -> Any:
    """The only item of a one-item list; anything else as it is."""
    return image[0] if isinstance(image, list) and len(image) == 1 else image


def answer_of(reply: str) -> str:
    """The text behind ``<answer>``, up to the next tag; without that tag, the text before the first tag."""
    if match := _ANSWER.search(reply):
        return match["answer"].strip()
    tag = _NEXT_TAG.search(reply)
    return reply[: tag.start()].strip() if tag else reply.strip()


def boxes_of(reply: str, draft: Draft) -> list[Any] | None:
    """The boxes behind ``<location>``; unreadable ones are noted and left out."""
    match = _LOCATION.search(reply)
    if not match or not match["boxes"].strip():
        return None
    text = match["boxes"].strip()
    try:
        boxes = json.loads(text[text.index("[") : text.rindex("]") + 1])
    except (ValueError, RecursionError):
        boxes = None
    if not isinstance(boxes, list):
        draft.notes.append(f"the location is {kind_of(boxes)}, not a list of boxes: left out")
        return None
    return boxes
