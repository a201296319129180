"""The small form of ``make soak``: killed at random moments, the same command ends with the same bytes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.batch.soak import ROOT, soak

ENVIRONMENT = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Fakes for model and pictures: plan, ledger, lock, merge and files are the real ones."""
    command = [sys.executable, "-m", "tests.batch.crash_child", str(tmp_path)]
    outcome = soak(command, tmp_path / "results", kills=12, seed=1, environment=ENVIRONMENT)
    assert outcome.kills == 12
    assert any(text.startswith("after ") for text in outcome.moments), outcome.moments


def test_the_real_stage_killed_at_random_moments(tmp_path: Path) -> None:
    """Decoder processes, model, overlays and raw maps as well; nothing of a killed run goes on living."""
    results = tmp_path / "results"
    command = [
        sys.executable, "Attention_Map/scripts/generate_heatmaps.py", "--config", "configs/demo/exp_00_phantom.conf",
        "--results-dir", str(results), "--stop-after", "12", "--cam-version", "GradCAM", "--save-raw-cam",
    ]  # fmt: skip
    outcome = soak(command, results, kills=4, seed=5)
    assert outcome.kills == 4
