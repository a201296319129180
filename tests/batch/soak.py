"""Kill a run at random moments, again and again, and hold what it ends with against an undisturbed run.

As a program (``make soak``): the demo experiment through its real script, ``--kills 200`` of them.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.batch.kit import leftovers, pictures

ROOT = Path(__file__).resolve().parents[2]
FINISHED = (0, 3)


@dataclass
class Outcome:
    """What a soak did: kills that hit a living process, calls that came to their end, where kills hit."""

    kills: int = 0
    rounds: int = 0
    moments: list[str] = field(default_factory=list)


def soak(
    command: Sequence[str],
    results: Path,
    *,
    kills: int,
    seed: int,
    environment: Mapping[str, str] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run ``command`` undisturbed, then kill it ``kills`` times; AssertionError for any difference.

    Whenever a call comes to its end before its kill, its results are compared and a new round starts from nothing.
    The moments are spread evenly over the time an undisturbed call takes; every fourth kill counts its time from the
    first image on record, which it reaches however busy the machine is.
    """
    moments = random.Random(seed)
    start = time.monotonic()
    assert _call(command, environment).wait() in FINISHED
    usual = time.monotonic() - start
    wanted = pictures(results)
    assert any(name.endswith(".png") for name in wanted)
    shutil.rmtree(results)
    outcome = Outcome()
    while outcome.kills < kills:
        process = _call(command, environment)
        patience = moments.uniform(0, usual)
        if outcome.kills % 4 == 3:
            while not _images(results) and process.poll() is None:
                time.sleep(0.002)
            patience /= 4
        try:
            code = process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            outcome.kills += 1
            outcome.moments.append(moment(results))
            check_files(results, wanted)
            report(f"kill {outcome.kills}: {outcome.moments[-1]}")
        else:
            _compare(code, results, wanted)
            shutil.rmtree(results)
            outcome.rounds += 1
    _compare(_call(command, environment).wait(), results, wanted)
    outcome.rounds += 1
    return outcome


def _call(command: Sequence[str], environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(environment or {})}, **quiet)


def moment(results: Path) -> str:
    """How far a killed run had come, by the files it left."""
    if not (results / "shards/fingerprint.json").exists():
        return "before the plan"
    if (results / "run.json").exists():
        return "after the merge"
    if (results / "shards/0000-of-0001/done.json").exists():
        return "merging"
    lines = _images(results)
    return f"after {lines} images" if lines else "before the first image"


def _images(results: Path) -> int:
    """Images on record."""
    ledger = results / "shards/0000-of-0001/ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def check_files(results: Path, wanted: Mapping[str, bytes]) -> None:
    """Whatever has its final name is whole: no picture is ever partial."""
    for name, data in pictures(results).items():
        assert "heatlens-tmp" in name or data == wanted[name], f"{name} is not what an undisturbed run writes"


def _compare(code: int, results: Path, wanted: Mapping[str, bytes]) -> None:
    assert code in FINISHED, f"exit code {code}"
    found = pictures(results)
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    differing = [name for name in wanted if found[name] != wanted[name]]
    assert not differing, differing
    assert leftovers(results) == []


def main() -> int:
    """The demo experiment, killed ``--kills`` times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        # A cheap method: most of the time is spent where files are written, not inside a forward.
        flags = {"results-dir": results, "stop-after": 30, "cam-version": "GradCAM", "save-raw-cam": "true"}
        command = [sys.executable, "Attention_Map/scripts/generate_heatmaps.py", "--config",
                   "configs/demo/exp_00_phantom.conf"]  # fmt: skip
        command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        outcome = soak(command, results, kills=options.kills, seed=options.seed, report=print)
    counted = {text: outcome.moments.count(text) for text in dict.fromkeys(sorted(outcome.moments))}
    print(f"soak: {outcome.kills} kills, {outcome.rounds} finished runs, every one byte-identical; seed {options.seed}")
    print("      " + ", ".join(f"{text}: {count}" for text, count in counted.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
