"""Rows read by whole columns are the rows that the reader makes one by one, and odd ones are left to it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_factory import quick

from heatlens.questions import parts
from heatlens.questions.readers import gemex
from heatlens.questions.readers.base import FileReader
from heatlens.questions.readers.gemex import GemexReader
from heatlens.questions.readers.plain import read_plain
from heatlens.questions.readers.sources import SourceFile, Span, cut_blocks, cut_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gemex_rows

PLAIN = {
    "question": "Where is the effusion?", "type": "location", "answer": "On the left.", "reason": "Seen \"there\".\n",
    "visual_regions": ["left lung", "svc"], "visual_locations": [[0, -1, 225, 9], [10, 20, 110, 224]],
    "ori_report": "Inf, NaN} \\ end\\", "image_path": "p10/p1234/s5678/a-b.jpg", "q_id": 7, "row_id": "row_3",
}  # fmt: skip
MANY = PLAIN | {"answer": ["A", "B"], "choices": ["A: left", "B: right", ", ", "D"]}
NAME = "open_ended_question"


def line(**changes: object) -> bytes:
    return json.dumps(PLAIN | changes).encode()


def columns(folder: Path, mode: str = "split", *, slow: bool = False) -> pa.Table:
    """All rows of the data set as they are written; the images of each batch are in order of first appearance."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as work:
        if slow:
            patch.setattr(GemexReader, "blocks", FileReader.blocks)
        batches = []
        for part in parts.write_parts(GemexReader(folder), Path(work), mode, workers=1):
            with pa.OSFile(str(part.path), "rb") as file:
                batches += list(pa.ipc.open_stream(file))
        for batch in batches:
            batch.validate(full=True)
            numbers = batch["image"].indices.drop_null().to_pylist()
            assert list(dict.fromkeys(numbers)) == list(range(len(batch["image"].dictionary)))
            assert len(set(batch["image"].dictionary.to_pylist())) == len(batch["image"].dictionary)
        table = pa.Table.from_batches(batches, parts.SCHEMA)
        place = table.schema.get_field_index("image")
        return table.set_column(place, "image", table["image"].cast(pa.string())).combine_chunks()


@contextmanager
def counted() -> Iterator[list[SourceFile]]:
    """The pieces whose rows are read one by one."""
    pieces: list[SourceFile] = []
    read = GemexReader.rows_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            GemexReader, "rows_of", lambda reader, piece, *rest: (pieces.append(piece), read(reader, piece, *rest))[1]
        )
        yield pieces


def agree(folder: Path, mode: str = "split") -> int:
    """Compare the two ways; returns how many pieces were read row by row."""
    with counted() as pieces:
        fast = columns(folder, mode)
    assert fast.equals(columns(folder, mode, slow=True))
    return len(pieces)


def is_plain(*lines: bytes, end: bytes = b"\n") -> bool:
    block = end.join(lines)
    return read_plain(block, SourceFile(Path("x"), "x", "x", Span(0, len(block), 1)), "open_ended") is not None


@pytest.mark.parametrize("mode", ["split", "joint"])
def test_the_rows_of_the_benchmark_are_plain(tmp_path, mode):
    for path in gemex_rows.write(tmp_path, rows=3000, images=400):
        assert path.stat().st_size > 100_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemex, "BLOCK_BYTES", 50_000)
        patch.setattr(parts, "SLICE_BYTES", 200_000)
        assert agree(tmp_path, mode) == 0
        assert columns(tmp_path, mode).num_rows == 3000


@pytest.mark.parametrize(
    "rows",
    [
        [PLAIN],
        [MANY, MANY | {"answer": [], "choices": []}, MANY | {"answer": ['ß"\\'], "choices": ['"', "\\", "\n", "é"]}],
        [PLAIN | {"visual_regions": [], "visual_locations": []}, PLAIN],
        [{key: PLAIN[key] for key in ("q_id", "image_path", "question")}],
        [PLAIN | {"question": text} for text in ("\0", " \u2028x", "x\x1c", "\\u0041", '\\"', "肺", "\U0001f600")],
        [PLAIN | {"question": "\x7f", "answer": "", "type": "ß\t"}],
        [PLAIN | {"q_id": number} for number in (0, -5, 10**18 - 1)],
        [
            PLAIN | {"image_path": path}
            for path in ("/files/p10/p1/s1/a", "files/p10/p1/s1/a", "p10/p1/s1/a", "é b.png")
        ],
        [PLAIN | {"visual_regions": ["Röntgen", 'a"b\\\n'], "view": "AP", "study": 12, "labels": ["x", "y"]}],
        [PLAIN | {"visual_locations": [[1, 2, 3, 4]], "visual_regions": ["]"]}],
        [{"quest ion": "x", "a%b{": "(y", "é": ""} | PLAIN],
    ],
    ids=range(11),
)
@pytest.mark.parametrize("style", [{}, {"ensure_ascii": False}, {"separators": (",", ":")}], ids=str)
@pytest.mark.parametrize("mode", ["split", "joint"])
def test_plain_rows_are_read_as_columns(tmp_path, rows, style, mode):
    text = "\n".join(json.dumps(row, **style) for row in rows)
    # not escaped, a line separator is no line break, and neither is anything else but \n
    (tmp_path / f"{NAME}.jsonl").write_text(text, encoding="utf-8", newline="")
    escaped_key = "é" in rows[0] and style.get("ensure_ascii", True)
    assert bool(agree(tmp_path, mode)) == escaped_key
    (tmp_path / f"{NAME}.jsonl").write_text(text + "\n", encoding="utf-8", newline="")
    assert bool(agree(tmp_path, mode)) == escaped_key


