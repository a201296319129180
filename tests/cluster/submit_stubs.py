"""A checkout with the real slurm/*.sh around stub submit scripts, and an sbatch and a scontrol that only record."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"

# The n-th call's arguments go to $CALLS/n and its environment to $CALLS/n.env, with NULs. The answer is $ANSWER or
# 100n; call $REFUSE_AT fails as Slurm does.
SBATCH = r"""#!/usr/bin/env bash
shopt -s nullglob
calls=("$CALLS"/*.env)
number=$((${#calls[@]} + 1))
printf '%s\0' "${0##*/}" "$@" >"$CALLS/$number"
env -0 >"$CALLS/$number.env"
if [[ ${REFUSE_AT-} == "$number" ]]; then
    printf 'sbatch: error: Batch job submission failed: Invalid account\n' >&2
    exit 1
fi
printf '%s\n' "${ANSWER-$((1000 + number))${CLUSTER:+;$CLUSTER}}"
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$*" == "show config" ]] || exit 9
if [[ -z ${MAX_ARRAY_SIZE-} ]]; then
    printf 'slurm_load_ctl_conf error: Unable to contact slurm controller\\n' >&2
    exit 1
fi
printf 'MaxArrayJobs            = 7\\nMaxArraySize            = %s\\nMaxJobCount = 10\\n' "$MAX_ARRAY_SIZE"
"""
# What a stage's submit script does with --check, recorded; it is never run as a job.
CHECK = r"""#!/usr/bin/env bash
printf '%s\0' "$@" >"$CALLS/../checked.${0##*/}"
env -0 >"$CALLS/../checked.env"
[[ -z ${CHECK_EXIT-} ]] || printf 'IMAGE_ROOT=/films: no such folder\n' >&2
exit "${CHECK_EXIT:-0}"
"""


@dataclass(frozen=True)
class Call:
    """One call of a stub: its arguments, the folder it was made in, and its environment."""

    argv: list[str]
    environ: dict[str, str]

    @property
    def folder(self) -> Path:
        return Path(self.environ["PWD"])


@dataclass
class Checkout:
    """``root``: the checkout; ``here``: the folder that commands are typed in."""

    root: Path
    here: Path
    bin: Path
    folder: Path

    @property
    def stage(self) -> Path:
        return self.root / "Attention_Map"

    @property
    def conf(self) -> Path:
        return self.root / "configs" / "demo" / "exp.conf"

    def environ(self, **more: str) -> dict[str, str]:
        calls = str(self.folder / "calls")
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": "/home/nobody", "CALLS": calls, **more}

    def run(self, *words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """``bash slurm/WORDS``, typed in ``here``."""
        command = ["bash", str(self.root / "slurm" / words[0]), *map(str, words[1:])]
        return subprocess.run(
            command, cwd=self.here, env=self.environ(**environ), capture_output=True, text=True, check=False
        )

    def type(self, lines: str, **environ: str) -> None:
        """Types ``lines`` into a fresh bash."""
        subprocess.run(["bash", "-e"], input=lines, cwd=self.here, env=self.environ(**environ), text=True, check=True)

    def site(self, text: str) -> None:
        (self.root / "slurm" / "site.conf").write_text(text)

    def calls(self) -> list[Call]:
        """All calls of sbatch (and of what stands for a downstream command) since the last look."""
        files = sorted((path for path in (self.folder / "calls").glob("*[0-9]")), key=lambda path: int(path.name))
        found = [Call(_fields(path), _environ(path.with_name(f"{path.name}.env"))) for path in files]
        for path in (self.folder / "calls").iterdir():
            path.unlink()
        return found

    def checked(self, script: str = "submit_heatmap_gen.sh") -> list[str] | None:
        """The arguments that ``script`` was checked with; None when it was not."""
        path = self.folder / f"checked.{script}"
        return _fields(path) if path.exists() else None

    def checked_environ(self) -> dict[str, str]:
        return _environ(self.folder / "checked.env")

    def plain(self, text: str) -> str:
        """``text`` with this checkout's places replaced by names, as the golden files have them."""
        return text.replace(str(self.root), "/ROOT").replace(str(self.here), "/HERE")


def _fields(path: Path) -> list[str]:
    return [os.fsdecode(field) for field in path.read_bytes().split(b"\0")[:-1]]


def _environ(path: Path) -> dict[str, str]:
    return dict(field.split("=", 1) for field in _fields(path) if "=" in field)


def make_checkout(folder: Path, name: str = "checkout") -> Checkout:
    """A checkout called ``name`` in ``folder``, with both stages."""
    made = Checkout(folder / name, folder / "here", folder / "bin", folder)
    shutil.copytree(ROOT / "slurm", made.root / "slurm", ignore=shutil.ignore_patterns("site.conf"))
    for stage, script in (("Attention_Map", "submit_heatmap_gen.sh"), ("Bounding_Box", "submit_bbox_gen.sh")):
        write_program(made.root / stage / script, CHECK)
    made.conf.parent.mkdir(parents=True)
    made.conf.write_text("DATASET=phantom\nMODEL=demo\n")
    (made.stage / "configs").symlink_to("../configs")
    write_program(made.bin / "sbatch", SBATCH)
    write_program(made.bin / "scontrol", SCONTROL)
    made.here.mkdir()
    (folder / "calls").mkdir()
    return made


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
