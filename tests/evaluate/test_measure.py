"""All heat maps of a run: numbers, groups, what is left out, and the processes that do it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from heatlens.batch.openers import FramePlacer, Opener
from heatlens.boxes.find import BoxRules, find_boxes
from heatlens.boxes.threshold import threshold_of
from heatlens.cam.protocols import PatchGrid
from heatlens.errors import DataSetError, ItemError, SetupError
from heatlens.evaluate import measuring, workers
from heatlens.evaluate.cases import Case, Cases
from heatlens.evaluate.finished_run import FinishedRun
from heatlens.evaluate.measure import IDS, evaluate_cases
from heatlens.evaluate.measuring import FIGURES, MISSING, NO_TARGET, measuring_of
from heatlens.evaluate.metrics import KEYS
from heatlens.evaluate.target import Target
from heatlens.evaluate.workers import _tasks, measured
from heatlens.images.bodymask import body_mask, pixels_needed
from heatlens.images.decode import read_film
from heatlens.render.encode import encode_png16
from tests.evaluate.records import METRIC_KEYS, example_record

SOURCE = (200, 240)
SIZE = (100, 120)
BOX = (30.0, 30.0, 80.0, 90.0)


def film():
    """Grey body with a dark rim of air, so that there is a body to be found."""
    pixels = np.full((SOURCE[1], SOURCE[0]), 150, dtype=np.uint8)
    pixels[:, :16] = pixels[:, -16:] = 0
    pixels[80:120, 60:90] = 90
    return pixels


def a_map(seed, box=BOX):
    """Heat on the box and noise elsewhere, 0..1 at SIZE."""
    values = np.random.default_rng(seed).random((SIZE[1], SIZE[0]), dtype=np.float32) * 0.3
    x1, y1, x2, y2 = (int(edge / 2) for edge in box)
    values[y1:y2, x1:x2] += 0.6
    values[:, :8] = values[:, -8:] = 0
    values /= values.max()
    return cv2.GaussianBlur(values, (0, 0), 1.5)


class World:
    """A run's folder, its films, and cases that can be spoilt."""

    def __init__(self, folder: Path, images=4, each=3):
        self.folder, self.root = folder / "run", folder / "films"
        self.config = {
            "BOX_THRESHOLD": "otsu", "MAX_BOXES": 5, "MIN_AREA": 0.001, "BOX_PADDING": 0.0, "OUTPUT_SIZE": 120,
            "ENABLE_BODY_MASK": True, "PREPROCESS": "letterbox", "SEED": 0,
        }  # fmt: skip
        self.items = []
        for number in range(images):
            image = f"files/p10/p{number // 2}/s1/{number}.png"
            (self.root / image).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film()).save(self.root / image)
            for question in range(each):
                self.add(image, f"p{number // 2}", number * each + question)

    def add(self, image, patient, row):
        output = image.replace(".png", f"_idx{row}")
        raw = self.folder / "raw" / f"{output}.png"
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.write_bytes(encode_png16(a_map(row)))
        finding = ("Effusion", "Nodule", "")[row % 3]
        self.items.append(
            Case(
                source_image=image, output=f"{output}.png", row=row, question_id=f"q{row}", question="Where?",
                region=("left lung", "right lung")[row % 2], prompt="it", question_type="open", patient=patient,
                source=SOURCE, target=Target(finding, (BOX,)), found=None, raw=raw,
            )
        )  # fmt: skip

    @property
    def run(self):
        record = {"counts": {"heat_maps": len(self.items)}, "stage": "attn_map"}
        return FinishedRun(self.folder, "attn_map", self.config, record, self.root)

    def evaluate(self, cases=None, *, workers=1, resamples=50, **more):
        cases = cases or Cases(tuple(self.items), {"no annotation for it": 2}, {"format": "table"}, ("a note",))
        return evaluate_cases(cases, self.run, workers=workers, seed=0, resamples=resamples, **more)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def changed(case, **fields):
    from dataclasses import replace

    return replace(case, **fields)


def shape_of(value):
    """Keys and kinds of a record, whatever its numbers and names."""
    if isinstance(value, dict):
        return {key: shape_of(inner) for key, inner in value.items()}
    return [shape_of(value[0])] if isinstance(value, list) and value else type(value).__name__.replace("int", "float")


