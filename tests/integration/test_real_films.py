"""The stage on real chest films, with hand-written questions and the demo model.

The demo model has only ever seen phantoms, so nothing here asks whether it is right about these films: the tests are
about the film (unharmed), the mask (lungs kept) and the geometry (the overlay sits where the map says).
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.exposure import equalize_hist

from heatlens.images.decode import read_film
from heatlens.render.colormaps import colour_table, colourise
from heatlens.render.overlay import resize_film
from tests.integration.runs import Results, run_stage, write_csv

pytestmark = pytest.mark.xdist_group("demo")
QUESTIONS = ("Is the heart enlarged?", "Where is the pleural effusion?")


def run_on(root, images, *flags):
    rows = [{"image": name, "question": question, "answer": "n/a"} for name in images for question in QUESTIONS]
    data = write_csv(root / "questions.csv", rows)
    results = Results(root / "results")
    done = run_stage(
        "--dataset", "table", "--dataset-path", str(data), "--image-root", str(root), "--stop-after", "",
        "--results-dir", str(results.folder), "--topk", "40", *flags,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results.failures == []
    return results


@pytest.fixture(scope="module")
def dicom_run(tmp_path_factory, package_file):
    root = tmp_path_factory.mktemp("dicom films")
    for name in ("RG1_UNCR.dcm", "RG1_J2KI.dcm"):
        (root / name).symlink_to(package_file(name))
    return root, run_on(root, ("RG1_UNCR.dcm", "RG1_J2KI.dcm"))


@pytest.fixture(scope="module")
def nih_run(tmp_path_factory, real_films):
    root = tmp_path_factory.mktemp("nih films")
    names = []
    for film in real_films:
        (root / film.name).symlink_to(film)
        equalised = np.rint(equalize_hist(cv2.imread(str(film), cv2.IMREAD_GRAYSCALE)) * 255).astype(np.uint8)
        cv2.imwrite(str(root / f"equalised_{film.name}"), equalised)
        names += [film.name, f"equalised_{film.name}"]
    return root, run_on(root, names, "--background", "film")


def check_blend(root, results, *, bare_outside: bool):
    """Every overlay is exactly half film, half colour of the stored map; outside the body nothing but the film."""
    for _, row in results.details.iterrows():
        overlay = cv2.imread(str(results.folder / row["image_path"]))[..., ::-1].astype(float)
        height, width = overlay.shape[:2]
        stored = cv2.imread(str(results.folder / "raw" / row["image_path"]), cv2.IMREAD_UNCHANGED) / 65535
        film = resize_film(read_film(root / row["source_image"]).pixels, (width, height))
        film = np.repeat(film[..., None], 3, axis=2).astype(float)
        wanted = 0.5 * film + 0.5 * colourise(stored.astype(np.float32), colour_table("jet"))
        cold = stored == 0
        if bare_outside:
            assert np.abs(overlay - wanted)[~cold].max() <= 4  # a step of the 256-colour table at most
            either = np.minimum(np.abs(overlay - wanted).max(axis=2), np.abs(overlay - film).max(axis=2))
            assert either[cold].max() <= 1
        else:
            assert np.abs(overlay - wanted).max() <= 4


def test_dicom_twins_give_the_same_pictures(dicom_run):
    root, results = dicom_run
    details = results.details
    assert len(details) == 4
    assert set(details["whole_film"]) == {False}
    first, second = details.iloc[0], details.iloc[2]
    assert first["question"] == second["question"]
    one, other = (cv2.imread(str(results.folder / row["image_path"])).astype(int) for row in (first, second))
    assert one.shape == other.shape == (1024, 964, 3)
    assert np.abs(one - other).mean() < 1.0
    check_blend(root, results, bare_outside=False)


def test_real_films_are_unharmed_and_lungs_are_kept(nih_run):
    root, results = nih_run
    details = results.details
    assert len(details) == 8
    assert not details["whole_film"].any()
    assert details["body_fraction"].between(0.8, 0.97).all()
    assert not details["constant"].any()
    check_blend(root, results, bare_outside=True)


def test_two_questions_give_two_maps(nih_run):
    _, results = nih_run
    for image, rows in results.details.groupby("source_image"):
        first, second = (
            cv2.imread(str(results.folder / "raw" / path), cv2.IMREAD_UNCHANGED) for path in rows["image_path"]
        )
        assert np.abs(first.astype(float) - second).mean() > 100, image


def test_the_peak_on_record_is_the_hottest_pixel_of_the_picture(dicom_run):
    _, results = dicom_run
    for _, row in results.details.iterrows():
        stored = cv2.imread(str(results.folder / "raw" / row["image_path"]), cv2.IMREAD_UNCHANGED)
        scale = 1955 / 1024
        x, y = int(row["peak_x"] / scale), int(row["peak_y"] / scale)
        assert stored[y, x] >= 65535 - 64