def raw(key: str, value: bytes) -> bytes:
    """The plain line with ``value`` as it is for ``key``."""
    return line(**{key: "HERE"}).replace(b'"HERE"', value)


ODD = {
    "no object": b"[1]", "nothing": b"", "blank": b"  ", "cut": line()[:-9], "open": b'{"question": "x"', "nul": b"\0",
    "two": line() + line(), "two apart": line() + b" " + line(), "text behind": line() + b"x",
    "NUL behind": line() + b"\0",
    "byte order mark": b"\xef\xbb\xbf" + line(), "carriage return": line() + b"\r", "tail": line() + b" ",
    "head": b" " + line(), "line break": line().replace(b', "type"', b',\n"type"'),
    "escaped key": line().replace(b'"q_id"', b'"q\\u005fid"'),
    "twice": line()[:-1] + b', "question": "Why?"}', "twice unread": line()[:-1] + b', "reason": ""}',
    "more": line(extra=1), "fewer": b'{"question": "x", "image_path": "a.png", "q_id": 1}',
    "space": line().replace(b'": ', b'" : ', 1),
    "order": json.dumps(dict(reversed(PLAIN.items()))).encode(),
    "comma": line()[:-1] + b",}", "comment": line() + b"//",
    **{f"q_id {value!r}": raw("q_id", value) for value in (
        b"null", b"true", b"1.0", b"1e2", b"-0", b"007", b"-01", b"+1", b"0x1", b'"7"', b"NaN", b"Infinity", b"Inf",
        b"12345678901234567890", b"1" * 5000, b"[1]", b"{}", b"")},
    **{f"question {value!r}": raw("question", value) for value in (
        b'""', b'" "', b'"\\u2003"', b'"\xe2\x80\x83"', b'"\\u001c"', b"null", b"7", b'["x"]', b'"\\ud83d"', b'"\xff"',
        b'"\xed\xa0\x80"', b'"\xed\xa0\xbd\xed\xb8\x80"', b'"\t"', b'"a\0b"', b'"\\x"', b'"\\u12"', b"'x'", b'"a\nb"',
        b'"x\\"', b'"x\\\\\\"', b'"\1\1"', b'"x\2\2"')},
    **{f"image {value!r}": raw("image_path", value) for value in (
        b'""', b'" "', b'"../a"', b'"a\\u0000b"', b'"a\\\\b"', b"null", b"7", b'"/"', b'"\\udc80"')},
    **{f"answer {value!r}": raw("answer", value) for value in (
        b"null", b"7", b"true", b"1e400", b'["A"]', b"{}", b'"\\ud800x"', b'"\xc3"', b'"' + b"\\u0g00" + b'"')},
    **{f"type {value!r}": raw("type", value) for value in (b"null", b"7", b'"\xe9"', b'["size"]')},
    **{f"regions {value!r}": raw("visual_regions", value) for value in (
        b"null", b"[]", b'["a"]', b'["a", "b", "c"]', b'["a", ""]', b'["a", null]', b'["a", 7]', b'"a"', b'["a",]',
        b'["a" "b"]', b'["a", ["b"]]', b'["a", "\\ud800"]', b'["a", "\xff"]', b'["a", "b", ]', b'["a",  "b"]')},
    **{f"boxes {value!r}": raw("visual_locations", value) for value in (
        b"null", b"[]", b"[[1, 2, 3, 4]]", b"[1, 2, 3, 4]", b"[[1, 2, 3, 4], null]", b"[[1, 2, 3, 4], [1, 2, 3]]",
        b"[[1, 2, 3, 4], [1, 2, 3, 4.5]]", b"[[1, 2, 3, 4], [1, 2, 3, 4.0]]", b"[[1, 2, 3, 4], [1, 2, 1, 4]]",
        b"[[1, 2, 3, 4], [1, 4, 3, 2]]", b"[[1, 2, 3, 4], [1, 2, 3, 226]]", b"[[1, 2, 3, 4], [-2, 2, 3, 4]]",
        b"[[1, 2, 3, 4], [-0, 2, 3, 4]]", b"[[1, 2, 3, 4], [01, 2, 3, 4]]", b"[[1, 2, 3, 4], [1, 2, 3, 4, 5]]",
        b"[[1, 2, 3, 4], [1, 2, 3, true]]", b"[[1, 2, 3, 4], [1, 2, 3, NaN]]", b"[[1, 2, 3, 4], [1, 2, 3, 4]",
        b"[[1, 2, 3, 4], [1, 2, 3, 99999999999]]", b'[[1, 2, 3, 4], [1, 2, 3, "4"]]', b"[[1, 2], [3, 4, 5, 6, 7, 8]]")},
    **{f"unread {value!r}": raw("reason", value) for value in (
        b"NaN", b"Inf", b"1", b"null", b"1" * 5000, b"[" * 3000 + b"]" * 3000, b'"\\q"', b'"\t"', b'"\\u00"',
        b'"a"b"')},
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD.values(), ids=[name[:60] for name in ODD])
def test_odd_lines_are_left_to_the_reader(tmp_path, odd):
    assert is_plain(line(), line()) and is_plain(line(), line(), b"")
    assert not is_plain(line(), odd, line())
    if odd:
        assert not is_plain(line(), odd)
    for number, lines in enumerate(([line(), odd], [line(), odd, line()])):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"{NAME}.jsonl").write_bytes(b"\n".join(lines))
        assert agree(folder) == (1 if odd or number else 0)


