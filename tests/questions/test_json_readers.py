"""GEMeX lines and the training list: broken pieces stay one row, hostile texts arrive unchanged."""

from __future__ import annotations

import gzip
import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_factory import in_one_folder, quick

from heatlens.errors import DataSetError
from heatlens.questions.readers import jsonfiles
from heatlens.questions.readers.draft import choices_in_question
from heatlens.questions.readers.gemex import GemexReader
from heatlens.questions.readers.gemex_train import GemexTrainReader, answer_of
from heatlens.questions.readers.sources import SourceFile

GOOD = {"question": "Where?", "image_path": "a.png", "answer": "Left.", "q_id": 4}


def gemex(folder: Path, content: bytes | list, name: str = "questions.jsonl") -> list:
    """The rows of a GEMeX file with ``content``."""
    if isinstance(content, list):
        content = b"\n".join(json.dumps(item).encode() for item in content)
    (folder / name).write_bytes(content)
    return list(GemexReader(folder / name).rows())


def train(folder: Path, human: object, gpt: object = "<answer> Yes. ", **fields: object) -> list:
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
    (folder / "t.json").write_text(json.dumps([{"conversations": turns, "image": "a.png"} | fields]))
    return list(GemexTrainReader(folder / "t.json").rows())


def test_broken_json_on_line_7_is_one_row(tmp_path):
    lines = [json.dumps(GOOD).encode()] * 9
    lines[6] = lines[6][:-5]
    rows = gemex(tmp_path, b"\n".join(lines), "closed_ended_question.jsonl")
    assert [row.number for row in rows] == list(range(9))
    assert [bool(row.error) for row in rows] == [number == 6 for number in range(9)]
    assert rows[6].error.startswith("closed_ended_question.jsonl:7: not valid JSON: ")
    assert rows[6].question_type == "closed_ended"


def test_byte_order_mark_crlf_empty_lines_and_no_newline_at_the_end(tmp_path):
    line = json.dumps(GOOD).encode()
    rows = gemex(tmp_path, b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert [(row.source, row.error) for row in rows] == [("questions.jsonl:1", ""), ("questions.jsonl:4", "")]


def test_bytes_that_are_not_utf8_spoil_their_own_row_only(tmp_path):
    bad = b'{"question": "Wo\xff?", "image_path": "a.png"}'
    rows = gemex(tmp_path, b"\n".join([json.dumps(GOOD).encode(), bad, b"\xfe\xff\x00", json.dumps(GOOD).encode()]))
    assert [bool(row.error) for row in rows] == [False, True, True, False]
    assert "question is not valid Unicode" in rows[1].error
    assert (rows[1].question, rows[1].image_path) == ("Wo\ufffd?", "a.png")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "no question"),
        ({"question": " "}, "question is empty"),
        ({"question": ["a"]}, "question is a list, not a text"),
        ({"image_path": None}, "no image_path"),
        ({"image_path": 7}, "image_path is a number"),
        ({"visual_regions": {"a": 1}}, "the regions are not a list of names"),
        ({"visual_regions": ["lung", 3]}, "the regions are not a list of names"),
        ({"question": "\ud800"}, "not valid Unicode"),
        ({"answer": "\udfff"}, "answer is not valid Unicode"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, change, reason):
    rows = gemex(tmp_path, [GOOD, GOOD | change])
    assert rows[0].error == ""
    assert reason in rows[1].error and rows[1].error.startswith("questions.jsonl:2: ")
    repr(rows[1]).encode()


@pytest.mark.parametrize(
    ("boxes", "note"),
    [
        ([[1, 2, 3]], "has 3 numbers, not 4"),
        ([[1, 2, 3, float("nan")]], "NaN"),
        ([[1, 2, 10**400, 4]], "too large"),
        ([[1, 2, True, 4]], "not a number"),
        ([[5, 5, 5, 9]], "no area"),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], "1 regions but 2 boxes"),
        ("1,2,3,4", "the boxes are a text, not a list"),
    ],
)
def test_a_bad_box_is_left_out_with_a_note_and_the_region_stays(tmp_path, boxes, note):
    (row,) = gemex(tmp_path, [GOOD | {"visual_regions": ["lung"], "visual_locations": boxes}])
    assert row.error == ""
    assert [(region.name, region.box) for region in row.regions] == [("lung", None)]
    assert note in " ".join(row.notes)


