"""A real Slurm as the tests see it: submit, look, wait with a deadline, and find what a job left behind."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SINGLE_VALUED = ("StdOut", "StdErr", "Command", "WorkDir")  # paths: the rest of the line, blanks and all
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
UNDER_WAY = WAITING | {"RUNNING", "COMPLETING", "STOPPED", "SUSPENDED"}


class Overdue(AssertionError):
    """Something did not happen in time; the text says what and what the logs hold."""


def run(
    *command: str | Path, cwd: Path | None = None, environ: Mapping[str, str] | None = None, user: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A short command; its output is captured and its exit code left to the caller."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=None if environ is None else dict(environ),
        user=user,
        group=user,
        extra_groups=_groups(user),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _groups(user: str | None) -> list[int] | None:
    if user is None:
        return None
    done = subprocess.run(["id", "-G", user], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


@dataclass
class Slurm:
    """One test's view: ``environ`` is what sbatch is called with, ``jobs`` what was submitted."""

    environ: dict[str, str]
    area: Path  # every job of these tests was submitted from somewhere inside; other tests have areas of their own
    folder: Path  # job output goes here
    jobs: list[str] = field(default_factory=list)
    helpers: list[int] = field(default_factory=list)  # processes outside Slurm whose containers are ours, too
    earlier: set[str] = field(default_factory=set)  # jobs of the tests before

    def call(self, *words: str | Path, cwd: Path | None = None, user: str | None = None, **keys: str) -> str:
        """A Slurm command or a script that calls one; returns what it printed. It must succeed."""
        done = run(*words, cwd=cwd, environ={**self.environ, **keys}, user=user)
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(
        self, script: Path, *words: str, options: Iterable[str] = (), user: str | None = None, **keys: str
    ) -> str:
        """Submit ``script WORDS`` from the script's own folder, as its users do; returns the job's number."""
        output = "%x-%A_%a.out" if any(option.startswith("--array") for option in options) else "%x-%j.out"
        line = ["sbatch", "--parsable", f"--output={self.folder / output}", *options, script.name, *words]
        return self.adopt(self.call(*line, cwd=script.parent, user=user, **keys))

    def adopt(self, printed: str) -> str:
        """The job's number out of what --parsable prints; looked after from now on."""
        job = printed.split(";")[0].strip()
        assert job.isdigit(), f"no job number: {printed!r}"
        self.jobs.append(job)
        return job

    def show(self, job: str) -> list[dict[str, str]]:
        """What scontrol knows: one record for a job, one per task for an array."""
        text = run("scontrol", "show", "job", job, environ=self.environ).stdout
        return [_record(block) for block in text.strip().split("\n\n") if block.strip()]

    def record(self, job: str) -> dict[str, str]:
        """The only record of a job that is no array."""
        records = self.show(job)
        assert len(records) == 1, f"{len(records)} records of job {job}"
        return records[0]

    def state(self, job: str) -> str:
        return self.record(job)["JobState"]

    def wait(self, *jobs: str, seconds: float = 90) -> list[dict[str, str]]:
        """Until all have ended; their records, array tasks by index."""
        self.until(lambda: all(r["JobState"] not in UNDER_WAY for job in jobs for r in self.show(job)), seconds, "end")
        records = [record for job in jobs for record in self.show(job)]
        return sorted(records, key=lambda record: int(record.get("ArrayTaskId", "0")))

    def wait_state(self, job: str, state: str, seconds: float = 60) -> None:
        self.until(lambda: self.state(job) == state, seconds, f"job {job} becomes {state}")

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Ask five times a second; Overdue with all logs when it takes longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise Overdue(f"not within {seconds:g} s: {what}\n{self.report()}")
            time.sleep(0.2)

    def output(self, job: str) -> str:
        """All that a job, or all tasks of an array, printed."""
        paths = dict.fromkeys(Path(record["StdOut"]) for record in self.show(job) if "StdOut" in record)
        return "\n".join(path.read_text(errors="replace") for path in paths if path.is_file())

    def numbers(self) -> set[str]:
        """The numbers of all jobs of this test; each task of an array has one of its own."""
        own = {record["JobId"] for job in self.jobs for record in self.show(job)}
        return own | set(self.jobs) | {str(process) for process in self.helpers}

    def all_numbers(self) -> set[str]:
        """Every job that was submitted inside the area, finished ones, too."""
        text = run("scontrol", "show", "job", environ=self.environ).stdout
        records = [_record(block) for block in text.strip().split("\n\n") if "JobId=" in block]
        return {record["JobId"] for record in records if self._inside(record.get("WorkDir", ""))}

    def adopt_all(self) -> None:
        """Look after every job since the test's start: those that a script submitted, too."""
        self.jobs += sorted(self.all_numbers() - self.earlier - set(self.jobs), key=int)

    def queue(self) -> dict[str, str]:
        """Jobs of the area that have not ended: number -> state and name."""
        lines = run("squeue", "-h", "-o", "%A\t%T %j\t%Z", environ=self.environ).stdout.splitlines()
        fields = [line.split("\t") for line in lines]
        return {number: text for number, text, folder in fields if self._inside(folder)}

    def cancel_all(self) -> None:
        """End what is still there (after a test that failed half-way)."""
        alive = list(self.queue())
        if alive:
            run("scancel", *alive, environ=self.environ)
            self.until(lambda: not self.queue(), 60, "cancelled jobs end")

    def _inside(self, folder: str) -> bool:
        return folder.startswith(f"{self.area}/")

    def report(self) -> str:
        """Slurm's own logs and the output of every job of this test, the last lines of each."""
        state = Path(self.environ["SLURM_CONF"]).parents[1]
        records = [record for job in self.jobs for record in self.show(job)]
        paths = [state / "log" / "slurmctld.log", state / "log" / "slurmd.log"]
        paths += [Path(record["StdOut"]) for record in records if "StdOut" in record]
        parts = [f"---- {path}\n{_tail(path)}" for path in dict.fromkeys(paths) if path.is_file()]
        parts += [f"---- {record}" for record in records]
        return "\n".join(parts)


