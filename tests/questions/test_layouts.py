"""DATASET_PATH and layouts: what is not there or not what DATASET says is one clear error."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_factory import DATA

from heatlens.errors import DataSetError
from heatlens.questions.readers.gemex import GemexReader
from heatlens.registry import find

NAMES = ["gemex", "gemex_train", "thinkvg", "table"]


@pytest.fixture
def files(tmp_path):
    """One file of each layout, without telling names."""
    pq.write_table(pa.Table.from_pylist(json.loads((DATA / "thinkvg.json").read_text())), tmp_path / "thinkvg")
    (tmp_path / "gemex").write_bytes((DATA / "gemex" / "open_ended_question.jsonl").read_bytes())
    (tmp_path / "gemex_train").write_bytes((DATA / "train.json").read_bytes())
    (tmp_path / "table").write_bytes((DATA / "table.csv").read_bytes())
    return tmp_path


def error_of(name, path) -> str:
    with pytest.raises(DataSetError) as caught:
        list(find("dataset", name).load()(path).rows())
    return str(caught.value)


@pytest.mark.parametrize("asked", NAMES)
@pytest.mark.parametrize("actual", NAMES)
def test_another_layout_is_named(files, asked, actual):
    if asked == actual or (asked == "table" and actual in ("gemex", "thinkvg")):
        assert all(row.error == "" for row in find("dataset", asked).load()(files / actual).rows())
        return
    text = error_of(asked, files / actual)
    assert f"DATASET={actual} reads this layout" in text
    assert all(f"{name}: " in text for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"foo": 1, "bar": 2}\n' * 3, "bar, foo"),
        (b'[{"foo": 1}, {"bar": 2}]', "bar, foo"),
        (b"foo;bar\n1;2\n", "bar, foo"),
        ("image,question\na,b\n".encode("utf-16"), "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" * 30, "binary"),
    ],
)
def test_an_unknown_layout_says_what_was_found(tmp_path, name, content, found):
    if content.startswith(b"foo") and name in ("gemex", "gemex_train"):
        content += b"1;2\n" * 30  # two lines might as well be two broken lines of JSON
    (tmp_path / "file").write_bytes(content)
    text = error_of(name, tmp_path / "file")
    assert found in text and "no known layout fits" in text and str(tmp_path / "file") in text


def test_a_few_broken_lines_are_rows_not_another_layout(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": \nnot json, really\n{"image_path": "a.png"}\n')
    assert [bool(row.error) for row in GemexReader(tmp_path / "q.jsonl").rows()] == [True] * 3


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(DataSetError, match=r"nowhere/q\.jsonl is not there \(only .* is\)"):
        GemexReader(tmp_path / "nowhere" / "q.jsonl")
    with pytest.raises(DataSetError, match=r"no file matches .*\*\.jsonl"):
        GemexReader(tmp_path / "*.jsonl")
    with pytest.raises(DataSetError, match=r"holds no file \*\.jsonl"):
        GemexReader(tmp_path)


def test_a_folder_is_read_by_name_one_level_deep(tmp_path):
    line = json.dumps({"question": "Q?", "image_path": "a.png"})
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).write_text(line)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jsonl").write_text(line)
    reader = GemexReader(tmp_path)
    assert [file.name for file in reader.files()] == ["a.jsonl", "b.jsonl"]
    assert reader.image_root() == tmp_path
    assert GemexReader(tmp_path / "a.jsonl").image_root() == tmp_path
    assert [file.name for file in GemexReader(tmp_path / "**" / "[bc].jsonl").files()] == [
        "b.jsonl",
        "c.jsonl",
    ]


@pytest.mark.parametrize("name", ["q.jsonl.gz", "q.parquet"])
def test_a_truncated_file_is_an_error_of_the_data_set(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00broken" if name.endswith("gz") else b"PAR1 cut off")
    error = error_of("gemex" if name.endswith("gz") else "table", tmp_path / name)
    assert str(tmp_path / name) in error