def test_a_record_is_plain_json_of_the_layout_that_others_build_on(world):
    record, example = world.evaluate().record, example_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert list(record) == list(example)
    assert list(record["groups"]) == list(example["groups"])
    assert shape_of(record["groups"]["all"]) == shape_of(example["groups"]["all"])
    assert shape_of(record["bootstrap"]) == shape_of(example["bootstrap"])
    assert METRIC_KEYS == KEYS
    assert record["heat_maps"] == 14 and record["evaluated"] == 12 and record["patients"] == 2
    assert record["left_out"] == {"no annotation for it": 2}
    assert record["truth"] == {"format": "table"} and record["notes"] == ["a note"]
    assert record["threshold_rule"] == "otsu" and record["boxes"] == "found by evaluation"
    assert {name: group["n"] for name, group in record["groups"]["finding"].items()} == {
        "(not named)": 4, "Effusion": 4, "Nodule": 4,
    }  # fmt: skip
    assert list(record["groups"]["target_size"]) == ["2-10%"]


def test_rows_are_the_heat_maps_in_the_runs_order(world):
    rows = world.evaluate().rows
    assert list(rows.columns[: len(IDS)]) == list(IDS)
    assert set(FIGURES) | {"finding", "target_share", "target_size", "threshold", "constant"} <= set(rows.columns)
    assert rows["row"].tolist() == list(range(12))
    assert rows["target_share"].tolist() == pytest.approx([50 * 60 / (200 * 240)] * 12)
    assert rows[list(FIGURES)].notna().all(axis=None)


def test_the_means_are_those_of_the_rows(world):
    made = world.evaluate()
    for name, group in made.record["groups"]["finding"].items():
        own = made.rows[made.rows["finding"] == name.replace("(not named)", "")]
        for key in KEYS:
            assert group["metrics"][key]["mean"] == pytest.approx(own[key].mean(), abs=1e-4)
            assert group["metrics"][key]["median"] == pytest.approx(own[key].median(), abs=1e-4)
            assert group["baselines"]["body"][key]["mean"] == pytest.approx(own[f"body:{key}"].mean(), abs=1e-4)


def test_a_map_that_points_is_better_than_what_knows_nothing(world):
    every = world.evaluate().record["groups"]["all"]["all"]
    for key in KEYS:
        for name, baseline in every["baselines"].items():
            assert every["metrics"][key]["mean"] > baseline[key]["mean"], (name, key)


def test_threshold_and_boxes_are_those_that_the_run_would_find(world):
    """Inside the body of the film at the scale at which the run read it."""
    world.config["BOX_THRESHOLD"] = "p93"
    case = world.items[0]
    values = cv2.imread(str(case.raw), cv2.IMREAD_UNCHANGED).astype(np.float32) / 65535
    body = body_mask(read_film(world.root / case.source_image, 512).pixels).at(SIZE)
    assert not body.all()
    row = world.evaluate().rows.iloc[0]
    assert row["threshold"] == threshold_of("p93", values, body)
    assert row["threshold"] != threshold_of("p93", values, np.ones_like(body))
    best = find_boxes(values, body, BoxRules("p93", 5, 0.001, 0.0), SOURCE).boxes[0].xyxy
    given = changed(case, found=(best,))
    again = world.evaluate(Cases((given,)))
    assert again.rows["box_iou"].iloc[0] == row["box_iou"] > 0.8
    assert again.record["boxes"] == "written by the run"


def test_boxes_that_the_run_wrote_are_taken_unless_another_threshold_is_asked_for(world):
    whole = changed(world.items[0], found=((30, 30, 80, 90),))
    assert world.evaluate(Cases((whole,))).rows["box_iou"].iloc[0] == 1.0
    none = changed(world.items[0], found=())
    assert world.evaluate(Cases((none,))).rows["any_box_iou"].iloc[0] == 0.0
    other = world.evaluate(Cases((none, whole)), rule="0.6")
    assert other.record["threshold_rule"] == "0.6" and other.record["boxes"] == "found by evaluation"
    assert other.rows["box_iou"].min() > 0.5
    assert world.evaluate(Cases((none, world.items[1]))).record["boxes"] == "both"


def test_a_constant_map_is_a_miss_and_stays(world):
    world.items[0].raw.write_bytes(encode_png16(np.zeros((SIZE[1], SIZE[0]), dtype=np.float32)))
    made = world.evaluate()
    row = made.rows.iloc[0]
    assert bool(row["constant"]) and (row[list(KEYS)] == 0).all()
    assert row["centre:iou"] > 0
    assert made.record["evaluated"] == 12
    assert any("1 of 12 maps are constant" in note for note in made.record["notes"])


