"""What later commands take from a run's settings: where its films were, and how private it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from heatlens.batch.run_record import image_root_of, umask_of


def test_films_lie_under_image_root_else_beside_the_data_set(tmp_path):
    (tmp_path / "data.csv").write_text("image\n")
    assert image_root_of({"IMAGE_ROOT": "/films", "DATASET_PATH": str(tmp_path)}) == Path("/films")
    assert image_root_of({"IMAGE_ROOT": None, "DATASET_PATH": str(tmp_path)}) == tmp_path
    assert image_root_of({"IMAGE_ROOT": "", "DATASET_PATH": str(tmp_path / "data.csv")}) == tmp_path
    assert image_root_of({"DATASET_PATH": str(tmp_path / "*.csv")}) == tmp_path
    assert image_root_of({"DATASET_PATH": None}) is None
    assert image_root_of({}) is None


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [("027", "027"), ("0027", "0027"), (None, "077"), ("", "077"), ("everybody", "077"), ("8", "077"), (27, "077")],
)
def test_as_private_as_the_run_and_private_in_doubt(recorded, wanted):
    assert umask_of({"UMASK": recorded}) == wanted
    assert umask_of({}) == "077"
