"""Small invented data sets in each format, compared whole with what they should read as."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from row_factory import DATA, plan_of, whole

from heatlens.questions.rows import QuestionRow
from heatlens.registry import find

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def data_path(name: str, folder: Path) -> Path:
    """The data set ``name``; ThinkVG's rows are kept as readable JSON and become Parquet here."""
    if name != "thinkvg":
        return DATA / {"gemex": "gemex", "gemex_train": "train.json", "table": "table.csv"}[name]
    pq.write_table(pa.Table.from_pylist(json.loads((DATA / "thinkvg.json").read_text())), folder / "thinkvg.parquet")
    return folder / "thinkvg.parquet"


def as_dict(row: QuestionRow) -> dict:
    return row._asdict() | {"regions": [region._asdict() for region in row.regions]}


@pytest.mark.parametrize("name", ["gemex", "gemex_train", "thinkvg", "table"])
def test_rows_are_as_written_down(name, tmp_path):
    rows = [as_dict(row) for row in find("dataset", name).load()(data_path(name, tmp_path)).rows()]
    expected = DATA / f"{name.removeprefix('gemex_')}.expected.json"
    assert json.dumps(rows, ensure_ascii=False, indent=1) + "\n" == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["gemex", "gemex_train", "thinkvg", "table"])
def test_report_text_and_reasoning_never_leave_the_data_set(name, tmp_path):
    path = data_path(name, tmp_path)
    raw = b"".join(file.read_bytes() for file in ([path] if path.is_file() else path.iterdir()))
    assert b"SECRET" in raw
    reader = find("dataset", name).load()(path)
    assert "SECRET" not in repr(list(reader.rows()))
    assert "SECRET" not in whole(plan_of(reader.rows()))
