"""The Makefile and its set-up, with a stub for Python: what is done once, what is handed on, which paths work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.stubs import SHELL_SIDE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("bash") is None, reason="no make or no bash on this machine"
)

# A Python that fits, whose `-m venv DIR` copies itself there; every other call is one line in $LOG.
STUB = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then exit "${STUB_CHECK:-0}"; fi
if [[ $1 == --version ]]; then echo 'Python 3.12.0'; exit 0; fi
{ printf '%s|' "$@"; printf 'STOP_AFTER=%s\\n' "${STOP_AFTER-unset}"; } >>"$LOG"
if [[ $2 == venv ]]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
"""


class Checkout:
    """What make needs, in a folder with blanks in its name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my check out"
        for name in (
            "Makefile",
            "pyproject.toml",
            ".ci/bench.sh",
            ".ci/setup.sh",
            "configs/demo/exp_00_phantom.conf",
            *SHELL_SIDE,
        ):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        for stage in ("Attention_Map", "Bounding_Box"):
            (self.root / stage / "configs").symlink_to("../configs")
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "log"
        self.stub(self.bin / "python3")

    def stub(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB)
        path.chmod(0o755)

    def make(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": f"{self.bin}:/usr/bin:/bin", "LOG": str(self.log), **environ}
        return subprocess.run(["make", *words], cwd=self.root, env=environ, capture_output=True, text=True, check=False)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_help_is_the_default_and_lists_every_target(checkout: Checkout) -> None:
    done = checkout.make()
    assert (done.returncode, done.stderr) == (0, "")
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    for target in phony[1].split():
        assert re.search(rf"^  {re.escape(target)} +\S", done.stdout, re.MULTILINE)
    assert checkout.calls == []


def test_setup_is_done_once_until_pyproject_changes(checkout: Checkout) -> None:
    for _ in range(2):
        done = checkout.make("setup")
        assert (done.returncode, done.stderr) == (0, "")
    pip = "-m|pip|--disable-pip-version-check|install|--quiet|-e"
    installs = [f"{pip}|.[test,quality]|STOP_AFTER=unset", f"{pip}|.[crf]|STOP_AFTER=unset"]
    assert checkout.calls == ["-m|venv|.venv|STOP_AFTER=unset", *installs]
    with (checkout.root / "pyproject.toml").open("a") as stream:
        stream.write("\n# changed\n")
    assert checkout.make("setup").returncode == 0
    assert checkout.calls[3:] == installs


def test_setup_goes_on_without_a_compiler(checkout: Checkout) -> None:
    text = STUB.replace(
        "if [[ $2 == venv ]]",
        "if [[ $* == *'[crf]'* ]]; then echo 'error: no g++' >&2; exit 1; fi\nif [[ $2 == venv ]]",
    )
    (checkout.bin / "python3").write_text(text)
    done = checkout.make("setup")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [line for line in done.stdout.splitlines() if "CRF" in line]
    assert line.startswith("setup: dense CRF is left out and its tests are skipped")
    assert done.stdout.rstrip().endswith("setup: done")
    assert checkout.make("setup").stdout == ""  # and is not tried again


def test_setup_with_another_environment_python_and_torch_index(checkout: Checkout, tmp_path: Path) -> None:
    own = tmp_path / "own python" / "python3.12"
    checkout.stub(own)
    done = checkout.make("setup", f"VENV={tmp_path}/my env", f"PYTHON={own}", "TORCH_INDEX=https://index/cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.calls[0].startswith(f"-m|venv|{tmp_path}/my env|")
    assert "|--index-url|https://index/cpu|torch>=2.4,<3|torchvision>=0.19,<1|" in checkout.calls[1]
    assert not (checkout.root / ".venv").exists()


def test_an_unfit_python_is_refused_plainly(checkout: Checkout) -> None:
    done = checkout.make("setup", f"PYTHON={checkout.bin}/python3", STUB_CHECK="1")
    assert done.returncode != 0
    assert "heatlens needs Python 3.10 to 3.13 with venv and pip" in done.stderr
    assert checkout.calls == []


def test_a_failed_installation_is_tried_again(checkout: Checkout) -> None:
    text = STUB.replace(
        "if [[ $2 == venv ]]", "if [[ $2 == pip && -e $LOG.broken ]]; then exit 1; fi\nif [[ $2 == venv ]]"
    )
    (checkout.bin / "python3").write_text(text)
    broken = Path(f"{checkout.log}.broken")
    broken.touch()
    assert checkout.make("setup").returncode != 0
    broken.unlink()
    assert checkout.make("setup").returncode == 0
    assert checkout.calls[-1].startswith("-m|pip|")


def measured_on_the_demo() -> list[list[str]]:
    """The arguments of the commands that docs/evaluation.md takes the demo's figures from."""
    text = (ROOT / "docs" / "evaluation.md").read_text().partition("## The demo's own numbers")[2]
    return [line.split()[1:] for line in text.split("```")[1].strip().splitlines()]


