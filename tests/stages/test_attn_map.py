"""The Attention_Map stage on real pixels: order of operations, raw files, bare film where nothing was seen."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from heatlens.batch.protocols import Explanation, Placed
from heatlens.cam.protocols import PatchGrid
from heatlens.errors import ItemError
from heatlens.images.bodymask import WORK_SIDE
from heatlens.images.film import Film
from heatlens.images.geometry import FrameGeometry
from heatlens.stages.attn_map import AttnMapStage
from tests.batch.kit import make_settings

FRAME = (224, 224)
GRID = PatchGrid(14, 14, (16.0, 16.0))
HEAT_MAP = SimpleNamespace(output="files/x_idx1", question="Where?")


def film(width: int = 320, height: int = 400) -> Film:
    """A grey gradient: no black background, so the whole film counts as body."""
    rows = np.linspace(120, 190, height)[:, None] + np.linspace(0, 50, width)[None, :]
    return Film(rows.astype(np.uint8), "png", 8)


def hot_cell(row: int, column: int) -> np.ndarray:
    values = np.zeros((14, 14), np.float32)
    values[row, column] = 3.0
    return values


def stage_for(tmp_path, **keys) -> AttnMapStage:
    return AttnMapStage(make_settings(tmp_path, **{"ENABLE_BODY_MASK": False, **keys}))


def opened(stage: AttnMapStage, picture: Film, mode: str = "letterbox"):
    geometry = FrameGeometry.fit(mode, source=picture.size, frame=FRAME)
    return stage.open_image(picture, Placed(geometry, geometry.place(picture.pixels)), GRID)


def made(stage: AttnMapStage, values: np.ndarray, picture: Film | None = None, mode: str = "letterbox"):
    """(decoded files by suffix, statistics) of one heat map."""
    view = opened(stage, picture or film(), mode)
    result = stage.make(view, HEAT_MAP, Explanation(values, 1.0))
    assert tuple(one.path for one in result.files) == stage.expected_files(HEAT_MAP)
    return {one.path: one.data for one in result.files}, result.statistics


def decode(data: bytes) -> np.ndarray:
    """RGB pixels (or 16-bit grey) of an encoded picture."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return found[..., ::-1] if found.ndim == 3 else found


def test_one_overlay_by_default_and_raw_files_on_demand(tmp_path):
    assert stage_for(tmp_path).expected_files(HEAT_MAP) == ("files/x_idx1.png",)
    raw = stage_for(tmp_path, SAVE_RAW_CAM=True, OUTPUT_FORMAT="jpg").expected_files(HEAT_MAP)
    assert raw == ("files/x_idx1.jpg", "raw/files/x_idx1.npy", "raw/files/x_idx1.png")


