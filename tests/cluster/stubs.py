"""A checkout whose launcher is real, and stand-ins for what it calls: docker, podman, apptainer, Slurm, Python.

Each stand-in is a small bash script on PATH that writes its arguments and its environment down and plays a part:

STUB_RUN      ``exit N [true]``: the run ends with N (true: out of memory); ``wait``: it runs until it is stopped or its
              input ends; ``late``: as wait, but it runs only a moment after its start; ``orphan``: the client goes
              at once and the container stays; ``refuse``: the start fails; ``deaf``: only a kill ends it
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
SHELL_SIDE = (
    "Attention_Map/submit_heatmap_gen.sh",
    "Attention_Map/scripts/generate_heatmaps.py",
    "Bounding_Box/submit_bbox_gen.sh",
    "Bounding_Box/scripts/bbox_preprocessing.py",
    "docker/inside.sh",
    "docker/run_heatmap_gen.sh",
    "docker/run_stage.sh",
    "docker/runtimes.sh",
    "slurm/lib.sh",
    "slurm/read_conf.sh",
    "slurm/settings.sh",
    "slurm/supervise.sh",
)

RECORD = r"""#!/usr/bin/env bash
note() { # NAME...: the call, under a name that sorts by time
    local file=$STUB/calls/$EPOCHREALTIME-$$
    env -0 >"$file.env"
    printf '%s\0' "$@" >"$file.part"
    mv "$file.part" "$file.argv"
}
until_stopped() { # ends with the stop or with the end of the input
    local line code
    while [[ ! -e $STUB/stopped ]]; do
        code=0
        read -r -t 0.05 line || code=$?
        if ((code == 1)); then
            : >"$STUB/input-ended"
            return
        fi
    done
}
play() { # a run without container; TERM is its stop
    case $STUB_RUN in
        exit*) read -r _ code _ <<<"$STUB_RUN"; exit "$code" ;;
        deaf) trap '' TERM; : >"$STUB/running"; exec sleep 60 ;;
        *) trap ': >"$STUB/stopped"' TERM; : >"$STUB/running"; until_stopped; exit 75 ;;
    esac
}
"""
CONTAINERS = (
    RECORD
    + r"""
me=${0##*/}
note "$me" "$@"
status() { printf '%s\n' "$1" >"$STUB/status.part"; mv "$STUB/status.part" "$STUB/status"; }
case $1 in
    image)
        if [[ -n ${STUB_NO_IMAGE-} ]]; then
            printf 'Error: No such image\n' >&2
            exit 1
        fi
        printf 'registry/heatlens@sha256:feed\n'
        ;;
    info) printf 'crun\n' ;;
    create)
        [[ -z ${STUB_HOLD_CREATE-} ]] || { : >"$STUB/creating"; sleep 0.5; }
        [[ -z ${STUB_CREATE_FAILS-} ]] || exit 125
        status 'created 0 false'
        printf '0123456789ab\n'
        ;;
    start)
        case $STUB_RUN in
            exit*)
                read -r _ code memory <<<"$STUB_RUN"
                status "exited $code ${memory:-false}"
                exit "$code"
                ;;
            refuse)
                printf 'could not select device driver\n' >&2
                exit 1
                ;;
            orphan)
                status 'running 0 false'
                (until [[ -e $STUB/stopped ]]; do sleep 0.05; done; status 'exited 75 false') </dev/null &>/dev/null &
                exit 1
                ;;
            late) : >"$STUB/running"; sleep 0.6 ;;
        esac
        status 'running 0 false'
        : >"$STUB/running"
        trap '' TERM # a client hands it on to the container and stays
        until_stopped
        status 'exited 75 false'
        exit 75
        ;;
    stop)
        if [[ $(<"$STUB/status") == running* ]]; then
            : >"$STUB/stopped"
            while [[ $(<"$STUB/status") == running* ]]; do sleep 0.05; done
        fi
        ;;
    wait) while [[ $(<"$STUB/status") == running* ]]; do sleep 0.05; done ;;
    inspect) cat "$STUB/status" 2>/dev/null ;;
    rm) rm -f "$STUB/status" ;;
