"""From a run's rows to cases: matching, drawing, what is left out, and the maps' files."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from heatlens.errors import ConfigError, ItemError, SetupError
from heatlens.evaluate.cases import DAMAGED, NOT_DRAWN, find_cases, load_map, patient_of
from heatlens.evaluate.truth.annotations import NO_IMAGE
from heatlens.evaluate.truth.base import open_truth
from heatlens.evaluate.truth.own import NO_BOX, UNUSABLE
from tests.evaluate.finished import SOURCE, finished, row, write_map


def table(path, lines):
    path.write_text("image,label,x1,y1,x2,y2\n" + "\n".join(lines), encoding="utf-8")
    return path


def test_a_case_of_every_heat_map_with_a_box_in_data_set_order(tmp_path):
    unknown = json.dumps([{"name": "x", "box": [1, 2, 3, 4], "frame": "unknown"}])
    rows = [row(0), row(1, boxes="[]"), row(2, boxes=unknown), row(3), row(4, boxes='[{"name": "x", "box": null}]')]
    found = find_cases(finished(tmp_path, rows, group=2), None)
    assert [case.row for case in found.items] == [0, 3]
    assert found.left_out == {NO_BOX: 2, UNUSABLE: 1}
    assert found.truth["matched"] == {"own row": 2}
    first = found.items[0]
    assert first.output == "files/p10/p10000000/s5/film0_idx1.png"
    assert (first.source_image, first.question_id, first.question) == (
        rows[0]["source_image"],
        "q0",
        "Where is finding 0?",
    )
    assert (first.region, first.prompt, first.question_type) == ("right lung", "finding 0 right lung", "open_ended")
    assert (first.patient, first.source, first.found) == ("p10/p10000000", SOURCE, None)
    assert first.target.boxes == ((10, 20, 60, 80),)
    assert first.raw == tmp_path / "results" / "raw" / first.output


def test_boxes_of_the_bbox_stage_best_first(tmp_path):
    boxes = [{"xyxy": [50, 60, 70, 80], "score": 0.9}, {"xyxy": [1, 2, 3, 4], "score": 0.1}]
    rows = [row(0, found_boxes=json.dumps(boxes)), row(1, found_boxes="[]"), row(2, found_boxes='[{"xyxy": "no"}]')]
    found = find_cases(finished(tmp_path, rows, stage="bbox"), None)
    assert [case.found for case in found.items] == [((50, 60, 70, 80), (1, 2, 3, 4)), ()]
    assert found.left_out == {DAMAGED: 1}


def test_an_annotation_file_says_how_it_was_matched(tmp_path):
    rows = [row(0), row(1, region="", prompt="Tube"), row(2), row(3, region="left lung")]
    lines = [f"p10/p10000{n:03d}/s5/film{n}.jpg,{label},0,0,50,60" for n, label in ((0, "RIGHT  lung"), (1, "tube"),
                                                                                     (3, "heart"))]  # fmt: skip
    run = finished(tmp_path, rows)
    found = find_cases(run, open_truth(f"table:{table(tmp_path / 't.csv', [*lines, 'a,b,1,2,3'])}", run))
    assert [(case.row, case.target.finding) for case in found.items] == [(0, "RIGHT  lung"), (1, "tube")]
    assert found.left_out == {NO_IMAGE: 1, "its image is annotated, but not what it asks for": 1}
    assert found.truth["matched"] == {"region": 1, "prompt": 1}
    assert found.truth["images_matched"] == {"same path": 3}
    assert (found.truth["format"], found.truth["match"], found.truth["broken_rows"]) == ("table", "auto", 1)
    assert found.notes == ("1 row(s) of the annotation file cannot be used: t.csv:5: 5 cells where the header has 6 "
                           "(a delimiter without quotes?)",)  # fmt: skip


def test_a_sample_is_drawn_from_what_is_annotated_and_is_the_same_again(tmp_path):
    rows = [row(n, boxes="[]") if n % 2 else row(n) for n in range(60)]
    run = finished(tmp_path, rows, group=7)
    drawn = [find_cases(run, None, sample=10, seed=seed) for seed in (1, 1, 2)]
    numbers = [[case.row for case in one.items] for one in drawn]
    assert numbers[0] == numbers[1] != numbers[2]
    assert len(set(numbers[0])) == 10 and numbers[0] == sorted(numbers[0]) and not any(n % 2 for n in numbers[0])
    assert drawn[0].left_out == {NO_BOX: 30, NOT_DRAWN: 20}
    assert len(find_cases(run, None, sample=1000).items) == 30
    share = Counter(case.row for seed in range(60) for case in find_cases(run, None, sample=10, seed=seed).items)
    assert min(share[n] for n in range(0, 60, 2)) > 3
    with pytest.raises(ConfigError, match="--sample=0"):
        find_cases(run, None, sample=0)


def test_only_drawn_rows_become_objects(tmp_path, monkeypatch):
    run = finished(tmp_path, [row(n) for n in range(50)], group=5)
    taken = []
    monkeypatch.setattr("heatlens.evaluate.cases.film_size", None)
    monkeypatch.setattr("heatlens.evaluate.cases._film_size", lambda text: taken.append(text) or SOURCE)
    assert len(find_cases(run, None, sample=3).items) == len(taken) == 3


def test_damaged_rows_are_left_out_and_never_lead_out_of_the_folder(tmp_path):
    rows = [
        row(0), row(1, geometry="{}"), row(2, image_path="../../outside.png"), row(3, geometry='{"source": [-1, 5]}'),
        row(4, source_image=None), row(5, boxes=None), row(6, geometry='{"source": [1e999, 3]}'),
    ]  # fmt: skip
    run = finished(tmp_path, rows, SAVE_RAW_CAM=False)
    run.config["SAVE_RAW_CAM"] = True
    write_map(tmp_path / "results" / "raw" / rows[0]["image_path"], np.zeros((24, 20)))
    own = find_cases(run, None)
    assert [case.row for case in own.items] == [0]
    assert own.left_out == {DAMAGED: 6}
    path = table(tmp_path / "t.csv", [f"p10/p10000{n:03d}/s5/film{n}.jpg,right lung,0,0,50,60" for n in range(7)])
    other = find_cases(run, open_truth(f"table:{path}", run))
    assert [case.row for case in other.items] == [0, 5]


def test_nothing_to_measure_says_why(tmp_path):
    with pytest.raises(ConfigError, match="no box in its row: 2"):
        find_cases(finished(tmp_path, [row(0, boxes="[]"), row(1, boxes="[]")]), None)
    run = finished(tmp_path / "b", [])
    with pytest.raises(ConfigError, match="made no heat map"):
        find_cases(run, None)
    with pytest.raises(ConfigError, match="--match=word: allowed: auto, region"):
        find_cases(run, None, "word")


def test_a_run_without_maps_says_what_to_do(tmp_path):
    run = finished(tmp_path, [row(0)], SAVE_RAW_CAM=False)
    with pytest.raises(SetupError, match=r"SAVE_RAW_CAM=true.*--recompute"):
        find_cases(run, None)
    kept = finished(tmp_path / "kept", [row(0)])
    case = find_cases(kept, None).items[0]
    case.raw.unlink()
    with pytest.raises(SetupError, match=r"is missing.*SAVE_RAW_CAM=true"):
        find_cases(kept, None)
    with pytest.raises(SetupError, match=r"is missing.*--recompute"):
        load_map(case)


# Maps


def test_a_map_is_read_as_it_was_written(tmp_path):
    case = find_cases(finished(tmp_path, [row(0)]), None).items[0]
    values = np.random.default_rng(0).random((120, 100))
    write_map(case.raw, values)
    found = load_map(case)
    assert found.dtype == np.float32
    assert np.abs(found - values).max() < 1e-5
    write_map(case.raw, np.ones((120, 100)))
    assert load_map(case).max() == 1.0


@pytest.mark.parametrize("kind", ["cut", "text", "eight bits", "colour", "shape", "bomb", "empty"])
def test_a_broken_map_is_an_error_of_one_heat_map(tmp_path, kind):
    import cv2

    case = find_cases(finished(tmp_path, [row(0)]), None).items[0]
    data = case.raw.read_bytes()
    if kind == "cut":
        case.raw.write_bytes(data[: len(data) // 2])
    elif kind == "eight bits":
        cv2.imwrite(str(case.raw), np.zeros((120, 100), np.uint8))
    elif kind == "colour":
        cv2.imwrite(str(case.raw), np.zeros((120, 100, 3), np.uint16))
    elif kind == "shape":
        write_map(case.raw, np.zeros((100, 120)))
    elif kind == "bomb":
        case.raw.write_bytes(data[:16] + (10**6).to_bytes(4, "big") * 2 + data[24:])
    else:
        case.raw.write_bytes(b"no picture" * 9 if kind == "text" else b"")
    with pytest.raises(ItemError, match=r"film0_idx1\.png"):
        load_map(case)


@pytest.mark.parametrize(
    ("image", "patient"),
    [
        ("files/p10/p10268877/s50042142/x.jpg", "p10/p10268877"),
        ("p11/p11000001/s5/x.jpg", "p11/p11000001"),
        ("CheXpert-v1.0/valid/patient64622/study1/view1_frontal.jpg", "patient64622"),
        ("patient64622/study1/view1_frontal.jpg", "patient64622"),
        ("images/00000001_000.png", "images/00000001_000.png"),
        ("outpatient1/x.png", "outpatient1/x.png"),
    ],
)
def test_whose_film_it_is(image, patient):
    assert patient_of(image) == patient
