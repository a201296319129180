"""Which cards a container gets: those that Slurm gave the job, and no others.

There is no card here. The image is the real one with a stand-in for the command `heatlens`, and the daemon was started
with an empty NVIDIA hook, so that containers with GPU requests start; what they asked for is read from Docker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.real.slurm import Slurm, containers, run
from tests.cluster.real.stage import CONF, QUICK, Runs

pytestmark = pytest.mark.cluster
SMALL = ("--cpus-per-task=1", "--mem=1G")
PROBE = "heatlens-test/probe:1"
STAND_IN = """#!/bin/sh
echo "inside: NVIDIA_VISIBLE_DEVICES=$NVIDIA_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-unset}"
trap 'exit 75' TERM
while [ ! -e "$RESULTS_DIR/go" ]; do sleep 0.2; done
"""


@pytest.fixture(scope="module")
def probe(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image with the stand-in; skips where the daemon refuses GPU requests."""
    tried = run("docker", "run", "--rm", "--gpus", '"device=0"', image, "true")
    if tried.returncode != 0:
        pytest.skip("this Docker daemon was started without an NVIDIA hook (docker-up.sh starts it with one)")
    where = run("docker", "run", "--rm", image, "sh", "-c", "command -v heatlens").stdout.strip()
    stand_in = tmp_path_factory.mktemp("probe") / "heatlens"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    name = run("docker", "create", image).stdout.strip()
    for words in (["cp", stand_in, f"{name}:{where}"], ["commit", name, PROBE], ["rm", name]):
        done = run("docker", *words)
        assert done.returncode == 0, done.stderr
    yield PROBE
    run("docker", "image", "rm", PROBE)


def requested(job: str) -> list[str] | None:
    """The device ids that the job's container asked for; None when it asked for none."""
    line = containers({job}, running=True)[0]
    found = run("docker", "inspect", "-f", "{{json .HostConfig.DeviceRequests}}", line.split("\t")[0]).stdout
    requests = json.loads(found)
    if not requests:
        return None
    (only,) = requests
    assert only["Capabilities"] == [["gpu"]]
    return only["DeviceIDs"]


def given(slurm: Slurm, job: str) -> list[str]:
    """The indexes of the cards that Slurm gave the job, as scontrol tells them: GRES=gpu:fake:2(IDX:1-2)."""
    text = slurm.call("scontrol", "--details", "show", "job", job)
    found = re.search(r"GRES=gpu:\w+:\d+\(IDX:([\d,-]+)\)", text)
    assert found, text
    cards: list[str] = []
    for part in found[1].split(","):
        first, _, last = part.partition("-")
        cards += [str(number) for number in range(int(first), int(last or first) + 1)]
    return cards


def start(slurm: Slurm, runs: Runs, name: str, *options: str, **keys: str) -> tuple[str, Path]:
    results = runs.results(name)
    environ = runs.keys(name, {**QUICK, "CONTAINER_IMAGE": PROBE, **keys})
    job = slurm.sbatch(runs.script, CONF, options=[*SMALL, *options], **environ)
    return job, results


def finish(slurm: Slurm, jobs: dict[str, Path]) -> None:
    for results in jobs.values():
        (results / "go").touch()
    slurm.wait(*jobs, seconds=30)
    assert {slurm.state(job) for job in jobs} == {"COMPLETED"}


def test_two_jobs_side_by_side(slurm: Slurm, runs: Runs, probe: str) -> None:
    """CUDA_VISIBLE_DEVICES is 0 in both jobs; their containers must not share a card."""
    jobs = dict(start(slurm, runs, f"card {number}", DEVICE="cuda") for number in range(2))
    slurm.until(lambda: all(containers({job}, running=True) for job in jobs), 40, "both containers run")
    cards = [given(slurm, job) for job in jobs]
    assert [requested(job) for job in jobs] == cards
    assert len({card for one in cards for card in one}) == 2
    finish(slurm, jobs)
    for (card,), job in zip(cards, jobs, strict=True):
        assert f"inside: NVIDIA_VISIBLE_DEVICES={card} CUDA_VISIBLE_DEVICES=unset" in slurm.output(job)


def test_two_cards_for_one_job(slurm: Slurm, runs: Runs, probe: str) -> None:
    first, results = start(slurm, runs, "first card", DEVICE="cuda")
    slurm.wait_state(first, "RUNNING")
    both, more = start(slurm, runs, "two cards", "--gres=gpu:2", DEVICE="cuda")
    slurm.until(lambda: all(containers({job}, running=True) for job in (first, both)), 40, "both containers run")
    assert requested(both) == given(slurm, both)
    assert len(given(slurm, both)) == 2
    assert not set(given(slurm, both)) & set(given(slurm, first))
    finish(slurm, {first: results, both: more})


def test_no_card_for_the_cpu(slurm: Slurm, runs: Runs, probe: str) -> None:
    """DEVICE=cpu asks for none, whatever Slurm gave."""
    job, results = start(slurm, runs, "no card", DEVICE="cpu")
    slurm.until(lambda: bool(containers({job}, running=True)), 40, "the container runs")
    assert requested(job) is None
    finish(slurm, {job: results})


def test_cuda_without_a_card_is_refused(slurm: Slurm, runs: Runs) -> None:
    """The real image, DEVICE=cuda and no driver: exit 4 that says so, never a silent run on the CPU."""
    job = slurm.sbatch(runs.script, CONF, options=SMALL, **runs.keys("cuda", {**QUICK, "DEVICE": "cuda"}))
    ended = slurm.wait(job)[0]
    assert ended["ExitCode"] == "4:0", slurm.output(job)
    assert re.search("cuda|gpu", slurm.output(job), re.I)
    assert "Traceback" not in slurm.output(job)
