"""PROMPT_TEMPLATE: from a row and a region to the text that the model reads."""

from __future__ import annotations

import re
from functools import lru_cache
from string import Formatter

from heatlens.errors import ConfigError
from heatlens.questions.rows import QuestionRow

FIELDS = ("question", "region", "answer", "choices", "type")
ANNOTATED = frozenset({"region", "answer", "choices"})
"""Fields that carry annotated knowledge: a run that uses them says so."""


@lru_cache(maxsize=32)
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """(literal text, field or None) pairs. Raises ConfigError for anything but plain fields."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"PROMPT_TEMPLATE={template!r}: {error}; fields are written {{question}}, a brace itself is "
            f"doubled; {_allowed()}"
        ) from error
    for _, field, form, conversion in parsed:
        if field is None:
            continue
        if field not in FIELDS:
            raise ConfigError(f"PROMPT_TEMPLATE={template!r}: unknown field {{{field}}}; {_allowed()}")
        if form or conversion:
            raise ConfigError(f"PROMPT_TEMPLATE={template!r}: write {{{field}}} without ! and :; {_allowed()}")
    return tuple((literal, field) for literal, field, _, _ in parsed)


def _allowed() -> str:
    return "allowed: " + ", ".join(f"{{{field}}}" for field in FIELDS)


def check_template(template: str) -> None:
    """ConfigError unless ``template`` is a text with none but the known fields."""
    if not template.strip():
        raise ConfigError(f"PROMPT_TEMPLATE is empty; for example {{question}} {{region}}; {_allowed()}")
    _parts(template)


def annotated_fields(template: str) -> set[str]:
    """Those of region, answer and choices that the template uses: annotated knowledge in the prompt."""
    return {field for _, field in _parts(template) if field is not None} & ANNOTATED


def fill(template: str, row: QuestionRow, region: str) -> str:
    """The prompt for one region of a row.

    Field values go in unchanged. ``{choices}`` is the choices joined with ", ", ``{type}`` the content type,
    else the question type in words. Where a field is empty, the template's blanks around it close up
    (``{question} {region}`` without a region is the question), so no prompt depends on an invisible blank.
    """
    values = {
        "question": row.question,
        "region": region,
        "answer": row.answer,
        "choices": ", ".join(row.choices),
        "type": row.content_type or row.question_type.replace("_", " "),
    }
    parts = _parts(template)
    if all(field is None or values[field] for _, field in parts):
        return "".join(literal + (values[field] if field else "") for literal, field in parts)
    return _closed_up([(literal, values[field] if field else "") for literal, field in parts])


def _closed_up(parts: list[tuple[str, str]]) -> str:
    """Literals and values joined, with the literals on both sides of an empty value read as one."""
    literals, values = [""], list[str]()
    for literal, value in parts:
        literals[-1] += literal
        if value:
            values.append(value)
            literals.append("")
    literals = [re.sub(r"\s+", " ", literal) for literal in literals]
    literals[0], literals[-1] = literals[0].lstrip(), literals[-1].rstrip()
    return "".join(piece for pair in zip(literals, [*values, ""], strict=True) for piece in pair)