def test_a_box_beyond_the_frame_has_an_unknown_frame(tmp_path):
    (row,) = gemex(tmp_path, [GOOD | {"visual_regions": ["lung"], "visual_locations": [[1, 2, 300, 4]]}])
    assert (row.regions[0].frame, row.regions[0].box) == ("unknown", (1.0, 2.0, 300.0, 4.0))
    (row,) = gemex(tmp_path, [GOOD | {"visual_regions": ["lung"], "visual_locations": [1, 2, 3, 4]}])
    assert row.regions[0].box == (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("C", "C"),
        (["A", "Ä"], '["A", "Ä"]'),
        (3, "3"),
        (True, "true"),
        (None, ""),
        ({"a": 1.5}, '{"a": 1.5}'),
        ("", ""),
    ],
)
def test_answers(tmp_path, answer, text):
    assert gemex(tmp_path, [GOOD | {"answer": answer}])[0].answer == text


@pytest.mark.parametrize(
    ("name", "fields", "kind"),
    [
        ("single_choice_question.jsonl", {}, "single_choice"),
        ("x.jsonl", {"choices": ["A: a"], "answer": ["A"]}, "multi_choice"),
        ("x.jsonl", {"choices": ["A: a"], "answer": "A"}, "single_choice"),
        ("x.jsonl", {"answer": "No."}, "closed_ended"),
        ("reopen.jsonl", {"answer": "Left."}, "open_ended"),
        ("x.jsonl", {"answer": None}, ""),
    ],
)
def test_question_types(tmp_path, name, fields, kind):
    assert gemex(tmp_path, [GOOD | fields], name)[0].question_type == kind


def test_ids_are_unique_over_files_of_the_same_name(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    reader = GemexReader(tmp_path / "*" / "q.jsonl.gz")
    assert [row.question_id for row in reader.rows()] == ["one/q:4", "two/q:4"]
    assert [row.number for row in reader.rows()] == [0, 1]
    assert [row.source for row in reader.rows()] == ["one/q.jsonl.gz:1", "two/q.jsonl.gz:1"]


def test_a_line_of_any_length_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonfiles, "MAX_ITEM", 1000)
    long = json.dumps(GOOD | {"reason": "x" * 5000}).encode()
    rows = gemex(tmp_path, b"\n".join([json.dumps(GOOD).encode(), long, json.dumps(GOOD).encode()]))
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert rows[2].source == "questions.jsonl:3"


@in_one_folder
@given(st.text(), st.text(), st.lists(st.text(), max_size=3), st.booleans())
def test_hostile_texts_arrive_unchanged(tmp_path, question, answer, choices, ascii_only):
    line = json.dumps({**GOOD, "question": question, "answer": answer, "choices": choices}, ensure_ascii=ascii_only)
    (row,) = gemex(tmp_path, line.encode("utf-8", "surrogatepass"))
    whole = "".join([question, answer, *choices])
    spoilt = any("\ud800" <= character <= "\udfff" for character in whole)
    assert bool(row.error) == (spoilt or not question.strip())
    if not spoilt:
        assert (row.question, row.answer, row.choices) == (question, answer, tuple(choices))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def array(folder: Path, content: str | bytes) -> list:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    (folder / "a.json").write_bytes(data)
    return list(jsonfiles.read_array(SourceFile(folder / "a.json", "a.json", "a")))


