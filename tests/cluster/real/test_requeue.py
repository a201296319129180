"""Requeue by hand, by USR1 and at the time limit: the job comes back and goes on, but not for ever.

That nothing is left - no process, no container - is asserted after every test by the fixture ``slurm``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.real.slurm import Slurm
from tests.cluster.real.stage import CONF, ENDLESS, WORK, Runs, finished_images, first_picture, products

pytestmark = pytest.mark.cluster
SMALL = ("--cpus-per-task=1", "--mem=3G")
RUNTIMES = pytest.mark.parametrize("runtime", ["docker", "none"])


def requeue_by_hand(slurm: Slurm, job: str) -> None:
    slurm.call("scontrol", "requeue", job)


def time_is_nearly_up(slurm: Slurm, job: str) -> None:
    """What Slurm does at --signal=B:USR1@120: USR1 to the batch script alone."""
    slurm.call("scancel", "--signal=USR1", "--batch", job)


@RUNTIMES
@pytest.mark.parametrize("how", [requeue_by_hand, time_is_nearly_up])
def test_a_requeued_job_goes_on(slurm: Slurm, runs: Runs, runtime: str, how: Callable[[Slurm, str], None]) -> None:
    name = f"{how.__name__} {runtime}"
    keys, results = runs.keys(name, WORK, runtime), runs.results(name)
    job = slurm.sbatch(runs.script, CONF, options=SMALL, **keys)
    first_picture(slurm, results)
    how(slurm, job)
    slurm.until(lambda: slurm.record(job)["Restarts"] == "1", 40, "the job is put back into the queue")
    ended = slurm.wait(job)[0]
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), slurm.output(job)
    assert products(results) == runs.reference(WORK, runtime)


def test_an_array_task_requeues_itself_alone(slurm: Slurm, runs: Runs) -> None:
    keys, results = runs.keys("requeued task", WORK), runs.results("requeued task")
    job = slurm.sbatch(runs.script, CONF, options=["--array=0-1", *SMALL], **keys)
    ledger = results / "shards" / "0001-of-0002" / "ledger.jsonl"
    slurm.until(lambda: ledger.is_file() and ledger.stat().st_size > 0, 60, "the second shard's first image")
    slurm.call("scancel", "--signal=USR1", "--batch", f"{job}_1")
    slurm.until(lambda: any(r["Restarts"] == "1" for r in slurm.show(job)), 40, "the task is put back into the queue")
    ended = slurm.wait(job)
    assert [(record["JobState"], record["Restarts"]) for record in ended] == [("COMPLETED", "0"), ("COMPLETED", "1")]
    assert products(results) == runs.reference(WORK)


def test_requeued_at_most_so_many_times(slurm: Slurm, runs: Runs, long_films: Path) -> None:
    keys = runs.keys("enough", {**ENDLESS, "DATASET": "gemex", "IMAGE_ROOT": str(long_films)})
    keys |= {"DATASET_PATH": str(long_films), "MAX_REQUEUES": "1"}
    results = runs.results("enough")
    job = slurm.sbatch(runs.script, CONF, options=SMALL, **keys)
    for _ in range(2):
        seen = finished_images(results)
        slurm.until(lambda: finished_images(results) > seen, 60, "another image")  # noqa: B023 - called at once
        time_is_nearly_up(slurm, job)
        slurm.until(lambda: slurm.state(job) != "RUNNING", 30, "the job stops")
    ended = slurm.wait(job)[0]
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "1"), slurm.output(job)
    assert "MAX_REQUEUES" in slurm.output(job)


def test_the_time_limit(slurm: Slurm, runs: Runs, long_films: Path) -> None:
    """Two jobs at once, because Slurm's limits are minutes: one is warned by USR1 and requeued, one is not warned.

    Slurm looks every 30 s for jobs whose limit is near and warns them up to a round early. Asked for one second, it
    warns between 29 and 59 s after the start and ends the job a round later; asked for 40, it may warn at once.
    """
    settings = {**ENDLESS, "DATASET": "gemex", "IMAGE_ROOT": str(long_films), "DATASET_PATH": str(long_films)}
    limits = {"warned": "--signal=B:USR1@1", "unwarned": "--signal=B:URG@1"}
    jobs = {
        name: slurm.sbatch(runs.script, CONF, options=[*SMALL, "--time=1", limit], **runs.keys(name, settings))
        for name, limit in limits.items()
    }
    warned, unwarned = jobs.values()
    slurm.until(lambda: slurm.record(warned)["Restarts"] == "1", 120, "the warned job is put back into the queue")
    seen = finished_images(runs.results("warned"))
    assert seen > 0
    slurm.until(lambda: finished_images(runs.results("warned")) > seen, 60, "it goes on")
    slurm.call("scancel", warned)
    slurm.wait(warned, seconds=30)
    assert slurm.state(warned) == "CANCELLED"
    ended = slurm.wait(unwarned, seconds=120)[0]
    assert (ended["JobState"], ended["Restarts"]) == ("TIMEOUT", "0"), slurm.output(unwarned)
    assert finished_images(runs.results("unwarned")) > 0