esac
"""
)
APPTAINER = RECORD + 'note "${0##*/}" "$@"\nplay\n'
PYTHON = RECORD + '[[ ${1-} != -c ]] || exit 0\nnote python "$@"\nplay\n'
SCONTROL = RECORD + 'note scontrol "$@"\nexit "${STUB_SCONTROL_EXIT:-0}"\n'
NVIDIA_SMI = '#!/usr/bin/env bash\nprintf "%s" "${STUB_NVIDIA_SMI-}"\n[[ -n ${STUB_NVIDIA_SMI-} ]]\n'
ID = r"""#!/usr/bin/env bash
case $1 in -u) echo "${STUB_UID:-1234}" ;; -G) echo "${STUB_GROUPS:-100 200 300}" ;; -un) echo someone ;; esac
"""
GETCONF = "#!/usr/bin/env bash\necho 16\n"


@dataclass(frozen=True)
class Call:
    """One call of a stand-in."""

    argv: list[str]
    environ: dict[str, str]

    def values(self, option: str) -> list[str]:
        """The values of ``--option=value``."""
        return [word.partition("=")[2] for word in self.argv if word.startswith(f"{option}=")]


class Checkout:
    """``root``: the checkout, in a folder with a hard name; ``here``: where commands are typed."""

    def __init__(self, folder: Path, name: str = "it's a $(checkout)") -> None:
        self.root = folder / name
        for path in SHELL_SIDE:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, self.root / path)
        self.stage = self.root / "Attention_Map"
        (self.stage / "configs").symlink_to("../configs")
        self.here, self.bin, self.stub, self.temporary, self.home = (
            folder / part for part in ("here", "bin", "stub", "temporary", "home")
        )
        for path in (self.here, self.bin, self.stub / "calls", self.temporary, self.home):
            path.mkdir(parents=True)
        self.program(self.root / ".venv" / "bin" / "python", PYTHON)
        for name, text in {
            "docker": CONTAINERS, "podman": CONTAINERS, "apptainer": APPTAINER, "scontrol": SCONTROL,
            "nvidia-smi": NVIDIA_SMI, "id": ID, "getconf": GETCONF,
        }.items():  # fmt: skip
            self.program(self.bin / name, text)
        self.data = folder / "data"
        (self.data / "films").mkdir(parents=True)
        (self.data / "questions.csv").touch()
        self.conf = self.write_conf(
            f"DATASET=table\nDATASET_PATH={self.data}/questions.csv\nIMAGE_ROOT={self.data}/films\n"
        )

    def program(self, path: Path, text: str) -> None:
        """An executable at ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def write_conf(self, text: str, name: str = "configs/demo/exp.conf") -> Path:
        """An experiment of this checkout."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def site(self, text: str) -> None:
        """Its slurm/site.conf."""
        (self.root / "slurm" / "site.conf").write_text(text)

    def environ(self, **more: str) -> dict[str, str]:
        """A small environment with the stand-ins in front."""
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), "STUB": str(self.stub),
            "TMPDIR": str(self.temporary), "HOSTNAME": "node7.cluster", "STUB_RUN": "exit 0", **more,
        }  # fmt: skip

    def start(self, *words: str | Path, script: str = "docker/run_stage.sh", **environ: str) -> subprocess.Popen[str]:
        """The script as a child."""
        return subprocess.Popen(
            ["bash", str(self.root / script), *map(str, words)], cwd=self.here, env=self.environ(**environ),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """The script, to its end."""
        script = environ.pop("script", "docker/run_stage.sh")
        process = self.start(*words, script=script, **environ)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def docker(self, *words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """A stage with docker."""
        return self.run("attn_map", *(words or (self.conf,)), CONTAINER_RUNTIME="docker", **environ)

    def calls(self, *names: str) -> list[Call]:
        """What the stand-ins were called with, in order; only calls that begin with these words."""
        found = []
        for path in sorted((self.stub / "calls").glob("*.argv")):
            argv = fields(path)
            if tuple(argv[: len(names)]) == names:
                pairs = (text.partition("=") for text in fields(path.with_suffix(".env")))
                found.append(Call(argv, {name: value for name, _, value in pairs}))
        return found

    def call(self, *names: str) -> Call:
        """The one call that begins so."""
        (found,) = self.calls(*names)
        return found

    def verbs(self) -> list[str]:
        """``docker create``, ... in order."""
        return [" ".join(call.argv[:2]) for call in self.calls()]

    def wait_for(self, name: str, process: subprocess.Popen[str] | None = None) -> None:
        """Until a stand-in has made that file."""
        deadline = time.monotonic() + 60
        while not (self.stub / name).exists():
            assert process is None or process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"no {name}; calls: {self.verbs()}"
            time.sleep(0.02)

    def plain(self, words: list[str]) -> str:
        """Arguments for a golden file: one a line, the checkout's place left out."""
        places = {
            self.root: "{root}",
            self.data: "{data}",
            self.here: "{here}",
            self.home: "{home}",
            self.temporary: "{tmp}",
        }
        lines = []
        for word in words:
            for path, name in places.items():
                word = word.replace(str(path).replace('"', '""'), name).replace(str(path), name)
            lines.append(word)
        return "\n".join(lines) + "\n"


def fields(path: Path) -> list[str]:
    """What was written with NULs."""
    return os.fsdecode(path.read_bytes()).split("\0")[:-1]


def end(process: subprocess.Popen[str], number: int | None = None) -> tuple[int, str]:
    """Send a signal; the exit code and what was said on stderr."""
    if number is not None:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def left_running(checkout: Checkout) -> Iterator[int]:
    """Processes with this checkout's STUB in their environment."""
    mark = f"STUB={checkout.stub}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:
            continue


def kill_left(checkout: Checkout) -> None:
    """After a test that failed."""
    for pid in left_running(checkout):
        os.kill(pid, signal.SIGKILL)
