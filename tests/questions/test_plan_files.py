"""The plan on disk: the same as the slow one in memory, reused, and whole whatever happens while it is made."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import expected_plan, weight
from row_factory import make_row, plan_of, quick, whole

from heatlens.errors import ConfigError, DataSetError, SetupError
from heatlens.files import TEMPORARY_PREFIX
from heatlens.questions import chosen, gather, index, parts, stream
from heatlens.questions.plan import make_plan
from heatlens.questions.readers.gemex import GemexReader
from heatlens.questions.readers.gemex_train import GemexTrainReader
from heatlens.questions.readers.table import TableReader
from heatlens.questions.select import Selection
from heatlens.questions.shards import NOBODY, assign

KEYS = {"regions": "split", "prompt_template": "{question} {region}", "selection": Selection(), "stop_after": None}
IMAGES = ["a.png", "a.dcm", "A.PNG", "x/a.png", "/files/p10/p1/s1/a.jpg", "p10/p1/s1/a.jpg", "../b.png", "", "é.png",
          "x" * 260 + ".png", "raw/a.png", " ", "a\0b.png"]  # fmt: skip
REGIONS = st.one_of(
    st.lists(st.sampled_from(["lung", "heart", "", "Röntgen", "a\nb"]), max_size=4),
    st.sampled_from([None, "lung", ["lung", 3], {"a": 1}, ["\ud800"]]),
)
BOXES = st.one_of(
    st.lists(st.tuples(*[st.sampled_from([0, -0.0, 0.1, 30, 224, 1e300, 300.5])] * 4).map(list), max_size=4),
    st.sampled_from([None, [1, 2, 3, 4], "1,2", [[1, 2, float("nan"), 4]], [[1, 2, 10**400, 4]]]),
)
ROWS = st.fixed_dictionaries(
    {"question": st.sampled_from(["Where?", "Is it?\n", "", None, "\ud83d", "q\0", "Wo – 肺"]),
     "image_path": st.sampled_from(IMAGES)},
    optional={"answer": st.sampled_from(["Yes.", ["A", "ß"], 3, None, {"a": float("inf")}]),
              "choices": st.sampled_from([["A: a", "B: \"b\""], {"A": "a"}, "", 4]),
              "type": st.sampled_from(["size", "finding", "Device", None, 7]), "q_id": st.integers(0, 3),
              "visual_regions": REGIONS, "visual_locations": BOXES},
)  # fmt: skip
ODD = st.sampled_from(
    [b"", b"  ", b"{", b"[1, 2]", b"\xff\xfe", b'{"question": "W\xff?", "image_path": "a.png"}', b"nul", b"7", b"{}\r",
     b'{"question": "q", "image_path": "b\xff.png"}', b"\xef\xbb\xbf{}"]
)  # fmt: skip
LINES = st.lists(ROWS.map(lambda row: json.dumps(row).encode()) | ODD, max_size=10)
FIRST = json.dumps({"question": "Where?", "image_path": "a.png", "visual_regions": ["lung", "heart"]}).encode()


@st.composite
def files(draw: st.DrawFn) -> dict[str, bytes]:
    """One to three GEMeX files, the first line of each readable."""
    found = {}
    for name in ("closed_ended_question", "b", "c")[: draw(st.integers(1, 3))]:
        mark, end, last = draw(
            st.tuples(
                st.sampled_from([b"", b"\xef\xbb\xbf"]),
                st.sampled_from([b"\n", b"\r\n"]),
                st.sampled_from([b"", b"\n", b"\n\n"]),
            )
        )
        found[f"{name}.jsonl"] = mark + end.join([FIRST, *draw(LINES)]) + last
    return found


def put(folder: Path, contents: dict[str, bytes]) -> GemexReader:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return GemexReader(folder)


@quick
@given(
    files(), st.integers(1, 400), st.sampled_from(["split", "joint"]),
    st.sampled_from([{}, {"question_types": "size"}, {"question_types": "closed_ended,finding"}, {"sample": 0.5},
                     {"sample": 3, "seed": 2}, {"sample": 100}]),
    st.none() | st.integers(0, 9), st.integers(1, 4), st.sampled_from(["{question} {region}", "{region}", "{choices}"]),
)  # fmt: skip
def test_the_plan_is_that_of_the_slow_planner(contents, size, regions, keys, stop_after, shards, template):
    options = {
        "regions": regions, "prompt_template": template, "selection": Selection(**keys), "stop_after": stop_after
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SLICE_BYTES", size)
        patch.setattr(parts, "BATCH_ROWS", 3)
        patch.setattr(index, "GROUP_ROWS", 1 + size % 7)
        patch.setattr(stream, "GROUP_ROWS", 1 + size % 7)
        reader, folder = put(Path(name), contents), Path(name) / "plan"
        rows = list(reader.rows())
        try:
            expected = expected_plan(rows, **options)
        except ConfigError as error:
            with pytest.raises(ConfigError) as caught:
                make_plan(reader, folder, data_digest="x", **options)
            assert str(caught.value) == str(error)
            return
        plan = make_plan(reader, folder, data_digest="x", **options)
        images = list(plan.images())
        assert images == expected.tasks
        assert repr(images) == repr(expected.tasks)  # -0.0 is not 0.0
        assert list(plan.bad_rows()) == expected.bad
        assert (plan.rows, plan.bad_row_count, plan.image_count, plan.heat_map_count) == (
            expected.rows, len(expected.bad), len(expected.tasks), sum(map(weight, expected.tasks)),
        )  # fmt: skip
        for shard in range(shards):
            mine = expected.shard(shard, shards)
            assert list(plan.shard(shard, shards)) == mine
            some = [task.index for task in mine[::2]]
            assert list(plan.shard(shard, shards, only=some)) == mine[::2]
            assert plan.shard_size(shard, shards) == (len(mine), sum(map(weight, mine)))
        assert list(plan.image_paths()) == [task.image_path for task in expected.tasks]
        assert plan.first(2) == expected.tasks[:2]


@quick
@given(files(), st.integers(1, 300))
def test_slices_read_as_the_whole(contents, size):
    with tempfile.TemporaryDirectory() as name:
        reader = put(Path(name), contents)
        rows, number = [], 0
        for piece in reader.slices(size):
            rows += reader.rows_of(piece, number)
            number = len(rows)
        assert rows == list(reader.rows())


@pytest.mark.parametrize(
    ("kind", "name", "content", "pieces"),
    [
        (TableReader, "t.jsonl", b'{"image": "a.png", "question": "q"}\n' * 9, 5),
        (TableReader, "t.csv", b'image,question\na.png,"q\nr"\n', 1),
        (TableReader, "t.json", b'[{"image": "a.png", "question": "q"}]', 1),
        (GemexReader, "t.jsonl", b'[{"image_path": "a.png", "question": "q"}]', 1),
        (
            GemexTrainReader,
            "t.json",
            b'{"image": "a.png", "conversations": [{"from": "human", "value": "q"}]}\n' * 4,
            4,
        ),
    ],
)
def test_only_lines_are_cut(tmp_path, kind, name, content, pieces):
    (tmp_path / name).write_bytes(content)
    reader = kind(tmp_path / name)
    slices = list(reader.slices(70))
    assert len(slices) == pieces
    read = [row.source for piece in slices for row in reader.rows_of(piece)]
    assert read == [row.source for row in reader.rows()] and read


def test_a_file_of_another_layout_is_refused_before_it_is_cut(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(FIRST)
    (tmp_path / "b.jsonl").write_bytes(b'{"image": "a.png", "conversations": []}\n' * 50)
    with pytest.raises(DataSetError, match="gemex_train reads this layout"):
        make_plan(GemexReader(tmp_path), tmp_path / "plan", data_digest="x", **KEYS)
    assert list((tmp_path / "plan").iterdir()) == []


def data_set(folder: Path, rows: int = 60) -> GemexReader:
    content = b"\n".join(
        json.dumps({"question": f"q{n}", "image_path": f"{n % 7}.png", "visual_regions": ["lung", "heart"][: n % 3]})
        .encode() for n in range(rows)
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    return put(folder, {"a.jsonl": content, "b.jsonl": content + b"\n{broken"})


def test_processes_read_what_one_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SLICE_BYTES", 500)
    reader = data_set(tmp_path / "data")
    one = make_plan(reader, tmp_path / "one", data_digest="x", workers=1, **KEYS)
    monkeypatch.setattr(parts, "SMALL", 0)
    two = make_plan(reader, tmp_path / "two", data_digest="x", workers=2, **KEYS)
    assert whole(one) == whole(two) and one.digest == two.digest
    assert pq.read_table(one.index.questions).equals(pq.read_table(two.index.questions))


def test_a_mistake_in_a_process_is_an_error_of_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SMALL", 0)
    data_set(tmp_path / "data")
    (tmp_path / "data" / "c.jsonl").write_bytes(b'[{"image_path": "a.png", "question": "q"}')
    with pytest.raises(DataSetError, match=r"c\.jsonl: not a whole JSON list"):
        make_plan(GemexReader(tmp_path / "data"), tmp_path / "plan", data_digest="x", workers=2, **KEYS)
    assert list((tmp_path / "plan").iterdir()) == []


def test_a_plan_is_made_once_and_found_again(tmp_path, monkeypatch):
    reader = data_set(tmp_path / "data")
    options = KEYS | {"selection": Selection(sample=20)}
    first = make_plan(reader, tmp_path / "plan", data_digest="x", **options)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "plan").iterdir()}
    monkeypatch.setattr(GemexReader, "rows_of", None)
    monkeypatch.setattr(chosen, "_write", None)
    again = make_plan(reader, tmp_path / "plan", data_digest="x", **options)
    assert again == first == pickle.loads(pickle.dumps(first)) and whole(again) == whole(first)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "plan").iterdir()} == made
    with pytest.raises(TypeError):
        make_plan(reader, tmp_path / "plan", data_digest="y", **options)


def test_the_digest_knows_content_names_and_rows_but_no_folder(tmp_path):
    def digest(folder: str, name: str = "x", **options: object) -> str:
        return make_plan(data_set(tmp_path / folder), tmp_path / "p", data_digest=name, **(KEYS | options)).digest

    first = digest("one")
    assert digest("two") == first
    assert digest("one", stop_after=121) == digest("one", stop_after=500) == first
    assert digest("one", selection=Selection(sample=20)) == digest("two", selection=Selection(sample=20), stop_after=20)
    (tmp_path / "two" / "a.jsonl").rename(tmp_path / "two" / "open_ended_question.jsonl")
    reader = GemexReader(tmp_path / "two")
    others = [
        digest("one", "y"), digest("one", regions="joint"), digest("one", stop_after=120),
        make_plan(reader, tmp_path / "p", data_digest="x", **KEYS).digest,
    ]  # fmt: skip
    assert len({first, *others}) == 5


@pytest.mark.parametrize("name", ["questions", "images", "selection"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half"])
def test_a_damaged_file_is_made_again(tmp_path, name, damage):
    reader, options = data_set(tmp_path / "data"), KEYS | {"stop_after": 7}
    first = whole(make_plan(reader, tmp_path / "plan", data_digest="x", **options))
    (path,) = (tmp_path / "plan").glob(f"{name}-*")
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    assert whole(make_plan(reader, tmp_path / "plan", data_digest="x", **options)) == first


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_step_that_fails_leaves_nothing_half_made(tmp_path, monkeypatch, error):
    monkeypatch.setattr(parts, "SLICE_BYTES", 500)
    reader, options = data_set(tmp_path / "data"), KEYS | {"stop_after": 7}
    expected = whole(make_plan(reader, tmp_path / "good", data_digest="x", **options))
    stopped = 0
    monkeypatch.setattr(index, "GROUP_ROWS", 50)
    steps = (parts._write, gather.order_of, gather._engine, gather.write_questions, index._write_images, index.os.fsync,
             chosen._weigh, chosen.np.savez)  # fmt: skip
    for step in steps:
        for turn in count():
            folder = tmp_path / f"{step.__name__}{turn}"
            if not fails_at(turn, step, error, lambda: make_plan(reader, folder, data_digest="x", **options)):  # noqa: B023
                break
            stopped += 1
            left = {path.name.split("-")[0] for path in folder.iterdir()}
            assert left <= {"images", "questions", "selection"}
            assert whole(make_plan(reader, folder, data_digest="x", **options)) == expected
    assert stopped > 15


def test_a_disk_that_fills_up_while_the_rows_are_sorted(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
        yield

    reader, options = data_set(tmp_path / "data"), KEYS
    monkeypatch.setattr(gather, "_numbered", full)
    with pytest.raises(SetupError, match=r"the plan cannot be written.*No space left"):
        make_plan(reader, tmp_path / "plan", data_digest="x", **options)
    assert not [path for path in (tmp_path / "plan").iterdir() if path.name.startswith(".")]


def fails_at(turn: int, step, error: type[BaseException], act) -> bool:
    """Whether ``act`` ended because call number ``turn`` of ``step`` raised ``error``."""
    calls = count()

    def failing(*args, **keys):
        if next(calls) == turn:
            raise error("no space left")
        return step(*args, **keys)

    owner = {"fsync": index.os, "savez": chosen.np}.get(step.__name__) or sys.modules[step.__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, step.__name__, failing)
        try:
            act()
        except (SetupError, OSError, KeyboardInterrupt) as caught:
            assert isinstance(caught, (SetupError, OSError)) == (error is OSError)
            return True
    return False


CHILD = """
import os, sys
from pathlib import Path
from heatlens.questions import chosen, index, parts
from heatlens.questions.plan import make_plan
from heatlens.questions.readers.gemex import GemexReader
from heatlens.questions.select import Selection
from heatlens.questions.shards import NOBODY, assign
parts.SLICE_BYTES = 500
module, name, turns = {"parts": parts, "index": index, "chosen": chosen, "": None}[sys.argv[3]], sys.argv[4], 2
if module:
    step = getattr(module, name)
    def killed(*args, **keys):
        step(*args, **keys)
        os.kill(os.getpid(), 9)
    setattr(module, name, killed)
