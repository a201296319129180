"""The machine: Python and packages, cores and memory, bash, container runtimes, Slurm."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import heatlens
from heatlens.doctor.findings import OK, PROBLEM, WARNING, Finding
from heatlens.errors import SetupError

if TYPE_CHECKING:
    from heatlens.config import Settings

SMALL_MEMORY = 4e9  # bytes; BiomedCLIP on a CPU takes about 2 GB, decoders and tables the rest
ANSWER_S = 20  # seconds within which a daemon answers, or does not

# Every one of them is the module cv2: files of the one lie over files of the other.
_OPENCVS = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")
_SLURM = ("sbatch", "scontrol", "squeue", "srun")
_RUNTIMES = {
    "docker": ["docker", "version", "--format", "{{.Server.Version}}"],
    "podman": ["podman", "version", "--format", "{{.Client.Version}}"],
    "apptainer": ["apptainer", "--version"],
}


def packages(_settings: Settings) -> Iterator[Finding]:
    """Python and every package that heatlens asks for, against the ranges it asks for."""
    found = requirements()
    if found is None:
        yield Finding(
            "Python",
            WARNING,
            "heatlens is not installed as a package: versions were not compared",
            "pip install -e . in the repository (make setup)",
        )
    else:
        yield from compare_versions(platform.python_version(), *found, installed())


def requirements() -> tuple[str, list[str]] | None:
    """The range of Pythons and the packages: of the checkout's pyproject.toml, or as they were installed."""
    project = Path(heatlens.__file__).parents[2] / "pyproject.toml"
    with suppress(ImportError, OSError, ValueError, KeyError):  # Python 3.10 has no tomllib
        import tomllib

        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        if table["name"] == "heatlens":
            return str(table["requires-python"]), list(table["dependencies"])
    with suppress(metadata.PackageNotFoundError):
        return str(metadata.metadata("heatlens")["Requires-Python"] or ""), metadata.requires("heatlens") or []
    return None


