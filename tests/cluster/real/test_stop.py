"""scancel, a killed batch script, Ctrl-C: the work ends with the job, and the same command continues it.

That nothing is left - no process, no container - is asserted after every test by the fixture ``slurm``.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.cluster.real.slurm import Slurm, batch_script, containers, processes, run
from tests.cluster.real.stage import CONF, WORK, Runs, finished_images, first_picture, manifest, pictures, products

pytestmark = pytest.mark.cluster
SMALL = ("--cpus-per-task=1", "--mem=3G")
RUNTIMES = pytest.mark.parametrize("runtime", ["docker", "none"])


def work_is_up(job: str, runtime: str) -> bool:
    """The container runs, or without one Python does: it is importing, no model is loaded yet."""
    if runtime == "docker":
        return bool(containers({job}, running=True))
    return any("generate_heatmaps" in line or "heatlens" in line for line in processes({job}).values())


def cancel(slurm: Slurm, job: str) -> None:
    slurm.call("scancel", job)
    slurm.wait(job, seconds=30)
    assert slurm.state(job) == "CANCELLED"
    assert not processes({job})
    assert not containers({job})


@RUNTIMES
def test_scancel_at_any_moment_and_on_again(slurm: Slurm, runs: Runs, runtime: str) -> None:
    """As soon as the job runs, while the model is loaded, in the middle: each time the same command goes on."""
    name = f"cancelled {runtime}"
    keys, results = runs.keys(name, WORK, runtime), runs.results(name)

    def submit() -> str:
        return slurm.sbatch(runs.script, CONF, options=SMALL, **keys)

    job = submit()
    slurm.wait_state(job, "RUNNING")
    cancel(slurm, job)

    job = submit()
    slurm.until(lambda: work_is_up(job, runtime), 30, "the work starts")
    cancel(slurm, job)
    assert pictures(results) == 0

    job = submit()
    first_picture(slurm, results)
    cancel(slurm, job)
    assert "75" in slurm.output(job) or "continues" in slurm.output(job)
    kept = finished_images(results)
    assert kept > 0
    assert not (results / "run.json").exists() or '"partial"' in (results / "run.json").read_text()

    job = submit()
    slurm.wait(job)
    assert slurm.state(job) == "COMPLETED", slurm.output(job)
    assert products(results) == runs.reference(WORK, runtime)
    images = {line["image_path"].split("_idx")[0] for line in manifest(results)}
    assert finished_images(results) == len(images)  # none was made twice


@RUNTIMES
def test_a_killed_batch_script_takes_its_work_along(slurm: Slurm, runs: Runs, runtime: str) -> None:
    name = f"killed {runtime}"
    keys, results = runs.keys(name, WORK, runtime), runs.results(name)
    job = slurm.sbatch(runs.script, CONF, options=SMALL, **keys)
    first_picture(slurm, results)
    os.kill(batch_script(job), signal.SIGKILL)
    ended = slurm.wait(job, seconds=30)[0]
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "0:9")
    # A dead script cannot remove its container: it must have stopped by itself, and the next job takes it away.
    slurm.until(lambda: not containers({job}, running=True) and not processes({job}), 20, "the work has ended")
    job = slurm.sbatch(runs.script, CONF, options=SMALL, **keys)
    slurm.wait(job)
    assert slurm.state(job) == "COMPLETED", slurm.output(job)
    assert products(results) == runs.reference(WORK, runtime)


def test_ctrl_c_by_hand(slurm: Slurm, runs: Runs) -> None:
    """docker/run_heatmap_gen.sh without Slurm: an interrupt ends container and script with 75."""
    keys, results = runs.keys("by hand", WORK), runs.results("by hand")
    words = ["bash", str(runs.checkout / "docker" / "run_heatmap_gen.sh"), CONF]
    environ = {name: value for name, value in slurm.environ.items() if name != "SLURM_CONF"}
    with subprocess.Popen(words, cwd=runs.checkout, env=environ | keys, start_new_session=True) as process:
        slurm.helpers.append(process.pid)
        first_picture(slurm, results)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 75
    assert run(*words, cwd=runs.checkout, environ=environ | keys).returncode == 0
    assert products(results) == runs.reference(WORK)