@pytest.mark.parametrize("value", [[1], {"a": 1}, 1.5, None, True, [["x"]]])
def test_a_key_that_is_not_known_must_hold_a_text_or_a_whole_number(value):
    rows = [line(other=value)] * 2
    assert is_plain(line(other=1)) and not is_plain(*rows)


@pytest.mark.parametrize("key", ["question", "image_path", "q_id", "choices", "visual_regions", "type", "answer"])
def test_a_key_with_the_same_wrong_type_in_all_rows(key):
    assert not is_plain(line(**{key: 3 if key != "q_id" else "3"}))
    assert not is_plain(line(**{key: {"A": "x"}}))


def test_the_question_type_comes_from_the_name_of_the_file(tmp_path):
    for name in ("rows", NAME):
        (tmp_path / f"{name}.jsonl").write_bytes(line())
    with counted() as pieces:
        assert columns(tmp_path)["question_type"].to_pylist() == ["open_ended", "open_ended"]
    assert [piece.label for piece in pieces] == ["rows.jsonl"]


def test_a_packed_file_and_a_list_are_read_row_by_row(tmp_path):
    (tmp_path / f"{NAME}.jsonl").write_bytes(b"[" + line() + b"]")
    assert agree(tmp_path) == 1


def test_a_file_name_that_is_not_unicode(tmp_path):
    name = b"\xff_" + NAME.encode() + b".jsonl"
    try:
        (tmp_path / name.decode("utf-8", "surrogateescape")).write_bytes(line())
    except OSError:
        pytest.skip("this file system has Unicode names only")
    assert agree(tmp_path) == 1


def test_one_odd_line_sends_only_its_own_block_to_the_reader(tmp_path, monkeypatch):
    lines = [line(q_id=number) for number in range(1000)]
    lines[500] = line(q_id=None)
    (tmp_path / f"{NAME}.jsonl").write_bytes(b"\n".join(lines))
    monkeypatch.setattr(gemex, "BLOCK_BYTES", 5 * len(lines[0]))
    with counted() as pieces:
        table = columns(tmp_path)
    (piece,) = pieces
    assert piece.span.first_line <= 501 < piece.span.first_line + 6
    assert piece.span.end - piece.span.start <= 5 * len(lines[0])
    assert table.equals(columns(tmp_path, slow=True))
    assert table["source"].to_pylist() == [f"{NAME}.jsonl:{number}" for number in range(1, 1001)]


