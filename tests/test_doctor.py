"""heatlens doctor: each check says ok where all is well, and names what is not."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from heatlens.config import load_settings
from heatlens.doctor import data, machine, storage
from heatlens.doctor.command import examine, main, read_options
from heatlens.doctor.findings import Finding, guarded
from heatlens.errors import ConfigError, ModelError
from heatlens.images.locate import locate_image
from heatlens.phantom.dataset import write_dataset
from heatlens.registry import DEMO_FOLDERS


def settings_of(**values: str):
    return load_settings(None, {name: str(value) for name, value in values.items()}, {}, "attn_map")


def states(findings) -> list[tuple[str, str]]:
    return [(one.check, one.state) for one in findings]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doctor") / "phantom"
    write_dataset(folder, films=3)
    return folder


# --- the command ------------------------------------------------------------------------------------------------


def test_a_healthy_machine_has_no_problem_and_exit_code_0(phantom, tmp_path, capsys):
    arguments = ["--dataset-path", str(question_file(phantom)), "--image-root", str(phantom), "--model", "demo"]
    arguments += ["--results-dir", str(tmp_path / "results" / "new"), "--cam-version", "GradCAM"]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["passed"]
    checks = {one["check"]: one["state"] for one in record["checks"]}
    assert {"Python", "OpenCV", "processor", "memory", "bash", "Slurm", "GPU", "results folder", "clock"} <= set(checks)
    assert {"data set", "images", "network", "weights", "loading", "logit scale", "gradient", "films"} <= set(checks)
    assert "problem" not in checks.values()
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_problems_are_printed_with_what_to_do_and_give_exit_code_4(tmp_path, capsys):
    arguments = ["--dataset-path", str(tmp_path / "gone.jsonl"), "--model-revision", "abc"]
    assert main([*arguments, "--results-dir", str(tmp_path)]) == 4
    printed = capsys.readouterr().out
    assert f"problem  data set: DATASET_PATH={tmp_path / 'gone.jsonl'}" in printed
    assert "problem  model: MODEL=hf-hub:microsoft/BiomedCLIP" in printed
    assert "What to do:" in printed
    assert printed.rstrip().splitlines()[-1].startswith("2 problems, ")


def test_one_broken_check_does_not_stop_the_others():
    def broken():
        yield Finding("a", "ok", "first")
        raise ZeroDivisionError("oh")

    def unfit():
        raise ModelError("no weights in /m")

    assert states(guarded("a", broken)) == [("a", "ok"), ("a", "problem")]
    assert [str(one) for one in guarded("b", unfit)] == ["problem  b: no weights in /m"]


@pytest.mark.parametrize(
    ("argv", "prove", "rest"),
    [
        (["exp.conf"], False, ["exp.conf"]),
        (["exp.conf", "--model"], True, ["exp.conf"]),
        (["--model", "--config", "exp.conf"], True, ["--config", "exp.conf"]),
        (["--config", "exp.conf", "--model", "demo"], True, ["--config", "exp.conf", "--model", "demo"]),
        (["--model=demo", "--topk", "8"], True, ["--topk", "8", "--model", "demo"]),
    ],
)
def test_model_is_a_switch_and_a_key(argv, prove, rest):
    options, left = read_options(argv)
    assert (options.prove, left) == (prove, rest)


def test_wrong_settings_are_exit_code_2(tmp_path):
    with pytest.raises(ConfigError, match=r"give the \.conf with --config"):
        main(["--model", "exp.conf"])
    with pytest.raises(ConfigError, match="TOPK"):
        main(["--topk", "many"])


def test_help(capsys):
    assert main(["-h"]) == 0
    assert "--model NAME" in capsys.readouterr().out


# --- Python, packages, processor, memory ------------------------------------------------------------------------

HERE = {"numpy": "2.1.0", "open-clip-torch": "3.3.0", "torch": "2.4.1+cu124"}


def test_versions_in_their_ranges():
    asked = ["numpy>=1.26,<3", "open_clip_torch>=3.3,<3.4", "torch>=2.4,<3", "pytest>=8; extra == 'test'"]
    (found,) = machine.compare_versions("3.11.2", ">=3.10,<3.14", asked, HERE)
    assert (found.state, "3 packages" in found.text) == ("ok", True)


@pytest.mark.parametrize(
    ("python", "asked", "text"),
    [
        ("3.9.1", "numpy>=1", "Python 3.9.1; heatlens needs >=3.10,<3.14"),
        ("3.11.1", "numpy>=1.26,<2", "numpy 2.1.0; <2,>=1.26 is needed"),
        ("3.11.1", "duckdb>=1.5", "duckdb is not here; >=1.5 is needed"),
    ],
)
def test_a_version_outside_its_range(python, asked, text):
    (found,) = machine.compare_versions(python, ">=3.10,<3.14", [asked], HERE)
    assert (found.state, found.text) == ("problem", text)


def test_the_ranges_are_those_of_pyproject(repository):
    python, asked = machine.requirements()
    text = (repository / "pyproject.toml").read_text()
    assert f'requires-python = "{python}"' in text
    assert all(f'"{one}"' in text for one in asked)
    assert any(one.startswith("open_clip_torch") for one in asked)


def test_two_opencvs_are_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda: {"opencv-python": "4", "opencv-python-headless": "4"})
    (found,) = machine.opencv(settings_of())
    assert found.state == "warning"
    assert "pip uninstall -y opencv-python opencv-python-headless; pip install" in found.advice


def test_an_opencv_without_libgl_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda: {"opencv-python": "4"})
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    (found,) = machine.opencv(settings_of())
    assert (found.state, "cannot be imported" in found.text) == ("problem", True)


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_memory_of_a_slurm_job_version_2(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/slurm/job_7/step_0\n")
    group(tmp_path / "g" / "slurm" / "job_7" / "step_0", memory__max="max\n", memory__current="5")
    job = tmp_path / "g" / "slurm" / "job_7"
    (job / "memory.max").write_text("8000000000\n")
    (job / "memory.current").write_text("3000000000\n")
    (job / "memory.stat").write_text("anon 1\ninactive_file 2000000000\n")
    assert machine.group_memory(tmp_path / "g", own) == 7_000_000_000
    (job / "memory.max").write_text("max\n")
    assert machine.group_memory(tmp_path / "g", own) is None


def test_memory_of_a_container_version_1(tmp_path):
    own = tmp_path / "own"
    own.write_text("9:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")  # the path outside; inside it is the root
    root = tmp_path / "g"
    group(root / "memory", memory__limit_in_bytes="2000000000\n", memory__usage_in_bytes="500000000\n")
    assert machine.group_memory(root, own) == 1_500_000_000
    (root / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.group_memory(root, own) is None


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "group_memory", lambda: 1_500_000_000)
    (found,) = machine.memory(settings_of())
    assert (found.state, found.text) == ("warning", "1.5 GB available")


# --- programs ---------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def only(tmp_path, monkeypatch):
    """A PATH with nothing on it but what the test writes there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("HEATLENS_CONTAINER", raising=False)
    return folder


