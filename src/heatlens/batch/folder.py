"""The results folder: whose it is, moving it aside, what lies in it, clear words when unwritable."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from heatlens.batch.fingerprint import FINGERPRINT
from heatlens.batch.lock import describe, live_locks
from heatlens.errors import ConfigError, ResumeError, SetupError, one_line
from heatlens.files import TEMPORARY_PREFIX, atomic_write, remove_temporary, temporaries_in

SUBMISSION = Path("shards/submission")

# What a stage's results folder may hold without being anybody's work.
_HARMLESS = frozenset({".gitkeep", ".gitignore", ".DS_Store"})

_FOLDERS_REMEMBERED = 4096

_ENVIRONMENT_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network file system lost the folder",
}


@contextmanager
def writing(results: Path) -> Iterator[None]:
    """Turn errors that concern the whole file system into a SetupError for people; let others pass."""
    try:
        yield
    except OSError as error:
        reason = _ENVIRONMENT_ERRORS.get(error.errno or 0)
        if reason is None:
            raise
        where = error.filename or results
        raise SetupError(
            f"cannot write the results: {reason} ({where}; {_free_space(results)}). "
            "Finished heat maps are kept; the same command continues once RESULTS_DIR can be written"
        ) from None


def claim(results: Path, *, overwrite: bool) -> Path | None:
    """Make ``results`` ours: create it, continue in it, or (``overwrite``) move the old one aside.

    Returns where the old folder went, or None. A folder with other people's files is refused, with or without
    OVERWRITE: nothing but an earlier run is ever moved.
    """
    if results.exists() and not results.is_dir():
        raise ConfigError(f"RESULTS_DIR={results} is a file; name a folder")
    moved = None
    try:
        with writing(results):
            if _holds_a_run(results) and overwrite and not _same_submission(results):
                moved = _move_aside(results)
            results.mkdir(parents=True, exist_ok=True)
            if not (results / SUBMISSION).exists():
                atomic_write(results / SUBMISSION, _submission() + "\n")
    except OSError as error:
        raise SetupError(f"RESULTS_DIR={results} cannot be made: {one_line(error)}") from None
    return moved


def _holds_a_run(results: Path) -> bool:
    try:
        names = {path.name for path in results.iterdir()} - _HARMLESS
    except FileNotFoundError:
        return False
    # A crash right after the folder's creation leaves shards/ alone, without a fingerprint.
    if (results / FINGERPRINT).exists() or names == {"shards"}:
        return True
    if names := {name for name in names if not name.startswith(TEMPORARY_PREFIX)}:
        examples = ", ".join(sorted(names)[:3])
        raise ResumeError(
            f"RESULTS_DIR={results} is not empty and holds no earlier run of this program ({examples}...); "
            "name a new or an empty folder"
        )
    return False


def _move_aside(results: Path) -> Path:
    if live := live_locks(results):
        shard, holder = next(iter(live.items()))
        raise SetupError(
            f"OVERWRITE=true would move {results} away under a running process (shard {shard}: {describe(holder)})"
        )
    stem = f"{results.name}.old-{time.strftime('%Y%m%d-%H%M%S')}"
    target, number = results.with_name(stem), 1
    while target.exists():
        number += 1
        target = results.with_name(f"{stem}-{number}")
    try:
        results.rename(target)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        raise SetupError(
            f"OVERWRITE=true cannot move {results} aside (a mount point); move its content yourself"
        ) from None
    return target


def _submission() -> str:
    return os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID") or "none"


def _same_submission(results: Path) -> bool:
    """Did this very submission start the folder? Then other array tasks and a requeue continue in it.

    A second call by hand inside one Slurm allocation is a new start, so a plain job must be a requeue.
    """
    if not (os.environ.get("SLURM_ARRAY_JOB_ID") or int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0):
        return False
    with suppress(OSError):
        return (results / SUBMISSION).read_text(encoding="utf-8").strip() == _submission()
    return False


def _free_space(results: Path) -> str:
    for folder in (results, *results.parents):
        with suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
    return "free space unknown"


class Listing:
    """What files a results folder holds, asked folder by folder: one listing instead of one stat per file."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._names: dict[str, frozenset[str]] = {}
        self.temporaries: set[Path] = set()

    def has(self, relative: str) -> bool:
        """Does this file (POSIX path below the results folder) exist?"""
        folder, _, name = relative.rpartition("/")
        return name in self._list(folder)

    def has_all(self, relatives: tuple[str, ...]) -> bool:
        """Do all of these files exist?"""
        return all(self.has(relative) for relative in relatives)

    def look_into(self, *folders: str) -> None:
        """List folders for the sake of :attr:`temporaries`."""
        for folder in folders:
            self._list(folder)

    def _list(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            if len(self._names) >= _FOLDERS_REMEMBERED:
                self._names.clear()
            path = self._results / folder
            try:
                names = frozenset(entry.name for entry in path.iterdir())
            except (FileNotFoundError, NotADirectoryError, ValueError):
                names = frozenset()  # ValueError: a name that no file system can hold
            except OSError as error:
                if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
                    raise
                names = frozenset()
            self.temporaries.update(path / name for name in names if name.startswith(TEMPORARY_PREFIX))
            self._names[folder] = names
        return self._names[folder]


def sweep(results: Path, leftovers: Iterable[Path], idle: Container[str]) -> None:
    """Remove what killed processes left half-written: ``leftovers`` and what lies in ``shards/``.

    Unless another process may be writing just now: one that holds the lock of a shard that is not in ``idle``.
    """
    if any(name not in idle for name in live_locks(results)):
        return
    folders = [results, results / "shards", *(results / "shards").glob("*-of-*")]
    for path in (*leftovers, *(path for folder in folders for path in temporaries_in(folder))):
        remove_temporary(path)
