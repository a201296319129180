"""One process per shard: a lock file made with O_EXCL, which network file systems honour too.

The lock holds host, pid, the process's start and the Slurm job. It is stale when the holder's pid is gone (or
belongs to another process by now) on this very host and pid namespace, when this host was rebooted since, or
when the holder is an earlier start of the same Slurm job (a requeue). Anything else is a live holder, and the
second process refuses. A lock of another host cannot be judged from here: remove it by hand when that host's
process is known to be dead.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from heatlens.errors import SetupError

LOCK_NAME = "lock"

# A lock file is filled right after its creation; one that stays empty longer than this lost its maker.
_EMPTY_GRACE_S = 60.0


class ShardLock:
    """The lock of one shard's folder; use as a context manager. SetupError names the holder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._content = b""

    def __enter__(self) -> ShardLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            if self._create():
                return self
            holder = read_holder(self.path)
            if holder is None:
                continue
            if not is_stale(holder, self.path):
                raise SetupError(_refusal(self.path, holder))
            _remove_stale(self.path)
        raise SetupError(f"could not lock {self.path}: other processes keep taking it; try again in a minute")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Only our own lock is removed: a requeued start of this job may have taken over.
        with suppress(OSError):
            if self.path.read_bytes() == self._content:
                self.path.unlink()

    def _create(self) -> bool:
        self._content = json.dumps(_me(), sort_keys=True).encode() + b"\n"
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as stream:
            stream.write(self._content)
            stream.flush()
            os.fsync(stream.fileno())
        return True


def live_locks(results: Path) -> dict[str, dict[str, Any]]:
    """Shard folders of a results folder that a live process holds: folder name -> holder."""
    live = {}
    for path in sorted((results / "shards").glob(f"*-of-*/{LOCK_NAME}")):
        holder = read_holder(path)
        if holder is not None and not is_stale(holder, path):
            live[path.parent.name] = holder
    return live


def read_holder(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None when there is none; an empty dict when its maker has not filled it yet."""
    for _ in range(10):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        with suppress(ValueError):
            holder = json.loads(content)
            return holder if isinstance(holder, dict) else {}
        time.sleep(0.05)
    return {}


def is_stale(holder: dict[str, Any], path: Path) -> bool:
    """Is the holder surely gone?"""
    if not holder:
        with suppress(FileNotFoundError):
            return time.time() - path.stat().st_mtime > _EMPTY_GRACE_S
        return True
    me = _me()
    if _is_earlier_start(holder, me):
        return True
    if holder.get("host") != me["host"]:
        return False
    if holder.get("boot") != me["boot"]:
        return True
    if holder.get("pid_namespace") != me["pid_namespace"]:
        return False
    return _start_ticks(int(holder.get("pid", 0))) != holder.get("start_ticks")


def describe(holder: dict[str, Any]) -> str:
    """A holder in words."""
    if not holder:
        return "a process that has just started"
    job = f", Slurm job {holder['slurm_job']}" if holder.get("slurm_job") else ""
    return f"pid {holder.get('pid')} on {holder.get('host')}{job}, since {holder.get('since')}"


def _refusal(path: Path, holder: dict[str, Any]) -> str:
    return (
        f"shard {path.parent.name} of this results folder is being worked on by {describe(holder)}. "
        f"Wait for it or stop it; if that process is surely dead, delete {path}"
    )


def _remove_stale(path: Path) -> None:
    """Take the stale lock away by rename: of several processes that found it stale, one gets it.

    Between judging and renaming a quicker one may have put its own fresh lock there: then put that one back.
    """
    aside = path.with_name(f"{LOCK_NAME}.stale-{socket.gethostname()}-{os.getpid()}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        holder = read_holder(aside)
        if holder is not None and not is_stale(holder, aside) and not path.exists():
            aside.rename(path)
            return
        aside.unlink()


def _is_earlier_start(holder: dict[str, Any], me: dict[str, Any]) -> bool:
    same_job = bool(me["slurm_job"]) and holder.get("slurm_job") == me["slurm_job"]
    return same_job and int(me["slurm_restarts"]) > int(holder.get("slurm_restarts", 0))


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_ticks": _start_ticks(os.getpid()),
        "boot": _read_text("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _pid_namespace(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _pid_namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _start_ticks(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" when there is no such process.

    Guards against a pid that was given to another process. Without /proc (macOS) only existence is told.
    """
    if Path("/proc/self/stat").exists():
        fields = _read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return fields[19] if len(fields) > 19 and fields[0] != "Z" else ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def _read_text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return ""