def test_container_runtimes(only, monkeypatch):
    assert states(machine.containers(settings_of())) == [("container", "ok")]
    program(only, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    program(only, "podman", "echo 4.3.1")
    docker, podman = machine.containers(settings_of())
    assert (docker.state, "Cannot connect" in docker.text) == ("warning", True)
    assert (podman.state, podman.text) == ("ok", "podman 4.3.1")
    assert next(machine.containers(settings_of(container_runtime="docker"))).state == "problem"
    assert ("container", "problem") in states(machine.containers(settings_of(container_runtime="apptainer")))
    monkeypatch.setenv("HEATLENS_CONTAINER", "docker")
    assert states(machine.containers(settings_of(container_runtime="docker"))) == [("container", "ok")]


def test_a_daemon_that_never_answers(only, monkeypatch):
    monkeypatch.setattr(machine, "ANSWER_S", 0.2)
    program(only, "docker", "exec /bin/sleep 30")
    (found,) = machine.containers(settings_of(container_runtime="docker"))
    assert (found.state, "no answer within" in found.text) == ("problem", True)


def test_slurm(only):
    (found,) = machine.slurm(settings_of())
    assert (found.state, "not here" in found.text) == ("ok", True)
    for name in ("sbatch", "squeue", "srun", "sinfo"):
        program(only, name, "echo gpu*; echo debug")
    (found,) = machine.slurm(settings_of())
    assert (found.state, found.text) == ("warning", "no scontrol on PATH")
    program(only, "scontrol", "")
    (found,) = machine.slurm(settings_of())
    assert (found.state, "partitions: gpu*, debug" in found.text) == ("ok", True)
    program(only, "sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")
    (found,) = machine.slurm(settings_of())
    assert (found.state, "Unable to contact" in found.text) == ("warning", True)


def test_no_bash(only):
    assert states(machine.bash(settings_of())) == [("bash", "warning")]
    program(only, "bash", "")
    assert states(machine.bash(settings_of())) == [("bash", "ok")]


# --- results folder ---------------------------------------------------------------------------------------------


def test_a_good_results_folder_and_nothing_left_in_it(tmp_path):
    assert states(storage.results(settings_of(results_dir=tmp_path / "a" / "b"))) == [
        ("results folder", "ok"),
        ("clock", "ok"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_results_folder_that_is_a_file_or_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    assert states(storage.results(settings_of(results_dir=tmp_path / "file"))) == [("results folder", "problem")]

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    (found,) = storage.results(settings_of(results_dir=tmp_path / "results"))
    assert (found.state, "cannot be written" in found.text) == ("problem", True)


def test_a_file_system_that_breaks_its_promises(tmp_path, monkeypatch):
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *more: real(path, flags & ~os.O_EXCL, *more))
    monkeypatch.setattr(os, "utime", lambda *_args: None)
    faults, _ = storage.try_out(tmp_path)
    assert [fault.split()[0] for fault in faults] == ["O_EXCL", "time"]


def test_little_space_and_a_clock_that_is_off(tmp_path, monkeypatch):
    usage = storage.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000_000))
    monkeypatch.setattr(storage, "try_out", lambda _folder: ([], 42.0))
    space, clock = storage.results(settings_of(results_dir=tmp_path))
    assert (space.state, "1.0 GB free" in space.text) == ("warning", True)
    assert (clock.state, "42 s behind" in clock.text) == ("warning", True)


