"""The figure of a run: three panels of one size, a scale, the prompt."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from heatlens.errors import ConfigError, SetupError
from heatlens.render.colormaps import JET
from heatlens.report.figure import BAR, CAPTION, GAP, main

NAME = "files/a_idx1.png"


@pytest.fixture
def results(tmp_path):
    """A results folder as a run leaves it: a 400x500 film, a map that rises from left to right."""
    folder, films = tmp_path / "run", tmp_path / "films"
    for part in (films, folder / "files", folder / "raw/files"):
        part.mkdir(parents=True)
    film = np.full((500, 400), 90, np.uint8)
    ramp = np.tile(np.linspace(0, 65535, 400).astype(np.uint16), (500, 1))
    cv2.imwrite(str(films / "a.png"), film)
    cv2.imwrite(str(folder / "raw" / NAME), ramp)
    cv2.imwrite(str(folder / NAME), np.dstack([film, film // 2, film // 3]))
    config = {"COLORMAP": {"value": "jet"}, "IMAGE_ROOT": {"value": str(films)}}
    (folder / "run.json").write_text(json.dumps({"config": config}))
    row = {"image_path": NAME, "source_image": "a.png", "question": "Where?", "prompt": "Where? left lung"}
    pd.DataFrame([row]).to_parquet(folder / "details.parquet")
    return folder


def test_the_panels_show_film_map_and_overlay(results, tmp_path, capsys):
    output = tmp_path / "out" / "figure.png"
    assert main([str(results), "--output", str(output), "--height", "250"]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    picture = cv2.imread(str(output))[..., ::-1]
    assert picture.shape == (2 * GAP + CAPTION + 250 + CAPTION, 4 * GAP + 3 * 200 + BAR, 3)
    row = GAP + CAPTION + 125
    assert (picture[row, GAP + 100] == 90).all()
    middle = picture[row, GAP + 200 + GAP + 100].astype(int)
    assert np.abs(middle - JET[128]).max() <= 4
    assert np.abs(picture[row, GAP + 2 * (200 + GAP) + 100].astype(int) - [30, 45, 90]).max() <= 1
    assert (picture[row, 3 * (200 + GAP) + GAP + 9] == JET[127]).all() or (
        picture[row, 3 * (200 + GAP) + GAP + 9] == JET[128]
    ).all()


def test_what_cannot_be_drawn_is_said(results, tmp_path):
    with pytest.raises(ConfigError, match="no heat map"):
        main([str(results), "--pick", "nothing like it"])
    with pytest.raises(SetupError, match="no finished run"):
        main([str(tmp_path)])
    (results / "raw" / NAME).unlink()
    with pytest.raises(SetupError, match="SAVE_RAW_CAM=true"):
        main([str(results)])
