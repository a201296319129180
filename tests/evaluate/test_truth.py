"""Annotation formats: each is read as published, what is broken is named, and what is foreign is refused."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.errors import ConfigError
from heatlens.evaluate.truth.annotations import EMPTY, OTHER_LABEL, SEVERAL, Annotation, placed, plain, same_shape
from heatlens.evaluate.truth.base import Asked, open_truth
from heatlens.evaluate.truth.chexlocalize import chexpert_path
from heatlens.evaluate.truth.images import AMBIGUOUS, SAME_END, SAME_NAME, SAME_PATH, match_images
from heatlens.evaluate.truth.table import open_table
from heatlens.registry import TRUTHS
from tests.evaluate.finished import finished, row

IMAGE = "files/p10/p10000001/s5/a.jpg"
MS_CXR = """category_name,label_text,path,x,y,w,h,image_width,image_height
Pneumonia,Left basilar opacity,files/p10/p10000001/s5/a.jpg,10,20,30,40,100,120
Pneumonia,left  basilar OPACITY,files/p10/p10000001/s5/a.jpg,60,20,10,10,100,120
Edema,mild edema,files/p10/p10000001/s5/a.jpg,0,0,50,50,100,120
"""


def asked(**values):
    known = {"image": IMAGE, "region": "", "question": "", "prompt": "", "content_type": "", "boxes": "[]",
             "source": (200, 240)}  # fmt: skip
    return Asked(**{**known, **values})


@pytest.fixture
def run(tmp_path):
    return finished(tmp_path, [row(0, image=IMAGE)])


def opened(text, run, *images):
    truth = open_truth(text, run)
    truth.meet(list(images) or [IMAGE])
    return truth


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_every_format_is_in_the_registry_and_can_be_loaded():
    assert set(TRUTHS) == {"own", "phantom", "ms-cxr", "chestx-det10", "chexlocalize", "table"}
    assert all(callable(entry.load()) for entry in TRUTHS.values())


def test_unknown_formats_and_files_that_are_not_there(run, tmp_path):
    with pytest.raises(ConfigError, match="did you mean ms-cxr"):
        open_truth("mscx:a.csv", run)
    with pytest.raises(ConfigError, match="not there"):
        open_truth(f"MS_CXR:{tmp_path}/gone.csv", run)
    with pytest.raises(ConfigError, match="which file"):
        open_truth("ms-cxr", run)
    with pytest.raises(ConfigError, match="this is a folder"):
        open_truth(f"table:{tmp_path}", run)
    with pytest.raises(ConfigError, match="which format"):
        open_truth(f":{tmp_path}", run)
    with pytest.raises(ConfigError, match="have no file"):
        open_truth("own:x.csv", run)


# MS-CXR


def test_ms_cxr_phrases_are_one_target_in_the_films_own_pixels(run, tmp_path):
    truth = opened(f"ms-cxr:{write(tmp_path / 'ms.csv', MS_CXR)}", run)
    found = truth.match(asked(prompt="Left basilar opacity"), "auto")
    assert found.how == "prompt"
    assert found.target.finding == "Pneumonia"
    assert found.target.boxes == ((20, 40, 80, 120), (120, 40, 140, 60))
    assert found.target.mask is None
    assert truth.match(asked(region="edema", prompt="Left basilar opacity"), "auto").target.finding == "Edema"
    assert truth.match(asked(region="edema"), "prompt").how == OTHER_LABEL
    assert truth.match(asked(), "image").target.finding == SEVERAL
    assert truth.match(asked(prompt="a mass"), "auto").target is None
    assert truth.describe()["annotations"] == 3


def test_an_annotation_of_another_picture_is_left_out_and_named(run, tmp_path):
    truth = opened(f"ms-cxr:{write(tmp_path / 'ms.csv', MS_CXR)}", run)
    found = truth.match(asked(prompt="mild edema", source=(240, 200)), "auto")
    assert found.target is None
    assert "100x120" in found.how
    assert "ms.csv:4: made on 100x120" in truth.notes()[0]


def test_broken_rows_are_counted_and_the_first_ones_named(run, tmp_path):
    bad = ["Edema,x,files/../../etc/passwd,1,2,3,4,100,120", "Edema,x,a.jpg,1,2,nan,4,100,120", "Edema,x",
           "Edema,x,a.jpg,1,2,-3,4,100,120", "Edema,x,,1,2,3,4,100,120", "Edema,x,a.jpg,1,2,3,4,0,120",
           'Edema,"x,a.jpg']  # fmt: skip
    truth = opened(f"ms-cxr:{write(tmp_path / 'ms.csv', MS_CXR + chr(10).join(bad))}", run)
    assert truth.describe()["broken_rows"] == len(bad)
    (note,) = truth.notes()
    assert note.startswith("7 row(s)") and "ms.csv:5: " in note and "ms.csv:9: " in note and "(and 2 more)" in note
    assert truth.match(asked(prompt="mild edema"), "auto").target is not None


@pytest.mark.parametrize("name", ["ms-cxr", "chestx-det10", "table", "chexlocalize"])
@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", '{"a": 1}\n', '[{"a": 1}]', "", "\0\1\2", "[", "{", "[[1]]", '"text"', "\ufeff", "PAR1xx"]
)
def test_a_file_of_another_layout_is_refused_with_what_is_known(run, tmp_path, name, content):
    with pytest.raises(ConfigError, match=name) as error:
        open_truth(f"{name}:{write(tmp_path / 'other', content)}", run)
    assert "known is" in str(error.value) or "Parquet" in str(error.value) or "JSON list" in str(error.value)


@given(st.binary(max_size=200))
def test_no_file_whatever_its_bytes_ends_in_anything_but_a_clear_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "any"
    path.write_bytes(data)
    for name in ("ms-cxr", "chestx-det10", "chexlocalize", "table", "phantom"):
        with pytest.raises(ConfigError):
            open_truth(f"{name}:{path}", None)


# ChestX-Det10


def test_chestx_det10_lists_are_read_side_by_side(run, tmp_path):
    rows = [
        {"file_name": "a.png", "syms": ["Effusion", "Nodule", "Effusion", "Mass"],
         "boxes": [[1, 2, 30, 40], [5, 5, 9, 9], [100, 100, 900, 120], [7, 7, 7, 9]]},
        {"file_name": "b.png", "syms": [], "boxes": []},
        {"file_name": "c.png", "syms": ["Mass"], "boxes": []},
    ]  # fmt: skip
    truth = opened(f"chestx-det10:{write(tmp_path / 'train.json', rows)}", run, "images/a.png", "images/b.png", "c.png")
    found = truth.match(asked(image="images/a.png", prompt="effusion"), "auto").target
    assert found.boxes == ((1, 2, 30, 40), (100, 100, 200, 120))
    assert truth.match(asked(image="images/b.png", prompt="effusion"), "auto").how == OTHER_LABEL
    assert truth.why_not("c.png")
    assert truth.describe()["broken_rows"] == 2
    assert "train.json:1: the box of 'Mass' has no area" in truth.notes()[0]


# CheXlocalize


def test_chexlocalize_masks_are_matched_with_chexperts_paths(run, tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    pixels = np.zeros((120, 100), np.uint8)
    pixels[30:60, 20:50] = 1

    def rle(values):
        found = coco.encode(np.asfortranarray(values))
        return {"size": found["size"], "counts": found["counts"].decode()}

    data = {
        "patient64622_study1_view1_frontal": {
            "Edema": rle(pixels),
            "Cardiomegaly": rle(0 * pixels),
            "Atelectasis": {"size": [120, 100], "counts": "zz"},
        },
        "patient64623_study1_view1_frontal": {"Edema": rle(pixels)},
        "patient64624_study1_view1_frontal": [1],
    }
    ours = [f"CheXpert-v1.0/valid/patient6462{n}/study1/view1_frontal.jpg" for n in (2, 3, 4)]
    truth = opened(f"chexlocalize:{write(tmp_path / 'gt.json', data)}", run, *ours)
    assert truth.describe()["images_matched"] == {SAME_END: 2}
    found = truth.match(asked(image=ours[0], prompt="edema"), "auto").target
    assert found.boxes == ((40, 60, 100, 120),)
    assert np.array_equal(found.area((100, 120), (200, 240)), pixels > 0)
    assert truth.match(asked(image=ours[0], prompt="cardiomegaly"), "auto").how == OTHER_LABEL
    assert truth.describe()["broken_rows"] == 2
    assert "gt.json:patient64622_study1_view1_frontal, Atelectasis" in truth.notes()[0]


def test_chexpert_paths():
    assert chexpert_path("patient64622_study1_view1_frontal") == "patient64622/study1/view1_frontal"
    assert chexpert_path("other_image_name") == "other_image_name"


# Table

TABLES = {
    "corners.csv": "image,label,x1,y1,x2,y2\nA,tube,10,20,30,40\n",
    "semicolon.csv": "Image;Finding;XMin;YMin;XMax;YMax\nA;tube;10;20;30;40\n",
    "sides.tsv": "path\tlabel\tx\ty\tw\th\nA\ttube\t10\t20\t20\t20\n",
    "framed.csv": "image,label,x1,y1,x2,y2,width,height\nA,tube,5,10,15,20,100,120\n",
    "rows.jsonl": '{"image": "A", "label": "tube", "x1": 10, "y1": 20, "x2": 30, "y2": 40}\n',
    "list.json": '[{"file_name": "A", "name": "tube", "x": 10, "y": 20, "w": 20, "h": 20}]',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_every_dress(run, tmp_path, name):
    path = write(tmp_path / name, TABLES[name].replace("A", IMAGE))
    found = opened(f"table:{path}", run).match(asked(question="Tube"), "auto")
    assert (found.target.finding, found.target.boxes, found.how) == ("tube", ((10, 20, 30, 40),), "question")


def test_a_parquet_table(run, tmp_path):
    frame = pd.DataFrame({"image": [IMAGE, IMAGE], "label": ["tube", None], "x1": [10, 1], "y1": [20.0, 1],
                          "x2": [30, 2], "y2": [40, float("nan")]})  # fmt: skip
    frame.to_parquet(tmp_path / "t.parquet")
    truth = opened(f"table:{tmp_path / 't.parquet'}", run)
    assert truth.match(asked(region="tube"), "auto").target.boxes == ((10, 20, 30, 40),)
    assert truth.describe()["broken_rows"] == 1


def test_a_table_without_labels_speaks_of_the_image(run, tmp_path):
    path = write(tmp_path / "t.csv", f"image,x1,y1,x2,y2\n{IMAGE},10,20,30,40\n{IMAGE},150,20,300,40\nb.png,,,,\n")
    truth = opened(f"table:{path}", run, IMAGE, "b.png")
    found = truth.match(asked(prompt="whatever"), "auto")
    assert (found.target.finding, found.how) == ("", "image")
    assert found.target.boxes == ((10, 20, 30, 40), (150, 20, 200, 40))
    assert truth.match(asked(image="b.png"), "image").target is None
    assert truth.match(asked(), "region").target is None


def test_masks_of_a_table_lie_beside_it_and_nowhere_else(run, tmp_path):
    beside = tmp_path / "truth"
    beside.mkdir()
    pixels = np.zeros((120, 100), np.uint8)
    pixels[30:60, 20:50] = 255
    cv2.imwrite(str(beside / "m.png"), pixels)
    cv2.imwrite(str(tmp_path / "secret.png"), pixels)
    cv2.imwrite(str(beside / "wide.png"), np.full((50, 100), 255, np.uint8))
    cv2.imwrite(str(beside / "empty.png"), 0 * pixels)
    rows = [
        ("tube", "m.png"),
        ("out", "../secret.png"),
        ("gone", "gone.png"),
        ("wide", "wide.png"),
        ("none", "empty.png"),
    ]
    lines = [f"{IMAGE},{label},{mask},,,," for label, mask in rows] + [f"{IMAGE},tube,,0,0,10,10"]
    truth = opened(f"table:{write(beside / 't.csv', chr(10).join(['image,label,mask,x1,y1,x2,y2', *lines]))}", run)
    found = truth.match(asked(region="tube"), "auto").target
    assert found.boxes == ((40, 60, 100, 120), (0, 0, 10, 10))
    area = found.area((100, 120), (200, 240))
    assert area[30:60, 20:50].all() and area[:5, :5].all() and area.sum() == 900 + 25
    assert "climbs out" in truth.notes()[0]
    assert truth.match(asked(region="out"), "auto").how == OTHER_LABEL
    assert truth.match(asked(region="gone"), "auto").how == "its mask is broken"
    assert "100x50" in truth.match(asked(region="wide"), "auto").how
    assert truth.match(asked(region="none"), "auto").how == EMPTY
    assert "t.csv:4: gone.png" in truth.notes()[1] and str(tmp_path / "secret.png") not in "".join(truth.notes())


# The phantom and the run's own boxes


def phantom_folder(folder):
    pixels = np.zeros((240, 200), np.uint8)
    pixels[60:120, 100:102] = 255
    (folder / "masks").mkdir(parents=True)
    cv2.imwrite(str(folder / "masks" / "a_1.png"), pixels)
    findings = [
        {"name": "tube", "region": "trachea", "box": [100, 60, 102, 120], "mask": "masks/a_1.png", "prompt": "tube"},
        {"name": "nodule", "region": "right lung", "box": [10, 20, 40, 60], "prompt": "nodule in the right lung"},
    ]
    write(folder / "truth.jsonl", {"image_path": IMAGE, "width": 200, "height": 240, "findings": findings})
    return folder


def test_the_phantoms_findings_are_found_by_prompt_or_by_the_rows_box(tmp_path):
    run = finished(tmp_path, [row(0, image=IMAGE)], DATASET_PATH=str(phantom_folder(tmp_path / "phantom")))
    truth = opened("phantom", run)
    found = truth.match(asked(prompt="nodule in the right lung"), "auto")
    assert (found.target.finding, found.how) == ("nodule", "prompt")
    own = json.dumps([{"name": "trachea", "box": [100, 60, 103, 120], "frame": "source"}])
    found = truth.match(asked(prompt="Is there a tube? trachea", boxes=own), "auto")
    assert (found.target.finding, found.how) == ("tube", "box")
    assert found.target.area((200, 240), (200, 240)).sum() == 60 * 2
    whole = json.dumps([{"name": "bilateral lung", "box": [0, 0, 200, 240], "frame": "source"}])
    assert truth.match(asked(prompt="Is there an effusion?", boxes=whole), "auto").target is None
    both = json.dumps([*json.loads(own), {"name": "right lung", "box": [10, 20, 40, 58], "frame": "source"}])
    assert len(truth.match(asked(boxes=both), "auto").target.boxes) == 2
    assert truth.match(asked(region="trachea"), "region").target.finding == "tube"
    with pytest.raises(ConfigError, match=r"no truth\.jsonl"):
        open_truth("phantom", finished(tmp_path / "other", [row(0)]))


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([{"name": "a", "box": [10, 20, 60, 80], "frame": "source"}], ((10, 20, 60, 80),)),
        ([{"name": "a", "box": [0.1, 0.5, 0.2, 2.0], "frame": "relative"}], ((20, 120, 40, 240),)),
        ([{"name": "a", "box": [10, 20, 60, 80], "frame": "unknown"}], None),
        ([{"name": "a", "box": None, "frame": ""}], None),
        ([{"box": [1, 2]}, 3, {"box": "x"}], None),
        ("no list", None),
    ],
)
def test_own_boxes(boxes, expected):
    found = open_truth("own", None).match(asked(region="heart", boxes=json.dumps(boxes)), "auto")
    assert (found.target.boxes if found.target else None) == expected
    if expected:
        assert found.target.finding == "heart"


def test_a_tables_own_type_is_the_finding():
    boxes = json.dumps([{"name": "a", "box": [10, 20, 60, 80], "frame": "source"}])
    truth = open_truth("own", None)
    assert truth.match(asked(region="heart", content_type="Edema", boxes=boxes), "auto").target.finding == "Edema"
    assert truth.match(asked(region="heart", content_type="disease", boxes=boxes), "auto").target.finding == "heart"


# Which image is which


def test_images_are_matched_by_path_by_end_and_by_name():
    ours = ["files/p10/p1/s1/x.jpg", "a/one.png", "b/two.dcm", "c/two.png", "deep/er/three.jpg", "four.jpg", "five.jpg"]
    theirs = ["files/p10/p1/s1/x.jpg", "/data/a/one.jpg".strip("/"), "two.png", "er/three.png", "z/four", "none.png"]
    found, unclear = match_images(ours, theirs)
    assert found == {
        "files/p10/p1/s1/x.jpg": ("files/p10/p1/s1/x.jpg", SAME_PATH),
        "a/one.png": ("data/a/one.jpg", SAME_END),
        "deep/er/three.jpg": ("er/three.png", SAME_END),
        "four.jpg": ("z/four", SAME_END),
    }
    assert unclear == {"b/two.dcm", "c/two.png"}  # one annotation, two images


def test_a_name_alone_counts_where_it_is_the_only_one(run, tmp_path):
    found, unclear = match_images(["x/a.jpg", "x/b.jpg"], ["y/a.png", "y/b.png", "z/b.png"])
    assert found == {"x/a.jpg": ("y/a.png", SAME_NAME)}
    assert unclear == {"x/b.jpg"}
    truth = opened(f"table:{write(tmp_path / 't.csv', 'image,x1,y1,x2,y2' + 2 * chr(10) + 'b.png,1,2,3,4')}", run,
                   "x/b.jpg", "y/b.jpg")  # fmt: skip
    assert truth.why_not("x/b.jpg") == AMBIGUOUS


@given(st.lists(st.sampled_from(["a", "b", "a/a", "b/a", "c/b/a", "a.png", "a/a.jpg", "c/a/a"]), unique=True),
       st.lists(st.sampled_from(["a", "b", "a/a", "b/a", "c/b/a", "a.jpg", "a/a.png"]), unique=True))  # fmt: skip
def test_no_annotation_is_given_to_two_images(ours, theirs):
    found, unclear = match_images(ours, theirs)
    given_to = [other for other, _ in found.values()]
    assert len(given_to) == len(set(given_to))
    assert not unclear & found.keys()
    assert set(ours) & set(theirs) == {image for image, (_, how) in found.items() if how == SAME_PATH}


# Frames


@given(st.integers(64, 4000), st.integers(64, 4000), st.integers(32, 2000))
def test_a_scaled_picture_has_the_films_shape(width, height, longest):
    scale = longest / max(width, height)
    assert same_shape((max(1, round(width * scale)), max(1, round(height * scale))), (width, height))


def test_another_shape_is_seen():
    assert not same_shape((1024, 1024), (2544, 3056))
    assert not same_shape((512, 400), (512, 512))
    assert not same_shape((3056, 2544), (2544, 3056))


@given(st.floats(0.1, 8), st.integers(200, 3000), st.integers(200, 3000))
def test_boxes_are_scaled_from_their_frame(scale, width, height):
    frame = (width * scale, height * scale)
    box = (0.1 * frame[0], 0.2 * frame[1], 0.5 * frame[0], 1.5 * frame[1])
    (found,) = placed(Annotation("", (), "", (box,), frame), (width, height))
    assert found == pytest.approx((0.1 * width, 0.2 * height, 0.5 * width, height))


def test_labels_without_case_and_double_blanks():
    assert plain(" Left  LUNG\n zone") == "left lung zone"


def test_a_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeff\nimage,label,x1,y1,x2,y2,,,image\r\na.png,x,1,2,3,4,,,b.png\r\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="the column image more than once"):
        open_table(path, None)
    path.write_text("image,label,x1,y1,x2,y2,,\na.png,x,1,2,3,4,,\n")  # empty names are nobody's
    assert open_table(path, None).describe()["annotations"] == 1


def test_a_masks_path_is_named_as_one(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image,label,mask\na.png,x,../m.png\na.png,x,m.png\n")
    (note,) = open_table(path, None).notes()
    assert "mask '../m.png' climbs out of its table's folder" in note
