"""The stages' submit scripts: where they find stage, .conf and Python, and what they hand on. Python is a stub."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.stubs import SHELL_SIDE

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stage:
    """A stage's name, folder, submit script and Python script."""

    name: str
    folder: str
    submit: str
    program: str


STAGES = [
    Stage("attn_map", "Attention_Map", "submit_heatmap_gen.sh", "generate_heatmaps.py"),
    Stage("bbox", "Bounding_Box", "submit_bbox_gen.sh", "bbox_preprocessing.py"),
]
both_stages = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")

# Writes its process id, a NUL and its arguments with NULs to $CALLED, and $STOP_AFTER to $CALLED.env.
STUB = """#!/usr/bin/env bash
[[ ${1-} == -c ]] && exit "${STUB_HAS_HEATLENS:-0}"
{ printf '%s\\0' "$$"; printf '%s\\0' "$@"; } >"$CALLED"
printf '%s' "${STOP_AFTER-unset}" >"$CALLED.env"
exit "${STUB_EXIT:-0}"
"""


@dataclass
class Checkout:
    """A copy of the shell side in a folder with a blank and a quote in its name."""

    root: Path
    called: Path
    names: Stage

    @property
    def stage(self) -> Path:
        return self.root / self.names.folder

    @property
    def submit(self) -> Path:
        return self.stage / self.names.submit

    @property
    def program(self) -> Path:
        return self.stage / "scripts" / self.names.program

    def stub(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB)
        path.chmod(0o755)
        return path

    def run(
        self, *words: str, script: Path | None = None, cwd: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": "/usr/bin:/bin", "CALLED": str(self.called), **environ}
        script = script or self.submit
        command = ["bash", str(script), *words]
        return subprocess.run(command, cwd=cwd or self.stage, env=environ, capture_output=True, text=True, check=False)

    @property
    def arguments(self) -> list[str]:
        """What the stub was called with."""
        return self.called.read_text().split("\0")[1:-1]


@pytest.fixture(params=STAGES, ids=lambda stage: stage.name)
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Checkout:
    root = tmp_path / 'it\'s a "checkout"'
    for name in SHELL_SIDE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "configs", root / "configs")
    made = Checkout(root, tmp_path / "called", request.param)
    (made.stage / "configs").symlink_to("../configs")
    made.stub(root / ".venv" / "bin" / "python")
    return made


@pytest.mark.parametrize("name", ["exp_00_phantom", "exp_01_held_out"])
def test_arguments_are_handed_on_unchanged(checkout: Checkout, name: str) -> None:
    words = ["--stop-after", "", "--prompt-template", 'it\'s a\n"{question}" $(id) `id` *', "--alpha", "0.5"]
    done = checkout.run(f"configs/demo/{name}.conf", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    conf = checkout.stage / "configs" / "demo" / f"{name}.conf"
    assert checkout.arguments == [str(checkout.program), "--config", str(conf), *words]


def test_the_default_experiment(checkout: Checkout) -> None:
    default = str(checkout.stage / "configs" / "gemex" / "exp_01_vqa.conf")
    assert checkout.run().returncode == 0
    assert checkout.arguments[1:] == ["--config", default]
    assert checkout.run("--stop-after", "5").returncode == 0
    assert checkout.arguments[1:] == ["--config", default, "--stop-after", "5"]


def test_where_a_conf_is_looked_for(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.root / "mine.conf").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "own.conf").touch()
    (tmp_path / "here" / "configs").mkdir()
    (tmp_path / "here" / "configs" / "same.conf").touch()
    (checkout.root / "configs" / "same.conf").touch()
    for name, expected in {
        "own.conf": tmp_path / "here" / "own.conf",
        "configs/same.conf": tmp_path / "here" / "configs" / "same.conf",  # the current folder comes first
        "configs/demo/exp_00_phantom.conf": checkout.stage / "configs" / "demo" / "exp_00_phantom.conf",
        "mine.conf": checkout.root / "mine.conf",
        str(tmp_path / "here" / "own.conf"): tmp_path / "here" / "own.conf",
    }.items():
        assert checkout.run(name, cwd=tmp_path / "here").returncode == 0
        assert checkout.arguments[2] == str(expected)


def test_a_missing_conf_names_the_places(checkout: Checkout, tmp_path: Path) -> None:
    done = checkout.run("no such.conf", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "no such .conf file: no such.conf. Looked for:",
        *(f"  {folder}/no such.conf" for folder in (tmp_path, checkout.stage, checkout.root)),
    ]
    assert not checkout.called.exists()


