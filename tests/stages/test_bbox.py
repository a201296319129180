"""The Bounding_Box stage on real pixels: boxes in the film's own pixels, frames of annotated boxes, boxes.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from heatlens.batch.annotated import annotated_box
from heatlens.batch.ledger import HeatMapRecord
from heatlens.batch.protocols import Explanation, MadeMap, Placed
from heatlens.cam.protocols import PatchGrid
from heatlens.errors import ItemError
from heatlens.images.film import Film
from heatlens.images.geometry import FrameGeometry, source_box_to_gemex
from heatlens.questions.rows import Region
from heatlens.render.boxes import ANNOTATED, FOUND
from heatlens.stages.attn_map import AttnMapStage
from heatlens.stages.bbox import BoxStage
from tests.batch.kit import make_settings

FRAME = (224, 224)
GRID = PatchGrid(14, 14, (16.0, 16.0))
GOLDEN = Path(__file__).parent / "golden_boxes.jsonl"


def film(width: int = 320, height: int = 400) -> Film:
    """A grey gradient: no black background, so the whole film counts as body."""
    rows = np.linspace(120, 190, height)[:, None] + np.linspace(0, 50, width)[None, :]
    return Film(rows.astype(np.uint8), "png", 8)


def blob(row: int, column: int, height: int = 1, width: int = 1, heat: float = 1.0) -> np.ndarray:
    values = np.zeros((14, 14), np.float32)
    values[row : row + height, column : column + width] = heat
    return values


def asked(region: str = "", boxes: tuple[Region, ...] = (), output: str = "files/x_idx1", **fields) -> SimpleNamespace:
    fields = {"question_id": "q1", "question": "Where?", "answer": "Ja, dort", "prompt": "Where? heart", **fields}
    return SimpleNamespace(output=output, region=region, boxes=boxes, **fields)


def stage_for(tmp_path, **keys) -> BoxStage:
    return BoxStage(make_settings(tmp_path, stage="bbox", **{"ENABLE_BODY_MASK": False, **keys}))


def made(stage, values, picture: Film | None = None, heat_map=None, mode: str = "letterbox"):
    """(the result, decoded overlay) of one heat map."""
    picture, heat_map = picture or film(), heat_map or asked()
    geometry = FrameGeometry.fit(mode, source=picture.size, frame=FRAME)
    view = stage.open_image(picture, Placed(geometry, geometry.place(picture.pixels)), GRID)
    result = stage.make(view, heat_map, Explanation(values, 1.0))
    assert tuple(one.path for one in result.files) == stage.expected_files(heat_map)
    overlay = cv2.imdecode(np.frombuffer(result.files[0].data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    shared = stage.image_statistics(view)
    return SimpleNamespace(result=result, overlay=overlay, statistics={**shared, **result.statistics})


def boxes_of(one) -> list[dict]:
    return json.loads(one.statistics["found_boxes"])


def has_colour(overlay: np.ndarray, colour) -> bool:
    return bool((overlay == np.array(colour, np.uint8)).all(axis=2).any())


@pytest.mark.parametrize("size", [(320, 400), (400, 320), (2544, 3056)])
@pytest.mark.parametrize("output_size", [200, ""])
def test_a_hot_rectangle_of_patches_becomes_a_box_in_the_films_own_pixels(tmp_path, size, output_size) -> None:
    stage = stage_for(tmp_path, OUTPUT_SIZE=output_size)
    one = made(stage, blob(4, 5, 3, 4), film(*size), asked())
    (box,) = boxes_of(one)
    geometry = FrameGeometry.fit("letterbox", source=size, frame=FRAME)
    corners = geometry.frame_to_source(np.array([[5 * 16, 4 * 16], [9 * 16, 7 * 16]])).ravel()
    # 0.65 of the heat lies 0.15 of a patch inside the patch's edge; and edges go outwards to whole pixels.
    slack = 0.15 * 16 * max(size) / 224 + 2 * max(size) / (output_size or max(size)) + 1
    assert np.abs(np.array(box["xyxy"]) - corners).max() <= slack
    assert all(isinstance(edge, int) for edge in box["xyxy"] + box["padding"])
    assert box["xyxy_224"] == pytest.approx(source_box_to_gemex(tuple(box["xyxy"]), size), abs=0.005)
    assert one.statistics["box_count"] == 1
    assert one.statistics["box_threshold"] == pytest.approx(0.65)
    assert one.statistics["box_reason"] == ""


def test_two_places_are_two_boxes_and_the_larger_comes_first(tmp_path) -> None:
    values = blob(2, 3) + blob(8, 8, 3, 3, heat=0.9)
    one = made(stage_for(tmp_path), values)
    first, second = boxes_of(one)
    assert first["xyxy"][1] > second["xyxy"][3]
    assert first["mass"] > second["mass"]
    assert len(boxes_of(made(stage_for(tmp_path, MAX_BOXES=1), values))) == 1


def test_the_keys_reach_the_boxes(tmp_path) -> None:
    values = blob(5, 5, 2, 2)
    plain, padded = (boxes_of(made(stage_for(tmp_path, BOX_PADDING=share), values))[0] for share in (0, 0.25))
    width = plain["xyxy"][2] - plain["xyxy"][0]
    assert padded["padding"][0] == round(0.25 * width)
    assert padded["xyxy"][0] == plain["xyxy"][0] - padded["padding"][0]
    assert made(stage_for(tmp_path, MIN_AREA=0.2), values).statistics["box_reason"].endswith("MIN_AREA")
    assert made(stage_for(tmp_path, BOX_THRESHOLD="p99"), values).statistics["box_threshold"] > 0.65


@pytest.mark.parametrize("heat", [0.0, 2.5])
def test_a_constant_map_has_no_box_and_a_bare_film(tmp_path, heat) -> None:
    one = made(stage_for(tmp_path), blob(0, 0, 14, 14, heat))
    assert boxes_of(one) == []
    assert one.statistics["box_threshold"] is None
    assert "constant" in one.statistics["box_reason"]
    assert np.array_equal(one.overlay, np.repeat(film().pixels[..., None], 3, axis=2))


def test_no_box_where_the_model_did_not_look_or_where_there_is_no_body(tmp_path) -> None:
    picture = film(300, 600)
    (box,) = boxes_of(made(stage_for(tmp_path, PREPROCESS="crop"), blob(0, 3, 1, 4), picture, mode="crop"))
    assert 150 <= box["xyxy"][1] < 170  # the crop begins at 150
    air = np.full((400, 400), 150, np.uint8)
    air[:, :60] = 0
    air[20:40, 4:24] = 250
    values = blob(1, 0, heat=9.0) + blob(7, 7)
    (box,) = boxes_of(made(stage_for(tmp_path, ENABLE_BODY_MASK=True), values, Film(air, "png", 8)))
    assert box["xyxy"][0] > 150


def test_the_overlay_has_the_film_and_the_boxes_where_they_are(tmp_path) -> None:
    box = (40.0, 60.0, 120.0, 200.0)
    one = made(stage_for(tmp_path), blob(8, 8, 2, 3), heat_map=asked("heart", (Region("heart", box, "source"),)))
    x1, y1, x2, y2 = boxes_of(one)[0]["xyxy"]
    middle = (y1 + y2) // 2
    for row, column, colour in (
        (middle, x1, FOUND), (middle, x2 - 1, FOUND), (y1, (x1 + x2) // 2, FOUND), (y2 - 1, (x1 + x2) // 2, FOUND),
        (130, 40, ANNOTATED), (130, 119, ANNOTATED), (60, 90, ANNOTATED), (199, 90, ANNOTATED),
    ):  # fmt: skip
        assert tuple(one.overlay[row, column]) == colour
    assert tuple(one.overlay[middle, x1 - 1]) == (film().pixels[middle, x1 - 1],) * 3
    assert tuple(one.overlay[middle, (x1 + x2) // 2]) == (film().pixels[middle, (x1 + x2) // 2],) * 3


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (Region("a", (10, 20, 30, 40), "source"), (10, 20, 30, 40)),
        (Region("a", (-5, 20, 900, 40), "source"), (0, 20, 320, 40)),
        (Region("a", (0.25, 0.5, 0.5, 1.0), "relative"), (80, 200, 160, 400)),
        (Region("a", (112, 56, 168, 112), "letterbox224"), (160, 100, 260, 200)),
        (Region("a", (0, 0, 10, 10), "letterbox224"), None),  # in the padding
        (Region("a", (400, 20, 500, 40), "source"), None),  # beside the film
        (Region("a", (10, 20, 30, 40), "unknown"), None),
        (Region("a", (10, 20, 30, 40), ""), None),
        (Region("a", None, "source"), None),
    ],
)
def test_annotated_boxes_come_from_their_frame(tmp_path, region, expected) -> None:
    box = annotated_box(region, (320, 400))
    assert box == (None if expected is None else pytest.approx(expected))
    one = made(stage_for(tmp_path), blob(12, 12), heat_map=asked(boxes=(region,)))
    assert has_colour(one.overlay, ANNOTATED) == (expected is not None)


def test_raw_maps_are_those_of_the_other_stage(tmp_path) -> None:
    values = np.random.default_rng(0).random((14, 14)).astype(np.float32)
    keys = {"SAVE_RAW_CAM": True, "ENABLE_BODY_MASK": False, "OUTPUT_FORMAT": "jpg"}
    mine = made(BoxStage(make_settings(tmp_path, stage="bbox", **keys)), values).result
    other = made(AttnMapStage(make_settings(tmp_path, **keys)), values).result
    assert [one.path for one in mine.files] == ["files/x_idx1.jpg", "raw/files/x_idx1.npy", "raw/files/x_idx1.png"]
    assert mine.files[1:] == other.files[1:]
    assert {name: mine.statistics[name] for name in other.statistics} == other.statistics
    with pytest.raises(ItemError, match="collides"):
        made(stage_for(tmp_path, SAVE_RAW_CAM=True), values, heat_map=asked(output="raw/x_idx1"))


def test_statistics_are_the_columns(tmp_path) -> None:
    stage = stage_for(tmp_path)
    for values in (blob(5, 5), blob(0, 0, 14, 14)):
        assert set(made(stage, values).statistics) == {*stage.columns, "geometry"}


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 40), (40, 16), (2000, 20)])
def test_films_of_any_size_can_be_drawn_on(tmp_path, size) -> None:
    whole = Region("a long name of a region " * 20, (0, 0, *size), "source")
    one = made(stage_for(tmp_path), blob(6, 6, 2, 2) + blob(2, 2), film(*size), asked("Größe 大 " * 40, (whole,)))
    assert one.overlay.shape[0] <= max(1, size[1])
    for box in boxes_of(one):
        assert 0 <= box["xyxy"][0] < box["xyxy"][2] <= size[0]
        assert 0 <= box["xyxy"][1] < box["xyxy"][3] <= size[1]


def lines(tmp_path) -> list[MadeMap]:
    """Five heat maps: two places, padding that ends at the border, too little, constant, and hostile text."""
    maps = [
        (blob(2, 3) + blob(8, 8, 3, 3, heat=0.9), {}, asked("cardiac region")),
        (blob(5, 0, 2, 3), {"BOX_PADDING": 0.3, "BOX_THRESHOLD": "otsu"}, asked("right lung", question_id="q2")),
        (blob(5, 5), {"MIN_AREA": 0.5, "BOX_THRESHOLD": "p95"}, asked(question="", answer="")),
        (blob(0, 0, 14, 14), {}, asked()),
        (blob(5, 5), {}, asked("Größe\u2028\n\ud800\x00", answer='["A", "\\""]', output="files/ü_idx2")),
    ]
    found = []
    for values, keys, heat_map in maps:
        one = made(stage_for(tmp_path, **keys), values, film(320, 400), heat_map)
        record = HeatMapRecord("", "ok", one.result.files[0].path, score=1.0, statistics=one.statistics)
        found.append(MadeMap("files/ü.png", heat_map, record))
    return found


def test_the_whole_of_boxes_jsonl(tmp_path) -> None:
    """When it has to change: read what this test left, and copy it."""
    (path,) = stage_for(tmp_path).write_index(tmp_path, iter(lines(tmp_path)))
    assert path == tmp_path / "boxes.jsonl"
    assert path.read_bytes() == GOLDEN.read_bytes()


def test_pandas_reads_boxes_jsonl(tmp_path) -> None:
    (path,) = stage_for(tmp_path).write_index(tmp_path, iter(lines(tmp_path)))
    table = pd.read_json(path, lines=True)
    assert list(table) == [
        "image_path", "overlay", "question_id", "question", "answer", "region", "prompt", "image_size", "threshold",
        "boxes", "reason",
    ]  # fmt: skip
    assert table["boxes"].map(len).tolist() == [2, 1, 0, 0, 1]
    assert (table["reason"] == "").tolist() == [True, True, False, False, True]
    assert table["threshold"].isna().tolist() == [False, False, False, True, False]
    assert table["region"].tolist()[-1] == "Größe\u2028\n\ufffd\x00"
    assert table["image_size"].tolist()[0] == [320, 400]


def test_no_heat_map_is_an_empty_file(tmp_path) -> None:
    (path,) = stage_for(tmp_path).write_index(tmp_path, iter(()))
    assert path.read_bytes() == b""