@in_one_folder
@given(st.lists(JSON, max_size=6), st.sampled_from([None, 1]), st.integers(1, 9), st.booleans())
def test_a_list_reads_the_same_through_any_window(tmp_path, items, indent, chunk, ascii_only):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonfiles, "_CHUNK", chunk)
        text = json.dumps(items, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
        records = array(tmp_path, text)
    expected = json.loads(text)
    assert [record.place for record in records] == list(range(1, len(expected) + 1))
    assert [record.data for record in records] == [item if isinstance(item, dict) else None for item in expected]


def test_a_list_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonfiles, "_CHUNK", 4096)
    (tmp_path / "a.json").write_text(json.dumps([{"n": n} for n in range(50_000)]))
    windows = []
    grow = jsonfiles._Window._grow
    monkeypatch.setattr(jsonfiles._Window, "_grow", lambda window: (grow(window), windows.append(len(window._text)))[0])
    assert sum(1 for _ in jsonfiles.read_array(SourceFile(tmp_path / "a.json", "a.json", "a"))) == 50_000
    assert max(windows) < 10_000


@pytest.mark.parametrize(
    "text", ['[{"a": 1}', '[{"a": 1},', '[{"a": 1} {"b": 2}]', '[{"a" 1}, {}]', "[{}] []", '[{"a": "x']
)
def test_a_broken_list_is_an_error_of_the_data_set(tmp_path, text):
    with pytest.raises(DataSetError, match=r"a\.json"):
        array(tmp_path, text)


@pytest.mark.parametrize(
    ("human", "question"),
    [
        ("<image>\nWhere?", "Where?"),
        ("<image>\r\n  Where?\n", "  Where?\n"),
        ("Where?\n<image>", "Where?"),
        ("<image> A\n\nB <image>", "A\n\nB <image>"),
        ("Where?", "Where?"),
    ],
)
def test_the_image_token_is_taken_out_and_nothing_else(tmp_path, human, question):
    assert train(tmp_path, human)[0].question == question


@pytest.mark.parametrize(
    ("gpt", "answer", "boxes"),
    [
        ("<answer> A, B <reason> r <location> [[1, 2, 3, 4], [5, 6, 7, 8]]", "A, B", 2),
        ("<answer>: Yes. <location> [1, 2, 3, 4]", "Yes.", 1),
        ("<reason> r <answer> No. <location> none", "No.", 0),
        ("<answer>a</answer><reason>r</reason><location>[[1,2,3,4]]</location>", "a", 1),
        ("Just text <reason> r", "Just text", 0),
        ("<reason> only reasoning", "", 0),
        ("", "", 0),
        (None, "", 0),
    ],
)
def test_answers_and_boxes_of_the_training_list(tmp_path, gpt, answer, boxes):
    (row,) = train(tmp_path, "Where?", gpt)
    assert (row.answer, len(row.regions), row.error) == (answer, boxes, "")
    assert all(region.name == "" and region.frame == "letterbox224" for region in row.regions)


@pytest.mark.parametrize(
    "conversations", [None, [], "x", [{"from": "gpt", "value": "a"}], [{"from": "human", "value": ["q"]}]]
)
def test_a_conversation_without_a_question_is_a_bad_row_of_its_image(tmp_path, conversations):
    (row,) = train(tmp_path, "Where?", conversations=conversations)
    assert "question" in row.error and row.image_path == "a.png"


def test_every_turn_of_a_conversation_is_a_row(tmp_path):
    turns = [{"from": who, "value": f"{who}{n}"} for n in (1, 2) for who in ("human", "gpt")]
    rows = train(tmp_path, "", conversations=turns)
    assert [(row.question_id, row.question, row.answer) for row in rows] == [
        ("t:1", "human1", "gpt1"),
        ("t:1.2", "human2", "gpt2"),
    ]


@quick
@given(st.text(alphabet=string.printable))
def test_reasoning_is_never_part_of_the_answer(reason):
    assert answer_of(f"<answer> Yes. <reason> {reason}") == "Yes."


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ("A: one, two, B: B: or not, C: c", ("A: one, two", "B: B: or not", "C: c")),
        ("'A: x', \"B: y\"", ("A: x", "B: y")),
        ('"A: x", "B: y, z"', ("A: x", "B: y, z")),
        ("A. x, B. [y]", ("A. x", "B. [y]")),
        ("nothing", ()),
    ],
)
def test_choices_in_the_question(body, choices):
    assert choices_in_question(f"Which? <choices>: [{body}]") == choices
    assert choices_in_question("Which [A: x]?") == ()