def test_broken_maps_and_targets_are_counted_and_named(world):
    class Gone:
        def at(self, size):
            raise ItemError("decode", "mask.png is not there")

    world.items[0].raw.unlink()
    world.items[1].raw.write_bytes(b"no picture at all, but long enough for a header")
    world.items[2] = changed(world.items[2], target=Target("x", (BOX,), Gone()))
    world.items[3] = changed(world.items[3], source=("wide", 3))
    record = world.evaluate().record
    assert record["evaluated"] == 8 and record["heat_maps"] == 14
    assert record["left_out"][MISSING] == record["left_out"][NO_TARGET] == 1
    assert sum(record["left_out"].values()) == 6
    assert world.items[0].output in record["left_out_examples"][MISSING][0]
    assert "mask.png" in record["left_out_examples"][NO_TARGET][0]


def test_many_broken_maps_leave_three_examples(world):
    for case in world.items[:5]:
        case.raw.unlink()
    record = world.evaluate().record
    assert record["left_out"][MISSING] == 5 and len(record["left_out_examples"][MISSING]) == 3


def test_nothing_to_measure_is_an_error_that_says_why(world):
    for case in world.items:
        case.raw.unlink()
    with pytest.raises(DataSetError, match=r"no annotation for it \(2\); the raw map is missing \(12\); e\.g\. "):
        world.evaluate()
    with pytest.raises(DataSetError, match="the run made none"):
        world.evaluate(Cases(()))


def test_without_its_film_a_heat_map_has_no_body(world):
    (world.root / world.items[0].source_image).write_bytes(b"broken")
    record = world.evaluate().record
    every = record["groups"]["all"]["all"]
    assert every["baselines"]["body"]["iou"]["n"] == 9 and every["metrics"]["iou"]["n"] == 12
    assert any("3 of 12 heat maps cannot be read" in note for note in record["notes"])


def test_without_any_film_there_is_no_body(world):
    world.root = None
    body = world.evaluate().record["groups"]["all"]["all"]["baselines"]["body"]
    assert set(body["iou"].values()) == {0, None}


def test_one_patient_has_no_interval(world):
    record = world.evaluate(Cases(tuple(world.items[:6]))).record
    assert record["patients"] == 1
    assert record["groups"]["all"]["all"]["metrics"]["iou"]["mean_low"] is None
    assert any("one patient" in note for note in record["notes"])


def test_processes_give_the_same_as_one(world, monkeypatch):
    monkeypatch.setattr(workers, "TASK", 1)
    alone, heard = world.evaluate(), []
    together = world.evaluate(workers=2, progress=lambda done, total: heard.append((done, total)))
    assert together.record == alone.record
    assert together.rows.equals(alone.rows)
    assert heard == [(3, 12), (6, 12), (9, 12), (12, 12)]


def test_what_else_is_measured_changes_no_number(world):
    whole = world.evaluate().rows
    part = world.evaluate(Cases((world.items[7], world.items[2]))).rows
    for key in FIGURES:
        assert part[key].tolist() == whole[key].iloc[[7, 2]].tolist()


def test_a_film_is_read_once_for_all_of_its_questions(world, monkeypatch):
    read = []
    monkeypatch.setattr(measuring, "read_film", lambda path, longest: read.append(path) or read_film(path, longest))
    mixed = sorted(world.items, key=lambda case: case.row % 3)
    made = world.evaluate(Cases(tuple(mixed)))
    assert made.rows["row"].tolist() == [case.row for case in mixed]  # in their order all the same
    assert len(read) == len(set(read)) == 4


def test_tasks_hold_whole_images(world):
    tasks = list(_tasks(world.items * 4))
    assert sorted(place for task in tasks for place in task) == list(range(48))
    images = [{(world.items * 4)[place].source_image for place in task} for task in tasks]
    assert sum(map(len, images)) == 4


def test_the_grid_is_that_of_the_raw_maps_and_the_frame_that_of_the_details(world):
    plain = measuring_of(world.run, world.items, 0, None).model
    assert (plain.frame, plain.grid.rows, plain.grid.stride) == ((224, 224), 14, (16.0, 16.0))
    np.save(world.items[0].raw.with_suffix(".npy"), np.zeros((7, 8), dtype=np.float32))
    table = pa.table({"geometry": [json.dumps({"frame": [384, 384]})]})
    pq.write_table(table, world.folder / "details.parquet")
    found = measuring_of(world.run, world.items, 0, None).model
    assert (found.frame, found.grid.rows, found.grid.cols) == ((384, 384), 7, 8)
    assert found.grid.stride == pytest.approx((384 / 7, 48))