@pytest.mark.parametrize("in_its_folder", [True, False])
def test_a_copy_in_slurms_spool_finds_the_stage(checkout: Checkout, tmp_path: Path, in_its_folder: bool) -> None:
    spool = tmp_path / "spool" / "job00001"
    spool.mkdir(parents=True)
    copy = shutil.copy(checkout.submit, spool / "slurm_script")
    folder = checkout.stage if in_its_folder else checkout.root
    done = checkout.run("--alpha", "1", script=copy, cwd=folder, SLURM_SUBMIT_DIR=str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.arguments[0] == str(checkout.program)
    assert checkout.arguments[-2:] == ["--alpha", "1"]


def test_a_copy_that_finds_no_stage_says_so(checkout: Checkout, tmp_path: Path) -> None:
    copy = shutil.copy(checkout.submit, tmp_path / "slurm_script")
    done = checkout.run(script=copy, cwd=tmp_path, SLURM_SUBMIT_DIR=str(tmp_path / "elsewhere"))
    assert done.returncode == 4
    assert str(tmp_path / "elsewhere") in done.stderr
    assert f"Call sbatch inside {checkout.names.folder}/" in done.stderr
    done = checkout.run(script=copy, cwd=tmp_path)
    assert (done.returncode, "SLURM_SUBMIT_DIR is not set" in done.stderr) == (4, True)


def test_inside_an_allocation_the_script_itself_decides(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.run(cwd=tmp_path, SLURM_SUBMIT_DIR=str(tmp_path)).returncode == 0
    assert checkout.arguments[0].startswith(str(checkout.stage))


def test_which_python(checkout: Checkout, tmp_path: Path) -> None:
    own = checkout.stub(tmp_path / "other place" / "python")
    assert checkout.run(HEATLENS_PYTHON=str(own), STUB_EXIT="75").returncode == 75
    assert checkout.run(HEATLENS_PYTHON="python", PATH=f"{own.parent}:/usr/bin:/bin", STUB_EXIT="3").returncode == 3
    done = checkout.run(HEATLENS_PYTHON=str(tmp_path / "none"))
    assert (done.returncode, "HEATLENS_PYTHON=" in done.stderr) == (4, True)


def test_python3_only_if_it_has_heatlens(checkout: Checkout, tmp_path: Path) -> None:
    shutil.rmtree(checkout.root / ".venv")
    stub = checkout.stub(tmp_path / "bin" / "python3")
    path = f"{stub.parent}:/usr/bin:/bin"
    assert checkout.run(PATH=path).returncode == 0
    checkout.called.unlink()
    done = checkout.run(PATH=path, STUB_HAS_HEATLENS="1")
    assert done.returncode == 4
    assert "make setup" in done.stderr
    assert not checkout.called.exists()


@pytest.mark.parametrize("code", ["0", "2", "3", "4", "75"])
def test_exit_codes_pass_through(checkout: Checkout, code: str) -> None:
    assert checkout.run(STUB_EXIT=code).returncode == int(code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_python_and_75_means_stopped(checkout: Checkout, number: signal.Signals) -> None:
    """Under Slurm the script's own process gets them, and bash must not sit on them until the run has ended."""
    python = checkout.root / ".venv" / "bin" / "python"
    python.write_text(
        '#!/usr/bin/env bash\ntrap \'printf stopped >"$CALLED"; exit 75\' TERM\nprintf \'%s\' "$$" >"$CALLED"\n'
        "while :; do sleep 0.05; done\n"
    )
    environ = {"PATH": os.environ["PATH"], "CALLED": str(checkout.called)}
    with subprocess.Popen(["bash", str(checkout.submit)], cwd=checkout.stage, env=environ) as process:
        while not (checkout.called.exists() and checkout.called.read_text()):
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=30) == 75
        assert checkout.called.read_text() == "stopped"


@both_stages
def test_sbatch_lines_come_before_the_first_command(stage: Stage) -> None:
    lines = (ROOT / stage.folder / stage.submit).read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert all(line.startswith("#SBATCH") for line in lines[1 : 1 + len(directives)])
    assert first_command > len(directives)
    assert f"--job-name={stage.name}" in directives
    assert "--output=logs/%x-%j.out" in directives
    assert any(line.startswith("--gres=gpu:1") for line in directives)
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(directives)


@both_stages
def test_the_stage_script_runs_with_only_src_beside_it(tmp_path: Path, stage: Stage) -> None:
    """It adds nothing: it hands the stage's name and its arguments to the stage's main."""
    script = tmp_path / "a b" / stage.folder / "scripts" / stage.program
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / stage.folder / "scripts" / stage.program, script)
    package = tmp_path / "a b" / "src" / "heatlens" / "stages"
    package.mkdir(parents=True)
    for name in ("__init__.py", "guard.py", "errors.py"):
        shutil.copy(ROOT / "src" / "heatlens" / name, package.parent)
    (package / "__init__.py").touch()
    (package / "main.py").write_text("def main(stage, argv):\n    print(stage, argv)\n    return 75\n")
    done = subprocess.run(
        [sys.executable, str(script), "--alpha", "1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (75, f"{stage.name} ['--alpha', '1']\n")


def test_the_submit_scripts_differ_in_names_only() -> None:
    texts = []
    for stage in STAGES:
        text = (ROOT / stage.folder / stage.submit).read_text()
        kept = [line for line in text.splitlines() if not line.startswith("# ") or line.startswith("# HEATLENS")]
        texts.append([line.replace(stage.folder, "FOLDER").replace(stage.name, "STAGE") for line in kept])
        assert os.access(ROOT / stage.folder / stage.submit, os.X_OK)
        for folder in ("logs", "results"):
            assert (ROOT / stage.folder / folder / ".gitkeep").is_file()
        assert (ROOT / stage.folder / "configs").readlink() == Path("../configs")
    assert texts[0] == texts[1]
