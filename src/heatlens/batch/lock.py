"""One process per shard: a lock file made with O_EXCL, which network file systems honour too.

The lock holds host, pid, the process's start and the Slurm job, and its holder touches it every minute. It is
stale when the last touch is older than ten minutes by the file server's clock; when the holder's pid is gone
(or belongs to another process by now) on this very host and pid namespace; when this host was rebooted since;
or when the holder is an earlier start of the same Slurm job (a requeue). Anything else is a live holder.

Nobody can keep a process from being suspended and from waking up after its lock went stale and was taken over.
So the holder asks :meth:`ShardLock.check` before every line of its ledger. Beside O_EXCL only atomic rename
is needed.
"""

from __future__ import annotations

import json
import math
import os
import random
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from heatlens.errors import SetupError, one_line
from heatlens.files import TEMPORARY_PREFIX, atomic_write

LOCK_NAME = "lock"
HEARTBEAT_S = 60.0
STALE_AFTER_S = 600.0

# Whoever replaces a stale lock holds this file meanwhile: of several processes one does it.
_TAKEOVER_NAME = "lock.takeover"

# Both files are filled or removed right after their creation; older ones lost their maker.
_EMPTY_GRACE_S = 60.0

_TRIES = 20
_RETRY_S = 0.1
_POLL_S = (0.2, 1.0)
_SILENT_WAIT_S = 2.0

Holder = dict[str, Any]


class _HeldError(Exception):
    """A live process has the lock."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(describe(holder))
        self.holder = holder


class ShardLock:
    """The lock of one shard's folder; use as a context manager. SetupError names the holder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self.acquired = False
        self._content = b""
        self._pid = 0
        self._lost = ""
        self._sure = (0.0, 0.0)
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> ShardLock:
        from heatlens.batch.folder import writing  # which needs live_locks of this module

        try:
            with writing(self.path.parent):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._acquire()
        except BaseException:  # a stop signal, too, must leave no lock behind
            self._release()
            raise
        if self.acquired:
            self._heart = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def check(self) -> None:
        """SetupError when the lock is no longer ours. Looks at the file once a minute; safe in any thread."""
        if not self._lost and self._seconds_since_sure() >= HEARTBEAT_S:
            self._beat()
        if self._lost:
            raise SetupError(self._lost)

    def _acquire(self) -> None:
        for attempt in range(_TRIES):
            time.sleep(_RETRY_S if attempt else 0.0)
            try:
                if self._attempt():
                    return
            except _HeldError as held:
                raise SetupError(_refusal(self.path, held.holder)) from None
        raise SetupError(f"could not lock {self.path}: other processes keep taking it; try again in a minute")

    def _attempt(self) -> bool:
        """Take the lock if it is free or stale. _HeldError when it is held; False: it changed hands, look again."""
        if self._create() or self._take_over_stale():
            self._pid = os.getpid()
            self._sure = (time.monotonic(), time.time())
            self.acquired = True
        return self.acquired

    def _create(self) -> bool:
        self._content = _content()
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(self._content)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:  # the disk is full: an empty lock would be in the way for a minute
            with suppress(OSError):
                self.path.unlink()
            raise
        return True

    def _take_over_stale(self) -> bool:
        """Replace a stale lock by ours. Its place is never empty meanwhile, and a fresh lock is never moved."""
        holder = read_holder(self.path)
        if holder is None:
            return False
        if not is_stale(holder, self.path):
            raise _HeldError(holder)
        guard = self.path.with_name(_TAKEOVER_NAME)
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            if (heartbeat_age(guard) or 0.0) > _EMPTY_GRACE_S:
                guard.unlink(missing_ok=True)
            return False
        try:
            holder = read_holder(self.path)  # another process may have been quicker
            if holder is None or not is_stale(holder, self.path):
                return False
            self._content = _content()
            atomic_write(self.path, self._content)
        finally:
            guard.unlink(missing_ok=True)
        return read_holder(self.path) == json.loads(self._content)

    def _keep_alive(self) -> None:
        while not self._lost and not self._released.wait(HEARTBEAT_S):
            self._beat()

    def _beat(self) -> None:
        """Touch the lock if it is still ours; remember whose it is otherwise."""
        try:
            with self.path.open("rb") as stream:
                ours = stream.read() == self._content
                if ours:  # through the open file: a lock that has just replaced ours is never touched
                    os.utime(stream.fileno() if os.utime in os.supports_fd else self.path)
            if ours:
                self._sure = (time.monotonic(), time.time())
                return
            self._lost = _loss(self.path, f"was taken over by {describe(read_holder(self.path) or {})}")
        except FileNotFoundError:
            self._lost = _loss(self.path, "was taken over by a process that has ended meanwhile, or was deleted")
        except OSError as error:  # a file server that is away for a moment
            if self._seconds_since_sure() > STALE_AFTER_S:
                self._lost = _loss(self.path, f"could not be renewed for ten minutes ({one_line(error)})")

    def _seconds_since_sure(self) -> float:
        """Since the lock was last seen to be ours and touched.

        By whichever clock moved more: the monotonic one may stand still while the machine sleeps.
        """
        monotonic, wall = self._sure
        return max(time.monotonic() - monotonic, abs(time.time() - wall))

    def _release(self) -> None:
        self._released.set()
        if self._pid not in (0, os.getpid()):
            return  # a forked child must not remove its parent's lock
        if self._heart is not None:
            self._heart.join(timeout=5.0)
        # Only our own lock is removed: another process may have taken over.
        with suppress(OSError):
            if self._content and self.path.read_bytes() == self._content:
                self.path.unlink()