def test_a_piece_of_odd_blocks_is_not_looked_at_to_its_end(tmp_path, monkeypatch):
    lines = [line(q_id=number) for number in range(300)]
    for number in (2, 30, *range(100, 300, 3)):
        lines[number] = line(q_id=number, type=None)
    (tmp_path / f"{NAME}.jsonl").write_bytes(b"\n".join(lines))
    monkeypatch.setattr(gemex, "BLOCK_BYTES", 5 * len(lines[0]))
    with counted() as pieces:
        table = columns(tmp_path)
    *single, rest = [piece.span for piece in pieces]
    assert [span.end - span.start <= 5 * len(lines[0]) for span in single] == [True] * 4  # two alone, two in a row
    assert rest.end == (tmp_path / f"{NAME}.jsonl").stat().st_size
    assert 105 < rest.first_line < 125
    assert table.equals(columns(tmp_path, slow=True))


def test_a_line_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(gemex, "BLOCK_BYTES", 1000)
    (tmp_path / f"{NAME}.jsonl").write_bytes(b"\n".join([line(), line(), line(reason="x" * 5000), line()]))
    assert agree(tmp_path) == 1


@quick
@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 60), st.integers(1, 100), st.booleans())
def test_blocks_are_the_piece_in_whole_lines(lengths, size, piece_size, last):
    content = b"\n".join(b"x" * length for length in lengths) + b"\n" * last
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.jsonl"
        path.write_bytes(content)
        position, line_number = 0, 1
        for piece in cut_lines(SourceFile(path, "a", "a"), piece_size):
            for block, lines in cut_blocks(piece, size):
                start, end, first_line = block.span
                assert (start, first_line) == (position, line_number) and end > start
                assert lines in (b"", content[start:end]) and len(lines) <= size
                assert end == len(content) or content[end - 1 : end] == b"\n"
                assert lines or b"\n" not in content[start : min(start + size, piece.span.end - 1)]
                position, line_number = end, line_number + content[start:end].count(b"\n")
        assert position == len(content)


TEXT = st.text('a肺ß"\\/, :{}[]\n\r\t\0\u2028\x1f\x7f😀', max_size=5)
CORNER = st.sampled_from([-1, 0, 7, 10, 224, 225])
BOX = st.tuples(CORNER, CORNER, st.sampled_from([226, 225, 11, 8]), st.sampled_from([225, 9, 1])).map(list)


@st.composite
def mostly_plain(draw: st.DrawFn) -> list[bytes]:
    """Lines of one layout, into which sometimes an odd byte, value or line falls."""
    base, style = draw(st.sampled_from([PLAIN, MANY])), draw(st.sampled_from([{}, {"ensure_ascii": False}]))
    lines = []
    for number in range(draw(st.integers(1, 6))):
        count = draw(st.integers(0, 3))
        row = base | {
            "question": draw(TEXT) + draw(st.sampled_from(["x", "x", "x", ""])), "type": draw(TEXT), "q_id": number,
            "visual_regions": ["a" + draw(TEXT) for _ in range(count)],
            "visual_locations": [draw(BOX) for _ in range(count)],
            "image_path": draw(st.sampled_from(["a.png", "/a.png", "p10/p1/s1/a", "files/p10/p1/s1/a", "./a.png"])),
            "reason": draw(TEXT),
        }  # fmt: skip
        if base is MANY:
            row |= {"answer": draw(st.lists(TEXT, max_size=3)), "choices": draw(st.lists(TEXT, max_size=3))}
        lines.append(json.dumps(row, **style).encode())
    if draw(st.booleans()):
        place = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["line", "byte", "cut", "value"]))
        if kind == "line":
            lines.insert(place + 1, draw(st.sampled_from(list(ODD.values()))))
        elif kind == "value":
            key = draw(st.sampled_from(list(base)))
            value = draw(st.sampled_from(["", None, 3, 1.5, True, [], [1], {}, "x", ["x"], [[1, 2, 3, 4]], "\ud800"]))
            lines[place] = json.dumps(json.loads(lines[place]) | {key: value}).encode()
        else:
            at = draw(st.integers(0, len(lines[place])))
            byte = draw(
                st.sampled_from([b"\xff", b"\0", b'"', b"\\", b"\n", b"\r", b"{", b"}", b"]", b",", b" ", b"1"])
            )
            lines[place] = lines[place][:at] + (byte if kind == "byte" else b"") + lines[place][at + (kind == "cut") :]
    return lines


@quick
@given(
    mostly_plain(), st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"]), st.booleans(),
    st.sampled_from(["split", "joint"]), st.integers(300, 3000),
)  # fmt: skip
def test_both_ways_read_the_same(lines, end, last, mode, size):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemex, "BLOCK_BYTES", size)
        patch.setattr(parts, "SLICE_BYTES", 2000)
        # the first line of a file tells its layout
        (Path(name) / f"{NAME}.jsonl").write_bytes(end.join([line(), *lines]) + end * last)
        agree(Path(name), mode)
