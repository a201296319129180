"""The way between film and model frame: against open_clip, torch, a slow formula, and by properties."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from heatlens.cam.protocols import PatchGrid
from heatlens.errors import ConfigError
from heatlens.images.geometry import FrameGeometry, gemex_box_to_source, source_box_to_gemex

from .pictures import grey_picture

MODES = ["letterbox", "crop", "squash"]
FRAME = (224, 224)
VIT = PatchGrid(14, 14, (16.0, 16.0))
# A convnet's grid: not at the origin, and not square.
ODD = PatchGrid(6, 8, (34.0, 27.5), (-9.0, 5.0))
# Another: its cells add up to the frame, and still lie beside it.
SHIFTED = PatchGrid(7, 7, (32.0, 32.0), (-15.5, -15.5))

sides = st.integers(16, 700)
# A crop wants a square frame, as every CLIP has.
modes_and_frames = st.one_of(
    st.tuples(st.sampled_from(MODES), st.sampled_from([(224, 224), (64, 64)])),
    st.tuples(st.sampled_from(["letterbox", "squash"]), st.sampled_from([(96, 160), (224, 112)])),
)
points = st.lists(st.tuples(st.floats(-50, 800), st.floats(-50, 800)), min_size=1, max_size=5)


@given(width=sides, height=sides, way=modes_and_frames, xy=points)
def test_points_go_there_and_back(width, height, way, xy):
    mode, frame = way
    geometry = FrameGeometry.fit(mode, (width, height), frame)
    assert np.allclose(geometry.frame_to_source(geometry.source_to_frame(xy)), xy, atol=1e-9)


@given(width=sides, height=sides, way=modes_and_frames)
def test_the_film_lies_where_the_mode_says(width, height, way):
    mode, frame = way
    geometry = FrameGeometry.fit(mode, (width, height), frame)
    (left, top), (right, bottom) = geometry.source_to_frame([(0, 0), (width, height)])
    if mode == "letterbox":
        assert min(left, top) >= 0
        assert right <= frame[0] + 1e-9
        assert bottom <= frame[1] + 1e-9
        assert max((right - left) / frame[0], (bottom - top) / frame[1]) == pytest.approx(1)
        assert abs(left - (frame[0] - right)) <= 1 + 1e-9
        assert abs(top - (frame[1] - bottom)) <= 1 + 1e-9
    elif mode == "crop":
        assert left <= 0
        assert top <= 0
        assert right >= frame[0] - 1e-9
        assert bottom >= frame[1] - 1e-9
    else:
        assert (left, top, right, bottom) == pytest.approx((0, 0, *frame))


@pytest.mark.parametrize("size", [(254, 305), (305, 254), (300, 300), (97, 224), (224, 225), (511, 224), (701, 333)])
@pytest.mark.parametrize("colour", [False, True])
def test_crop_is_the_models_own_preprocessing(size, colour):
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = grey_picture(*size, seed=1)
    if colour:
        pixels = np.stack([pixels, pixels[::-1], pixels[:, ::-1]], axis=2)
    resize = transforms.Resize(224, transforms.InterpolationMode.BICUBIC, antialias=True)
    expected = transforms.CenterCrop(224)(resize(Image.fromarray(pixels).convert("RGB")))
    assert np.array_equal(FrameGeometry.fit("crop", size, FRAME).place(pixels), np.asarray(expected))


@pytest.mark.parametrize("size", [(254, 305), (305, 254), (512, 512)])
@pytest.mark.parametrize("frame", [(224, 224), (96, 160)])
@pytest.mark.parametrize(("mode", "theirs"), [("crop", "shortest"), ("squash", "squash")])
def test_crop_and_squash_are_open_clips(size, frame, mode, theirs):
    open_clip = pytest.importorskip("open_clip")
    if mode == "crop" and frame[0] != frame[1]:
        with pytest.raises(ConfigError, match="square frame"):
            FrameGeometry.fit(mode, size, frame)
        return
    pixels = grey_picture(*size, seed=2)
    options = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic", "resize_mode": theirs}
    transform = open_clip.image_transform((frame[1], frame[0]), is_train=False, **options)
    expected = np.rint(transform(Image.fromarray(pixels)).permute(1, 2, 0).numpy() * 255)
    assert np.array_equal(FrameGeometry.fit(mode, size, frame).place(pixels), expected)


@given(width=sides, height=sides, way=modes_and_frames)
@settings(max_examples=30, deadline=None)
def test_placed_films_fill_exactly_their_part_of_the_frame(width, height, way):
    mode, frame = way
    geometry = FrameGeometry.fit(mode, (width, height), frame)
    placed = geometry.place(np.full((height, width), 255, np.uint8))
    assert placed.shape == (frame[1], frame[0], 3)
    (left, top), (right, bottom) = geometry.source_to_frame([(0, 0), (width, height)])
    expected = np.zeros((frame[1], frame[0]), bool)
    expected[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)] = True
    assert np.array_equal(placed[..., 0] == 255, expected)
    assert (placed[~expected] == 0).all()


@given(
    width=sides,
    height=sides,
    mode=st.sampled_from(MODES),
    grid=st.sampled_from([VIT, ODD, SHIFTED]),
    cell=st.integers(0, 195),
)
@example(width=254, height=305, mode="crop", grid=VIT, cell=76)
@example(width=305, height=254, mode="letterbox", grid=ODD, cell=17)
@example(width=254, height=305, mode="letterbox", grid=SHIFTED, cell=17)
@example(width=254, height=305, mode="squash", grid=SHIFTED, cell=30)
@example(width=17, height=16, mode="crop", grid=VIT, cell=16)
@settings(max_examples=60, deadline=None)
def test_one_hot_cell_lies_on_its_patch(width, height, mode, grid, cell):
    """The centre of mass of a hot cell's spot is the centre of its patch, to one pixel of the model frame."""
    row, column = (cell // 14) % grid.rows, cell % grid.cols
    geometry = FrameGeometry.fit(mode, (width, height), FRAME)
    y = grid.offset[0] + (row + 0.5) * grid.stride[0]
    x = grid.offset[1] + (column + 0.5) * grid.stride[1]
    (centre,) = geometry.frame_to_source([(x, y)])
    half = np.array([grid.stride[1], grid.stride[0]])
    low, high = geometry.frame_to_source([np.subtract((x, y), half), np.add((x, y), half)])
    left_top, right_bottom = geometry.frame_to_source([(0, 0), FRAME])
    if (low < np.maximum(0, left_top)).any() or (high > np.minimum((width, height), right_bottom)).any():
        return  # part of the spot lies outside the film or the view
    values = np.zeros((grid.rows, grid.cols), np.float32)
    values[row, column] = 1
    if row in (0, grid.rows - 1) or column in (0, grid.cols - 1):
        return  # replicated beyond its centre: not symmetric
    # A film smaller than the frame is sampled more finely than its own pixels: those are wider than the tolerance.
    fine = max(1, -(-2 * max(FRAME) // min(width, height)))
    spot, seen = geometry.map_to_source(values, grid, (width * fine, height * fine))
    ys, xs = (np.mgrid[0 : height * fine, 0 : width * fine] + 0.5) / fine
    found = np.array([(spot * xs).sum(), (spot * ys).sum()]) / spot.sum()
    pixel = np.array(geometry.source) / geometry.content  # film pixels per frame pixel
    assert (np.abs(found - centre) <= pixel).all()
    peak = (np.array(np.unravel_index(spot.argmax(), spot.shape))[::-1] + 0.5) / fine
    assert (np.abs(peak - centre) <= np.maximum(pixel, 1 / fine)).all()
    assert seen[int(centre[1] * fine), int(centre[0] * fine)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(254, 305), (305, 254)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 13), (13, 0), (13, 13)])
def test_corner_cells_too(mode, size, corner):
    """Edges: what is hottest is the corner of what the model saw, all of it that lies beyond the cell's centre."""
    geometry = FrameGeometry.fit(mode, size, FRAME)
    values = np.zeros((14, 14), np.float32)
    values[corner] = 1
    # The cells of a letterbox's padding lie outside the film; take the outermost ones that do not.
    if mode == "letterbox":
        values[:] = 0
        low = geometry.corner[1] // 16 + 1, geometry.corner[0] // 16 + 1
        values[tuple(low[axis] if corner[axis] == 0 else 13 - low[axis] for axis in (0, 1))] = 1
    spot, seen = geometry.map_to_source(values, VIT, size)
    row, column = (int(index[0]) for index in np.nonzero(values))
    (expected,) = geometry.frame_to_source([((column + 0.5) * 16, (row + 0.5) * 16)])
    ys, xs = np.nonzero(spot > 0.97)
    distance = np.hypot(xs + 0.5 - expected[0], ys + 0.5 - expected[1]).min()
    assert distance <= np.hypot(*(np.array(geometry.source) / geometry.content))
    assert seen[ys, xs].all()


def slow(geometry, values, grid, output):
    """The same, pixel by pixel, straight from the definition."""
    result, seen = np.zeros(output[::-1]), np.zeros(output[::-1], bool)
    for v in range(output[1]):
        for u in range(output[0]):
            source = [((u + 0.5) / output[0] * geometry.source[0], (v + 0.5) / output[1] * geometry.source[1])]
            ((x, y),) = geometry.source_to_frame(source)
            if not (0 <= x <= geometry.frame[0] and 0 <= y <= geometry.frame[1]):
                continue
            seen[v, u] = True
            row = min(max((y - grid.offset[0]) / grid.stride[0] - 0.5, 0), grid.rows - 1)
            column = min(max((x - grid.offset[1]) / grid.stride[1] - 0.5, 0), grid.cols - 1)
            top, left = int(row), int(column)
            bottom, right = min(top + 1, grid.rows - 1), min(left + 1, grid.cols - 1)
            a, b = row - top, column - left
            result[v, u] = (1 - a) * ((1 - b) * values[top, left] + b * values[top, right]) + a * (
                (1 - b) * values[bottom, left] + b * values[bottom, right]
            )
    return result, seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", [VIT, ODD, SHIFTED, PatchGrid(1, 3, (224.0, 75.0))])
@pytest.mark.parametrize(("size", "output"), [((120, 90), (60, 45)), ((77, 131), (77, 131)), ((130, 130), (40, 40))])
def test_maps_against_the_definition(mode, grid, size, output):
    values = np.random.default_rng(3).normal(size=(grid.rows, grid.cols)).astype(np.float32)
    geometry = FrameGeometry.fit(mode, size, FRAME)
    enlarged, seen = geometry.map_to_source(values, grid, output)
    expected, expected_seen = slow(geometry, values, grid, output)
    assert enlarged.dtype == np.float32
    assert np.allclose(enlarged, expected, atol=1e-6)
    assert np.array_equal(seen, expected_seen)


@pytest.mark.parametrize("factor", [2, 7, 16])
def test_squash_is_torchs_half_pixel_bilinear(factor):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(4).random((14, 14)).astype(np.float32)
    side = 14 * factor
    enlarged, seen = FrameGeometry.fit("squash", (side, side), FRAME).map_to_source(values, VIT, (side, side))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=(side, side), mode="bilinear", align_corners=False
    )
    assert np.allclose(enlarged, expected[0, 0].numpy(), atol=1e-6)
    assert seen.all()