def test_alpha_0_is_the_film_and_alpha_1_the_map(tmp_path):
    files, _ = made(stage_for(tmp_path, ALPHA=0), hot_cell(5, 5))
    overlay = decode(files["files/x_idx1.png"])
    assert np.array_equal(overlay, np.repeat(film().pixels[..., None], 3, axis=2))
    files, _ = made(stage_for(tmp_path, ALPHA=1), hot_cell(5, 5))
    colours = {tuple(colour) for colour in decode(files["files/x_idx1.png"]).reshape(-1, 3)}
    other, _ = made(stage_for(tmp_path, ALPHA=1), hot_cell(5, 5), Film(film().pixels // 2, "png", 8))
    assert colours == {tuple(colour) for colour in decode(other["files/x_idx1.png"]).reshape(-1, 3)}


def test_raw_files_hold_the_grid_map_and_the_final_map(tmp_path):
    stage = stage_for(tmp_path, SAVE_RAW_CAM=True)
    values = np.random.default_rng(0).random((14, 14)).astype(np.float32)
    files, statistics = made(stage, values)
    path = tmp_path / "raw.npy"
    path.write_bytes(files["raw/files/x_idx1.npy"])
    stored = np.load(path)
    assert stored.dtype == np.float32
    assert np.array_equal(stored, values)
    final = decode(files["raw/files/x_idx1.png"])
    assert final.dtype == np.uint16
    assert final.shape == (400, 320)
    assert final.min() == 0
    assert final.max() == 65535
    assert statistics["map_max"] == pytest.approx(float(values.max()))
    assert statistics["map_mean"] == pytest.approx(float(values.mean()))


@pytest.mark.parametrize("size", [(320, 400), (400, 320)])
@pytest.mark.parametrize(("row", "column"), [(4, 6), (9, 8)])
def test_peak_lies_in_the_hot_cell_in_source_pixels(tmp_path, size, row, column):
    picture = film(*size)
    _, statistics = made(stage_for(tmp_path, OUTPUT_SIZE=200), hot_cell(row, column), picture)
    geometry = FrameGeometry.fit("letterbox", source=picture.size, frame=FRAME)
    centre = np.array([[(column + 0.5) * 16, (row + 0.5) * 16]])
    expected = geometry.frame_to_source(centre)[0]
    found = np.array([statistics["peak_x"], statistics["peak_y"]])
    assert np.abs(found - expected).max() <= 400 / 224 + 1  # one frame pixel, and half an output pixel


def test_output_size_limits_the_longest_side_and_never_enlarges(tmp_path):
    for asked, expected in ((200, (200, 160)), (1024, (400, 320)), ("", (400, 320))):
        files, _ = made(stage_for(tmp_path, OUTPUT_SIZE=asked), hot_cell(5, 5))
        assert decode(files["files/x_idx1.png"]).shape[:2] == expected


def with_air(body: slice) -> Film:
    """A bright body on black air, with a marker letter in the air."""
    pixels = np.zeros((400, 400), np.uint8)
    pixels[:, body] = 150
    pixels[20:40, 4:24] = 250
    return Film(pixels, "png", 8)


def test_body_mask_suppresses_heat_on_markers_and_range_is_taken_inside(tmp_path):
    picture = with_air(slice(60, 340))
    values = np.full((14, 14), 0.2, np.float32)
    values[1, 0] = 9.0  # on the marker, the hottest of all
    values[7, 7] = 1.0
    stage = stage_for(tmp_path, ENABLE_BODY_MASK=True, SAVE_RAW_CAM=True, BACKGROUND="film", ALPHA=0.5)
    files, statistics = made(stage, values, picture)
    assert statistics["map_max"] == 9.0
    assert abs(statistics["peak_x"] - 7.5 * 400 / 14) < 15
    final = decode(files["raw/files/x_idx1.png"])
    assert final.max() == 65535
    assert final[30, 10] == 0
    overlay = decode(files["files/x_idx1.png"])
    assert tuple(overlay[30, 10]) == (250, 250, 250)  # the film, bare
    assert len(set(overlay[200, 200].tolist())) > 1  # a colour
    view = opened(stage, picture)
    assert 0.5 < view.statistics()["body_fraction"] < 0.9
    assert view.statistics()["whole_film"] is False


def test_a_film_that_fills_the_frame_is_not_cut(tmp_path):
    view = opened(stage_for(tmp_path, ENABLE_BODY_MASK=True), film())
    assert view.body.all()


def test_crop_leaves_the_unseen_film_bare(tmp_path):
    picture = film(300, 600)
    files, statistics = made(stage_for(tmp_path, PREPROCESS="crop", ALPHA=1), hot_cell(7, 7), picture, "crop")
    overlay = decode(files["files/x_idx1.png"]).astype(int)
    assert statistics["seen_fraction"] == pytest.approx(0.5, abs=0.02)
    top = np.repeat(picture.pixels[:100, :, None], 3, axis=2)
    assert np.array_equal(overlay[:100], top)
    assert (overlay[300] != picture.pixels[300][:, None]).any()


def test_constant_map_is_marked_and_has_no_peak(tmp_path):
    _, statistics = made(stage_for(tmp_path), np.zeros((14, 14), np.float32))
    assert statistics["constant"] is True
    assert statistics["peak_x"] is None


def test_nan_map_is_refused(tmp_path):
    values = hot_cell(3, 3)
    values[0, 0] = np.nan
    with pytest.raises(ItemError, match="not finite"):
        made(stage_for(tmp_path), values)


def test_colour_films_keep_their_colours(tmp_path):
    rgb = np.stack([film().pixels, 255 - film().pixels, film().pixels // 3], axis=2)
    files, _ = made(stage_for(tmp_path, ALPHA=0), hot_cell(5, 5), Film(rgb, "png", 8))
    assert np.array_equal(decode(files["files/x_idx1.png"]), rgb)


def test_image_folder_named_raw_does_not_collide(tmp_path):
    stage = stage_for(tmp_path, SAVE_RAW_CAM=True)
    heat_map = SimpleNamespace(output="raw/files/x_idx1", question="Where?")
    with pytest.raises(ItemError, match="collides"):
        stage.make(opened(stage, film()), heat_map, Explanation(hot_cell(3, 3), 1.0))


def test_image_statistics_are_plain_data(tmp_path):
    statistics = stage_for(tmp_path).image_statistics(opened(stage_for(tmp_path), film()))
    assert json.loads(str(statistics["geometry"]))
    assert statistics["body_fraction"] == 1.0


def test_how_many_pixels_a_film_needs(tmp_path):
    assert stage_for(tmp_path, OUTPUT_SIZE=300).longest == 300
    assert stage_for(tmp_path, OUTPUT_SIZE=300, ENABLE_BODY_MASK=True).longest == WORK_SIDE
    assert stage_for(tmp_path, OUTPUT_SIZE=2000, ENABLE_BODY_MASK=True).longest == 2000
    assert stage_for(tmp_path, OUTPUT_SIZE="").longest is None


@pytest.mark.parametrize("size", [(1200, 1500), (1501, 1203)])
@pytest.mark.parametrize("cell", [(4, 6), (9, 8), (7, 3)])
def test_a_film_decoded_at_half_its_size_gives_the_same_numbers(tmp_path, size, cell):
    whole = film(*size)
    half_size = (-(-size[0] // 2), -(-size[1] // 2))
    half = Film(cv2.resize(whole.pixels, half_size, interpolation=cv2.INTER_AREA), "jpeg", 8, source=size)
    stage = stage_for(tmp_path, OUTPUT_SIZE=600, ENABLE_BODY_MASK=True, SAVE_RAW_CAM=True)
    (one, numbers), (other, others) = (made(stage, hot_cell(*cell), picture) for picture in (whole, half))
    assert numbers == others  # the peak among them: in pixels of the film in the file
    raw = "raw/files/x_idx1.png"
    assert one[raw] == other[raw]
    overlays = [decode(files["files/x_idx1.png"]).astype(int) for files in (one, other)]
    assert overlays[0].shape == overlays[1].shape
    assert np.abs(overlays[0] - overlays[1]).max() <= 2
    views = [opened(stage, picture) for picture in (whole, half)]
    assert views[0].statistics() == views[1].statistics()
    assert views[1].source == size