def installed() -> dict[str, str]:
    """Version of every package that is here, by name in lower case with ``-``."""
    return {_plain(str(one.metadata["Name"])): one.version for one in metadata.distributions() if one.metadata["Name"]}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def compare_versions(python: str, wanted: str, asked: list[str], here: Mapping[str, str]) -> Iterator[Finding]:
    """``asked`` are requirements as pyproject.toml writes them; those of extras are left out."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wrong = []
    if python not in SpecifierSet(wanted):
        wrong.append(Finding("Python", PROBLEM, f"Python {python}; heatlens needs {wanted}", "make setup PYTHON=..."))
    count = 0
    for requirement in map(Requirement, asked):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        version = here.get(_plain(requirement.name))
        # Pre-releases and builds such as 2.4.1+cu124 count as what they are.
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version or 'is not here'}; {requirement.specifier} is needed"
            wrong.append(Finding("Python", PROBLEM, text, f"pip install '{requirement.name}{requirement.specifier}'"))
    yield from wrong
    if not wrong:
        yield Finding("Python", OK, f"{python}, {count} packages in the ranges that heatlens is made for")


def opencv(_settings: Settings) -> Iterator[Finding]:
    """One OpenCV, and one that can be imported (the one with windows needs libGL)."""
    found = [name for name in _OPENCVS if name in installed()]
    if len(found) > 1:
        yield Finding(
            "OpenCV",
            WARNING,
            f"{' and '.join(found)} are installed, and all of them are the module cv2",
            f"pip uninstall -y {' '.join(found)}; pip install opencv-python-headless",
        )
    try:
        import cv2
    except ImportError as error:
        yield Finding(
            "OpenCV",
            PROBLEM,
            f"cannot be imported: {error}",
            "pip uninstall -y opencv-python; pip install --force-reinstall opencv-python-headless",
        )
        return
    if len(found) <= 1:
        yield Finding("OpenCV", OK, f"{found[0] if found else 'cv2'} {cv2.__version__}")


def dense_crf(settings: Settings) -> Iterator[Finding]:
    """The package that SKIP_CRF=false needs; nothing where it is not asked for."""
    from heatlens.refine.crf import INSTALL, require_package

    if settings.skip_crf:
        return
    try:
        require_package()
    except SetupError as error:
        yield Finding("dense CRF", PROBLEM, str(error).partition(": ")[0], INSTALL)
    else:
        yield Finding("dense CRF", OK, f"pydensecrf2 {installed().get('pydensecrf2', 'is here')}")


def processor(_settings: Settings) -> Iterator[Finding]:
    """Cores that this process may use."""
    from heatlens.batch.parts import available_cores

    cores, machine = available_cores(), os.cpu_count() or 1
    fewer = f" of the machine's {machine} (scheduler or container)" if cores < machine else ""
    yield Finding("processor", OK, f"{cores} core{'' if cores == 1 else 's'}{fewer}")


def memory(_settings: Settings) -> Iterator[Finding]:
    """Memory that is free for this process: the machine's, or the control group's."""
    limits = [size for size in (machine_memory(), group_memory()) if size is not None]
    if not limits:
        yield Finding("memory", WARNING, "this system does not say how much there is")
        return
    size = min(limits)
    text = f"{size / 1e9:.1f} GB available"
    if size < SMALL_MEMORY:
        yield Finding(
            "memory", WARNING, text, "BiomedCLIP on a CPU needs about 2 GB, and a run 4: ask for more (--mem)"
        )
    else:
        yield Finding("memory", OK, text)


def machine_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that the machine can give now."""
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def group_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes that control groups (Slurm's --mem, docker's --memory) still leave, or None without a limit."""
    groups = {"/"}
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory") or "memory" in controllers.split(","):
                groups |= {path, *map(str, Path(path).parents)}
    left = []
    for group in groups:
        for base, limit, used in (
            (root, "memory.max", "memory.current"),
            (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            folder = base / group.lstrip("/")
            with suppress(OSError, ValueError):  # "max": no limit
                size = int((folder / limit).read_text())
                if size < 1 << 60:  # version 1 writes no limit as a number of this kind
                    left.append(max(0, size - _used(folder, used)))
    return min(left, default=None)


def _used(folder: Path, name: str) -> int:
    """Bytes in use without the files that the kernel keeps only as long as there is room."""
    used = int((folder / name).read_text())
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(("inactive_file ", "total_inactive_file ")):
                return used - int(line.split()[1])
    return used


def bash(_settings: Settings) -> Iterator[Finding]:
    """bash reads .conf files and is what the submit scripts are written in."""
    path = shutil.which("bash")
    if path:
        yield Finding("bash", OK, path)
    else:
        yield Finding("bash", WARNING, "not here: only plain KEY=value lines of a .conf are read", "install bash")


def containers(settings: Settings) -> Iterator[Finding]:
    """Container runtimes that are here and answer. CONTAINER_RUNTIME's has to."""
    if inside := os.environ.get("HEATLENS_CONTAINER"):
        yield Finding("container", OK, f"this is one ({inside}, {os.environ.get('HEATLENS_IMAGE', 'image not told')})")
        return
    wanted = settings.container_runtime
    found = []
    for name, command in _RUNTIMES.items():
        works, text = answer(command)
        if works:
            found.append(f"{name} {text.removeprefix('apptainer version ')}")
        elif name == wanted:
            yield Finding("container", PROBLEM, f"CONTAINER_RUNTIME={name}: {text}", _runtime_advice(name))
        elif shutil.which(name):
            yield Finding("container", WARNING, f"{name} is here and does not work: {text}", _runtime_advice(name))
    if found:
        yield Finding("container", OK, ", ".join(found))
    elif wanted == "none":
        yield Finding("container", OK, "no runtime here, and CONTAINER_RUNTIME=none needs none")


def _runtime_advice(name: str) -> str:
    if name == "docker":
        return "is the daemon running, and are you in the group docker? Or CONTAINER_RUNTIME=podman, apptainer or none"
    return f"install {name} on this node, or set CONTAINER_RUNTIME to what is here"


def slurm(_settings: Settings) -> Iterator[Finding]:
    """Slurm's commands and whether its controller answers. A machine without Slurm is fine."""
    missing = [name for name in _SLURM if not shutil.which(name)]
    if len(missing) == len(_SLURM):
        yield Finding("Slurm", OK, "not here; runs are started by hand")
    elif missing:
        yield Finding(
            "Slurm",
            WARNING,
            f"no {', '.join(missing)} on PATH",
            "scontrol is what lets a job that ran out of time queue again",
        )
    else:
        works, text = answer(["sinfo", "--noheader", "--format=%P"])
        if works:
            yield Finding("Slurm", OK, f"answers; partitions: {', '.join(text.split()) or 'none'}")
        else:
            yield Finding("Slurm", WARNING, f"its commands are here, its controller does not answer: {text}")


def answer(command: list[str]) -> tuple[bool, str]:
    """(True, what ``command`` prints) or (False, why it does not work)."""
    path = shutil.which(command[0])
    if path is None:
        return False, f"{command[0]} is not on PATH"
    try:
        done = subprocess.run(
            [path, *command[1:]],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {ANSWER_S} seconds"
    except OSError as error:
        return False, str(error.strerror)
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    text = " ".join(lines) if done.returncode == 0 else "".join(lines[-1:])
    return done.returncode == 0, text[-300:] or f"exit code {done.returncode}"
