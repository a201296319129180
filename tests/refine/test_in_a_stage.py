"""Dense CRF between a map's enlargement and its body mask: order, odd maps, what is not seen, both stages."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed: pip install 'heatlens[crf]'")

from heatlens.batch.protocols import Explanation, Placed
from heatlens.cam.protocols import PatchGrid
from heatlens.images.film import Film
from heatlens.images.geometry import FrameGeometry
from heatlens.stages.attn_map import AttnMapStage
from heatlens.stages.base import ImageView, final_map, map_statistics
from heatlens.stages.bbox import BoxStage
from tests.batch.kit import make_settings

GRID = PatchGrid(14, 14, (16.0, 16.0))
HEAT_MAP = SimpleNamespace(output="x_idx1", question="Where?", region="", boxes=())


def disc_film(width: int = 320, height: int = 400) -> Film:
    """Grey with a bright disc of radius 60 at (200, 180)."""
    return Film(np.where(disc(width, height), 200, 80).astype(np.uint8), "png", 8)


def disc(width: int = 320, height: int = 400) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - 200) ** 2 + (rows - 180) ** 2 <= 60**2


def blob(row: float, column: float, sigma: float = 2.0) -> np.ndarray:
    rows, columns = np.mgrid[:14, :14]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2)).astype(np.float32)


ON_DISC = blob(6, 8)  # in letterboxed cells of 400 / 14 pixels, 40 pixels of padding to the left


def opened(tmp_path, film: Film, mode: str = "letterbox", stage=AttnMapStage, **keys) -> ImageView:
    made = stage(make_settings(tmp_path, **{"ENABLE_BODY_MASK": False, "SKIP_CRF": False, **keys}))
    geometry = FrameGeometry.fit(mode, source=film.size, frame=(224, 224))
    return made.open_image(film, Placed(geometry, geometry.place(film.pixels)), GRID)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_a_map_snaps_to_the_films_disc_and_its_peak_lies_in_the_middle(tmp_path):
    plain = final_map(opened(tmp_path, disc_film(), SKIP_CRF=True), ON_DISC)
    view = opened(tmp_path, disc_film())
    refined = final_map(view, ON_DISC)
    assert overlap(plain.values > 0.5, disc()) < 0.85
    assert overlap(refined.values > 0.5, disc()) > 0.95
    assert (refined.values.min(), refined.values.max()) == (0, 1)
    numbers = map_statistics(view, ON_DISC, refined)
    assert np.hypot(numbers["peak_x"] - 200, numbers["peak_y"] - 180) < 40
    assert numbers["map_max"] == pytest.approx(1.0)  # of the map as the model made it


@pytest.mark.parametrize(
    ("size", "output", "expected"), [(448, 1024, (320, 400)), (100, 1024, (80, 100)), (448, 64, (51, 64))]
)
def test_it_works_at_its_own_size_never_above_the_pictures(tmp_path, size, output, expected):
    view = opened(tmp_path, disc_film(), CRF_SIZE=size, OUTPUT_SIZE=output)
    assert view.crf.size == expected
    final = final_map(view, ON_DISC)
    assert final.values.shape == view.picture.shape
    target = cv2.resize(disc().astype(np.uint8), view.size, interpolation=cv2.INTER_AREA).astype(bool)
    assert overlap(final.values > 0.5, target) > 0.85


def test_the_size_hardly_changes_the_place(tmp_path):
    """The way down to the small film and back shifts nothing by half a pixel."""
    centres = []
    for size in (100, 200, 400):
        heat = final_map(opened(tmp_path, disc_film(), CRF_SIZE=size), ON_DISC).values > 0.5
        centres.append(np.argwhere(heat).mean(axis=0))
    assert np.ptp(centres, axis=0).max() < 1.5


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_constant_map_stays_one(tmp_path, monkeypatch, value):
    view = opened(tmp_path, disc_film())
    monkeypatch.setattr(view.crf.__class__, "foreground", lambda *_: pytest.fail("nothing to refine"))
    final = final_map(view, np.full((14, 14), value, np.float32))
    assert final.constant
    assert not final.values.any()


@pytest.mark.parametrize("compat, steps", [(100, 20), (8, 5)], ids=["to nothing", "to a millionth"])
def test_a_map_that_is_smoothed_away_is_constant_not_noise_stretched_to_heat(tmp_path, compat, steps):
    """The hottest pixel of all speaks for the foreground with -log(eps); a strong pull and a small say overrule it."""
    dot = np.zeros((14, 14), np.float32)
    dot[5, 8] = 1
    keys = {"CRF_BILATERAL_COMPAT": compat, "CRF_GAUSSIAN_COMPAT": compat, "CRF_TAU": 10, "CRF_STEPS": steps}
    final = final_map(opened(tmp_path, disc_film(), **keys), dot)
    assert final.constant
    assert not final.values.any()


def test_no_heat_outside_the_body_and_the_range_is_taken_inside(tmp_path):
    pixels = np.zeros((400, 400), np.uint8)
    pixels[:, 60:340] = 150
    pixels[20:40, 4:24] = 250
    values = blob(7, 7)
    values[1, 0] = 9.0  # on the marker, the hottest of all
    view = opened(tmp_path, Film(pixels, "png", 8), ENABLE_BODY_MASK=True)
    final = final_map(view, values)
    assert not final.values[~view.body].any()
    assert final.values.max() == 1
    assert final.values[200:228, 200:228].min() > 0.9


def test_what_the_model_did_not_see_is_undecided_and_stays_bare(tmp_path):
    film = disc_film(300, 600)
    asked = []
    view = opened(tmp_path, film, "crop")
    foreground = view.crf.foreground
    view.crf.foreground = lambda heat: asked.append(heat.copy()) or foreground(heat)
    final = final_map(view, ON_DISC)
    (heat,) = asked
    assert set(np.unique(heat[:100])) == {0.5}  # 150 of 600 pixels above the view, at 448 of them 112
    assert heat[112:336].min() == 0
    assert heat.max() == 1
    assert not view.seen.all()
    assert not final.values[~view.seen].any()


@pytest.mark.parametrize("stage", [AttnMapStage, BoxStage])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_both_stages_draw_refined_maps(tmp_path, stage, colour):
    film = disc_film()
    if colour:
        film = Film(np.stack([film.pixels, film.pixels // 2, 255 - film.pixels], axis=2), "png", 8)

    def made(**keys) -> tuple[list[bytes], dict]:
        settings = make_settings(tmp_path, ENABLE_BODY_MASK=False, SAVE_RAW_CAM=True, **keys)
        # As it comes from the process that opened the film.
        view = pickle.loads(pickle.dumps(opened(tmp_path, film, stage=stage, **keys)))
        result = stage(settings).make(view, HEAT_MAP, Explanation(ON_DISC, 1.0))
        return [one.data for one in result.files], dict(result.statistics)

    files, numbers = made(SKIP_CRF=False)
    assert (files, numbers) == made(SKIP_CRF=False)
    plain, _ = made(SKIP_CRF=True)
    assert files[0] != plain[0]
    assert files[1] == plain[1]  # the patch-grid map, before the CRF
    assert files[2] != plain[2]
    final = cv2.imdecode(np.frombuffer(files[2], np.uint8), cv2.IMREAD_UNCHANGED)
    assert overlap(final > 32768, disc()) > 0.95
