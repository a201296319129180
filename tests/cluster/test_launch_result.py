"""What the launcher makes of a run's end, of a missing image or path, and what --check says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cluster.stubs import ROOT, Checkout
from tests.cluster.test_launch_words import read_only, writable


@pytest.mark.parametrize("code", [0, 2, 3, 4, 75])
@pytest.mark.parametrize("runtime", ["docker", "podman", "apptainer", "none"])
def test_exit_codes_of_the_contract_pass(launcher: Checkout, runtime: str, code: int) -> None:
    environ = {"CONTAINER_RUNTIME": runtime, "CONTAINER_IMAGE": "docker://x", "STUB_RUN": f"exit {code}"}
    done = launcher.run("attn_map", launcher.conf, **environ)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (125, "The container could not be started (docker: exit code 125)"),
        (126, "exit code 126"),
        (127, "exit code 127"),
        (137, "was killed (signal KILL)"),
        (1, "The run ended with exit code 1."),
        (139, "The run ended with exit code 139."),
    ],
)
def test_other_exit_codes_are_the_environments(launcher: Checkout, code: int, text: str) -> None:
    done = launcher.docker(STUB_RUN=f"exit {code}")
    assert (done.returncode, text in done.stderr) == (4, True), done.stderr


@pytest.mark.parametrize(("ended", "code"), [("137", 4), ("1", 4), ("3", 4), ("0", 0), ("75", 75)])
def test_used_up_memory_is_said(launcher: Checkout, ended: str, code: int) -> None:
    done = launcher.docker(STUB_RUN=f"exit {ended} true", SLURM_JOB_ID="5", SLURM_MEM_PER_NODE="2048")
    assert done.returncode == code
    assert "killed by the kernel because its memory was used up (limit: 2048 MB)" in done.stderr


def test_the_order_of_calls(launcher: Checkout) -> None:
    assert launcher.docker(SLURM_JOB_ID="5").returncode == 0
    assert launcher.verbs() == [
        f"docker {verb}" for verb in ("image", "rm", "ps", "container", "create", "start", "inspect", "rm")
    ]
    prune = ["container", "prune", "-f", "--filter", "label=heatlens.job", "--filter", "until=10m"]
    assert launcher.call("docker", "container").argv[1:] == prune
    assert launcher.calls("docker", "rm")[0].argv == ["docker", "rm", "-f", "heatlens-5"]
    assert launcher.call("docker", "start").argv == ["docker", "start", "-a", "-i", "heatlens-5"]


def test_what_killed_launchers_left_is_swept(launcher: Checkout) -> None:
    """Ended containers of this user: those whose launcher is alive are not touched."""
    text = (launcher.bin / "docker").read_text()
    listed = f"ps) printf 'dead 999999999\\nalive {os.getpid()}\\n' ;;\n"
    assert "inspect)" in text
    launcher.program(launcher.bin / "docker", text.replace("inspect)", f"{listed}    inspect)", 1))
    assert launcher.docker(SLURM_JOB_ID="5").returncode == 0
    ps = launcher.call("docker", "ps").argv
    assert {"label=heatlens.user=1234", "status=exited", "status=created"} <= set(ps)
    removed = [call.argv[2:] for call in launcher.calls("docker", "rm")]
    assert removed == [["-f", "heatlens-5"], ["dead"], ["-f", "heatlens-5"]]


def test_a_container_that_does_not_start(launcher: Checkout) -> None:
    done = launcher.docker(STUB_RUN="refuse", SLURM_JOB_ID="5", SLURM_JOB_GPUS="0")
    assert done.returncode == 4
    assert "could not select device driver" in done.stderr
    assert "NVIDIA's container toolkit" in done.stderr
    assert launcher.verbs()[-1] == "docker rm"


def test_a_container_that_somebody_removed(launcher: Checkout) -> None:
    text = (launcher.bin / "docker").read_text().replace("inspect) cat", "inspect) exit 1; cat")
    launcher.program(launcher.bin / "docker", text)
    assert launcher.docker(STUB_RUN="exit 3").returncode == 3


def test_a_container_that_cannot_be_made(launcher: Checkout) -> None:
    done = launcher.docker(STUB_CREATE_FAILS="1")
    assert (done.returncode, "docker create failed" in done.stderr) == (4, True)
    assert launcher.calls("docker", "start") == []


@pytest.mark.parametrize(
    ("image", "command"), [("", "make docker-build"), ("registry/x:1", "docker pull registry/x:1")]
)
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_missing_image(launcher: Checkout, image: str, command: str, check: list[str]) -> None:
    done = launcher.docker(launcher.conf, *check, STUB_NO_IMAGE="1", CONTAINER_IMAGE=image)
    assert done.returncode == 4
    assert f"CONTAINER_IMAGE={image or 'heatlens:latest'} (environment): docker has no such image" in done.stderr
    assert f"Get it with: {command}" in done.stderr
    assert launcher.verbs() == ["docker image"]


def test_a_runtime_that_is_not_installed(launcher: Checkout) -> None:
    (launcher.bin / "apptainer").unlink()
    environ = {"CONTAINER_RUNTIME": "apptainer", "CONTAINER_IMAGE": "docker://x"}
    done = launcher.run("attn_map", launcher.conf, **environ)
    assert (done.returncode, "apptainer is not installed on node7.cluster" in done.stderr) == (4, True)
    assert launcher.run("attn_map", launcher.conf, "--check", **environ).returncode == 0  # a login node may lack it


def test_apptainer_names_its_file(launcher: Checkout) -> None:
    done = launcher.run("attn_map", launcher.conf, CONTAINER_RUNTIME="apptainer")
    assert (done.returncode, "apptainer needs the name of a .sif file" in done.stderr) == (2, True)
    done = launcher.run("attn_map", launcher.conf, "--check", CONTAINER_RUNTIME="apptainer", CONTAINER_IMAGE="x.sif")
    assert done.returncode == 4
    assert f"CONTAINER_IMAGE={launcher.here}/x.sif (environment): no such file" in done.stderr


@pytest.mark.parametrize("runtime", ["docker", "none"])
def test_check_is_silent_and_starts_nothing(launcher: Checkout, runtime: str) -> None:
    done = launcher.run("attn_map", "--check", launcher.conf, CONTAINER_RUNTIME=runtime)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert launcher.calls("docker", "create") + launcher.calls("python") == []
    assert not (launcher.stage / "results").exists()


@pytest.mark.parametrize("runtime", ["docker", "none"])
@pytest.mark.parametrize(
    ("key", "what"),
    [("DATASET_PATH", "no such file or folder"), ("IMAGE_ROOT", "no such folder"), ("MODEL", "no such folder"),
     ("HF_HOME", "no such folder")],
)  # fmt: skip
def test_check_names_what_is_missing(launcher: Checkout, runtime: str, key: str, what: str) -> None:
    done = launcher.run("attn_map", launcher.conf, "--check", CONTAINER_RUNTIME=runtime, **{key: "./not there"})
    assert (done.returncode, done.stderr) == (2, f"{key}={launcher.here}/not there (environment): {what}\n")


def test_a_missing_mount_is_named(launcher: Checkout) -> None:
    launcher.site("MOUNTS=(/not/there)\n")
    done = launcher.docker()
    assert (done.returncode, done.stderr) == (2, "MOUNTS: no such file or folder: /not/there\n")


@pytest.mark.parametrize(("key", "path"), [("IMAGE_ROOT", "/usr"), ("RESULTS_DIR", "/tmp"), ("IMAGE_ROOT", "/proc/1")])
def test_the_containers_own_folders_are_not_hidden(launcher: Checkout, key: str, path: str) -> None:
    done = launcher.docker(**{key: path})
    assert (done.returncode, f"{key}: {path} cannot be mounted" in done.stderr) == (2, True)


@pytest.mark.parametrize(("name", "demo"), [("exp_00_phantom", "phantom"), ("exp_01_held_out", "held_out")])
def test_a_demo_is_drawn_inside_unless_it_is_there(launcher: Checkout, name: str, demo: str) -> None:
    text = (ROOT / "configs" / "demo" / f"{name}.conf").read_text()
    conf = launcher.write_conf(text, f"configs/demo/{name}.conf")
    assert launcher.run("attn_map", "--check", conf, CONTAINER_RUNTIME="none").stderr == ""
    assert launcher.run("attn_map", conf, CONTAINER_RUNTIME="none").returncode == 0
    assert "DATASET_PATH" not in launcher.call("python").environ  # Python has the same default
    assert launcher.docker(conf).returncode == 0
    call = launcher.calls("docker", "create")[-1]
    assert call.environ["DATASET_PATH"] == f"/tmp/{demo}"
    assert read_only(call.argv) == {f"{launcher.root}/configs"}
    folder = launcher.root / ".demo" / demo
    folder.mkdir(parents=True)
    (folder / "complete.json").touch()
    assert launcher.docker(conf).returncode == 0
    call = launcher.calls("docker", "create")[-1]
    assert call.environ["DATASET_PATH"] == str(folder)
    assert read_only(call.argv) == {f"{launcher.root}/configs", str(folder)}


def test_what_is_mounted_for_a_data_set(launcher: Checkout) -> None:
    def seen(**environ: str) -> set[str]:
        assert launcher.docker(**environ).returncode == 0
        return read_only(launcher.calls("docker", "create")[-1].argv) - {f"{launcher.root}/configs"}

    films = f"{launcher.data}/films"
    assert seen() == {f"{launcher.data}/questions.csv", films}
    assert seen(IMAGE_ROOT="") == {str(launcher.data)}  # the images lie beside the table
    assert seen(DATASET_PATH=f"{launcher.data}/*.csv") == {str(launcher.data), films}
    (launcher.data / "a[1]b.csv").touch()
    assert seen(DATASET_PATH=f"{launcher.data}/a[1]b.csv") == {f"{launcher.data}/a[1]b.csv", films}


def test_a_snapshot_of_the_hub_comes_with_its_blobs(launcher: Checkout) -> None:
    model = launcher.data / "hub" / "models--a--b"
    for part in ("snapshots/123", "blobs"):
        (model / part).mkdir(parents=True)
    assert launcher.docker(MODEL=f"local-dir:{model}/snapshots/123").returncode == 0
    call = launcher.call("docker", "create")
    assert call.environ["MODEL"] == f"local-dir:{model}/snapshots/123"
    assert str(model) in read_only(call.argv)


def test_overwrite_may_move_the_results_aside(launcher: Checkout) -> None:
    results = f"{launcher.stage}/results/demo"
    for words in (["--overwrite"], ["--overwrite", "true"], ["--overwrite=yes"]):
        assert launcher.docker(launcher.conf, *words).returncode == 0
        assert writable(launcher.calls("docker", "create")[-1].argv) == {results}
    assert launcher.docker(launcher.conf, "--overwrite", "false").returncode == 0
    assert writable(launcher.calls("docker", "create")[-1].argv) == {f"{results}/exp"}


def test_results_are_made_with_the_umask(launcher: Checkout, tmp_path: Path) -> None:
    for umask, mode in (("077", 0o700), ("0027", 0o750)):
        results = tmp_path / umask / "results"
        assert launcher.docker(launcher.conf, "--umask", umask, RESULTS_DIR=str(results)).returncode == 0
        assert results.stat().st_mode & 0o777 == mode
    done = launcher.docker(UMASK="77x")
    assert (done.returncode, "UMASK=77x (environment): allowed: three or four octal digits" in done.stderr) == (2, True)


def test_merge_runs_without_gpu_and_without_shards_of_an_array(launcher: Checkout) -> None:
    environ = {"SLURM_JOB_ID": "9", "SLURM_JOB_GPUS": "0", "DEVICE": "cuda", "CONTAINER_RUNTIME": "docker"}
    done = launcher.run("merge", launcher.conf, "--stage", "attn_map", "--num-shards", "4", **environ)
    assert (done.returncode, done.stderr) == (0, "")
    call = launcher.call("docker", "create")
    start = call.argv.index("heatlens")
    assert call.argv[start:] == [
        "heatlens",
        "merge",
        "--config",
        str(launcher.conf),
        "--stage",
        "attn_map",
        "--num-shards",
        "4",
    ]
    assert call.values("--gpus") == []
    assert launcher.run("merge", launcher.conf, CONTAINER_RUNTIME="none").returncode == 0
    assert launcher.call("python").argv[1:] == ["-m", "heatlens.cli", "merge", "--config", str(launcher.conf)]


@pytest.mark.parametrize("words", [["unknown"], [""], []])
def test_an_unknown_stage(launcher: Checkout, words: list[str]) -> None:
    done = launcher.run(*words)
    assert (done.returncode, "allowed: attn_map, bbox, merge" in done.stderr) == (2, True)


def test_by_hand_it_is_docker(launcher: Checkout) -> None:
    assert launcher.run(launcher.conf, script="docker/run_heatmap_gen.sh").returncode == 0
    assert len(launcher.calls("docker", "create")) == 1
    assert launcher.run(launcher.conf, script="docker/run_heatmap_gen.sh", CONTAINER_RUNTIME="none").returncode == 0
    assert len(launcher.calls("python")) == 1


def test_a_conf_outside_any_configs_folder(launcher: Checkout, tmp_path: Path) -> None:
    conf = tmp_path / "own" / "mine.conf"
    conf.parent.mkdir()
    shutil.copy(launcher.conf, conf)
    assert launcher.docker(conf).returncode == 0
    call = launcher.call("docker", "create")
    assert str(conf.parent) in read_only(call.argv)
    assert writable(call.argv) == {f"{conf.parent}/Attention_Map/results/mine"}
