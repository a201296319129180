"""``run.json``: what was run, with what, and how it went. Written last, so that it vouches for the rest.

Keys: ``status`` ("complete", "partial" after a stop, "failed" above MAX_FAILURE_RATE), ``exit_code``,
``stage``, ``counts``, ``timings`` (seconds summed over all finished images, as the ledgers have them, and
peak memory), ``warnings``, ``announcements``, ``config`` (KEY -> value and origin), ``fingerprint``,
``engine``, ``weights``, ``versions``, ``git_commit``, ``container`` (runtime, image and its digest, as the launcher
said; empty outside), ``files`` (name -> SHA-256 of every table),
``plan_digest``, ``covers`` (a digest of plan, settings and ledgers: when it still fits, a second call has nothing
to do).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.batch.fingerprint import ENGINE, plain
from heatlens.batch.ledger import ledger_paths
from heatlens.files import atomic_write, digest_file, digest_text

if TYPE_CHECKING:
    from heatlens.batch.job import Job
    from heatlens.config import Settings
    from heatlens.questions.plan import Plan

RUN_RECORD = "run.json"
_PRIVATE = "077"
_PACKAGES = {
    "torch": "torch",
    "open_clip": "open_clip_torch",
    "timm": "timm",
    "transformers": "transformers",
    "opencv": "opencv-python-headless",
    "numpy": "numpy",
    "pillow": "pillow",
    "pyarrow": "pyarrow",
}


@dataclass(frozen=True)
class RunRecord:
    """How a run went: ``counts`` as :mod:`heatlens.batch.merge` has them, ``clocks`` in seconds over all images."""

    status: str
    exit_code: int
    counts: Mapping[str, int]
    tables: Sequence[Path]
    warnings: Sequence[str]
    clocks: Mapping[str, float]


def write_run_record(job: Job, run: RunRecord, *, call_seconds: float) -> Path:
    """Write ``run.json`` atomically and return its path."""
    settings, results = job.settings, job.results
    record = {
        "status": run.status,
        "exit_code": run.exit_code,
        "stage": settings.stage,
        "counts": dict(run.counts),
        "timings": {**run.clocks, "last_call_s": round(call_seconds, 3)},
        "warnings": list(run.warnings),
        "announcements": list(settings.announcements),
        "config": config_with_origins(settings),
        "fingerprint": plain(dict(job.request.fingerprint)),
        "engine": _stored_engine(results),
        "weights": plain(dict(job.request.weights)),
        "versions": versions(),
        "git_commit": git_commit(),
        "container": container(),
        "files": {path.name: digest_file(path) for path in run.tables},
        "plan_digest": job.plan.digest,
        "covers": coverage(settings, job.plan),
    }
    path = results / RUN_RECORD
    atomic_write(path, json.dumps(record, indent=1, ensure_ascii=True) + "\n")
    return path


def finished_before(settings: Settings, plan: Plan) -> dict[str, Any] | None:
    """The record of an earlier call that did all of this, with every table still as it was written."""
    results = settings.results_dir
    try:
        record = json.loads((results / RUN_RECORD).read_text(encoding="utf-8"))
        if record["status"] == "partial" or record["covers"] != coverage(settings, plan):
            return None
        intact = all(digest_file(results / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if intact else None


def coverage(settings: Settings, plan: Plan) -> str:
    """Changes whenever a merge could give something else: plan, settings, ledgers."""
    ledgers = [f"{path.parent.name}:{path.stat().st_size}" for path in ledger_paths(settings.results_dir)]
    return digest_text(plan.digest, json.dumps(config_with_origins(settings), sort_keys=True), *ledgers)


def config_with_origins(settings: Settings) -> dict[str, dict[str, Any]]:
    """Every key with its value and where it came from."""
    from heatlens.config import KEYS

    origins = settings.origins
    return {
        name: {"value": plain(getattr(settings, name.lower())), "origin": origins.get(name, "default")} for name in KEYS
    }


def image_root_of(config: Mapping[str, Any]) -> Path | None:
    """Where a run looked for its films, by its settings (KEY -> value), as far as they tell: a data set may choose by
    itself. It need not be there any more."""
    if root := config.get("IMAGE_ROOT"):
        return Path(str(root))
    if not config.get("DATASET_PATH"):
        return None
    path = Path(str(config["DATASET_PATH"]))
    return path if path.is_dir() else path.parent


def umask_of(config: Mapping[str, Any]) -> str:
    """A run's UMASK by its settings, for what is made of it later: as private as the run, and private in doubt."""
    text = str(config.get("UMASK") or _PRIVATE)
    return text if re.fullmatch("[0-7]{3,4}", text) else _PRIVATE


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Python, this program and the packages that decide what a picture looks like."""
    from heatlens import __version__

    found = {"heatlens": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name, package in _PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@lru_cache(maxsize=1)
def git_commit() -> str:
    """The checkout's commit, with ``+changes`` when files differ from it; "" outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return ""


def container() -> dict[str, str]:
    """What this process runs in, as docker/run_stage.sh says; {} outside a container."""
    names = {"runtime": "HEATLENS_CONTAINER", "image": "HEATLENS_IMAGE", "digest": "HEATLENS_IMAGE_DIGEST"}
    return {name: os.environ[variable] for name, variable in names.items() if os.environ.get(variable)}


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def _stored_engine(results: Path) -> Any:
    try:
        return json.loads((results / ENGINE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
