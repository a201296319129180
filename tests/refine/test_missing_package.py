"""SKIP_CRF=false where pydensecrf2 is not installed: said before anything is loaded, and by the doctor."""

from __future__ import annotations

import sys

import pytest

from heatlens.config import load_settings
from heatlens.doctor import machine
from heatlens.errors import SetupError
from heatlens.stages.attn_map import AttnMapStage
from heatlens.stages.bbox import BoxStage
from heatlens.stages.main import main
from tests.batch.kit import make_settings

INSTALL = "pip install 'heatlens[crf]'"


@pytest.fixture
def missing(monkeypatch):
    """An import of pydensecrf fails as where it is not installed."""
    monkeypatch.setitem(sys.modules, "pydensecrf", None)


def asked(skip: str):
    return load_settings(None, {"SKIP_CRF": skip}, {}, "attn_map")


@pytest.mark.parametrize("stage", [AttnMapStage, BoxStage])
def test_a_stage_is_refused_with_the_install_line(missing, tmp_path, stage):
    with pytest.raises(SetupError) as caught:
        stage(make_settings(tmp_path, SKIP_CRF=False)).check()
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert "SKIP_CRF=false needs the package pydensecrf2" in text
    assert INSTALL in text
    assert "apt install g++ python3-dev" in text
    assert "\n" not in text
    stage(make_settings(tmp_path)).check()  # without CRF nothing is missing


def test_a_run_ends_with_4_before_a_model_is_looked_for(missing, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("heatlens.batch.parts.Parts.weights", lambda parts: pytest.fail("the weights were looked for"))
    settings = make_settings(tmp_path)
    arguments = ["--dataset", "table", "--dataset-path", str(settings.dataset_path), "--skip-crf", "false"]
    arguments += ["--image-root", str(settings.image_root), "--results-dir", str(tmp_path / "results")]
    assert main("attn_map", arguments) == 4
    said = capsys.readouterr().err
    assert said.startswith("error: SKIP_CRF=false needs")
    assert INSTALL in said
    assert not (tmp_path / "results").exists()


def test_the_doctor_finds_it_when_the_configuration_asks_for_it(missing):
    assert list(machine.dense_crf(asked("true"))) == []
    (found,) = machine.dense_crf(asked("false"))
    assert (found.check, found.state) == ("dense CRF", "problem")
    assert "pydensecrf2" in found.text
    assert INSTALL in found.advice


def test_the_doctor_is_content_where_it_is_installed():
    pytest.importorskip("pydensecrf.densecrf")
    (found,) = machine.dense_crf(asked("false"))
    assert (found.state, found.text.split()[0]) == ("ok", "pydensecrf2")
    assert list(machine.dense_crf(asked("true"))) == []
