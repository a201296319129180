"""slurm/submit.sh: the sbatch lines, what is checked before them, and what is said when something is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.submit_stubs import GOLDEN, ROOT, Checkout, make_checkout

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")

CONF = "configs/demo/exp.conf"
SITE = "SBATCH_OPTIONS=(--partition=gpu --account 'my lab' -q low --gres=gpu:a100:1 --mem=64G)\n"
HOSTILE = ["it's", "a\nline", "$(touch gone)", "`id`", '"q" *', "-leading", "\\", "ü", "", "{dependency}", "%j;&|"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.mark.parametrize(
    ("golden", "words"),
    {
        "submit_one.txt": [CONF, "--alpha", "0.7", "--prompt-template", "{question} in {region}"],
        "submit_array.txt": [
            CONF,
            "--shards",
            "8",
            "--at-once=2",
            "--stop-after",
            "",
            "--",
            "--time=2:00:00",
            "-A",
            "b",
        ],
    }.items(),
)
def test_the_sbatch_lines(checkout: Checkout, golden: str, words: list[str]) -> None:
    checkout.site(SITE)
    dry = checkout.run("submit.sh", "attn_map", *words[:1], "--dry-run", *words[1:])
    assert (dry.returncode, dry.stderr, checkout.calls()) == (0, "", [])
    done = checkout.run("submit.sh", "attn_map", *words)
    assert (done.returncode, done.stderr) == (0, "")
    seen = checkout.plain(f"--dry-run:\n{dry.stdout}\nsubmitted:\n{done.stdout}")
    assert seen == (GOLDEN / golden).read_text()


@pytest.mark.parametrize("shards", [[], ["--shards", "3"]])
def test_hostile_words_stay_words_and_the_line_can_be_typed(tmp_path: Path, shards: list[str]) -> None:
    checkout = make_checkout(tmp_path, 'it\'s a "check" $(touch gone)\nout')
    conf = checkout.root / "configs" / "a $(touch gone)'b" / "-x\n.conf"
    conf.parent.mkdir()
    shutil.copy(checkout.conf, conf)
    checkout.site("SBATCH_OPTIONS=('--comment=it'\\''s $HOME' '--account=a\nb')\n")
    settings = [f"--prompt-template={text}" for text in HOSTILE]
    words = ["submit.sh", "attn_map", conf, *shards, *settings]
    done = checkout.run(*words, "--", *HOSTILE)
    assert (done.returncode, done.stderr) == (0, "")
    calls = checkout.calls()
    counted = ["--num-shards", "3"] if shards else []
    assert calls[0].argv[-len(settings) - len(counted) - 2 :] == [
        "submit_heatmap_gen.sh", str(conf), *settings, *counted
    ]  # fmt: skip
    site = ["--comment=it's $HOME", "--account=a\nb"]
    assert calls[0].argv[-len(settings) - len(counted) - 2 - len(HOSTILE) - len(site) :][: len(site)] == site
    assert calls[0].folder == checkout.stage
    typed = checkout.run(*words, "--dry-run", "--", *HOSTILE).stdout.replace("ID_OF_ATTN_MAP", "1001")
    checkout.type(typed)
    assert [call.argv for call in checkout.calls()] == [call.argv for call in calls]
    assert not list(tmp_path.rglob("gone"))


def test_check_comes_first_with_the_same_words(checkout: Checkout) -> None:
    assert checkout.run("submit.sh", "attn_map", CONF, "--alpha", "1").returncode == 0
    assert checkout.checked() == [str(checkout.conf), "--check", "--alpha", "1"]


@pytest.mark.parametrize("code", ["2", "4"])
def test_nothing_is_submitted_when_the_check_fails(checkout: Checkout, code: str) -> None:
    for more in ([], ["--dry-run"], ["--shards", "2"]):
        done = checkout.run("submit.sh", "attn_map", CONF, *more, CHECK_EXIT=code)
        assert (done.returncode, done.stdout) == (int(code), "")
        assert done.stderr == "IMAGE_ROOT=/films: no such folder\n"
    assert checkout.calls() == []


def test_logs_is_there_before_the_job(checkout: Checkout) -> None:
    assert checkout.run("submit.sh", "attn_map", CONF, "--dry-run").returncode == 0
    assert not (checkout.stage / "logs").exists()
    assert checkout.run("submit.sh", "attn_map", CONF).returncode == 0
    assert (checkout.stage / "logs").is_dir()


def test_parsable_prints_one_id(checkout: Checkout) -> None:
    assert checkout.run("submit.sh", "attn_map", CONF, "--parsable").stdout == "1001\n"
    checkout.calls()
    assert checkout.run("submit.sh", "attn_map", CONF, "--shards=2", "--parsable").stdout == "1002\n"
    checkout.calls()
    done = checkout.run("submit.sh", "attn_map", CONF, "--shards=2", "--parsable", CLUSTER="west")
    assert done.stdout == "1002;west\n"
    merge = checkout.calls()[1].argv
    assert "--dependency=afterok:1001" in merge
    assert "--clusters=west" in merge


def test_the_answer_may_be_sbatchs_sentence_among_others(checkout: Checkout) -> None:
    answer = "Welcome\nSubmitted batch job 77 on cluster east\nhave a nice day 5"
    assert checkout.run("submit.sh", "attn_map", CONF, "--parsable", ANSWER=answer).stdout == "77;east\n"
    done = checkout.run("submit.sh", "attn_map", CONF, ANSWER="thank you")
    assert (done.returncode, "no job id" in done.stderr, "thank you" in done.stderr) == (4, True, True)


def test_a_refused_merge_names_the_array(checkout: Checkout) -> None:
    done = checkout.run("submit.sh", "attn_map", CONF, "--shards", "2", "--parsable", REFUSE_AT="2")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.splitlines() == [
        "sbatch: error: Batch job submission failed: Invalid account",
        "attn_map_merge: sbatch refused the job with exit code 1",
        "Queued already, and to be cancelled by:",
        "  scancel 1001",
    ]
    checkout.calls()
    done = checkout.run("submit.sh", "attn_map", CONF, REFUSE_AT="1")
    assert (done.returncode, "Queued already" in done.stderr) == (4, False)


def test_without_sbatch(checkout: Checkout) -> None:
    tools = checkout.folder / "tools"
    tools.mkdir()
    for program in {path.name: path for folder in ("/bin", "/usr/bin") for path in Path(folder).iterdir()}.values():
        if program.name != "sbatch":
            (tools / program.name).symlink_to(program)
    done = checkout.run("submit.sh", "attn_map", CONF, PATH=str(tools))
    assert (done.returncode, "no sbatch" in done.stderr, done.stdout) == (4, True, "")
    assert checkout.run("submit.sh", "attn_map", CONF, "--dry-run", PATH=str(tools)).returncode == 0


@pytest.mark.parametrize(("shards", "code"), [("1001", 0), ("1002", 2), ("5000", 2)])
def test_max_array_size(checkout: Checkout, shards: str, code: int) -> None:
    done = checkout.run("submit.sh", "attn_map", CONF, "--shards", shards, MAX_ARRAY_SIZE="1001")
    assert done.returncode == code
    assert len(checkout.calls()) == (0 if code else 2)
    assert ("0 to 1000 and 1001 shards are the most" in done.stderr) == bool(code)


def test_max_array_size_does_not_concern_one_job_or_a_silent_scontrol(checkout: Checkout) -> None:
    assert checkout.run("submit.sh", "attn_map", CONF, "--shards", "1", MAX_ARRAY_SIZE="0").returncode == 0
    assert checkout.run("submit.sh", "attn_map", CONF, "--shards", "5000").returncode == 0


def test_one_shard_is_one_job(checkout: Checkout) -> None:
    assert checkout.run("submit.sh", "attn_map", CONF, "--shards", "1").returncode == 0
    (call,) = checkout.calls()
    assert call.argv[-2:] == ["--num-shards", "1"]
    assert not [word for word in call.argv if word.startswith("--array")]


def test_shards_from_num_shards_where_nobody_said_another(checkout: Checkout) -> None:
    checkout.conf.write_text("DATASET=phantom\nNUM_SHARDS=4\n")
    for words, environ, expected in (
        ([], {}, "--array=0-3"),
        ([], {"NUM_SHARDS": "5"}, "--array=0-4"),
        (["--num-shards", "6"], {"NUM_SHARDS": "5"}, "--array=0-5"),
        (["--shards", "7"], {"NUM_SHARDS": "5", "SHARD_INDEX": "1"}, "--array=0-6"),
    ):
        assert checkout.run("submit.sh", "attn_map", CONF, *words, **environ).returncode == 0
        calls = checkout.calls()
        assert len(calls) == 2
        count = str(int(expected.rpartition("-")[2]) + 1)
        for call in calls:
            assert call.argv[-2:] == ["--num-shards", count]
            assert call.argv.count("--num-shards") == 1
            assert not {"NUM_SHARDS", "SHARD_INDEX"} & set(call.environ)
        assert expected in calls[0].argv


def test_one_shard_again(checkout: Checkout) -> None:
    words = ["--num-shards", "8", "--shard-index", "3"]
    assert checkout.run("submit.sh", "attn_map", CONF, *words).returncode == 0
    (call,) = checkout.calls()
    assert call.argv[-4:] == words


def test_a_merge_asks_for_no_gpu(checkout: Checkout) -> None:
    """It gets who and where from the options of the array, never what is asked for; the site may say it itself."""
    checkout.site(SITE)
    options = ["--gpus=2", "-c", "8", "--qos", "high", "-pgpu2", "--export=ALL,STOP_AFTER=5", "--exclusive", "-t1:00"]
    words = ["submit.sh", "attn_map", CONF, "--shards", "2", "--", *options]
    assert checkout.run(*words).returncode == 0
    array, merge = checkout.calls()
    assert set(options) < set(array.argv)
    assert merge.argv[3 : merge.argv.index("--dependency=afterok:1001")] == [
        "--partition=gpu", "--account", "my lab", "-q", "low", "--qos", "high", "-pgpu2", "--export=ALL,STOP_AFTER=5"
    ]  # fmt: skip
    checkout.site(f"{SITE}MERGE_SBATCH_OPTIONS=(-p 'cpu only')\n")
    assert checkout.run(*words).returncode == 0
    merge = checkout.calls()[1]
    assert merge.argv[3 : merge.argv.index("--dependency=afterok:1001")] == ["-p", "cpu only"]
    script = (ROOT / "slurm" / "merge.sh").read_text()
    assert "gres" not in script
    assert "gpus" not in script


def test_relative_paths_keep_their_meaning_in_the_jobs_folder(checkout: Checkout) -> None:
    (checkout.here / "model").mkdir()
    words = ["--results-dir", "../out x", "--image-root=films", "--model", "./model", "--dataset-path", "/data/a"]
    environ = {"DATASET_PATH": "q.jsonl", "HF_HOME": "hub", "MODEL": "hf-hub:a/b"}
    done = checkout.run("submit.sh", "attn_map", CONF, *words, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    (call,) = checkout.calls()
    here = str(checkout.here)
    expected = [f"{checkout.here.parent}/out x", f"--image-root={here}/films", "--model", f"{here}/model"]
    assert call.argv[-6:] == [*expected, "--dataset-path", "/data/a"]
    assert call.environ["HF_HOME"] == f"{here}/hub"
    assert call.environ["MODEL"] == "hf-hub:a/b"
    assert f"HF_HOME={here}/hub" in done.stdout.splitlines()[1]


def test_nothing_of_an_enclosing_job_reaches_the_new_one(checkout: Checkout) -> None:
    of_a_job = {
        "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "9", "SLURM_JOB_ID": "10", "SLURM_JOB_GPUS": "2",
        "SLURM_RESTART_COUNT": "4", "SLURM_STEP_ID": "0", "SLURM_GPUS": "1",
    }  # fmt: skip
    done = checkout.run("submit.sh", "attn_map", CONF, **of_a_job, SLURM_CONF="/etc/slurm.conf", STOP_AFTER="5")
    assert (done.returncode, done.stderr) == (0, "")
    (call,) = checkout.calls()
    for environ in (call.environ, checkout.checked_environ()):
        assert not set(of_a_job) & set(environ)
        assert (environ["SLURM_CONF"], environ["STOP_AFTER"]) == ("/etc/slurm.conf", "5")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such", CONF], "no_such"),
        (["attn_map", "no such.conf"], "no such .conf file: no such.conf"),
        (["attn_map", CONF, "--shards"], "--shards needs a number"),
        (["attn_map", CONF, "--shards", "0"], "--shards 0: allowed"),
        (["attn_map", CONF, "--shards", "08"], "--shards 08: allowed"),
        (["attn_map", CONF, "--shards=1;id"], "--shards 1;id: allowed"),
        (["attn_map", CONF, "--shards", "2", "--at-once", "x[$(id)]"], "--at-once x[$(id)]: allowed"),
        (["attn_map", CONF, "--shards", "2", "--num-shards=3"], "give one of them"),
        (["attn_map", CONF, "--shards", "2", "--shard-index", "1"], "give one of them"),
        (["attn_map", CONF, "--config", "x.conf"], "--config has no place here"),
        (["attn_map", CONF, "--", "--array=0-3"], "--shards N makes the array"),
        (["attn_map", CONF, "--", "-a0-3"], "--shards N makes the array"),
    ],
)
def test_wrong_words(checkout: Checkout, words: list[str], said: str) -> None:
    done = checkout.run("submit.sh", *words)
    assert (done.returncode, done.stdout, checkout.calls()) == (2, "", [])
    assert said in done.stderr


def test_the_default_experiment_and_the_help(checkout: Checkout) -> None:
    gemex = checkout.root / "configs" / "gemex" / "exp_01_vqa.conf"
    gemex.parent.mkdir()
    shutil.copy(checkout.conf, gemex)
    assert checkout.run("submit.sh", "attn_map", "--alpha", "1").returncode == 0
    assert checkout.calls()[0].argv[-3:] == [str(gemex), "--alpha", "1"]
    for words in ([], ["--help"], ["-h"]):
        done = checkout.run("submit.sh", *words)
        assert (done.returncode, "--at-once M" in done.stdout, "set -euo" in done.stdout) == (0, True, False)


@pytest.mark.parametrize("folder", ["Attention_Map", "."])
def test_the_merge_job_finds_the_launcher_from_slurms_spool(checkout: Checkout, folder: str) -> None:
    launcher = checkout.root / "docker" / "run_stage.sh"
    launcher.parent.mkdir()
    launcher.write_text('printf "%s\\0" "$@"\nexit 75\n')
    spool = checkout.folder / "spool"
    spool.mkdir()
    copy = shutil.copy(checkout.root / "slurm" / "merge.sh", spool / "slurm_script")
    command = ["bash", str(copy), "attn_map", "/a b.conf", "--alpha", "$(id)", "--num-shards", "8"]
    environ = checkout.environ(SLURM_SUBMIT_DIR=str(checkout.root / folder))
    done = subprocess.run(command, env=environ, cwd=spool, capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert done.stdout.split("\0")[:-1] == [
        "merge", "/a b.conf", "--stage", "attn_map", "--alpha", "$(id)", "--num-shards", "8"
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**environ, "SLURM_SUBMIT_DIR": str(spool)}, cwd=spool, capture_output=True, text=True, check=False
    )
    assert (done.returncode, str(spool) in done.stderr) == (4, True)
