"""Stopping: every signal at every moment leaves no container and no process; the time limit has the job requeued."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.stubs import Checkout, end

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
RUNTIMES = ["docker", "podman", "apptainer", "none"]


def start(launcher: Checkout, runtime: str = "docker", run: str = "wait", **environ: str):
    environ = {"CONTAINER_RUNTIME": runtime, "STUB_RUN": run, "STOP_GRACE": "20", **environ}
    return launcher.start("attn_map", launcher.conf, CONTAINER_IMAGE="docker://heatlens", **environ)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_signal_stops_the_run_and_75_says_so(launcher: Checkout, runtime: str, number: signal.Signals) -> None:
    process = start(launcher, runtime)
    launcher.wait_for("running", process)
    code, errors = end(process, number)
    assert (code, number.name.removeprefix("SIG") in errors) == (75, True)
    assert launcher.calls("scontrol") == []  # not in a job
    if runtime in ("docker", "podman"):
        assert launcher.call(runtime, "stop").argv[2:] == ["-t", "20", launcher.call(runtime, "start").argv[-1]]
        assert launcher.verbs()[-1] == f"{runtime} rm"


@pytest.mark.parametrize("runtime", ["docker", "none"])
def test_the_time_limit_requeues_the_job(launcher: Checkout, runtime: str) -> None:
    process = start(launcher, runtime, SLURM_JOB_ID="41")
    launcher.wait_for("running", process)
    code, errors = end(process, signal.SIGUSR1)
    assert (code, "Job 41 is requeued to continue (1 of at most 10)" in errors) == (75, True)
    assert launcher.call("scontrol").argv == ["scontrol", "requeue", "41"]
    assert launcher.verbs()[-1] == "scontrol requeue"  # nothing is left by then


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("runtime", ["docker", "none"])
def test_a_cancelled_job_is_not_requeued(launcher: Checkout, runtime: str, number: signal.Signals) -> None:
    process = start(launcher, runtime, SLURM_JOB_ID="41")
    launcher.wait_for("running", process)
    assert end(process, number)[0] == 75
    assert launcher.calls("scontrol") == []


def test_term_after_usr1_means_cancelled(launcher: Checkout) -> None:
    process = start(launcher, run="deaf", runtime="none", SLURM_JOB_ID="41", STOP_GRACE="1")
    launcher.wait_for("running", process)
    process.send_signal(signal.SIGUSR1)
    code, errors = end(process, signal.SIGTERM)
    assert (code, "did not end within 1 s and was killed" in errors) == (75, True)
    assert launcher.calls("scontrol") == []


def test_an_array_task_is_requeued_by_its_own_name(launcher: Checkout) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3", "NUM_SHARDS": "8", "SLURM_RESTART_COUNT": "9"}
    process = start(launcher, SLURM_JOB_ID="44", **array)
    launcher.wait_for("running", process)
    code, errors = end(process, signal.SIGUSR1)
    assert (code, "(10 of at most 10)" in errors) == (75, True)
    assert launcher.call("scontrol").argv == ["scontrol", "requeue", "40_3"]
    assert launcher.call("docker", "create").values("--name") == ["heatlens-44"]


@pytest.mark.parametrize(("count", "most"), [("10", ""), ("12", ""), ("2", "2"), ("0", "0")])
def test_requeues_are_counted(launcher: Checkout, count: str, most: str) -> None:
    launcher.site(f"MAX_REQUEUES={most}\n" if most else "")
    process = start(launcher, SLURM_JOB_ID="41", SLURM_RESTART_COUNT=count)
    launcher.wait_for("running", process)
    code, errors = end(process, signal.SIGUSR1)
    assert (code, f"was requeued {count} times already (MAX_REQUEUES)" in errors) == (75, True)
    assert launcher.calls("scontrol") == []


def test_a_refused_requeue_is_said(launcher: Checkout) -> None:
    process = start(launcher, SLURM_JOB_ID="41", STUB_SCONTROL_EXIT="1")
    launcher.wait_for("running", process)
    code, errors = end(process, signal.SIGUSR1)
    assert (code, "could not be requeued" in errors) == (75, True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_while_the_container_is_being_made(launcher: Checkout, number: signal.Signals) -> None:
    process = start(launcher, STUB_HOLD_CREATE="1", SLURM_JOB_ID="41")
    launcher.wait_for("creating", process)
    assert end(process, number)[0] == 75
    assert launcher.calls("docker", "start") == []
    assert launcher.verbs().count("docker rm") == 2
    assert len(launcher.calls("scontrol")) == (number == signal.SIGUSR1)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_before_the_container_runs_is_said_again(launcher: Checkout, number: signal.Signals) -> None:
    process = start(launcher, run="late")
    launcher.wait_for("running", process)
    assert end(process, number)[0] == 75
    assert len(launcher.calls("docker", "stop")) > 1
    assert launcher.verbs()[-1] == "docker rm"


def test_a_lost_client_is_not_the_end_of_the_container(launcher: Checkout) -> None:
    process = start(launcher, run="orphan")
    while not launcher.calls("docker", "wait"):
        assert process.poll() is None
    assert end(process, signal.SIGTERM)[0] == 75
    assert (launcher.stub / "stopped").exists()
    assert launcher.verbs()[-1] == "docker rm"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_input_ends_with_the_launcher(launcher: Checkout, runtime: str) -> None:
    process = start(launcher, runtime)
    launcher.wait_for("running", process)
    assert not (launcher.stub / "input-ended").exists()
    process.kill()
    process.wait()
    launcher.wait_for("input-ended")
    for pipe in (process.stdout, process.stderr):
        pipe.read()  # until the last process of it has gone
    for folder in launcher.temporary.iterdir():  # apptainer's /tmp is the one thing that a kill leaves
        assert runtime == "apptainer"
        folder.rmdir()


def test_nobody_else_holds_the_input_open(launcher: Checkout) -> None:
    process = start(launcher)
    launcher.wait_for("running", process)
    fifos = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"STUB={launcher.stub}".encode() in (entry / "environ").read_bytes():
                links = [str(link.readlink()) for link in (entry / "fd").iterdir()]
                fifos[int(entry.name)] = sum("/input" in link for link in links)
        except OSError:
            continue
    assert fifos.pop(process.pid) == 1
    assert set(fifos.values()) == {1}  # the client's standard input, and nothing more
    assert end(process, signal.SIGTERM)[0] == 75


def test_a_second_signal_does_not_hurt(launcher: Checkout) -> None:
    process = start(launcher, run="late")
    launcher.wait_for("running", process)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    assert end(process)[0] == 75
    assert launcher.verbs()[-1] == "docker rm"


def test_a_run_that_ends_just_before_its_time_is_done(launcher: Checkout) -> None:
    process = start(launcher, run="late", SLURM_JOB_ID="41")
    launcher.wait_for("running", process)
    os.kill(process.pid, signal.SIGSTOP)
    process.send_signal(signal.SIGUSR1)
    launcher.program(
        launcher.bin / "docker",
        (launcher.bin / "docker").read_text().replace("inspect) cat", "inspect) echo exited 0 false || cat"),
    )
    os.kill(process.pid, signal.SIGCONT)
    assert end(process)[0] == 0
    assert launcher.calls("scontrol") == []