print("ready", flush=True)
sys.stdin.readline()
make_plan(GemexReader(Path(sys.argv[1])), Path(sys.argv[2]), data_digest="x", regions="split",
          prompt_template="{question} {region}", selection=Selection(), stop_after=7, workers=1)
"""


def child(*arguments: object) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("step", ["parts write_parts", "parts _write", "index _write_images", "chosen _weigh"])
def test_a_killed_process_leaves_rubbish_that_is_known_and_no_plan_that_is_wrong(tmp_path, step):
    reader, folder = data_set(tmp_path / "data"), tmp_path / "plan"
    module, name = step.split()
    # index holds write_parts under its own name
    process = child(tmp_path / "data", folder, "index" if name == "write_parts" else module, name)
    process.communicate(b"\n")
    assert process.returncode == -9
    left = [path.name for path in folder.iterdir() if not path.name.startswith(("questions-", "images-"))]
    assert all(name.startswith(TEMPORARY_PREFIX) for name in left)
    assert bool(left) == (step != "chosen _weigh")
    options = KEYS | {"stop_after": 7}
    plan = make_plan(reader, folder, data_digest="x", **options)
    assert whole(plan) == whole(make_plan(reader, tmp_path / "good", data_digest="x", **options))
    index.remove_leftovers(folder)
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {"questions", "images", "selection"}
    assert list(plan.images())


def test_processes_that_plan_at_once_end_with_one_plan(tmp_path):
    reader, folder = data_set(tmp_path / "data"), tmp_path / "plan"
    processes = [child(tmp_path / "data", folder, "", "") for _ in range(3)]
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.close()
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(list(folder.iterdir())) == 3
    options = KEYS | {"stop_after": 7}
    plans = [make_plan(reader, path, data_digest="x", **options) for path in (folder, tmp_path / "good")]
    assert whole(plans[0]) == whole(plans[1])


def test_a_shard_reads_only_the_row_groups_of_its_images(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "GROUP_ROWS", 2048)
    rows = [make_row(number, f"{number // 3}.png") for number in range(9000)]
    plan = plan_of(rows, tmp_path, selection=Selection(), stop_after=4)
    assert pq.read_metadata(plan.index.questions).num_row_groups == 5
    groups = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, number, **keys: (groups.append(number), read(file, number, **keys))[1],
    )
    assert len(list(plan.images())) == 2
    assert set(groups) == {0}


def test_a_file_gets_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    def refuse(path, target):
        assert not target.exists() and pq.read_metadata(path).num_rows == 121
        raise OSError("no rename")

    reader = data_set(tmp_path / "data")
    monkeypatch.setattr(
        index.Path, "replace", lambda path, to: refuse(path, to) if "quest" in to.name else path.rename(to)
    )
    with pytest.raises(SetupError, match="no rename"):
        make_plan(reader, tmp_path / "plan", data_digest="x", **KEYS)
    assert [path.name.split("-")[0] for path in (tmp_path / "plan").iterdir()] == ["images"]


def test_equal_images_go_round_the_shards_in_order():
    weights = np.array([2, 1] * 40 + [0])
    owners = assign(weights, 3).tolist()
    assert owners[:80:2] == [n % 3 for n in range(40)]
    assert owners[80] == NOBODY
    loads = [sum(weights[place] for place, owner in enumerate(owners) if owner == shard) for shard in range(3)]
    assert max(loads) - min(loads) <= 1


def test_collisions_are_counted_and_a_few_are_named(tmp_path):
    plan = plan_of([make_row(0, "a.png"), make_row(1, "a.dcm"), make_row(2, "b.png")], tmp_path)
    assert plan.collisions() == ["a.png: a.png_idx<n>", "a.dcm: a.dcm_idx<n>"]
    many = plan_of([make_row(n, f"{n // 2}.{'jpg' if n % 2 else 'png'}") for n in range(50)], tmp_path)
    assert len(many.collisions()) == 21 and many.collisions()[-1] == "... and 30 more"


def test_a_folder_with_an_odd_name(tmp_path):
    folder = tmp_path / "it's [a] *plan?{x}"
    assert len(list(plan_of([make_row(0)], folder).images())) == 1
