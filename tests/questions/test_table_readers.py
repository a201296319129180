"""Tables and ThinkVG: CSV, TSV, JSON, Parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_factory import in_one_folder

from heatlens.errors import DataSetError
from heatlens.questions.readers.table import TableReader
from heatlens.questions.readers.thinkvg import ThinkVGReader

WRITABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> list:
    data = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(data)
    return list(TableReader(folder / name).rows())


@in_one_folder
@given(
    st.lists(st.tuples(WRITABLE, WRITABLE), min_size=1, max_size=4),
    st.sampled_from(["\r\n", "\n"]),
    st.sampled_from(",;\t"),
)
def test_hostile_texts_through_csv(tmp_path, cells, ending, delimiter):
    stream = io.StringIO()
    # QUOTE_ALL: with "\n" as line end, Python's writer leaves a lone "\r" without quotes, which ends a line.
    writer = csv.writer(stream, lineterminator=ending, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("image", "question", "answer"), *(("a.png", *texts) for texts in cells)])
    rows = table(tmp_path, stream.getvalue())
    assert [(row.question, row.answer) for row in rows] == cells
    assert [bool(row.error) for row in rows] == [not question.strip() for question, _ in cells]


@in_one_folder
@given(st.lists(st.tuples(WRITABLE, WRITABLE), min_size=1, max_size=4))
def test_hostile_texts_through_parquet_and_json(tmp_path, cells):
    rows = [{"image": "a.png", "question": question, "answer": answer} for question, answer in cells]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    for name in ("t.parquet", "t.json", "t.jsonl"):
        assert [(row.question, row.answer) for row in TableReader(tmp_path / name).rows()] == cells, name


def test_bytes_that_are_not_utf8_spoil_their_own_row_only(tmp_path):
    rows = table(tmp_path, b"image,question\na.png,good\nb.png,b\xffd\nc.png,good\n")
    assert [bool(row.error) for row in rows] == [False, True, False]
    texts = pa.array([b"good", b"b\xffd", b"good"]).view(pa.string())
    pq.write_table(pa.table({"image": ["a", "b", "c"], "question": texts}), tmp_path / "t.parquet")
    rows = list(TableReader(tmp_path / "t.parquet").rows())
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert rows[1].question == "b\ufffdd"


def test_malformed_csv_rows_are_one_row_each(tmp_path):
    rows = table(
        tmp_path,
        'image,question,answer\na.png,"x"y,1\nb.png,too,many,cells\nc.png,few\nd.png,fine,"1\n2"\ne.png,ok,"open\n',
    )
    assert [row.source for row in rows] == ["t.csv:2", "t.csv:3", "t.csv:4", "t.csv:5", "t.csv:7"]
    assert [bool(row.error) for row in rows] == [True, True, True, False, True]
    assert "4 cells where the header has 3" in rows[1].error
    assert "never closed" in rows[4].error


@pytest.mark.parametrize("ending", ["\r", "\n", "\r\n"])
def test_lines_end_as_any_system_ends_them(tmp_path, ending):
    lines = ("", "image,question,answer", "a.png,Where?,1", "", "b.png,too few", 'c.png,"Why,\nwhere?",2', "")
    rows = table(tmp_path, ending.join(lines))
    assert [(row.source, row.question, bool(row.error)) for row in rows] == [
        ("t.csv:3", "Where?", False), ("t.csv:5", "", True), ("t.csv:6", "Why,\nwhere?", False),
    ]  # fmt: skip


@pytest.mark.parametrize(("header", "line"), [('image,"question', 1), ('\nimage,question,"answer"s', 2)])
def test_a_header_that_is_no_csv_is_named(tmp_path, header, line):
    with pytest.raises(DataSetError, match=rf"t\.csv:{line}: the header is not valid CSV: .*end with a quote"):
        table(tmp_path, f"{header}\na.png,Where?\n")


def test_a_broken_first_line_of_json_lines_is_one_row(tmp_path):
    rows = table(tmp_path, 'oops, no json\n{"image": "a.png", "question": "Q?"}\n', "t.jsonl")
    assert [bool(row.error) for row in rows] == [True, False]


def test_a_long_cell_is_read_whole(tmp_path):
    (row,) = table(tmp_path, f"image,question\na.png,{'x' * 300_000}\n")
    assert len(row.question) == 300_000


@pytest.mark.parametrize(
    ("columns", "cells", "box"),
    [
        ("x1,y1,x2,y2", "1,2,3.5,4", (1.0, 2.0, 3.5, 4.0)),
        ("x,y,w,h", "10,20,30,40", (10.0, 20.0, 40.0, 60.0)),
        ("xmin,ymin,xmax,ymax", "1,2,3,4", (1.0, 2.0, 3.0, 4.0)),
    ],
)
def test_boxes_are_in_source_pixels(tmp_path, columns, cells, box):
    (row,) = table(tmp_path, f"Image Path,Prompt,region,{columns}\na.png,Where?,lung,{cells}\n")
    assert [(region.name, region.box, region.frame) for region in row.regions] == [("lung", box, "source")]
    (row,) = table(tmp_path, f"file,text,{columns}\na.png,Where?,{cells}\n")
    assert [(region.name, region.box) for region in row.regions] == [("", box)]


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        ("1,2,3,", "lacks some"),
        ("1,2,x,4", "not a number"),
        ("3,2,1,4", "no area"),
        ("1,2,inf,4", "infinity"),
    ],
)
def test_bad_boxes_are_noted(tmp_path, cells, note):
    (row,) = table(tmp_path, f"image,question,region,x1,y1,x2,y2\na.png,Where?,lung,{cells}\n")
    assert row.regions[0].box is None and row.error == "" and note in row.notes[0]


def test_a_data_frames_missing_values_are_no_values(tmp_path):
    columns = {
        "path": ["a.png", "b.png"],
        "question": ["Where?", None],
        "x1": [1.0, float("nan")],
        "y1": [2.0, float("nan")],
        "x2": [3, None],
        "y2": [4, None],
        "choices": [["A: x", "B: y"], None],
        "id": [7, 8],
        "answer": [True, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    first, second = TableReader(tmp_path / "t.parquet").rows()
    assert (first.choices, first.question_id, first.answer) == (("A: x", "B: y"), "7", "true")
    assert first.regions[0].box == (1.0, 2.0, 3.0, 4.0)
    assert (second.regions, second.notes, second.answer) == ((), (), "")
    assert second.error == "t.parquet:2: no question"


@pytest.mark.parametrize(
    ("cell", "choices"),
    [
        ('"[""A: x, y"", ""B""]"', ("A: x, y", "B")),
        ("A: x|B: y", ("A: x", "B: y")),
        ("A: x", ("A: x",)),
        ("", ()),
        ("[x", ("[x",)),
    ],
)
def test_choices_of_a_csv(tmp_path, cell, choices):
    assert table(tmp_path, f"image,question,choices\na.png,Where?,{cell}\n")[0].choices == choices


def test_type_is_a_question_type_or_a_content_type(tmp_path):
    rows = table(tmp_path, "image,question,answer,type\na,q,x,closed\na,q,Yes,device\na,q,,\n")
    assert [(row.question_type, row.content_type) for row in rows] == [
        ("closed_ended", ""),
        ("closed_ended", "device"),
        ("", ""),
    ]


def test_row_groups_are_read_in_order(tmp_path):
    rows = pa.table(
        {
            "image": [f"{n}.png" for n in range(5000)],
            "question": ["q"] * 5000,
            "ori_report": ["SECRET"] * 5000,
        }
    )
    pq.write_table(rows, tmp_path / "t.parquet", row_group_size=700)
    found = list(TableReader(tmp_path / "t.parquet").rows())
    assert [row.image_path for row in found] == [f"{n}.png" for n in range(5000)]
    assert [row.source for row in found[-1:]] == ["t.parquet:5000"]


@pytest.mark.parametrize(
    ("location", "regions"),
    [
        ("<ref>a</ref><box>[1,2,3,4]</box>", [("a", (1, 2, 3, 4))]),
        ("<ref>a</ref><box>[[1,2,3,4],[5,6,7,8]]</box>", [("a", (1, 2, 3, 4)), ("a", (5, 6, 7, 8))]),
        ("<ref>a</ref><ref>b</ref><box>[1, 2, 3.5, 4]</box>", [("a", None), ("b", (1, 2, 3.5, 4))]),
        ("<box>[1,2,3,4]</box><ref>b</ref>", [("", (1, 2, 3, 4)), ("b", None)]),
        ("<ref>a</ref><box>[1,2,3]</box>", [("a", None)]),
        ("<ref>a</ref><box>none</box>", [("a", None)]),
        ("", []),
    ],
)
def test_thinkvg_locations(tmp_path, location, regions):
    response = f"<response><answer> B &amp; C </answer><location>{location}</location></response>"
    row = {
        "image_path": "/files/a.png",
        "question": "Q?",
        "question_type": "open_ended_questions",
        "response": response,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "v.parquet")
    (found,) = ThinkVGReader(tmp_path / "v.parquet").rows()
    assert [(region.name, region.box) for region in found.regions] == regions
    assert (found.answer, found.error) == ("B &amp; C", "")
    assert {region.frame for region in found.regions if region.box} <= {"unknown"}
