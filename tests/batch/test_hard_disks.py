"""Real disks that are full, and folders that the user may not write: a clear end, nothing half-written, resumable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heatlens.batch.lock import ShardLock, live_locks
from heatlens.errors import EXIT_ENVIRONMENT, EXIT_OK, SetupError
from tests.batch.kit import FakeExplainer, FakeStage, go, leftovers, make_settings, pictures, record

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a disk and become another user"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=32m,mode=755", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip(f"this place allows no mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: a failed test may still have a file open there.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Until not one byte more fits."""
    with (disk / "ballast").open("ab", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError:
                continue


class Filling(FakeStage):
    """Fills the disk when its tables are to be written."""

    def __init__(self, disk: Path) -> None:
        super().__init__()
        self._disk = disk

    def write_index(self, *args: Any, **kwargs: Any) -> list[Path]:
        fill(self._disk)
        return super().write_index(*args, **kwargs)


def at_call(number: int, action: Callable[[], None]) -> Callable[[str], None]:
    """A function that does ``action`` when it is called for the ``number``-th time."""
    calls: list[str] = []

    def count(text: str) -> None:
        calls.append(text)
        if len(calls) == number:
            action()

    return count


WHEN = {
    "before the first explanation": lambda disk: {"explainer": FakeExplainer(at_call(1, lambda: fill(disk)))},
    "between explanations": lambda disk: {"explainer": FakeExplainer(at_call(4, lambda: fill(disk)))},
    "before a picture": lambda disk: {"stage": FakeStage(at_call(3, lambda: fill(disk)))},
    "before the last picture": lambda disk: {"stage": FakeStage(at_call(7, lambda: fill(disk)))},
    "before the tables": lambda disk: {"stage": Filling(disk)},
}


def uninterrupted(disk: Path) -> dict[str, bytes]:
    """What a run gives whose disk has room, at the same place."""
    settings = make_settings(disk)
    assert go(settings).code == EXIT_OK
    wanted = pictures(settings.results_dir)
    shutil.rmtree(settings.results_dir)
    return wanted


@pytest.mark.parametrize("when", list(WHEN))
def test_a_disk_that_fills_up_ends_the_run_and_the_same_command_continues(disk, when):
    wanted = uninterrupted(disk)
    settings = make_settings(disk)
    with pytest.raises(SetupError, match="the disk is full") as caught:
        go(settings, **WHEN[when](disk))
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    assert "0 MiB free" in str(caught.value)
    assert "the same command continues" in str(caught.value)
    assert leftovers(settings.results_dir) == []
    assert live_locks(settings.results_dir) == {}
    assert not (settings.results_dir / "vqa_manifest.csv").exists()
    # What is there is whole.
    for name, content in pictures(settings.results_dir).items():
        assert content == wanted.get(name), name
    with pytest.raises(SetupError, match="the disk is full"):
        go(settings)  # nobody made room
    assert leftovers(settings.results_dir) == []
    (disk / "ballast").unlink()
    assert go(settings).code == EXIT_OK
    assert pictures(settings.results_dir) == wanted
    assert record(settings.results_dir)["status"] == "complete"
    assert leftovers(settings.results_dir) == []


def test_a_disk_that_is_full_from_the_start(disk):
    wanted = uninterrupted(disk)
    settings = make_settings(disk)
    fill(disk)
    with pytest.raises(SetupError, match="the disk is full") as caught:
        go(settings)
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    assert leftovers(disk) == []
    (disk / "ballast").unlink()
    assert go(settings).code == EXIT_OK
    assert pictures(settings.results_dir) == wanted


def test_no_empty_lock_on_a_full_disk(disk):
    folder = disk / "shards/0000-of-0001"
    folder.mkdir(parents=True)
    fill(disk)
    with pytest.raises(SetupError, match="the disk is full"), ShardLock(folder):
        pass
    assert list(folder.iterdir()) == []


# The rehearsal loads all modules while they can still be read: Python may lie in root's home.
_AS_NOBODY = """
import os, sys
from pathlib import Path
from heatlens.guard import guarded
from tests.batch.kit import go, make_settings
go(make_settings(Path(sys.argv[1])))
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))
settings = make_settings(Path(sys.argv[2]), UMASK="022")
print("--- as another user", flush=True)
sys.exit(guarded(lambda: go(settings).code))
"""


def as_nobody(folder: Path, rehearsal: Path) -> tuple[int, str, str]:
    """Run the fakes in ``folder`` as a user without rights: exit code, standard output and error."""
    rehearsal.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    words = [sys.executable, "-c", _AS_NOBODY, str(rehearsal), str(folder), str(NOBODY)]
    child = subprocess.run(words, cwd="/", env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "--- as another user" in child.stdout, child.stderr
    return child.returncode, child.stdout.partition("--- as another user")[2], child.stderr


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may read, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        before = os.umask(0o022)
        try:
            yield Path(name)
        finally:
            os.umask(before)


def owned_by_root(folder: Path) -> None:
    """RESULTS_DIR is there and belongs to somebody else."""
    make_settings(folder).results_dir.mkdir()


def no_folder(folder: Path) -> None:
    """RESULTS_DIR would have to be made where this user may not."""
    make_settings(folder)


def half_done_by_root(folder: Path) -> None:
    """Somebody else's run, to be continued."""
    settings = make_settings(folder, UMASK="022")
    go(settings)
    (settings.results_dir / "run.json").unlink()
    next(settings.results_dir.rglob("*.png")).unlink()


def private_to_root(folder: Path) -> None:
    """Somebody else's run that this user may not even read."""
    go(make_settings(folder, UMASK="077"))


@pytest.mark.parametrize("state", [owned_by_root, no_folder, half_done_by_root, private_to_root])
def test_a_results_folder_that_this_user_may_not_write(shared, tmp_path, state):
    state(shared)
    results = shared / "results"
    before = sorted(map(str, results.rglob("*")))
    code, _, error = as_nobody(shared, tmp_path / "rehearsal")
    assert code == EXIT_ENVIRONMENT, error
    assert "this user may not write there" in error
    assert str(results) in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    assert sorted(map(str, results.rglob("*"))) == before


def test_a_folder_of_ones_own_needs_no_root(shared, tmp_path):
    """The test's own test: as this user, with a folder that may be written, all is well."""
    make_settings(shared).results_dir.mkdir()
    os.chown(shared / "results", NOBODY, NOBODY)
    code, _, error = as_nobody(shared, tmp_path / "rehearsal")
    assert code == EXIT_OK, error
    assert (shared / "results/vqa_manifest.csv").stat().st_uid == NOBODY