class WaitingLock(ShardLock):
    """A lock that waits for its holder: one process makes what ``purpose`` names, the others use it afterwards.

    A holder that dies is replaced as soon as its lock is stale. ``until`` ends the waiting without the lock
    (``acquired`` stays False): all who wait can go on at once when what they need is there. Waiting happens in
    the calling thread, so a StopSignals that is ``interruptible()`` ends it. ``print`` says what is waited for.
    """

    def __init__(self, folder: Path, purpose: str, *, until: Callable[[], bool] | None = None) -> None:
        super().__init__(folder)
        self._purpose = purpose
        self._until = until

    def _acquire(self) -> None:
        start, told, pause = time.monotonic(), False, _POLL_S[0]
        while not (self._until is not None and self._until()):
            try:
                if self._attempt():
                    return
            except _HeldError as held:
                if not told and time.monotonic() - start >= _SILENT_WAIT_S:
                    told = True
                    print(f"waiting for {self._purpose}, which is being made by {held}", flush=True)
            time.sleep(pause * random.uniform(0.75, 1.0))  # noqa: S311 - spreads those who wait, nothing secret
            pause = min(pause * 1.3, _POLL_S[1])


def clear_stale(folder: Path) -> None:
    """Remove the lock that a killed process left in ``folder``, where nobody waits for it any more."""
    path = folder / LOCK_NAME
    if path.exists() and not lock_is_live(path):
        with WaitingLock(folder, purpose="a lock"):
            pass


def live_locks(results: Path) -> dict[str, Holder]:
    """Shard folders of a results folder that a live process holds: folder name -> holder."""
    paths = sorted((results / "shards").glob(f"*-of-*/{LOCK_NAME}"))
    now = -math.inf  # without a clock nobody is late
    with suppress(OSError):
        now = server_clock(results / "shards") if paths else now
    live = {}
    for path in paths:
        holder = read_holder(path)
        if holder is not None and not is_stale(holder, path, now):
            live[path.parent.name] = holder
    return live


def lock_is_live(path: Path) -> bool:
    """Does a live process hold this lock file?"""
    holder = read_holder(path)
    return holder is not None and not is_stale(holder, path)


