"""From DATASET_PATH (a file, a folder or a glob) to the files of a data set, in data-set order."""

from __future__ import annotations

import glob
import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from heatlens.errors import DataSetError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file. ``label`` names it in messages, ``stem`` in question ids; both are unique in the data set."""

    path: Path
    label: str
    stem: str


def find_files(path: Path, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """The files that ``path`` names, sorted by name in a folder or glob.

    A folder is read one level deep and only for ``suffixes`` (hidden files are skipped); a file or a glob is
    taken at its word. Raises DataSetError naming what is not there.
    """
    text = os.fspath(path)
    if path.is_dir():
        found = [file for file in path.iterdir() if _wanted(file, suffixes)]
        if not found:
            raise DataSetError(f"DATASET_PATH: the folder {path} holds no file *{', *'.join(suffixes)}")
    elif path.exists():
        found = [path]
    elif glob.has_magic(text):
        names = glob.glob(text, recursive=True)  # noqa: PTH207 (an absolute pattern; Path.glob takes none)
        found = [file for name in names if (file := Path(name)).is_file()]
        if not found:
            raise DataSetError(f"DATASET_PATH: no file matches {path}")
    else:
        raise DataSetError(f"DATASET_PATH: {path} is not there{_first_missing(path)}")
    return _labelled(sorted(found, key=str))


def _wanted(file: Path, suffixes: tuple[str, ...]) -> bool:
    name = file.name.lower()
    return not name.startswith(".") and name.endswith(suffixes) and file.is_file()


def _first_missing(path: Path) -> str:
    """Where the path ends to exist: a wrong mount shows at once."""
    for parent in path.absolute().parents:
        if parent.exists():
            return f" (its folder {parent} is)" if parent == path.absolute().parent else f" (only {parent} is)"
    return ""


def _labelled(files: list[Path]) -> list[SourceFile]:
    """Labels: the file's name, or its path below the common folder where names repeat; the same for stems."""
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        common = Path(os.path.commonpath([file.parent for file in files]))
        names = [file.relative_to(common).as_posix() for file in files]
    stems = [os.path.splitext(name.removesuffix(".gz"))[0] for name in names]  # noqa: PTH122 (keeps the folder)
    if len(set(stems)) < len(stems):
        stems = names
    return [SourceFile(*parts) for parts in zip(files, names, stems, strict=True)]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """``path`` as bytes, unpacked if its name ends in .gz."""
    with path.open("rb") as stream:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield stream
