"""The stage's command line: wrong settings end with one text and an exit code, never with a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from heatlens.stages.main import main

ROOT = Path(__file__).resolve().parents[2]


def table(tmp_path: Path) -> list[str]:
    """Arguments of a run over one row whose image is not there."""
    (tmp_path / "data.csv").write_text("image,question,answer\na.png,Where?,A\n", encoding="utf-8")
    (tmp_path / "images").mkdir()
    return [
        "--dataset", "table", "--dataset-path", str(tmp_path / "data.csv"),
        "--image-root", str(tmp_path / "images"),
        "--results-dir", str(tmp_path / "results"), "--device", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--alpha", "1.5"], ["ALPHA", "0 to 1"]),
        (["--colormap", "jett"], ["jet", "turbo"]),
        (["--cam-version", "foo"], ["gScoreCAM", "GradCAM"]),
        (["--alhpa", "0.5"], ["--alpha"]),
        (["--dataset-path", "/nowhere/at/all.csv"], ["DATASET_PATH", "/nowhere/at/all.csv"]),
        (["--image-root", "/nowhere/films"], ["IMAGE_ROOT", "/nowhere/films"]),
        (["--config", "/nowhere/x.conf"], ["/nowhere/x.conf"]),
    ],
)
def test_wrong_settings_are_exit_2_with_a_text_for_people(tmp_path, capsys, flags, words):
    assert main("attn_map", [*table(tmp_path), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert all(word in err for word in words)
    assert "Traceback" not in err
    assert not (tmp_path / "results").exists()


def test_missing_model_is_exit_4_and_leaves_nothing(tmp_path, capsys):
    missing = tmp_path / "no-model"
    assert main("attn_map", [*table(tmp_path), "--model", f"local-dir:{missing}"]) == 4
    assert str(missing) in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_second_start_needs_neither_torch_nor_the_runner_for_a_wrong_key(tmp_path):
    code = (
        "import sys; from heatlens.stages.main import main\n"
        "assert main('attn_map', ['--alpha', '7']) == 2\n"
        "assert not {'torch', 'cv2', 'pandas', 'pyarrow'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")}, cwd=tmp_path)


def test_help_lists_keys(capsys):
    with pytest.raises(SystemExit) as caught:
        main("attn_map", ["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--stop-after" in out
    assert "--retry-failed" in out