def read_holder(path: Path, tries: int = 10) -> Holder | None:
    """Who holds a lock; None when there is none; an empty dict when its maker has not filled it yet."""
    for attempt in range(tries):
        time.sleep(0.05 if attempt else 0.0)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        with suppress(ValueError, RecursionError):
            holder = json.loads(content)
            return holder if isinstance(holder, dict) else {}
    return {}


def is_stale(holder: Holder, path: Path, now: float | None = None) -> bool:
    """Is the holder surely gone, or silent for too long? ``now``: see :func:`heartbeat_age`."""
    if holder and _is_gone(holder, identity()):
        return True
    age = heartbeat_age(path, now)
    return age is not None and age > (STALE_AFTER_S if holder else _EMPTY_GRACE_S)


def heartbeat_age(path: Path, now: float | None = None) -> float | None:
    """Seconds since a lock was last touched; None when there is no telling.

    Both moments are the file server's: hosts' clocks differ. ``now`` (unix seconds) is for readers that may not
    write a file there.
    """
    with suppress(OSError):
        with path.open("rb") as stream:  # opening makes NFS ask its server instead of a cache
            touched = os.fstat(stream.fileno()).st_mtime
        return (server_clock(path.parent) if now is None else now) - touched
    return None


def server_clock(folder: Path) -> float:
    """What time it is (unix seconds) for the file server that holds ``folder``: a new file's time."""
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=folder)
    try:
        os.utime(name)
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def describe(holder: Holder) -> str:
    """A holder in words."""
    if not holder:
        return "a process that has just started"
    job = holder.get("slurm_task") or holder.get("slurm_job")
    words = f", Slurm job {job}" if job else ""
    return f"pid {holder.get('pid')} on {holder.get('host')}{words}, since {holder.get('since')}"


def identity() -> Holder:
    """This process, as its locks and records name it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_ticks": _start_ticks(os.getpid()),
        "boot": _read_text("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _pid_namespace(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_task": f"{array}_{task}" if array and task else "",
        "slurm_restarts": _whole(os.environ.get("SLURM_RESTART_COUNT")),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _content() -> bytes:
    # The token tells two locks of one process apart.
    return json.dumps({**identity(), "token": secrets.token_hex(4)}, sort_keys=True).encode() + b"\n"


def _refusal(path: Path, holder: Holder) -> str:
    return (
        f"shard {path.parent.name} of this results folder is being worked on by {describe(holder)}. "
        f"Wait for it or stop it. A process that died is noticed {STALE_AFTER_S / 60:.0f} minutes after its last "
        f"sign of life; if it is surely dead, you can delete {path}"
    )


def _loss(path: Path, what: str) -> str:
    return (
        f"the lock {path} of this process {what}, so this process stops: two must not work on one shard. "
        "It was probably suspended, or cut off from the file system, for more than "
        f"{STALE_AFTER_S / 60:.0f} minutes. Finished heat maps are kept"
    )


def _is_gone(holder: Holder, me: Holder) -> bool:
    same_job = bool(me["slurm_job"]) and holder.get("slurm_job") == me["slurm_job"]
    if same_job and me["slurm_restarts"] > _whole(holder.get("slurm_restarts")):
        return True
    if holder.get("host") != me["host"]:
        return False
    if holder.get("boot") != me["boot"]:
        return True
    if holder.get("pid_namespace") != me["pid_namespace"]:
        return False
    return _start_ticks(_whole(holder.get("pid"))) != holder.get("start_ticks")


def _whole(value: object) -> int:
    """A whole number, 0 for anything else."""
    with suppress(ValueError, TypeError, OverflowError):
        return int(value)  # type: ignore[call-overload, no-any-return]
    return 0


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
    except (ProcessLookupError, OverflowError):
        return ""
    except PermissionError:
        pass
    return "alive"


def _read_text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return ""
