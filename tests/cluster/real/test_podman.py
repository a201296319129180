"""The same image with podman (as root: what needs no set-up of users)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.real.slurm import Slurm, containers, processes, run
from tests.cluster.real.stage import CONF, QUICK, WORK, Runs, pictures, products, record

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed"),
]
NAME = "localhost/heatlens-test/podman:1"
SMALL = ("--cpus-per-task=1", "--mem=3G")


@pytest.fixture(scope="module")
def podman_keys(image: str) -> Iterator[dict[str, str]]:
    """The image for podman, which has a store of its own. Copying gigabytes of CUDA libraries takes minutes, so podman
    gets the small rest as its image, and the environment /opt/heatlens of a container of Docker's as a mount."""
    holder = run("docker", "run", "--detach", "--entrypoint", "sleep", image, "infinity").stdout.strip()
    try:
        form = "{{.GraphDriver.Data.MergedDir}}"
        root = run("docker", "inspect", "-f", form, holder).stdout.strip()
        assert Path(root, "opt/heatlens/bin").is_dir(), f"Docker's storage driver shows no folder: {root}"
        environ = json.loads(run("docker", "inspect", "-f", "{{json .Config.Env}}", holder).stdout)
        changes = [word for value in environ for word in ("--change", f"ENV {value}")]
        pack = ["tar", "-C", root, "--one-file-system", "--exclude=./opt/heatlens/*", "-c", "."]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as packed:
            store = ["podman", "import", "--quiet", *changes, "-", NAME]
            done = subprocess.run(store, stdin=packed.stdout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        mount = f"--mount=type=bind,source={root}/opt/heatlens,target=/opt/heatlens,readonly"
        yield {"CONTAINER_IMAGE": NAME, "TEST_CONTAINER_OPTION": mount}
    finally:
        run("podman", "image", "rm", "--force", NAME)
        run("docker", "rm", "--force", holder)


def test_one_job(slurm: Slurm, runs: Runs, podman_keys: dict[str, str]) -> None:
    keys = runs.keys("podman", {**QUICK, **podman_keys}, "podman")
    job = slurm.sbatch(runs.script, CONF, options=SMALL, **keys)
    slurm.wait(job, seconds=120)
    assert slurm.state(job) == "COMPLETED", slurm.output(job)
    assert products(runs.results("podman")) == runs.reference(QUICK)
    assert record(runs.results("podman"))["container"]["runtime"] == "podman"


def test_scancel(slurm: Slurm, runs: Runs, podman_keys: dict[str, str]) -> None:
    keys = runs.keys("podman cancelled", {**WORK, **podman_keys}, "podman")
    job = slurm.sbatch(runs.script, CONF, options=SMALL, **keys)
    slurm.until(lambda: pictures(runs.results("podman cancelled")) > 0, 90, "the first picture")
    slurm.call("scancel", job)
    slurm.wait(job, seconds=30)
    assert slurm.state(job) == "CANCELLED"
    assert not containers({job}, "podman")
    assert not processes({job})
