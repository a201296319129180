"""What all file readers share: files in order, layout check, row numbers, errors of the file system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from heatlens.errors import DataSetError
from heatlens.questions.readers.draft import unusable
from heatlens.questions.readers.jsonfiles import Record
from heatlens.questions.readers.sources import UNREADABLE, SourceFile, cut_lines, find_files
from heatlens.questions.rows import QuestionRow, question_type_named

if TYPE_CHECKING:
    from heatlens.questions.readers.plain import PlainRows


class FileReader:
    """A data set in files. Subclasses give ``records`` (what a file holds) and ``row`` (what a record means).

    Images are looked up in the folder that DATASET_PATH lies in unless IMAGE_ROOT says otherwise. Question
    ids are "<file stem>:<id within the file>", because the formats number their questions per file.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sources = find_files(path, self.suffixes)

    def files(self) -> list[Path]:
        """The files in data-set order."""
        return [source.path for source in self._sources]

    def image_root(self) -> Path | None:
        """The folder of the data set."""
        return self._path if self._path.is_dir() else self._sources[0].path.parent

    def rows(self) -> Iterator[QuestionRow]:
        """All rows, streamed. Raises DataSetError for a file that cannot be read or has another layout."""
        number = 0
        for source in self._sources:
            for row in self.rows_of(source, number):
                yield row
                number = row.number + 1

    def rows_of(self, source: SourceFile, number: int = 0) -> Iterator[QuestionRow]:
        """The rows of one file or slice; ``number`` is the first one's."""
        with reading(source):
            for record in self.records(source):
                if record.data is None:
                    yield self.broken(record, source, number)
                else:
                    yield self.row(record, source, number)
                number += 1

    def slices(self, size: int) -> Iterator[SourceFile]:
        """The data set in pieces of about ``size`` bytes for :meth:`rows_of`, in data-set order.

        Plain JSON-lines files are cut at line breaks, after a look at their layout; other files stay whole.
        """
        for source in self._sources:
            with reading(source):
                if source.path.name.lower().endswith(".gz") or not self.has_lines(source):
                    yield source
                    continue
                next(self.records(source), None)
                yield from cut_lines(source, size)

    def blocks(self, piece: SourceFile) -> Iterator[tuple[SourceFile, PlainRows | None]]:
        """A file or slice in parts for :meth:`rows_of`, in order, each with its rows if they are read as columns."""
        yield piece, None

    def has_lines(self, source: SourceFile) -> bool:  # noqa: ARG002
        """Whether the file's records are its lines, read by :func:`~.jsonfiles.read_lines`."""
        return False

    def records(self, source: SourceFile) -> Iterator[Record]:
        """The file's records, its layout checked."""
        raise NotImplementedError

    def row(self, record: Record, source: SourceFile, number: int) -> QuestionRow:
        """A record with data as a row."""
        raise NotImplementedError

    def broken(self, record: Record, source: SourceFile, number: int) -> QuestionRow:
        """A record that could not be parsed. What the file's name says about its questions still holds."""
        identity = f"{source.stem}:row{record.place}"
        return unusable(number, place(source, record), identity, record.error, type_of_file(source.stem))


def place(source: SourceFile, record: Record) -> str:
    """Where a record stands, for people: "file.jsonl:7"."""
    return f"{source.label}:{record.place}"


@lru_cache(maxsize=64)
def type_of_file(stem: str) -> str:
    """The question type that a file's name tells ("open_ended_question.jsonl"), or ""."""
    return question_type_named(stem.rpartition("/")[2], loose=False)


@contextmanager
def reading(source: SourceFile) -> Iterator[None]:
    """What goes wrong while ``source`` is read is an error of the data set."""
    try:
        yield
    except UNREADABLE as error:
        raise DataSetError(f"{source.path}: cannot be read: {error}") from error