def _record(block: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in block.splitlines():
        key, _, value = line.strip().partition("=")
        if key in SINGLE_VALUED:
            found[key] = value
        else:
            found.update(word.split("=", 1) for word in line.split() if "=" in word)
    return found


def _tail(path: Path, lines: int = 40) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def containers(numbers: set[str], runtime: str = "docker", *, running: bool = False) -> list[str]:
    """Containers, running or not, whose label says that they are of these jobs."""
    form = '{{.Names}}\t{{.Status}}\t{{.Label "heatlens.job"}}'
    if runtime == "podman":
        form = '{{.Names}}\t{{.Status}}\t{{index .Labels "heatlens.job"}}'
    words = [runtime, "ps", *([] if running else ["-a"]), "--filter", "label=heatlens.job", "--format", form]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return [line for line in lines if line.split("\t")[-1].split("_")[0] in numbers]


def processes(numbers: set[str]) -> dict[int, str]:
    """Processes that these jobs started, in containers or not: process number -> command line."""
    wanted = {f"SLURM_JOB_ID={number}".encode() for number in numbers}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted.intersection((folder / "environ").read_bytes().split(b"\0")):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found[int(folder.name)] = b" ".join(words).decode(errors="replace")
        except (OSError, ValueError):
            continue  # ended meanwhile
    return found


def batch_script(number: str) -> int:
    """The process of a job's batch script: slurmstepd's own child."""
    for process in processes({number}):
        parent = re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{process}/status").read_text(), re.M)
        if parent and Path(f"/proc/{parent[1]}/comm").read_text().strip() == "slurmstepd":
            return process
    raise AssertionError(f"no batch script of job {number}")
