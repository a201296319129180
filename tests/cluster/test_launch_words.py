"""What docker, podman and apptainer are called with: whole argument vectors, and paths that are hard to quote."""

from __future__ import annotations

import csv
import io
import os
import shlex
from pathlib import Path

import pytest

from tests.cluster.stubs import GOLDEN, Checkout

JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_GPUS": "2,3", "SLURM_MEM_PER_NODE": "32768", "SLURM_CPUS_PER_TASK": "4"}
HOSTILE = [
    "two words", "it's", 'a "quoted" one', "$(touch pwned)", "`touch pwned`", "line\nbreak", "-leading", "a,b", "a:b",
    "größe", "*", "back\\slash", " blank first", "=", "a=b,readonly", "{braces}", "end\n",
]  # fmt: skip


def mounts(argv: list[str]) -> list[dict[str, str]]:
    """The --mount options, as the CSV that docker and podman read them as."""
    found = []
    for word in argv:
        if word.startswith("--mount="):
            (row,) = csv.reader(io.StringIO(word.removeprefix("--mount="), newline=""), strict=True)
            found.append(dict(part.partition("=")[::2] for part in row))
    return found


def read_only(argv: list[str]) -> set[str]:
    return {mount["source"] for mount in mounts(argv) if "readonly" in mount}


def writable(argv: list[str]) -> set[str]:
    return {mount["source"] for mount in mounts(argv) if "readonly" not in mount}