@given(width=sides, height=sides, value=st.floats(-1e6, 1e6, width=32), grid=st.sampled_from([VIT, ODD]))
@settings(max_examples=30, deadline=None)
def test_a_constant_map_stays_exactly_constant(width, height, value, grid):
    values = np.full((grid.rows, grid.cols), value, np.float32)
    for mode in MODES:
        enlarged, seen = FrameGeometry.fit(mode, (width, height), FRAME).map_to_source(values, grid, (width, height))
        assert (enlarged[seen] == np.float32(value)).all()
        assert (enlarged[~seen] == 0).all()
        assert seen.all() or mode == "crop"


def test_what_crop_does_not_see_is_not_stretched_over():
    """A 2544 x 3056 film: 16.8% of its long side is outside the model's view."""
    geometry = FrameGeometry.fit("crop", (2544, 3056), FRAME)
    enlarged, seen = geometry.map_to_source(np.ones((14, 14), np.float32), VIT, (636, 764))
    assert seen.mean() == pytest.approx(1 - 0.168, abs=0.003)
    assert not seen[:60].any()
    assert not seen[-60:].any()
    assert np.array_equal(enlarged == 1, seen)


coordinates = st.floats(0, 224)


@given(width=sides, height=sides, a=coordinates, b=coordinates, c=coordinates, d=coordinates)
def test_gemex_boxes_there_and_back(width, height, a, b, c, d):
    size = (width, height)
    box = gemex_box_to_source((min(a, c), min(b, d), max(a, c), max(b, d)), size)
    assert 0 <= box[0] <= box[2] <= width
    assert 0 <= box[1] <= box[3] <= height
    again = gemex_box_to_source(source_box_to_gemex(box, size), size)
    assert again == pytest.approx(box, abs=1e-6)


