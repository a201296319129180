"""The experiments that come with the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from heatlens.config import KEYS, check_paths, load_settings
from heatlens.errors import ConfigError
from tests.config.test_settings import ROOT, load


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("exp_00_phantom", ("phantom", "phantom", 5)),
        ("exp_01_held_out", ("phantom_findings", "held_out", None)),
        ("exp_02_held_out_crf", ("phantom_findings", "held_out", None)),
    ],
)
def test_the_demo_experiments(name: str, wanted: tuple[str, str, int | None]) -> None:
    settings = load(ROOT / "configs" / "demo" / f"{name}.conf")
    assert settings.dataset_path == ROOT / ".demo" / wanted[1]
    assert (settings.dataset, settings.dataset_path.name, settings.stop_after) == wanted
    assert settings.model == "demo" and settings.save_raw_cam and settings.announcements == ()
    assert settings.results_dir == ROOT / "Attention_Map" / "results" / "demo" / name
    check_paths(settings)


@pytest.mark.parametrize("name", ["exp_00_phantom", "exp_01_held_out", "exp_02_held_out_crf"])
def test_the_demo_experiment_is_read_alike_without_bash(tmp_path: Path, name: str) -> None:
    conf = ROOT / "configs" / "demo" / f"{name}.conf"
    assert load_settings(conf, {}, {"PATH": str(tmp_path)}, "attn_map") == load(conf)


def test_with_and_without_crf_the_held_out_experiments_ask_the_same() -> None:
    """They are compared map by map: only the CRF and its threshold may differ."""
    plain, crf = (
        load(ROOT / "configs" / "demo" / f"{name}.conf").model_dump()
        for name in ("exp_01_held_out", "exp_02_held_out_crf")
    )
    differing = {key for key in plain if plain[key] != crf[key]} - {"config", "origins", "results_dir"}
    assert differing == {"skip_crf", "crf_gaussian_compat", "crf_bilateral_compat", "box_threshold"}


def test_the_gemex_experiment_names_the_missing_data(tmp_path: Path) -> None:
    conf = ROOT / "configs" / "gemex" / "exp_01_vqa.conf"
    settings = load(conf, {"DATA": str(tmp_path / "no data")})
    with pytest.raises(ConfigError) as caught:
        check_paths(settings)
    assert f"DATASET_PATH={tmp_path}/no data/gemex ({conf}): no such file or folder" in str(caught.value)
    assert f"IMAGE_ROOT={tmp_path}/no data/mimic-cxr-jpg/2.1.0 ({conf}): no such folder" in str(caught.value)
    untouched = set(KEYS) - {name for name, origin in settings.origins.items() if origin == str(conf)}
    mentioned = {name for name in untouched if f"#{name}=" in conf.read_text()}
    assert {
        "SPLIT",
        "VIEW",
        "QUESTION_TYPES",
        "SAMPLE",
        "PROMPT_TEMPLATE",
        "REGIONS",
        "BLIND",
        "RESULTS_DIR",
    } <= mentioned
