"""Whatever bytes a data set's or an annotation's file holds: rows, broken rows or one error for people come out."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from row_factory import DATA, in_one_folder

from heatlens.errors import HeatlensError
from heatlens.evaluate.truth.base import open_truth
from heatlens.questions.mimic import ImageTable
from heatlens.registry import DATASETS, TRUTHS

READERS = [name for name, entry in DATASETS.items() if not entry.demo]
FORMATS = [name for name in TRUTHS if name != "own"]  # own reads no file


def parquet(**columns: pa.Array) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


THINKVG = json.loads((DATA / "thinkvg.json").read_text())
FILM = {"image_path": "a.png", "width": 20, "height": 20, "findings": [{"name": "n", "box": [1, 2, 3, 4]}]}
TABLE = {"image": "a.png", "question": "Q?", "label": "n", "x": 1, "y": 2, "w": 3, "h": 4}
WHOLE = (
    next((DATA / "gemex").glob("*.jsonl")).read_bytes()[:2000],
    (DATA / "train.json").read_bytes()[:3000],
    (DATA / "table.csv").read_bytes()[:1000],
    parquet(**{name: pa.array([row.get(name) for row in THINKVG[:2]]) for name in THINKVG[0]}),
    b"dicom_id,split,ViewPosition\na,train,PA\nb,test,AP\n",
    b"path,category_name,label_text,x,y,w,h,image_width,image_height\na.png,n,t,1,2,3,4,20,20\n",
    json.dumps(FILM).encode(),
    json.dumps([TABLE]).encode(),
    json.dumps([{"file_name": "a.png", "syms": ["n"], "boxes": [[1, 2, 3, 4]]}]).encode(),
    json.dumps({"a": {"Edema": {"size": [4, 4], "counts": "03"}}}).encode(),
)
"""One small file of every layout."""
PACKED = tuple(gzip.compress(content, mtime=0) for content in WHOLE)


@st.composite
def nearly_whole(draw: st.DrawFn) -> bytes:
    """A file of a known layout, with some bytes of it replaced, and perhaps broken off."""
    content = bytearray(draw(st.sampled_from(WHOLE + PACKED)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        content[start : start + draw(st.integers(0, 8))] = draw(st.binary(max_size=8) | st.sampled_from(AWKWARD))
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


AWKWARD = (b"\r", b'"', b"\0", b"\xff\xfe", b"\n\r", b"[" * 3000, b"NaN", b"-1e999", b"9" * 5000, b"\\ud800", b"{}")
CONTENTS = st.binary(max_size=300) | nearly_whole() | st.builds(gzip.compress, nearly_whole()) | st.lists(
    st.sampled_from((*AWKWARD, b"image", b"question", b"path", b"x,y,w,h", b",", b"\n", b"a.png"))
).map(b"".join)  # fmt: skip
SUFFIXES = st.sampled_from(["", ".csv", ".jsonl", ".json", ".parquet", ".csv.gz", ".jsonl.gz"])
many = settings(in_one_folder, max_examples=150)


def read_all(reader) -> None:
    """By rows, and by slices as `heatlens plan` does."""
    list(reader.rows())
    for piece in reader.slices(64):
        for part, plain in reader.blocks(piece):
            if plain is None:
                list(reader.rows_of(part))


@pytest.mark.parametrize("name", READERS)
@many
@given(CONTENTS, SUFFIXES)
@example(b'image,"question', ".csv")
@example(b'"image"s,question\na.png,Q?\n', ".csv")
@example(b"x" * 200_000, ".csv")
@example(gzip.compress(b"image,question\n" * 9)[:-9], ".csv.gz")
def test_a_data_set(tmp_path, name, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    try:
        read_all(DATASETS[name].load()(path))
    except HeatlensError as error:
        assert str(path) in str(error) or path.name in str(error)


@pytest.mark.parametrize("name", FORMATS)
@many
@given(CONTENTS, SUFFIXES)
@example(b'path,"label_text', ".csv")
@example(b"x" * 200_000, ".csv")
@example(gzip.compress(b'{"a": 1}')[:-9], ".json.gz")
def test_annotations(tmp_path, name, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    try:
        open_truth(f"{name}:{path}", None).meet(["a.png", "files/p10/p10000001/s5/a.jpg"])
    except HeatlensError as error:
        assert path.name in str(error)


@many
@given(CONTENTS, st.sampled_from([".csv", ".csv.gz"]))
def test_mimics_own_tables(tmp_path, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    try:
        ImageTable.read(path, "split")
    except HeatlensError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**52], pa.timestamp("ms")),
        pa.array([2**62], pa.duration("us")),
        pa.array([2**31 - 1], pa.date32()),
        pa.array([b"\xff"]).view(pa.string()),
        pa.ListArray.from_arrays([0, 1], pa.array([b"\xff"]).view(pa.string())),
        pa.array([np.float16(1)], pa.float16()),
        pa.array([{"a": b"\xff"}]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("name", ["table", "thinkvg"])
def test_columns_of_parquet_that_python_cannot_hold(tmp_path, name, column):
    text = pa.array(["x"])
    path = tmp_path / "file.parquet"
    path.write_bytes(parquet(image_path=text, question=text, response=text, choices=column))
    try:
        read_all(DATASETS[name].load()(path))
    except HeatlensError as error:
        assert str(path) in str(error)
