"""The manifest gives every text back unchanged. (details.parquet: test_merge.py.)"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import SimpleNamespace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from heatlens.batch.ledger import HeatMapRecord
from heatlens.batch.protocols import MadeMap
from heatlens.batch.tables import csv_line, valid_text, write_manifest

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def made(question: str, answer: str) -> MadeMap:
    heat_map = SimpleNamespace(question=question, answer=answer)
    return MadeMap("a.jpg", heat_map, HeatMapRecord("k", "ok", "files/a_idx1.png"))  # type: ignore[arg-type]


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
    write_manifest(tmp_path, iter([made("lone \ud800 surrogate", "nul \0 here"), made("pair \ud83d\ude00", "x")]))
    content = (tmp_path / "vqa_manifest.csv").read_text(encoding="utf-8")
    assert "lone \N{REPLACEMENT CHARACTER} surrogate" in content
    assert "nul \0 here" in content
    assert "pair \N{GRINNING FACE}" in content
