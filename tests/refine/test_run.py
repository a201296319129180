"""A whole run of the Attention_Map stage with dense CRF: the same bytes with any number of writers, and again."""

from __future__ import annotations

import pytest

pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed: pip install 'heatlens[crf]'")

from tests.integration.runs import Results, run_stage

pytestmark = pytest.mark.xdist_group("demo")
FLAGS = ("--stop-after", "6", "--cam-version", "GradCAM", "--skip-crf", "false")


def run(folder, name: str, *flags: str):
    places = ("--results-dir", str(folder / name), "--dataset-path", str(folder / "phantom"))
    return Results(folder / name), run_stage(*places, *FLAGS, *flags)


def test_writers_do_not_change_a_byte_and_other_numbers_are_refused(tmp_path):
    alone, done = run(tmp_path, "alone", "--num-workers", "0")
    assert done.returncode == 0, done.stderr
    several, done = run(tmp_path, "several", "--num-workers", "3")
    assert done.returncode == 0, done.stderr
    assert alone.tree() == several.tree()
    assert len(alone.details) >= 6
    assert not alone.details["constant"].any()
    assert alone.record["config"]["SKIP_CRF"]["value"] is False
    _, done = run(tmp_path, "alone", "--crf-bilateral-srgb", "13")
    assert done.returncode == 2
    assert "CRF_BILATERAL_SRGB: 5.0 -> 13.0" in done.stderr
    plain, done = run(tmp_path, "plain", "--skip-crf", "true")
    assert done.returncode == 0, done.stderr
    before, after = plain.tree(), alone.tree()
    raw = [name for name in before if name.startswith("raw/") and name.endswith(".npy")]
    assert all(before[name] == after[name] for name in raw)
    assert all(before[name] != after[name] for name in before if name.startswith("files/"))
