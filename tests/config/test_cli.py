"""The command ``heatlens``: one clear text, the right exit code, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from heatlens import __version__, cli
from heatlens.errors import ConfigError, ModelError, StoppedEarly
from heatlens.guard import guarded
from heatlens.registry import COLORMAPS, METHODS

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo" / "exp_00_phantom.conf"


@pytest.fixture(autouse=True)
def _no_keys_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOP_AFTER", "ALPHA", "HEATLENS_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def test_help_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"heatlens {command.usage}" in text for command in cli.COMMANDS.values())
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"heatlens {__version__}\n"
    assert cli.main(["confg"]) == 2
    assert "did you mean config?" in capsys.readouterr().err


def test_config_prints_values_with_origins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_AFTER", "7")
    assert cli.main(["config", str(DEMO), "--stage", "attn_map", "--alpha", "0.75"]) == 0
    out, err = capsys.readouterr()
    lines = {line.partition("=")[0]: line.partition("=")[2].split("  # ") for line in out.splitlines()}
    assert [part.strip() for part in lines["ALPHA"]] == ["0.75", "flag"]
    assert [part.strip() for part in lines["STOP_AFTER"]] == ["7", "environment"]
    assert [part.strip() for part in lines["DATASET"]] == ["phantom", str(DEMO)]
    assert [part.strip() for part in lines["COLORMAP"]] == ["jet", str(DEMO)]
    assert f"STOP_AFTER=7 from the environment overrides 5 of {DEMO}" in err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, names in (("colormaps", COLORMAPS), ("models", cli.MODELS)):
        assert cli.main(["list", kind]) == 0
        assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == list(names)
    for argv in (["list"], ["list", "colours"], ["list", "methods", "models"]):
        assert cli.main(argv) == 2
        assert "colormaps" in capsys.readouterr().err


def test_list_methods_prints_needs_paper_and_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "methods"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    assert len(blocks) == len(METHODS) + 3  # a head, grad-cam:NAME, the symbols
    for block, entry in zip(blocks[1:], METHODS.values(), strict=False):
        head, summary, formula, shapes = block.splitlines()
        assert head.split("  ")[0] == entry.name
        assert ", ".join(entry.needs) in head and head.endswith(entry.paper)
        assert (summary.strip(), formula.strip(), shapes.strip()) == (entry.summary, entry.formula, entry.shapes)
    assert blocks[-2].startswith("grad-cam:NAME")


def test_run_without_a_stage_names_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run"]) == 2
    assert "attn_map" in capsys.readouterr().err


def test_run_hands_its_arguments_to_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str]]] = []

    def stage_main(stage: str, argv: list[str]) -> int:
        calls.append((stage, argv))
        return 75

    monkeypatch.setattr("heatlens.stages.main.main", stage_main)
    assert cli.main(["run", "attn_map", "--config", "x.conf", "--stop-after", ""]) == 75
    assert calls == [("attn_map", ["--config", "x.conf", "--stop-after", ""])]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("ALPHA=9: allowed: 0 to 1"), 2, "heatlens: ALPHA=9: allowed: 0 to 1\n"),
        (ModelError("no weights"), 4, "heatlens: no weights\n"),
        (StoppedEarly("stopped"), 75, "heatlens: stopped\n"),
        (ValueError("a bug"), 1, "heatlens: unexpected error, please report it: ValueError: a bug\n"),
        (ModuleNotFoundError("x", name="torch"), 4, f"heatlens: {sys.executable} has no package torch, which"),
        (ModuleNotFoundError("x", name="heatlens.gone"), 1, "heatlens: unexpected error"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_one_text_and_a_code(
    error: BaseException,
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert guarded(raising(error)) == code
    assert capsys.readouterr().err.startswith(text)
    if isinstance(error, Exception):
        monkeypatch.setenv("HEATLENS_TRACEBACK", "1")
        with pytest.raises(type(error)):
            guarded(raising(error))


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f'"{sys.executable}" -m heatlens.cli config --reference | head -1',
        shell=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        check=True,
    )
    assert (done.stdout, done.stderr) == ("# Configuration\n", "")
