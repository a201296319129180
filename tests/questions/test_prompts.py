"""Prompt templates."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_factory import make_row, quick

from heatlens.errors import ConfigError
from heatlens.questions.prompts import annotated_fields, check_template, fill

ROW = make_row(
    0, question="Where is it?", answer="Left", choices=("A: left", "B: right"), question_type="single_choice"
)


@pytest.mark.parametrize(
    ("template", "region", "prompt"),
    [
        ("{question} {region}", "left lung", "Where is it? left lung"),
        ("{question} {region}", "", "Where is it?"),
        ("{region}: {question}", "", ": Where is it?"),
        ("{region} {question}", "", "Where is it?"),
        ("see  {region}  in {question}", "", "see in Where is it?"),
        ("{question} [{choices}] {answer} {{x}}", "", "Where is it? [A: left, B: right] Left {x}"),
        ("{type}", "", "finding"),
        ("pneumonia", "", "pneumonia"),
    ],
)
def test_fill(template, region, prompt):
    assert fill(template, ROW, region) == prompt


def test_type_falls_back_to_the_question_type():
    assert fill("{type}", make_row(content_type="", question_type="single_choice"), "") == "single choice"


@quick
@given(st.text(min_size=1), st.text(max_size=5))
def test_a_question_goes_in_unchanged(question, region):
    row = make_row(question=question)
    assert fill("{question}{region}", row, region) == question + region
    if not region:
        assert fill("{question} {region}", row, region) == question


@pytest.mark.parametrize(
    "template",
    [
        "{quest}",
        "{question.__class__}",
        "{question[0]}",
        "{}",
        "{0}",
        "{question!r}",
        "{question:>9}",
        "{question",
        "}",
        "",
        "  ",
    ],
)
def test_anything_but_plain_fields_is_refused_with_the_allowed_ones(template):
    with pytest.raises(ConfigError, match=re.escape("{question}, {region}, {answer}, {choices}, {type}")):
        check_template(template)


def test_annotated_fields():
    assert annotated_fields("{question} {region} {choices}") == {"region", "choices"}
    assert annotated_fields("{question} {type} {{answer}}") == set()