@pytest.mark.parametrize(("umask", "state"), [("077", "ok"), ("027", "ok"), ("022", "warning")])
def test_file_rights(umask, state):
    assert states(storage.rights(settings_of(umask=umask))) == [("file rights", state)]


# --- data and weights -------------------------------------------------------------------------------------------


def question_file(phantom: Path) -> Path:
    return next(phantom.glob("*_question.jsonl"))


def test_images_that_are_there_partly_there_and_not_there(phantom, tmp_path):
    assert states(data.dataset(settings_of(dataset_path=question_file(phantom), image_root=phantom))) == [
        ("data set", "ok"),
        ("images", "ok"),
    ]
    _, images = data.dataset(settings_of(dataset_path=question_file(phantom), image_root=tmp_path))
    assert (images.state, f"no image file at {tmp_path}" in images.text) == ("problem", True)
    shutil.copytree(phantom / "files", tmp_path / "files")
    films = sorted({json.loads(line)["image_path"] for line in question_file(phantom).read_text().splitlines()})
    locate_image(tmp_path, films[0]).write_bytes(b"no picture")
    _, images = data.dataset(settings_of(dataset_path=question_file(phantom), image_root=tmp_path))
    assert (images.state, f"{len(films) - 1} of {len(films)}" in images.text) == ("warning", True)


def test_rows_that_cannot_be_used(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image_path": "a.png", "question": ""}\n' * 2)
    found = list(data.dataset(settings_of(dataset_path=path, image_root=tmp_path)))
    assert states(found) == [("data set", "problem")]
    path.write_text('{"nothing": 1}\n')
    settings = settings_of(dataset_path=path, image_root=tmp_path)
    (found,) = guarded("data set", lambda: data.dataset(settings))
    assert (found.state, "not the layout of DATASET=gemex" in found.text) == ("problem", True)


def test_no_data_set_and_the_demos_before_its_first_run(tmp_path):
    assert states(data.dataset(settings_of())) == [("data set", "ok")]
    for name in DEMO_FOLDERS:
        assert states(data.dataset(settings_of(dataset=name, dataset_path=tmp_path / "new"))) == [("data set", "ok")]
    assert not (tmp_path / "new").exists()


def test_weights_are_looked_for_without_network(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert states(data.weights(settings_of(model="demo"))) == [("model", "ok")]
    assert states(data.weights(settings_of(model="ViT-B-32/openai"))) == [("model", "warning")]

    def refuse(*_args, offline, **_kwargs):
        assert offline, "the hub was asked"
        raise FileNotFoundError("no such snapshot")

    monkeypatch.setattr("heatlens.models.sources._snapshot", refuse)
    with pytest.raises(ModelError, match="not complete in the hub cache"):
        list(data.weights(settings_of()))
    assert "HF_HUB_OFFLINE" not in os.environ


def test_the_network_is_a_matter_of_hub_models_only(monkeypatch):
    assert states(data.network(settings_of())) == [("network", "ok")]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert states(data.network(settings_of())) == [("network", "warning")]
    assert states(data.network(settings_of(model="demo"))) == [("network", "ok")]


def test_every_check_runs_on_this_machine(tmp_path):
    found = list(examine(settings_of(model="demo", results_dir=tmp_path), prove=False))
    assert not [one for one in found if "cannot be checked" in one.text]