@pytest.mark.parametrize(
    ("longest", "masked", "frame", "expected"),
    [
        (1024, True, 224, 1024),
        (120, True, 224, 512),
        (120, False, 224, 448),
        (120, True, 384, 768),
        (1024, True, 768, 1536),
        (None, True, 384, None),
    ],
)
def test_a_film_is_read_as_the_run_read_it(world, longest, masked, frame, expected):
    """At which scale a JPEG is decoded decides a little what is body."""
    world.config.update(OUTPUT_SIZE=longest, ENABLE_BODY_MASK=masked)
    table = pa.table({"geometry": [json.dumps({"frame": [frame, frame]})]})
    pq.write_table(table, world.folder / "details.parquet")
    assert measuring_of(world.run, world.items, 0, None).longest == expected
    stage = SimpleNamespace(longest=pixels_needed(longest, mask_body=masked))
    placer = FramePlacer("letterbox", (frame, frame))
    opener = Opener(read_film, stage, placer, PatchGrid(14, 14, (frame / 14, frame / 14)))
    assert opener.longest == expected  # the run's own


def test_what_a_crop_left_out_is_no_part_of_the_threshold(world):
    world.config.update(PREPROCESS="crop", ENABLE_BODY_MASK=False, BOX_THRESHOLD="p93")
    case = world.items[0]
    values = cv2.imread(str(case.raw), cv2.IMREAD_UNCHANGED).astype(np.float32) / 65535
    seen = np.zeros(values.shape, dtype=bool)
    seen[10:110] = True  # 200 of 240 source pixels are shown
    assert world.evaluate().rows["threshold"].iloc[0] == threshold_of("p93", values, seen)


def test_work_under_way_is_bounded(world, monkeypatch):
    """As many tasks as there are: never more than a few are handed over before their results are taken."""
    handed, most = [], []

    class Pool:
        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def submit(self, work, cases):
            handed.append(1)
            most.append(len(handed))
            return self

        def result(self):
            handed.pop()
            return measuring.Found(np.zeros((1, 1)))

        def shutdown(self, **how):
            assert how == {"wait": True, "cancel_futures": True}

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(workers, "TASK", 1)
    items = [changed(world.items[0], source_image=f"{number}.png") for number in range(100)]
    assert len(list(measured(measuring_of(world.run, items, 0, None), items, 3))) == 100
    assert max(most) <= 7


class Deadly:
    """Stands in for a target whose reading kills the process, as running out of memory does."""

    def at(self, size):
        os.kill(os.getpid(), signal.SIGKILL)


class Slow:
    def at(self, size):
        time.sleep(0.02)
        return np.ones((size[1], size[0]), dtype=bool)


def test_a_process_that_dies_is_an_error_for_people(world):
    case = changed(world.items[0], target=Target("", (BOX,), Deadly()))
    items = [changed(case, source_image=f"{number}.png") for number in range(40)]
    with pytest.raises(SetupError, match="fewer --workers"):
        world.evaluate(Cases(tuple(items)), workers=2)


def test_ctrl_c_ends_it_with_all_its_processes(world, tmp_path):
    script = tmp_path / "long.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.evaluate.test_measure import *\n"
        "if __name__ == '__main__':\n"
        "    world = World(Path(sys.argv[1]), images=1, each=1)\n"
        "    case = changed(world.items[0], target=Target('', (BOX,), Slow()))\n"
        "    items = tuple(changed(case, source_image=f'{number}.png') for number in range(3000))\n"
        "    try:\n"
        "        world.evaluate(Cases(items), workers=2, progress=lambda done, total: print(done, flush=True))\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped', flush=True)\n"
    )
    root = Path(__file__).resolve().parent.parent.parent
    paths = os.pathsep.join([str(root), str(root / "src")])
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "other")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.stdout.readline().strip().isdecimal()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = process.communicate(timeout=60)
    assert out.split()[-1] == "stopped", err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):  # the last of them may need a moment
        for _ in range(300):
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_a_path_without_a_patient_is_said(tmp_path):
    world = World(tmp_path, images=4, each=1)
    assert not [note for note in world.evaluate().record["notes"] if "name no patient" in note]
    world.items = [replace(case, patient=case.source_image) if at else case for at, case in enumerate(world.items)]
    (note,) = [note for note in world.evaluate().record["notes"] if "name no patient" in note]
    assert note.startswith("the paths of 3 of 4 images name no patient")
