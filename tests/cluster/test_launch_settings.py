"""The shell reads the few settings that it needs as Python does; shards of an array; slurm/site.conf."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from heatlens.config import load_settings, parse_arguments
from heatlens.errors import ConfigError
from heatlens.registry import DEMO_FOLDERS
from heatlens.settings import KEYS
from tests.cluster.stubs import ROOT, Checkout

DRIVER = r"""
set -euo pipefail
source "$ROOT/slurm/lib.sh"
take_words "$@"
find_config "$config_name" "$ROOT/Attention_Map"
read_settings attn_map none
for key in DATASET DATASET_PATH IMAGE_ROOT RESULTS_DIR MODEL DEVICE CONTAINER_RUNTIME CONTAINER_IMAGE UMASK; do
    printf '%s\0' "$key=${settings[$key]}"
done
"""
PATHS = [
    "x",
    "./x",
    "../x/./y//z",
    "/a/../b",
    "~/x",
    "~",
    "~root/x",
    "~nobody-at-all/x",
    "a b",
    "$(touch pwned)",
    "é\nx",
]


def shell_settings(here: Path, conf: Path, words: list[str], environ: dict[str, str]) -> dict[str, str] | str:
    environ = {"PATH": os.environ["PATH"], "HOME": "/home/someone", "ROOT": str(ROOT), **environ}
    command = ["bash", "-c", DRIVER, "driver", str(conf), *words]
    done = subprocess.run(command, cwd=here, env=environ, capture_output=True, check=False)
    if done.returncode:
        assert done.returncode == 2
        return os.fsdecode(done.stderr)
    return dict(os.fsdecode(text).split("=", 1) for text in done.stdout.split(b"\0")[:-1])


def python_settings(conf: Path, words: list[str], environ: dict[str, str]) -> dict[str, str] | str:
    environ = {"PATH": os.environ["PATH"], "HOME": "/home/someone", **environ}
    try:
        settings = load_settings(*parse_arguments("attn_map", ["--config", str(conf), *words]), environ, "attn_map")
    except ConfigError as error:
        return str(error)
    names = (
        "dataset", "dataset_path", "image_root", "results_dir", "model", "device", "container_runtime",
        "container_image", "umask",
    )  # fmt: skip
    return {name.upper(): str(getattr(settings, name) if getattr(settings, name) is not None else "") for name in names}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    (folder / "own" / "weights").mkdir(parents=True)
    (folder / "own" / "weights" / "x.pt").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", "/home/someone")
    return folder


def both(here: Path, text: str, *words: str, name: str = "configs/a/exp.one.conf", **environ: str) -> dict[str, str]:
    """The settings, which must be the same for both."""
    conf = here.parent / "repository" / name
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(text)
    ours, theirs = shell_settings(here, conf, list(words), environ), python_settings(conf, list(words), environ)
    assert isinstance(ours, dict), ours
    assert ours == theirs
    assert not list(here.parent.rglob("pwned"))
    return ours


def test_the_list_of_keys_is_pythons() -> None:
    command = 'source "$0/slurm/lib.sh"; printf "%s\n" "${HEATLENS_KEYS[@]}"'
    done = subprocess.run(["bash", "-c", command, str(ROOT)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(KEYS)


def test_the_demos_are_the_registrys() -> None:
    command = """
        source "$0/slurm/lib.sh"
        for name in "${!DEMO_FOLDERS[@]}"; do printf '%s %s\\n' "$name" "${DEMO_FOLDERS[$name]}"; done
    """
    done = subprocess.run(["bash", "-c", command, str(ROOT)], capture_output=True, text=True, check=True)
    assert dict(line.split() for line in done.stdout.splitlines()) == DEMO_FOLDERS


@pytest.mark.parametrize("name", ["phantom", "phantom_findings", "Phantom-Findings", " phantom findings "])
def test_where_a_demo_lies(here: Path, name: str) -> None:
    found = both(here, f"DATASET='{name}'\n")
    folder = DEMO_FOLDERS[found["DATASET"]]
    assert found["DATASET_PATH"] == f"{here.parent}/repository/.demo/{folder}"
    assert both(here, f"DATASET='{name}'\n", "--dataset-path", "own")["DATASET_PATH"] == f"{here}/own"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["DATASET_PATH", "IMAGE_ROOT", "RESULTS_DIR"])
def test_paths_from_everywhere(here: Path, key: str, path: str) -> None:
    flag = "--" + key.lower().replace("_", "-")
    quoted = "'" + path + "'"
    seen = [
        both(here, f"{key}={quoted}\n")[key],
        both(here, f"{key}=other\n", **{key: path})[key],
        both(here, f"{key}=other\n", flag, path, **{key: "another"})[key],
        both(here, f"{key}=other\n", f"{flag}={path}")[key],
    ]
    assert seen[1] == seen[2] == seen[3]
    assert "other" not in "".join(seen)


@pytest.mark.parametrize(
    "model",
    ["demo", "./own", "../here/own", "~/w", "/abs", "local-dir:own", "own/weights", "own/none",
     "ViT-B-32/own/weights/x.pt", "hf-hub:a/b", "."],
)  # fmt: skip
def test_models(here: Path, model: str) -> None:
    both(here, "", MODEL=model)
    both(here, f"MODEL='{model}'\n")
    both(here, "MODEL=demo\n", "--model", model)


@pytest.mark.parametrize(
    "name", ["configs/a/b/exp.conf", "configs/exp", "configs/.hidden", "configs/configs/x.conf", "own.conf", "deep/own"]
)
def test_the_default_results_folder(here: Path, name: str) -> None:
    both(here, "DATASET=phantom\n", name=name)


@pytest.mark.parametrize(
    "text",
    [
        "DATASET=Phantom\nDEVICE=cpu\nCONTAINER_RUNTIME=Docker\nCONTAINER_IMAGE='an image'\n",
        'data=${DATA:-/none}\nDATASET_PATH="$data/x"\n',
        "DATASET_PATH=\"$(printf 'a\\nb')\"\nprintf 'noise\\0word\\0IMAGE_ROOT\\0/evil\\0'\n",
        "printf() { echo pwned; }\ncompgen() { :; }\nIFS=/\nIMAGE_ROOT=/a/b\n",
        'source "${BASH_SOURCE[0]%/*}/near.sh"\n',
        "set -f\nexport DATASET=table\nreadonly UMASK=027\ndeclare -i DEVICE_COUNT=3; unset DEVICE_COUNT\n",
        "(sleep 30) &\nDATASET=table\n",
        "# empty\n",
    ],
)
def test_whatever_the_file_does(here: Path, text: str) -> None:
    near = here.parent / "repository" / "configs" / "a" / "near.sh"
    near.parent.mkdir(parents=True)
    near.write_text("IMAGE_ROOT=/near\n")
    both(here, text, DATA="/from here", DATASET_PATH="/environment" if "DATA:-" not in text else "x")


def test_keys_of_the_environment_are_hidden_from_the_file(here: Path) -> None:
    found = both(here, 'RESULTS_DIR="${ALPHA-unset}/${MODEL-unset}"\n', ALPHA="1", MODEL="demo")
    assert found["RESULTS_DIR"].endswith("/unset/unset")


@pytest.mark.parametrize(
    "text",
    [
        "X = 1\n",
        "false\n",
        "DATASET=$NOT_SET\n",
        "exit 0\n",
        "DATASET=(a b)\n",
        "UMASK=9\n",
        "if\n",
        "CONTAINER_RUNTIME=lxc\n",
    ],
)
def test_both_refuse_and_name_the_file(here: Path, text: str) -> None:
    conf = here / "wrong.conf"
    conf.write_text(f"IMAGE_ROOT=/x\n{text}")
    ours, theirs = shell_settings(here, conf, [], {}), python_settings(conf, [], {})
    assert isinstance(ours, str)
    assert isinstance(theirs, str)
    assert str(conf) in ours
    if ":2" in theirs and "=" not in text:
        assert f"{conf}:2" in ours.replace(": line 2", ":2")


def test_the_order_of_places(launcher: Checkout) -> None:
    def runtime(*words: str, **environ: str) -> list[str]:
        for call in (launcher.stub / "calls").iterdir():
            call.unlink()
        assert launcher.run("attn_map", launcher.conf, *words, **environ).returncode == 0
        return [
            call.argv[0] for call in launcher.calls() if call.argv[1] in ("create", "exec") or call.argv[0] == "python"
        ]

    assert runtime() == ["python"]
    launcher.site("CONTAINER_RUNTIME=podman\nCONTAINER_IMAGE=docker://site\n")
    assert runtime() == ["podman"]
    launcher.write_conf(launcher.conf.read_text() + "CONTAINER_RUNTIME=docker\n")
    assert runtime() == ["docker"]
    assert runtime(CONTAINER_RUNTIME="apptainer") == ["apptainer"]
    assert runtime("--container-runtime", "none", CONTAINER_RUNTIME="apptainer") == ["python"]
    assert runtime("--container-runtime=podman") == ["podman"]
    assert "docker://site" in launcher.call("podman", "create").argv
    assert runtime("--container-runtime=docker", "--container-image", "flag:1", CONTAINER_IMAGE="environment:1") == [
        "docker"
    ]
    words = launcher.call("docker", "create").argv
    assert words[words.index("--") + 1] == "flag:1"
    assert not any("container" in word for word in words[words.index("heatlens") :])


ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")


@pytest.mark.parametrize("runtime", ["docker", "none"])
@pytest.mark.parametrize(
    ("array", "given", "shards"),
    [
        (("3", "8", "0", "7"), {}, ("8", "3")),
        (("0", "1", "0", "0"), {}, ("1", "0")),
        (("3", "1", "3", "3"), {"NUM_SHARDS": "8"}, ("8", "3")),
        (("7", "3", "1", "7"), {"NUM_SHARDS": "08"}, ("08", "7")),
        (("2", "4", "0", "3"), {"SHARD_INDEX": "1"}, ("4", "2")),
        ((), {"NUM_SHARDS": "4", "SHARD_INDEX": "1"}, ("4", "1")),
        ((), {}, (None, None)),
    ],
)
def test_shards(
    launcher: Checkout, runtime: str, array: tuple[str, ...], given: dict[str, str], shards: tuple[str, str]
) -> None:
    environ = {**dict(zip(ARRAY, array, strict=False)), **given, "CONTAINER_RUNTIME": runtime}
    assert launcher.run("attn_map", launcher.conf, **environ).returncode == 0
    call = launcher.call("docker", "create") if runtime == "docker" else launcher.call("python")
    assert (call.environ.get("NUM_SHARDS"), call.environ.get("SHARD_INDEX")) == shards
    if runtime == "docker":
        assert ("SHARD_INDEX" in call.values("--env")) == (shards[1] is not None)


@pytest.mark.parametrize(
    ("array", "words", "text"),
    [
        (("3", "1", "3", "3"), [], "To redo shard 3 of 8: NUM_SHARDS=8 sbatch --array=3"),
        (("1", "8", "1", "8"), [], "must be --array=0-N"),
        (("0", "2", "0", "4"), [], "this one has 2 tasks from 0 to 4"),
        (("8", "1", "8", "8"), ["--num-shards", "8"], "NUM_SHARDS=8 (flag) means --array=0-7"),
        (("1", "2", "0", "1"), ["--shard-index=0"], "--shard-index 0 would make every task"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_shards(launcher: Checkout, array: tuple[str, ...], words: list[str], text: str) -> None:
    done = launcher.run("attn_map", launcher.conf, *words, **dict(zip(ARRAY, array, strict=True)))
    assert (done.returncode, text in done.stderr) == (2, True), done.stderr
    assert launcher.calls() == []


def test_num_shards_of_the_conf(launcher: Checkout) -> None:
    launcher.write_conf(launcher.conf.read_text() + "NUM_SHARDS=8\n")
    assert (
        launcher.run("attn_map", launcher.conf, **dict(zip(ARRAY, ("5", "1", "5", "5"), strict=True))).returncode == 0
    )
    assert launcher.call("python").environ["SHARD_INDEX"] == "5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MOUNT=(/x)\n", "MOUNT is no list"),
        ("CONTAINER=x\n", "CONTAINER is no site setting"),
        ("MOUNTS=/data\n", "write MOUNTS=(WORD WORD)"),
        ("MAX_REQUEUES=many\n", "MAX_REQUEUES=many: allowed: a whole number"),
        ("false\n", "`false` failed with exit code 1"),
    ],
)
def test_a_wrong_site_conf(launcher: Checkout, text: str, message: str) -> None:
    launcher.site(text)
    done = launcher.docker()
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_the_shipped_site_conf_is_right(launcher: Checkout) -> None:
    text = (ROOT / "slurm" / "site.conf.example").read_text()
    launcher.site(text)
    assert launcher.run("attn_map", launcher.conf).returncode == 0
    assert len(launcher.calls("docker", "create")) == 1


def test_lists_from_the_environment_have_a_word_a_line(launcher: Checkout, tmp_path: Path) -> None:
    for name in ("a b", "c"):
        (tmp_path / name).mkdir()
    launcher.site("MOUNTS=(/not/there)\nCONTAINER_OPTIONS=(--x)\n")
    environ = {"MOUNTS": f"{tmp_path}/a b\n{tmp_path}/c", "CONTAINER_OPTIONS": ""}
    assert launcher.docker(**environ).returncode == 0
    words = launcher.call("docker", "create").argv
    assert f"--mount=type=bind,source={tmp_path}/a b,target={tmp_path}/a b,readonly" in words
    assert "--x" not in words


def test_variables_that_the_conf_mentions_reach_the_container(launcher: Checkout) -> None:
    launcher.write_conf('DATASET_PATH="${STORE}/questions.csv"\n', "configs/demo/near.sh")
    launcher.write_conf('DATASET=table\nsource "${BASH_SOURCE[0]%/*}/near.sh"\nIMAGE_ROOT="$PLACE"\n')
    environ = {"STORE": str(launcher.data), "PLACE": str(launcher.data), "SECRET": "x", "PATH_OF": "y"}
    assert launcher.docker(**environ).returncode == 0
    handed = launcher.call("docker", "create").values("--env")
    assert {"STORE", "PLACE"} <= set(handed)
    assert not {"SECRET", "PATH_OF", "PATH"} & set(handed)
