"""Manifest and details give every text back unchanged."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heatlens.batch.details import write_details
from heatlens.batch.ledger import HeatMapRecord
from heatlens.batch.protocols import MadeMap
from heatlens.batch.tables import csv_line, valid_text, write_manifest

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def made(question: str, answer: str, output: str = "files/a_idx1.png") -> MadeMap:
    heat_map = SimpleNamespace(
        row=0, region_index=0, source="x:1", question_id="1", question=question, answer=answer,
        choices=(question,),
        question_type="", content_type="", region="", boxes=(), prompt=question, notes=(),
    )  # fmt: skip
    return MadeMap("a.jpg", heat_map, HeatMapRecord("k", "ok", output, score=1.0))  # type: ignore[arg-type]


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
@example([("a,b", 'say "x"'), ("line\nbreak", "cr\rlf\r\n"), (" blank ", ""), ("ß–≥ 日本", "['A', 'B']")])
@example([("\r", "\n"), ('"', '""')])
@settings(max_examples=150, deadline=None)
def test_csv_reader_gives_every_text_back(rows):
    text = "".join(csv_line(("files/a.png", *row)) for row in rows)
    back = list(csv.reader(io.StringIO(text, newline="")))
    assert [tuple(row) for row in back] == [("files/a.png", *row) for row in rows]


@given(st.text())
def test_any_text_at_all_can_be_written(text):
    assert csv_line((text, text)).encode("utf-8").endswith(b"\n")
    assert valid_text(text) == text or "\N{REPLACEMENT CHARACTER}" in valid_text(text) or _pairs(text)


def _pairs(text: str) -> bool:
    """Two surrogates that belong together become the character they mean."""
    return len(valid_text(text)) < len(text)


def test_plain_texts_stay_unquoted():
    assert csv_line(("a/b_idx1.png", "What is it?", "C")) == "a/b_idx1.png,What is it?,C\n"


def test_surrogates_and_nul_do_not_crash(tmp_path: Path):
    rows = [made("lone \ud800 surrogate", "nul \0 here"), made("pair \ud83d\ude00", "x")]
    write_manifest(tmp_path, iter(rows))
    write_details(tmp_path, iter(rows), {"map_max": float})
    content = (tmp_path / "vqa_manifest.csv").read_text(encoding="utf-8")
    assert "lone \N{REPLACEMENT CHARACTER} surrogate" in content
    assert "nul \0 here" in content
    assert "pair \N{GRINNING FACE}" in content
    table = pq.read_table(tmp_path / "details.parquet").to_pylist()
    assert table[0]["question"] == "lone \N{REPLACEMENT CHARACTER} surrogate"
    assert table[1]["choices"] == ["pair \N{GRINNING FACE}"]


def test_details_keep_text_exactly_and_the_same_rows_give_the_same_bytes(tmp_path: Path):
    rows = [made(f'question {number},\n"é"', "A") for number in range(20_000)]
    first = write_details(tmp_path / "one", iter(rows), {"map_max": float}).read_bytes()
    second = write_details(tmp_path / "two", iter(rows), {"map_max": float}).read_bytes()
    assert first == second
    questions = pq.read_table(tmp_path / "one" / "details.parquet", columns=["question"])["question"].to_pylist()
    assert questions == [row.heat_map.question for row in rows]


def test_empty_details_still_have_their_columns(tmp_path: Path):
    write_details(tmp_path, iter(()), {"map_max": float, "whole_film": bool})
    table = pq.read_table(tmp_path / "details.parquet")
    assert table.num_rows == 0
    assert {"image_path", "choices", "map_max", "whole_film", "warnings"} <= set(table.column_names)