@pytest.mark.parametrize("crf", [True, False])
def test_bench_measures_one_thing_after_the_other(checkout: Checkout, crf: bool) -> None:
    start = "if [[ $1 == -c ]]; then"
    absent = f"if [[ $* == *densecrf* ]]; then exit 1; fi\n{start}"
    (checkout.bin / "python3").write_text(STUB if crf else STUB.replace(start, absent))
    done = checkout.make("bench", TMPDIR=str(checkout.bin))
    assert (done.returncode, done.stderr) == (0, "")
    assert ("dense CRF is left out" in done.stdout) != crf
    calls = [call.split("|")[:-1] for call in checkout.calls if "|pip|" not in call and "|venv|" not in call]
    programs = [words[0] for words in calls if words[0] != "-m"]
    assert all((ROOT / program).is_file() for program in programs)
    wanted = ["benchmarks/crf_cost.py", "benchmarks/crf_effect.py"] if crf else []
    assert [program for program in programs if "crf" in program] == wanted
    commands = [words[2:] for words in calls if words[0] == "-m"]
    assert all(words[:2] == ["-m", "heatlens.cli"] for words in calls if words[0] == "-m")
    for words in measured_on_the_demo():
        assert (words in commands) == (crf or "crf" not in str(words))
    made = [words[words.index("--results-dir") + 1] for words in commands if "--skip-crf" in words]
    assert made == next((words[1:] for words in calls if words[0] == "benchmarks/crf_effect.py"), [])
    assert not list(checkout.bin.glob("tmp.*"))


def test_local_test_hands_on_only_what_was_given(checkout: Checkout) -> None:
    def stage_call(*words: str) -> str:
        done = checkout.make("local-test", *words)
        assert (done.returncode, done.stderr) == (0, "")
        return checkout.calls[-1]

    stage = checkout.root / "Attention_Map"
    start = f"{stage}/scripts/generate_heatmaps.py|--config|{stage}/configs/demo/exp_00_phantom.conf|"
    assert stage_call() == f"{start}STOP_AFTER=unset"
    assert stage_call("STOP_AFTER=7") == f"{start}STOP_AFTER=7"
    assert stage_call("STOP_AFTER=") == f"{start}STOP_AFTER="
    other = checkout.root / "configs" / "other one.conf"
    other.touch()
    assert f"|--config|{stage}/configs/other one.conf|" in stage_call("CONF=configs/other one.conf")


def test_local_test_of_the_other_stage(checkout: Checkout) -> None:
    done = checkout.make("local-test", "STAGE=bbox", "STOP_AFTER=7")
    assert (done.returncode, done.stderr) == (0, "")
    stage = checkout.root / "Bounding_Box"
    conf = f"{stage}/configs/demo/exp_00_phantom.conf"
    assert checkout.calls[-1] == f"{stage}/scripts/bbox_preprocessing.py|--config|{conf}|STOP_AFTER=7"
    wrong = checkout.make("local-test", "STAGE=boxes")
    assert wrong.returncode != 0
    assert "STAGE=boxes: allowed are attn_map and bbox" in wrong.stderr


def test_a_failing_stage_fails_make(checkout: Checkout) -> None:
    done = checkout.make("local-test", "CONF=none.conf")
    assert done.returncode != 0
    assert "no such .conf file: none.conf" in done.stderr