@pytest.mark.parametrize("runtime", ["docker", "podman", "apptainer"])
@pytest.mark.parametrize("case", ["job", "hand"])
def test_the_whole_line(launcher: Checkout, runtime: str, case: str) -> None:
    launcher.site(
        f"CONTAINER_IMAGE={launcher.data}/image.sif\nMOUNTS=({launcher.data}/more)\nCONTAINER_OPTIONS=(--label 'a b')\n"
    )
    (launcher.data / "image.sif").write_text("image")
    (launcher.data / "more").mkdir()
    environ = dict(JOB, STOP_AFTER="5", PRECISION="fp32", SHM_SIZE="2g") if case == "job" else {"DEVICE": "cpu"}
    (launcher.home / ".cache" / "huggingface").mkdir(parents=True)
    done = launcher.run("attn_map", launcher.conf, "--alpha", "0.7", CONTAINER_RUNTIME=runtime, **environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    call = launcher.call(runtime, "exec" if runtime == "apptainer" else "create")
    prefix = "APPTAINERENV_" if runtime == "apptainer" else ""
    named = call.values("--env")
    inside = sorted(name for name in call.environ if name in named or (prefix and name.startswith(prefix)))
    values = {name: call.environ[name] for name in inside}
    typed = shlex.split(values.pop(f"{prefix}HEATLENS_HOST_COMMAND"))
    lines = launcher.plain([*call.argv, "", *(f"{name}={value}" for name, value in values.items()), "", *typed])
    for pid in launcher_pids(call.argv):
        lines = lines.replace(f"heatlens-{pid}", "heatlens-{pid}").replace(f"={pid}\n", "={pid}\n")
    lines = "\n".join(
        "--workdir={scratch}" if line.startswith("--workdir={tmp}/") else line for line in lines.split("\n")
    )
    golden = GOLDEN / f"launch_{runtime}_{case}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(lines)
    assert lines == golden.read_text()


def launcher_pids(argv: list[str]) -> list[str]:
    """Labelled with it; outside Slurm a container is also named after the launcher's process."""
    label = "--label=heatlens.launcher="
    return [word.removeprefix(label) for word in argv if word.startswith(label)]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_a_path_stays_one_argument_wherever_it_stands(
    launcher: Checkout, tmp_path: Path, runtime: str, name: str
) -> None:
    data = tmp_path / "data" / name
    for part in ("films", "weights", "hub", "more", "results"):
        (data / part).mkdir(parents=True)
    (data / "questions.csv").touch()
    conf = launcher.write_conf(
        'DATASET=table\nDATASET_PATH="$data/questions.csv"\nIMAGE_ROOT="$data/films"\nMODEL="$data/weights"\n',
        f"configs/{name}/{name}.conf",
    )
    launcher.site('MOUNTS=("$data/more")\n')
    environ = {"data": str(data), "HF_HOME": f"{data}/hub"}
    done = launcher.run(
        "attn_map", conf, "--results-dir", f"{data}/results/{name}", CONTAINER_RUNTIME=runtime, **environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    call = launcher.call(runtime, "create")
    results = f"{data}/results/{name}"
    expected = {
        str(launcher.root / "configs"),
        *(f"{data}/{part}" for part in ("questions.csv", "films", "weights", "hub", "more")),
    }
    assert all(mount["source"] == mount["target"] for mount in mounts(call.argv))
    assert (read_only(call.argv), writable(call.argv)) == (expected, {results})
    assert call.argv[-5:] == ["heatlens", "run", "attn_map", "--config", str(conf)]
    handed = {
        key: call.environ[key] for key in ("DATASET_PATH", "IMAGE_ROOT", "MODEL", "RESULTS_DIR", "HF_HOME", "data")
    }
    assert set(handed) <= set(call.values("--env"))
    assert handed == {
        "DATASET_PATH": f"{data}/questions.csv", "IMAGE_ROOT": f"{data}/films", "MODEL": f"{data}/weights",
        "RESULTS_DIR": results, "HF_HOME": f"{data}/hub", "data": str(data),
    }  # fmt: skip
    assert Path(results).is_dir()
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", HOSTILE)
def test_the_checkout_itself_may_lie_anywhere(tmp_path: Path, name: str) -> None:
    launcher = Checkout(tmp_path / "in", name)
    done = launcher.docker()
    assert (done.returncode, done.stderr) == (0, "")
    call = launcher.call("docker", "create")
    assert call.values("--workdir") == [str(launcher.root)]
    assert call.argv[-1] == str(launcher.conf)
    assert writable(call.argv) == {f"{launcher.stage}/results/demo/exp"}
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", ["a,b", "a:b", 'a"b', "a\nb"])
def test_apptainer_refuses_what_its_bind_cannot_say(launcher: Checkout, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    environ = {
        "CONTAINER_RUNTIME": "apptainer",
        "CONTAINER_IMAGE": "docker://heatlens",
        "IMAGE_ROOT": str(tmp_path / name),
    }
    done = launcher.run("attn_map", launcher.conf, **environ)
    assert done.returncode == 2
    assert (
        f"apptainer cannot mount a path with a colon, comma, quote or line break in it: {tmp_path / name}"
        in done.stderr
    )
    assert launcher.calls() == []


def test_a_path_that_csv_would_change_is_refused(launcher: Checkout, tmp_path: Path) -> None:
    (tmp_path / "a\r\nb").mkdir()
    done = launcher.docker(IMAGE_ROOT=str(tmp_path / "a\r\nb"))
    assert (done.returncode, "CR LF" in done.stderr) == (2, True)
    assert launcher.calls("docker", "create") == []


def test_values_of_other_keys_arrive_unchanged(launcher: Checkout) -> None:
    text = 'it\'s a\n"{question}" $(touch pwned) `id` *'
    done = launcher.docker(launcher.conf, "--colormap=turbo", "--prompt-template", text, TARGET_LAYER=text)
    assert done.returncode == 0
    call = launcher.call("docker", "create")
    assert call.argv[-3:] == ["--colormap=turbo", "--prompt-template", text]
    assert (call.environ["TARGET_LAYER"], "TARGET_LAYER" in call.values("--env")) == (text, True)
    assert not list(launcher.here.iterdir())


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0"}, ['--gpus="device=0"']),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0,1,2", "SLURM_STEP_GPUS": "2"}, ['--gpus="device=2"']),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "1-3,5"}, ['--gpus="device=1,2,3,5"']),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "GPU-1a-2b"}, ['--gpus="device=GPU-1a-2b"']),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "2", "CUDA_VISIBLE_DEVICES": "0"}, ['--gpus="device=2"']),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "2", "DEVICE": "cpu"}, []),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "0", "STUB_NVIDIA_SMI": "GPU 0: RTX"}, []),
        ({"STUB_NVIDIA_SMI": "GPU 0: RTX 3090 (UUID: GPU-1)\n"}, ["--gpus=all"]),
        ({"STUB_NVIDIA_SMI": "GPU 0: RTX", "CUDA_VISIBLE_DEVICES": "1"}, ['--gpus="device=1"']),
        ({"STUB_NVIDIA_SMI": "GPU 0: RTX", "CUDA_VISIBLE_DEVICES": ""}, []),
        ({"STUB_NVIDIA_SMI": "GPU 0: RTX", "DEVICE": "cpu"}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_only_the_gpus_of_the_allocation(launcher: Checkout, environ: dict[str, str], expected: list[str]) -> None:
    assert launcher.docker(**environ).returncode == 0
    call = launcher.call("docker", "create")
    assert [word for word in call.argv if word.startswith("--gpus")] == expected
    assert "CUDA_VISIBLE_DEVICES" not in call.values("--env")


def test_podman_gets_its_gpus_as_devices(launcher: Checkout) -> None:
    environ = {"CONTAINER_RUNTIME": "podman", "SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "1,3"}
    assert launcher.run("attn_map", launcher.conf, **environ).returncode == 0
    assert launcher.call("podman", "create").values("--device") == ["nvidia.com/gpu=1", "nvidia.com/gpu=3"]


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"DEVICE": "cuda"}, "nvidia-smi -L lists none"),
        ({"DEVICE": "cuda:0", "SLURM_JOB_ID": "5"}, "Slurm gave this job none (sbatch --gres=gpu:1)"),
        ({"SLURM_JOB_ID": "5", "SLURM_JOB_GPUS": '0" --privileged'}, "the list of GPUs is not understood"),
    ],
)
def test_no_gpu_where_one_is_demanded(launcher: Checkout, environ: dict[str, str], text: str) -> None:
    done = launcher.docker(**environ)
    assert (done.returncode, text in done.stderr) == (4, True), done.stderr
    assert launcher.calls("docker", "create") == []


