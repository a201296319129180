"""BiomedCLIP's exact architecture through the whole stage. Random weights: shapes, memory and speed, no meaning."""

from __future__ import annotations

import numpy as np
import pytest

from tests.integration.runs import Results, run_stage

pytestmark = [pytest.mark.xdist_group("biomedclip"), pytest.mark.slow]


def test_the_whole_stage_offline(biomedclip_folder, tmp_path):
    results = Results(tmp_path / "run")
    done = run_stage(
        "--model", str(biomedclip_folder), "--topk", "24", "--stop-after", "2",
        "--dataset-path", str(tmp_path / "phantom"), "--results-dir", str(results.folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(results.manifest) >= 2
    for row in results.manifest:
        grid = np.load((results.folder / "raw" / row["image_path"]).with_suffix(".npy"), allow_pickle=False)
        assert grid.shape == (14, 14)
        assert np.isfinite(grid).all()
    record = results.record
    assert record["engine"]["target_layer"] == "visual.trunk.blocks[-1].norm1"
    # 784 MB of weights, loaded once; less than a gigabyte above them and the libraries.
    assert record["timings"]["peak_rss_mib"] < 3500


def test_the_layer_of_published_code_is_refused(biomedclip_folder, tmp_path):
    done = run_stage(
        "--model", str(biomedclip_folder), "--target-layer", "visual.trunk.blocks[-1].norm2", "--stop-after", "1",
        "--dataset-path", str(tmp_path / "phantom"), "--results-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 4
    assert "visual.trunk.blocks[-1].norm1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_folder_without_weights_is_exit_4(biomedclip_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").symlink_to(biomedclip_folder / "open_clip_config.json")
    done = run_stage(
        "--model", str(folder), "--results-dir", str(tmp_path / "run"), "--dataset-path", str(tmp_path / "phantom")
    )
    assert done.returncode == 4
    assert "no weights in" in done.stderr
