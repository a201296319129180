"""docker/build.sh with stand-ins for docker and podman: the builder it takes, its arguments, what stays secret."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "docker" / "build.sh"
TOOLS = ("bash", "dirname", "env", "sed", "mktemp", "rm", "cat", "sha256sum", "cut")
STAND_IN = r"""#!/usr/bin/env bash
# KIND: buildx, embedded, classic or podman; a build writes down its arguments, its secrets and its standard input
kind={kind}
case "$1 ${{2-}}" in
    "info "*) [[ -z ${{STUB_DOWN-}} ]]; exit ;;
    "version "*) if [[ $kind == embedded ]]; then echo 20.10.24; else echo 28.2.2; fi; exit ;;
    "buildx version") [[ $kind == buildx ]]; exit ;;
esac
printf '%s\0' "{name}" "$@" >"$STUB/argv"
printf '%s' "${{DOCKER_BUILDKIT-unset}}" >"$STUB/buildkit"
for word; do
    case $word in
        id=*,src=*) file=${{word#*,src=}}; name=${{word%%,*}}; cat "$file" >"$STUB/secret-${{name#id=}}" ;;
        -) cat >"$STUB/dockerfile" ;;
    esac
done
exit "${{STUB_EXIT:-0}}"
"""


@dataclass
class Machine:
    """A PATH with nothing on it but the tools that the script needs, and a place where stand-ins leave their notes."""

    folder: Path
    environment: dict[str, str]

    def client(self, kind: str, place: str = "bin", name: str = "docker") -> None:
        folder = self.folder / place
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(STAND_IN.format(kind=kind, name=f"{place}/{name}"))
        (folder / name).chmod(0o755)

    def build(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", BUILD, *words],
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def arguments(self) -> list[str]:
        return (self.folder / "notes" / "argv").read_text().split("\0")[:-1]

    def note(self, name: str) -> str | None:
        path = self.folder / "notes" / name
        return path.read_text() if path.exists() else None


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    tools = tmp_path / "tools"
    for folder in (tools, tmp_path / "notes", tmp_path / "home"):
        folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"no {name} on this machine")
        (tools / name).symlink_to(found)
    # No git among the tools: the commit is empty. The pip configuration of whoever runs the tests is not seen.
    (tmp_path / "pip.conf").write_text("[global]\ntimeout = 7\n")
    return Machine(
        tmp_path,
        {
            "PATH": f"{tmp_path / 'bin'}:{tmp_path / 'second'}:{tools}",
            "HOME": str(tmp_path / "home"),
            "STUB": str(tmp_path / "notes"),
            "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
        },
    )


def test_the_whole_line(machine):
    machine.client("buildx")
    done = machine.build("--base", "debian:12", "--tag", "lab/heat lens;:1", "--no-cache", "--label", "a=$(id)")
    assert done.returncode == 0, done.stderr
    secret = next(word for word in machine.arguments if word.startswith("id=pip_conf"))
    assert machine.arguments == [
        "bin/docker", "buildx", "build", "--load", "-f", str(ROOT / "docker/Dockerfile.3090"),
        "-t", "lab/heat lens;:1", "--build-arg", "HEATLENS_VERSION=0.1.0", "--build-arg", "HEATLENS_COMMIT=",
        "--build-arg", "BASE_IMAGE=debian:12", "--secret", secret, "--no-cache", "--label", "a=$(id)", str(ROOT),
    ]  # fmt: skip


def test_the_default_is_the_base_of_the_dockerfile_and_the_name_of_the_launcher(machine):
    machine.client("buildx")
    assert machine.build().returncode == 0
    assert machine.arguments[machine.arguments.index("-t") + 1] == "heatlens:latest"
    assert not any(word.startswith("BASE_IMAGE") for word in machine.arguments)


def test_a_client_with_buildx_is_preferred_then_one_with_buildkit(machine):
    machine.client("classic")
    machine.client("embedded", place="second")
    assert machine.build().returncode == 0
    assert machine.arguments[:2] == ["second/docker", "build"]
    assert machine.note("buildkit") == "1"
    machine.client("buildx", place="second")
    assert machine.build().returncode == 0
    assert machine.arguments[:3] == ["second/docker", "buildx", "build"]


def test_the_builder_before_buildkit_gets_a_dockerfile_without_mounts(machine):
    machine.client("classic")
    done = machine.build()
    assert done.returncode == 0, done.stderr
    assert "does not see pip's configuration" in done.stderr
    assert machine.note("buildkit") == "0"
    assert machine.arguments[machine.arguments.index("-f") + 1] == "-"
    assert machine.arguments[-1] == str(ROOT)
    given = machine.note("dockerfile")
    assert given is not None
    assert "--mount" not in given
    assert given.replace(" ", "").count("\n") == (ROOT / "docker/Dockerfile.3090").read_text().count("\n")
    assert machine.build(TORCH_INDEX="https://example.org/cpu").returncode == 4


def test_podman(machine):
    machine.client("podman", name="podman")
    assert machine.build("--tag", "x:1", CONTAINER_RUNTIME="podman").returncode == 0
    assert machine.arguments[:4] == ["bin/podman", "build", "--format", "docker"]


@pytest.mark.parametrize(
    ("clients", "environment", "words", "code", "message"),
    [
        ([], {}, [], 4, "no docker command"),
        (["buildx"], {"STUB_DOWN": "1"}, [], 4, "daemon does not answer"),
        ([], {"CONTAINER_RUNTIME": "podman"}, [], 4, "no podman command"),
        (["buildx"], {"CONTAINER_RUNTIME": "apptainer"}, [], 2, "docker or podman"),
        (["buildx"], {"PIP_CONFIG_FILE": "/none/pip.conf"}, [], 2, "/none/pip.conf"),
        (["buildx"], {}, ["--tag"], 2, "--tag needs a value"),
        (["buildx"], {}, ["heatlens:ci"], 2, "heatlens:ci"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_built(machine, clients, environment, words, code, message):
    for kind in clients:
        machine.client(kind)
    done = machine.build(*words, **environment)
    assert done.returncode == code
    assert message in done.stderr
    assert machine.note("argv") is None


def test_a_failed_build_keeps_its_exit_code_and_does_not_say_built(machine):
    machine.client("buildx")
    done = machine.build(STUB_EXIT="17")
    assert done.returncode == 17
    assert "built" not in done.stdout


def test_indexes_are_secrets_and_no_file_of_them_is_left(machine):
    machine.client("buildx")
    password = "s3cret %(x)s $HOME"
    index = f"https://me:{password}@example.org/simple"
    done = machine.build(PIP_INDEX_URL=index, PIP_EXTRA_INDEX_URL="https://a https://b", TORCH_INDEX=index + "/cpu")
    assert done.returncode == 0, done.stderr
    assert machine.note("secret-pip_conf") == f"[global]\nindex-url = {index}\nextra-index-url = https://a https://b\n"
    assert machine.note("secret-torch_index") == index + "/cpu\n"
    assert not any("s3cret" in word for word in machine.arguments)
    assert "s3cret" not in done.stdout + done.stderr
    digest = hashlib.sha256(f"{index}/cpu\n".encode()).hexdigest()[:16]
    assert f"TORCH_INDEX_DIGEST={digest}" in machine.arguments, "another index must build another layer"
    for word in machine.arguments:
        if word.startswith("id="):
            assert not Path(word.split("src=")[1]).exists()


def test_pip_configuration_of_the_machine_reaches_the_build(machine):
    machine.client("buildx")
    assert machine.build().returncode == 0
    assert machine.note("secret-pip_conf") == "[global]\ntimeout = 7\n"
    home = Path(machine.environment["HOME"]) / ".config" / "pip"
    home.mkdir(parents=True)
    (home / "pip.conf").write_text("[global]\ntimeout = 8\n")
    del machine.environment["PIP_CONFIG_FILE"]
    assert machine.build().returncode == 0
    assert machine.note("secret-pip_conf") == "[global]\ntimeout = 8\n"