@pytest.mark.parametrize(
    ("environ", "memory", "cpus"),
    [
        ({"SLURM_MEM_PER_NODE": "32768", "SLURM_CPUS_PER_TASK": "4"}, ["32768m"], ["4"]),
        ({"SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_ON_NODE": "8"}, ["8000m"], ["8"]),
        ({"SLURM_MEM_PER_GPU": "1000", "SLURM_JOB_GPUS": "0,1"}, ["2000m"], []),
        ({"SLURM_MEM_PER_NODE": "0", "SLURM_CPUS_PER_TASK": "64"}, [], ["16"]),
        ({"SLURM_MEM_PER_NODE": "x[$(touch pwned)]", "SLURM_CPUS_PER_TASK": "a[$(touch pwned)]"}, [], []),
        ({}, [], []),
    ],
)
def test_limits_of_the_allocation(
    launcher: Checkout, environ: dict[str, str], memory: list[str], cpus: list[str]
) -> None:
    assert launcher.docker(SLURM_JOB_ID="1", **environ).returncode == 0
    call = launcher.call("docker", "create")
    assert (call.values("--memory"), call.values("--memory-swap"), call.values("--cpus")) == (memory, memory, cpus)
    assert not list(launcher.here.iterdir())


def test_who_runs_it(launcher: Checkout) -> None:
    def user_words(runtime: str, uid: str) -> list[str]:
        environ = {"CONTAINER_RUNTIME": runtime, "STUB_UID": uid, "STUB_GROUPS": "100 200 300"}
        assert launcher.run("attn_map", launcher.conf, **environ).returncode == 0
        words = launcher.calls(runtime, "create")[-1].argv
        return [word for word in words if word.startswith(("--user", "--group"))]

    assert user_words("docker", "1234") == ["--user=1234:100", "--group-add=200", "--group-add=300"]
    assert user_words("podman", "1234") == ["--userns=keep-id", "--group-add=keep-groups"]
    assert user_words("podman", "0") == ["--user=0:100", "--group-add=200", "--group-add=300"]
