"""The results folder's file system: what the runner relies on, tried out, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from heatlens.doctor.findings import OK, PROBLEM, WARNING, Finding
from heatlens.errors import one_line
from heatlens.files import atomic_write, temporary_folder

if TYPE_CHECKING:
    from heatlens.config import Settings

CHECK = "results folder"
SMALL_DISK = 5e9  # bytes: some ten thousand overlays of 1024 pixels
CLOCKS_S = 5.0  # seconds that two machines' clocks may differ without anybody wondering


def results(settings: Settings) -> Iterator[Finding]:
    """Space, rights, atomic rename, O_EXCL, time stamps and the file server's clock where RESULTS_DIR will be."""
    place = existing(settings.results_dir)
    if not place.is_dir():
        yield Finding(CHECK, PROBLEM, f"RESULTS_DIR={settings.results_dir}: {place} is a file", "name another folder")
        return
    where = str(place) if place == settings.results_dir else f"{settings.results_dir} (to be made in {place})"
    try:
        with temporary_folder(place) as folder:
            faults, behind = try_out(folder)
    except OSError as error:
        yield Finding(
            CHECK,
            PROBLEM,
            f"{where} cannot be written: {one_line(error)}",
            "RESULTS_DIR needs a folder that you may write",
        )
        return
    for fault in faults:
        yield Finding(
            CHECK,
            PROBLEM,
            f"{where}: {fault}",
            "runs need a file system that keeps these promises: NFS, Lustre, BeeGFS and local disks do",
        )
    free = shutil.disk_usage(place).free
    text = f"{where}: {free / 1e9:.1f} GB free"
    if free < SMALL_DISK:
        yield Finding(CHECK, WARNING, text, "`heatlens plan --config FILE.conf` says how much the run needs")
    elif not faults:
        yield Finding(CHECK, OK, f"{text}, atomic rename, O_EXCL and time stamps work")
    if abs(behind) > CLOCKS_S:
        yield Finding(
            "clock",
            WARNING,
            f"the file server's is {abs(behind):.0f} s {'behind' if behind > 0 else 'ahead of'} this machine's",
            "locks do not mind; times of files and of run.json will not fit together (NTP)",
        )
    else:
        yield Finding("clock", OK, f"the file server's clock and this machine's differ by {abs(behind):.1f} s")


def existing(path: Path) -> Path:
    """``path``, or its nearest parent that is there."""
    return next((one for one in (path, *path.parents) if one.exists()), Path("/"))


def try_out(folder: Path) -> tuple[list[str], float]:
    """What does not work in ``folder`` (empty: all does), and how many seconds its clock is behind ours."""
    faults = []
    path = folder / "old"
    before = time.time()
    atomic_write(path, "1")
    behind = (before + time.time()) / 2 - path.stat().st_mtime
    atomic_write(path, "22")  # a rename onto an existing file
    if path.read_text() != "22" or [one.name for one in folder.iterdir()] != ["old"]:
        faults.append("a rename onto an existing file does not replace it")
    if not _exclusive(folder / "lock"):
        faults.append("O_EXCL lets two processes make the same lock file")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    if abs(path.stat().st_mtime - 1_600_000_000) > 2:
        faults.append("time stamps of files cannot be set")
    return faults, behind


def _exclusive(path: Path) -> bool:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(path, flags))
    try:
        os.close(os.open(path, flags))
    except FileExistsError:
        return True
    return False


def rights(settings: Settings) -> Iterator[Finding]:
    """UMASK: films and questions are restricted data, and so are pictures of them."""
    taken = int(settings.umask, 8)
    text = f"UMASK={settings.umask}"
    if taken & 0o007 != 0o007:
        yield Finding(
            "file rights",
            WARNING,
            f"{text} lets everybody on this machine at the results",
            "UMASK=077 (you alone) or 027 (your group reads)",
        )
    else:
        who = "you alone" if taken & 0o070 == 0o070 else "you and your group"
        yield Finding("file rights", OK, f"{text}: results are for {who}")
