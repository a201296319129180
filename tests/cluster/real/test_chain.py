"""Arrays with their merge job, and a chain of stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster.real.slurm import Slurm, run
from tests.cluster.real.stage import CONF, QUICK, WORK, Runs, manifest, products

pytestmark = pytest.mark.cluster
DOWNSTREAM = Path(__file__).with_name("downstream.sh")
MERGE = "MERGE_SBATCH_OPTIONS=(--cpus-per-task=1 --mem=2G --time=5:00)\n"


@pytest.fixture(scope="session")
def chain(runs: Runs) -> Runs:
    """The site of the chain: a small merge job and a downstream stage."""
    shutil.copy(DOWNSTREAM, runs.checkout.parent / "downstream stage.sh")
    with (runs.checkout / "slurm" / "site.conf").open("a") as file:
        file.write(MERGE)
        file.write(f"VQA_GEN_SUBMIT=(sbatch --parsable --output={str(runs.area)!r}/downstream-%j.out\n")
        file.write(f"    {str(runs.checkout.parent / 'downstream stage.sh')!r} {{manifest}} {{results}})\n")
    return runs


def submit(slurm: Slurm, runs: Runs, name: str, *words: str, **keys: str) -> str:
    """slurm/submit.sh or slurm/pipeline.sh from the repository's root; the last job's number."""
    script = runs.checkout / "slurm" / name
    printed = slurm.call("bash", script, *words, "--parsable", cwd=runs.checkout, **keys)
    job = slurm.adopt(printed)
    slurm.adopt_all()
    return job


@pytest.mark.parametrize("runtime", ["docker", "none"])
def test_four_shards_and_a_merge(slurm: Slurm, chain: Runs, runtime: str) -> None:
    """The tables and every byte of every picture are those of one run without a scheduler."""
    results = chain.results(f"four {runtime}")
    keys = chain.keys(results.name, QUICK, runtime)
    merge = submit(slurm, chain, "submit.sh", "attn_map", CONF, "--shards", "4", **keys)
    slurm.wait(*slurm.jobs, seconds=120)
    assert slurm.state(merge) == "COMPLETED", slurm.report()
    states = [record["JobState"] for job in slurm.jobs for record in slurm.show(job)]
    assert set(states) == {"COMPLETED"}
    assert len(list(results.glob("shards/*-of-0004/done.json"))) == 4
    assert products(results) == chain.reference(QUICK, runtime)


def test_one_shard_again(slurm: Slurm, chain: Runs) -> None:
    """sbatch --array=0-1 without submit.sh, one lost task, and that task alone once more."""
    results = chain.results("again")
    keys = chain.keys("again", QUICK)
    options = ["--cpus-per-task=1", "--mem=3G"]
    job = slurm.sbatch(chain.script, CONF, options=["--array=0-1", "--hold", *options], **keys)
    slurm.call("scancel", f"{job}_1")
    slurm.call("scontrol", "release", job)
    assert {record["JobState"] for record in slurm.wait(job)} <= {"COMPLETED", "CANCELLED"}
    assert [path.parent.name for path in results.glob("shards/*/done.json")] == ["0000-of-0002"]
    assert not (results / "vqa_manifest.csv").exists()
    job = slurm.sbatch(chain.script, CONF, options=["--array=1", *options], **keys, NUM_SHARDS="2")
    slurm.wait(job)
    assert [record["JobState"] for record in slurm.show(job)] == ["COMPLETED"], slurm.output(job)
    assert products(results) == chain.reference(QUICK)


def test_the_next_stage_reads_manifest_and_pictures(slurm: Slurm, chain: Runs, image: str) -> None:
    results = chain.results("chain")
    keys = chain.keys("chain", QUICK)
    last = submit(
        slurm, chain, "pipeline.sh", CONF, "attn_map", "vqa_gen", "--shards", "2", **keys, DOWNSTREAM_IMAGE=image
    )
    slurm.wait(*slurm.jobs, seconds=120)
    assert slurm.state(last) == "COMPLETED", slurm.report()
    seen = slurm.output(last).splitlines()[-1]
    assert seen == f"rows {len(manifest(results))} pictures {len(manifest(results))} of {results}"


def test_a_lost_shard_keeps_the_next_stage_away(slurm: Slurm, chain: Runs) -> None:
    keys = chain.keys("lost shard", WORK)
    last = submit(slurm, chain, "pipeline.sh", CONF, "attn_map", "vqa_gen", "--shards", "2", **keys)
    array = min(slurm.jobs, key=int)
    slurm.call("scancel", f"{array}_1")
    slurm.wait(*slurm.jobs, seconds=120)  # none stays PENDING (DependencyNeverSatisfied)
    assert len(list(chain.results("lost shard").glob("shards/*/done.json"))) == 1
    assert slurm.state(last) == "CANCELLED"
    assert not (chain.area / f"downstream-{last}.out").exists()
    assert not (chain.results("lost shard") / "vqa_manifest.csv").exists()


def test_submit_prints_what_it_does(slurm: Slurm, chain: Runs) -> None:
    """--dry-run submits nothing, and what it prints can be typed."""
    script = chain.checkout / "slurm" / "submit.sh"
    environ = {**slurm.environ, **chain.keys("dry", QUICK)}
    done = run("bash", script, "attn_map", CONF, "--shards", "4", "--dry-run", cwd=chain.checkout, environ=environ)
    assert done.returncode == 0, done.stderr
    assert not slurm.queue()
    first = "\n".join(done.stdout.splitlines()[:2]).replace("sbatch ", "sbatch --test-only ", 1)
    assert "--array=0-3" in first
    tried = run("bash", "-c", first, environ=environ)
    assert tried.returncode == 0, tried.stderr
    assert "to start at" in tried.stderr
