"""The test bed itself: its constraints must be real, or the other tests prove nothing."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.cluster.real.slurm import Slurm

pytestmark = pytest.mark.cluster

LOOK = """#!/usr/bin/env bash
printf 'given %s, visible %s\\n' "$SLURM_JOB_GPUS" "$CUDA_VISIBLE_DEVICES"
for device in "$DEVICES"/gpu*; do
    LC_ALL=C dd if="$device" of=/dev/null count=1 2>&1 | head -n 1
done
sleep "$1"
"""


def test_a_job_sees_its_own_card_only(slurm: Slurm) -> None:
    """No driver stands behind the devices: opening one says ENXIO where it is allowed, EPERM where it is not."""
    script = slurm.folder / "look.sh"
    script.write_text(LOOK)
    devices = Path(slurm.environ["SLURM_CONF"]).parents[1] / "dev"
    jobs = [slurm.sbatch(script, "2", options=["--gres=gpu:1"], DEVICES=str(devices)) for _ in range(2)]
    slurm.wait(*jobs, seconds=30)
    given = []
    for job in jobs:
        first, *opened = slurm.output(job).splitlines()
        card = re.fullmatch(r"given (\d+), visible 0", first)
        assert card, first
        given.append(card[1])
        allowed = [line for line in opened if "No such device" in line]
        assert len(allowed) == 1 and f"gpu{card[1]}'" in allowed[0], opened
        assert sum("Operation not permitted" in line for line in opened) == len(opened) - 1 > 0
    assert given[0] != given[1]


def test_memory_is_limited(slurm: Slurm) -> None:
    script = slurm.folder / "eat.sh"
    script.write_text(f"#!/usr/bin/env bash\nexec {shlex.quote(sys.executable)} -c 'len(bytearray(1 << 30))'\n")
    job = slurm.sbatch(script, options=["--mem=200M"])
    assert slurm.wait(job, seconds=30)[0]["JobState"] == "OUT_OF_MEMORY"