def test_gemex_boxes_by_hand():
    # 2544 x 3056: one frame pixel is 3056/224 = 13.643 film pixels, with 18.77 frame pixels of padding left and right.
    box = gemex_box_to_source((50, 20, 250, 200), (2544, 3056))
    assert box == pytest.approx(((50 - 18.7644) * 13.642857, 272.857, 2544, 2728.571), abs=0.01)
    # The film's own corners are the letterbox's.
    assert source_box_to_gemex((0, 0, 3056, 2544), (3056, 2544)) == pytest.approx((0, 18.7644, 224, 205.2356), abs=1e-3)


@given(width=sides, height=sides)
def test_the_ideal_and_the_actual_letterbox_agree_to_a_pixel(width, height):
    corners = source_box_to_gemex((0, 0, width, height), (width, height))
    actual = FrameGeometry.fit("letterbox", (width, height), FRAME).source_to_frame([(0, 0), (width, height)]).ravel()
    assert np.abs(actual - corners).max() <= 1


def test_details_and_mistakes():
    geometry = FrameGeometry.fit("letterbox", (2544, 3056), FRAME)
    assert json.loads(json.dumps(geometry.as_dict())) == {
        "mode": "letterbox", "source": [2544, 3056], "frame": [224, 224], "content": [186, 224], "corner": [19, 0],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="letterbox, crop, squash"):
        FrameGeometry.fit("stretch", (10, 10), FRAME)
    with pytest.raises(ValueError, match="positive"):
        FrameGeometry.fit("crop", (0, 10), FRAME)
    with pytest.raises(ValueError, match="its grid 14x14"):
        geometry.map_to_source(np.zeros((7, 7), np.float32), VIT, (10, 10))
    with pytest.raises(ValueError, match="the geometry is for"):
        geometry.place(np.zeros((10, 10), np.uint8))


@pytest.mark.parametrize(
    ("mode", "output"), [("letterbox", (852, 1024)), ("crop", (2544, 700)), ("squash", (3000, 65))]
)
def test_enlarging_a_map_wakes_no_threads_of_a_linear_algebra_library(mode, output, monkeypatch):
    """OpenBLAS multiplies large matrices with all cores, and its threads then spin for a while."""

    def refuse(*_, **__):
        raise AssertionError("a matrix product")

    for library, names in {cv2: ["gemm"], np: ["matmul", "dot", "inner", "vdot", "tensordot"]}.items():
        for name in names:
            monkeypatch.setattr(library, name, refuse)
    values = np.random.default_rng(6).random((24, 24)).astype(np.float32)
    grid = PatchGrid(24, 24, (224 / 24, 224 / 24))
    full, _ = FrameGeometry.fit(mode, (2544, 3056), FRAME).map_to_source(values, grid, output)
    assert full.shape == (output[1], output[0])
