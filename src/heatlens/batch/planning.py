"""The plan of a run: made once by whichever process comes first, read by all others.

It lies in ``shards/plan/`` of the results folder. Making that of a large data set takes a process of its own,
so that its memory is given back before the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from heatlens.batch.apart import run_apart_if_large
from heatlens.batch.lock import LOCK_NAME, WaitingLock, clear_stale, lock_is_live
from heatlens.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from heatlens.batch.parts import Parts
    from heatlens.questions.plan import Plan
    from heatlens.questions.rows import Reader

PLAN_FOLDER = Path("shards/plan")


def shared_plan(
    parts: Parts, reader: Reader, image_root: Path, digest: str, folder: Path, *, apart: bool = True
) -> Plan:
    """The plan in ``folder``, made if need be. Of several processes one makes it and the others wait.

    ``digest`` is the data set's. A large one is made ``apart``, in a child process. Raises ConfigError for a
    selection that fits nothing, DataSetError for a data set that cannot be read as a whole.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def questions_are_read() -> bool:
        return parts.plan_begun(reader, folder, digest)

    with WaitingLock(folder, purpose="the plan", until=questions_are_read):
        if not apart or questions_are_read():
            return parts.plan(reader, image_root, folder, digest)
        return run_apart_if_large(reader.files(), parts.plan, reader, image_root, folder, digest)


@contextmanager
def passing_plan(parts: Parts, reader: Reader, image_root: Path, digest: str) -> Iterator[Plan]:
    """A plan that leaves nothing behind: for looking at a data set without starting a run."""
    with TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
        yield shared_plan(parts, reader, image_root, digest, Path(folder), apart=False)


def sweep_plans(results: Path) -> None:
    """Remove what processes that were killed while planning left half-made, unless one is planning now."""
    folder = results / PLAN_FOLDER
    clear_stale(folder)
    if lock_is_live(folder / LOCK_NAME):
        return
    from heatlens.questions.index import remove_leftovers

    remove_leftovers(folder)
