"""slurm/pipeline.sh: the chain of jobs, what a downstream stage is given, and what is checked before the first."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from heatlens.registry import STAGES
from tests.cluster.submit_stubs import GOLDEN, SBATCH, Checkout, make_checkout, write_program

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")

CONF = "configs/demo/exp.conf"
AFTER = ["--dependency=afterok:1001", "--kill-on-invalid-dep=yes"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = make_checkout(tmp_path)
    made.site("VQA_GEN_SUBMIT=(sbatch --parsable vqa.sh)\n")
    return made


def chain(checkout: Checkout, *words: str, **environ: str) -> tuple[int, str, str]:
    done = checkout.run("pipeline.sh", CONF, *words, **environ)
    return done.returncode, done.stdout, done.stderr


def test_the_whole_chain(checkout: Checkout) -> None:
    checkout.site(
        "SBATCH_OPTIONS=(--partition=gpu)\n"
        "VQA_GEN_SUBMIT=(sbatch --parsable '/shared/my vqa.sh' {manifest} --out={results}/vqa)\n"
    )
    words = ["attn_map", "bbox", "vqa_gen", "--shards", "2", "--alpha", "1"]
    code, dry, errors = chain(checkout, *words, "--dry-run")
    assert (code, errors, checkout.calls()) == (0, "", [])
    code, out, errors = chain(checkout, *words)
    assert (code, errors) == (0, "")
    golden = (GOLDEN / "submit_chain.txt").read_text()
    assert checkout.plain(f"--dry-run:\n{dry}\nsubmitted:\n{out}") == golden
    assert checkout.checked("submit_bbox_gen.sh") == [str(checkout.conf), "--check", "--alpha", "1"]


def test_what_a_downstream_stage_is_given(checkout: Checkout) -> None:
    code, _, errors = chain(checkout, "attn_map", "vqa_gen", "--results-dir", "out $x", RESULTS_DIR="/other")
    assert (code, errors) == (0, "")
    own, downstream = checkout.calls()
    assert own.environ["RESULTS_DIR"] == "/other"  # the flag beats it there
    assert downstream.argv == ["sbatch", *AFTER, "--parsable", "vqa.sh"]
    assert downstream.folder == checkout.root
    results = f"{checkout.here}/out $x"
    given = {
        "HEATLENS_CONFIG": str(checkout.conf),
        "RESULTS_DIR": results,
        "ATTN_MAP_RESULTS": results,
        "VQA_MANIFEST": f"{results}/vqa_manifest.csv",
    }
    assert {name: downstream.environ.get(name) for name in given} == given
    assert "BBOX_RESULTS" not in downstream.environ


def test_the_manifest_of_a_chain_that_begins_with_boxes(checkout: Checkout) -> None:
    checkout.site("VQA_GEN_SUBMIT=(sbatch vqa.sh {manifest})\n")
    assert chain(checkout, "bbox", "vqa_gen")[0] == 0
    downstream = checkout.calls()[-1]
    manifest = f"{checkout.root}/Bounding_Box/results/demo/exp/{STAGES['bbox'].index}"
    assert downstream.argv[-1] == downstream.environ["VQA_MANIFEST"] == manifest
    assert "ATTN_MAP_RESULTS" not in downstream.environ


@pytest.mark.parametrize("where", ["conf", "environment", "default"])
def test_the_results_folder_is_the_runs(checkout: Checkout, where: str) -> None:
    from heatlens.config import load_settings

    environ = {"RESULTS_DIR": str(checkout.folder / "e")} if where == "environment" else {}
    if where == "conf":
        checkout.conf.write_text("DATASET=phantom\nout=here/x\nRESULTS_DIR=$out\n")
    assert chain(checkout, "attn_map", "vqa_gen", **environ)[0] == 0
    settings = load_settings(checkout.conf, {}, environ, "attn_map")
    assert checkout.calls()[1].environ["RESULTS_DIR"] == str(settings.results_dir)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["sbatch", "x.sh"], ["sbatch", *AFTER, "x.sh"]),
        (["sbatch", "-p", "a", "{dependency}", "x.sh", "{results}"], ["sbatch", "-p", "a", *AFTER, "x.sh", "R"]),
        (["run", "--after={dependency}", "{manifest}"], ["run", "--after=afterok:1001", "R/vqa_manifest.csv"]),
        (["run", "{dependency}", "a{results}b{manifest}c"], ["run", *AFTER, "aRbR/vqa_manifest.csvc"]),
        (["run", "{dependency}", "{x}{{results}}{", "{resultsx"], ["run", *AFTER, "{x}{R}{", "{resultsx"]),
    ],
)
def test_the_fields_of_a_submit_command(checkout: Checkout, command: list[str], expected: list[str]) -> None:
    write_program(checkout.bin / "run", SBATCH)
    checkout.site(f"VQA_GEN_SUBMIT=({shlex.join(command)})\n")
    assert chain(checkout, "attn_map", "vqa_gen")[0] == 0
    results = str(checkout.stage / "results" / "demo" / "exp")
    assert [word.replace(results, "R") for word in checkout.calls()[1].argv] == expected


def test_hostile_values_are_data(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path, "a $(touch gone)\n'\"{manifest}{dependency}")
    command = ["sbatch", "it's $(touch gone)\n", "{results}", "--x={manifest}", "\\", "", "*", "-"]
    checkout.site(f"VQA_GEN_SUBMIT=({shlex.join(command)})\n")
    code, out, errors = chain(checkout, "attn_map", "vqa_gen")
    assert (code, errors) == (0, "")
    calls = checkout.calls()
    results = str(checkout.stage / "results" / "demo" / "exp")
    expected = ["sbatch", *AFTER, command[1], results, f"--x={results}/vqa_manifest.csv", *command[4:]]
    assert calls[1].argv == expected
    typed = "\n".join(line for line in out.split("\n") if ": job 100" not in line)
    checkout.type(typed)
    again = checkout.calls()
    assert [call.argv for call in again] == [call.argv for call in calls]
    assert again[1].environ["VQA_MANIFEST"] == calls[1].environ["VQA_MANIFEST"] == f"{results}/vqa_manifest.csv"
    assert not list(tmp_path.rglob("gone"))


def test_parsable_is_the_last_job(checkout: Checkout) -> None:
    code, out, errors = chain(checkout, "attn_map", "vqa_gen", "--parsable", "--shards", "3", CLUSTER="west")
    assert (code, out, errors) == (0, "1003;west\n", "")
    calls = checkout.calls()
    assert "--dependency=afterok:1002" in calls[2].argv
    assert all("--clusters=west" in call.argv for call in calls[1:])


def test_several_downstream_stages_follow_each_other(checkout: Checkout) -> None:
    checkout.site("VQA_GEN_SUBMIT=(sbatch vqa.sh)\nreport=x\nFINAL_SUBMIT=(sbatch final.sh)\n")
    assert chain(checkout, "attn_map", "vqa_gen", "final")[0] == 0
    assert checkout.calls()[2].argv == ["sbatch", "--dependency=afterok:1002", "--kill-on-invalid-dep=yes", "final.sh"]


@pytest.mark.parametrize(("refused", "queued"), [("1", []), ("2", ["1001"]), ("3", ["1001", "1002"])])
def test_a_refusal_names_what_is_queued(checkout: Checkout, refused: str, queued: list[str]) -> None:
    code, _, errors = chain(checkout, "attn_map", "vqa_gen", "--shards", "2", REFUSE_AT=refused)
    assert code == 4
    assert "sbatch: error: Batch job submission failed: Invalid account" in errors
    assert [line.split()[-1] for line in errors.splitlines() if line.startswith("  scancel")] == queued
    assert len(checkout.calls()) == int(refused)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "which stages?"),
        (["vqa_gen"], 2, "begins with attn_map or bbox"),
        (["attn_map", "no_such"], 2, "NO_SUCH_SUBMIT=(sbatch --parsable FILE.sh)"),
        (["attn_map", "empty"], 2, "EMPTY_SUBMIT is not set"),
        (["attn_map", "other"], 2, "put {dependency} where"),
        (["attn_map", "gone"], 4, "there is no program /no such/program"),
        (["attn_map", "x;id"], 2, "no stage's name"),
        (["attn_map", "a[$(id)]"], 2, "no stage's name"),
        (["attn_map", "attn_map"], 2, "would both write to"),
        (["attn_map", "bbox", "--results-dir", "/r"], 2, "would both write to"),
        (["attn_map", "vqa_gen", "--shards", "x"], 2, "--shards x: allowed"),
        (["attn_map", "vqa_gen", "--shards", "9"], 2, "MaxArraySize is 8"),
    ],
)
def test_nothing_is_submitted_when_a_later_stage_cannot_be(
    checkout: Checkout, words: list[str], code: int, said: str
) -> None:
    checkout.site(
        "VQA_GEN_SUBMIT=(sbatch x)\nEMPTY_SUBMIT=()\nOTHER_SUBMIT=(qsub x)\n"
        "GONE_SUBMIT=('/no such/program' {dependency})\n"
    )
    found, out, errors = chain(checkout, *words, MAX_ARRAY_SIZE="8")
    assert (found, out, checkout.calls()) == (code, "", [])
    assert said in errors


def test_the_check_of_a_later_stage_of_ours_counts(checkout: Checkout) -> None:
    write_program(checkout.root / "Bounding_Box" / "submit_bbox_gen.sh", "printf 'no image\\n' >&2; exit 4\n")
    assert chain(checkout, "attn_map", "bbox") == (4, "", "no image\n")
    assert checkout.calls() == []
    (checkout.root / "Bounding_Box" / "submit_bbox_gen.sh").unlink()
    code, _, errors = chain(checkout, "attn_map", "bbox")
    assert (code, "this version has no" in errors, checkout.calls()) == (2, True, [])


def test_the_help(checkout: Checkout) -> None:
    for words in ([], ["--help"]):
        done = checkout.run("pipeline.sh", *words)
        assert (done.returncode, "VQA_GEN_SUBMIT=(" in done.stdout, "set -euo" in done.stdout) == (0, True, False)
