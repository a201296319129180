"""One job: the stage through sbatch, in a container and without one, as root and as an ordinary user."""

from __future__ import annotations

import os
import pwd

import pandas as pd
import pytest

from tests.cluster.real.slurm import Slurm, run
from tests.cluster.real.stage import CONF, QUICK, Runs, manifest, products, record

pytestmark = pytest.mark.cluster
SMALL = ("--cpus-per-task=1", "--mem=3G")


def test_one_job_as_it_is_typed(slurm: Slurm, runs: Runs, image: str) -> None:
    """No --output, no RESULTS_DIR: logs/ and results/ of the stage, and run.json names the image."""
    line = ["sbatch", "--parsable", *SMALL, "submit_heatmap_gen.sh", CONF]
    keys = runs.keys("unused", QUICK)
    del keys["RESULTS_DIR"], keys["CONTAINER_RUNTIME"]  # site.conf says docker
    job = slurm.adopt(slurm.call(*line, cwd=runs.script.parent, **keys))
    ended = slurm.wait(job)[0]
    log = runs.script.parent / "logs" / f"attn_map-{job}.out"
    assert ended["JobState"] == "COMPLETED", log.read_text()
    assert ended["StdOut"] == str(log)
    results = runs.script.parent / "results" / "demo" / "exp_00_phantom"
    assert products(results) == runs.reference(QUICK)
    container = record(results)["container"]
    identity = run("docker", "image", "inspect", "--format", "{{.Id}}", image).stdout.strip()
    assert (container["runtime"], container["image"]) == ("docker", image)
    assert container["digest"] == identity
    again = slurm.sbatch(runs.script, CONF, options=SMALL, **keys)
    slurm.wait(again)
    assert slurm.state(again) == "COMPLETED"
    assert products(results) == runs.reference(QUICK)


def test_boxes_as_they_are_typed(slurm: Slurm, runs: Runs, image: str) -> None:
    """The twin stage: its own submit script, logs and results, the same launcher."""
    stage = runs.checkout / "Bounding_Box"
    keys = runs.keys("unused", QUICK)
    del keys["RESULTS_DIR"], keys["CONTAINER_RUNTIME"]
    line = ["sbatch", "--parsable", *SMALL, "submit_bbox_gen.sh", CONF]
    job = slurm.adopt(slurm.call(*line, cwd=stage, **keys))
    log = stage / "logs" / f"bbox-{job}.out"
    assert slurm.wait(job)[0]["JobState"] == "COMPLETED", log.read_text()
    results = stage / "results" / "demo" / "exp_00_phantom"
    boxes = pd.read_json(results / "boxes.jsonl", lines=True)
    assert len(boxes) == int(QUICK["STOP_AFTER"])
    assert boxes["boxes"].map(len).sum() > 0
    assert all((results / overlay).is_file() for overlay in boxes["overlay"])
    assert record(results)["container"]["image"] == image


def test_the_sbatch_line_beats_the_file(slurm: Slurm, runs: Runs) -> None:
    """--export=ALL,KEY=value, and a flag beats both."""
    keys = {key: value for key, value in runs.keys("sbatch line", QUICK).items() if key != "STOP_AFTER"}
    job = slurm.sbatch(runs.script, CONF, options=[*SMALL, "--export=ALL,STOP_AFTER=2"], **keys)
    slurm.wait(job)
    results = runs.results("sbatch line")
    assert slurm.state(job) == "COMPLETED", slurm.output(job)
    assert len(manifest(results)) == 2
    assert record(results)["config"]["STOP_AFTER"] == {"value": 2, "origin": "environment"}
    job = slurm.sbatch(runs.script, CONF, "--stop-after", "3", options=[*SMALL, "--export=ALL,STOP_AFTER=2"], **keys)
    slurm.wait(job)
    assert len(manifest(results)) == 3, slurm.output(job)


@pytest.mark.parametrize("runtime", ["docker", "none"])
def test_too_little_memory_is_said(slurm: Slurm, runs: Runs, runtime: str) -> None:
    keys = runs.keys(f"no memory {runtime}", QUICK, runtime)
    job = slurm.sbatch(runs.script, CONF, options=["--cpus-per-task=1", "--mem=180M"], **keys)
    ended = slurm.wait(job)[0]
    assert "memory" in slurm.output(job)
    assert "--mem" in slurm.output(job)
    # Slurm itself calls a job OUT_OF_MEMORY when the kill was in its own control group.
    assert (ended["JobState"], ended["ExitCode"]) in {("FAILED", "4:0"), ("OUT_OF_MEMORY", "0:125")}
    assert runtime == "none" or ended["ExitCode"] == "4:0"


def test_an_ordinary_user(slurm: Slurm, runs: Runs, ordinary_user: str) -> None:
    """Nothing of the checkout is the user's; what the run writes is."""
    results = runs.results("of a user")
    results.mkdir()
    owner = pwd.getpwnam(ordinary_user)
    os.chown(results, owner.pw_uid, owner.pw_gid)
    keys = runs.keys("of a user", QUICK)
    job = slurm.sbatch(runs.script, CONF, options=SMALL, user=ordinary_user, HOME=owner.pw_dir, **keys)
    slurm.wait(job)
    assert slurm.state(job) == "COMPLETED", slurm.output(job)
    written = [path for path in results.rglob("*") if not path.is_symlink()]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in written} == {(owner.pw_uid, owner.pw_gid)}
    assert not any(path.stat().st_mode & 0o077 for path in written)  # UMASK=077
    assert products(results) == runs.reference(QUICK)


# What is wrong, the exit code, the words after the script, the environment, what the message must name.
MISSING = {
    "config": (2, "configs/no such.conf", {}, "configs/no such.conf"),
    "data": (2, CONF, {"DATASET": "gemex", "DATASET_PATH": "/no such data"}, "/no such data"),
    "image": (4, CONF, {"CONTAINER_IMAGE": "heatlens-none/of-this-name:1"}, "heatlens-none/of-this-name:1"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named(slurm: Slurm, runs: Runs, what: str) -> None:
    code, conf, keys, named = MISSING[what]
    job = slurm.sbatch(runs.script, conf, options=SMALL, **runs.keys(f"missing {what}", {**QUICK, **keys}))
    ended = slurm.wait(job, seconds=30)[0]
    assert ended["ExitCode"] == f"{code}:0", slurm.output(job)
    assert named in slurm.output(job)
    assert "Traceback" not in slurm.output(job)


@pytest.mark.parametrize("what", MISSING)
def test_submit_sees_it_before_there_is_a_job(slurm: Slurm, runs: Runs, what: str) -> None:
    code, conf, keys, named = MISSING[what]
    environ = {**slurm.environ, **runs.keys(f"missing {what}", {**QUICK, **keys})}
    done = run("bash", runs.checkout / "slurm" / "submit.sh", "attn_map", conf, cwd=runs.checkout, environ=environ)
    assert done.returncode == code, done.stdout + done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not slurm.queue()
