"""From DATASET_PATH (a file, a folder or a glob) to the files of a data set, in data-set order."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from heatlens.errors import DataSetError

UNREADABLE = (OSError, EOFError, zlib.error)
"""What a file raises that cannot be read, or whose .gz is broken or breaks off."""


class Span(NamedTuple):
    """Whole lines of a file: the bytes from ``start`` up to ``end``; the first of them is line ``first_line``."""

    start: int
    end: int
    first_line: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file. ``label`` names it in messages, ``stem`` in question ids; both are unique in the data set.

    With a ``span``, it stands for some lines of a plain JSON-lines file whose layout was checked before.
    """

    path: Path
    label: str
    stem: str
    span: Span | None = None


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


def cut_lines(source: SourceFile, size: int) -> Iterator[SourceFile]:
    """The file in pieces of about ``size`` bytes, cut behind line breaks."""
    window = bytearray(min(size, 1 << 20))
    codes = np.frombuffer(window, np.uint8)  # the same memory: counting so is five times faster than bytes.count
    with source.path.open("rb", buffering=0) as stream:
        position, start, line, breaks = 0, 0, 1, 0
        while length := stream.readinto(window):
            cut = 0
            if position + length - start >= size:
                cut = window.rfind(b"\n", 0, length) + 1  # 0: the line goes on, and the piece with it
            if cut:
                breaks += _breaks(codes[:cut])
                yield replace(source, span=Span(start, position + cut, line))
                start, line, breaks = position + cut, line + breaks, 0
            breaks += _breaks(codes[cut:length])
            position += length
        if position > start:
            yield replace(source, span=Span(start, position, line))


def cut_blocks(source: SourceFile, size: int) -> Iterator[tuple[SourceFile, bytes]]:
    """A piece with a span in blocks of at most ``size`` bytes, cut behind line breaks, each with its lines.

    From a line on that is longer than that, the rest of the piece is one block, without its lines.
    """
    assert source.span is not None
    start, end, line = source.span
    with source.path.open("rb", buffering=0) as stream:
        while start < end:
            stream.seek(start)
            lines = stream.read(min(size, end - start))
            if start + len(lines) < end:
                lines = lines[: lines.rfind(b"\n") + 1]
            position = start + len(lines) if lines else end
            yield replace(source, span=Span(start, position, line)), lines
            start, line = position, line + lines.count(b"\n")


def _breaks(codes: npt.NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(codes == ord("\n")))


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """``path`` as bytes, unpacked if its name ends in .gz."""
    with path.open("rb", buffering=1 << 18) as stream:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield stream
