"""Annotation files as records with a line number: CSV, JSON and Parquet, read by the data sets' own readers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from heatlens.errors import ConfigError, DataSetError, ItemError, one_line
from heatlens.files import safe_relative
from heatlens.questions.readers.base import reading
from heatlens.questions.readers.jsonfiles import MAX_ITEM, Record, read_json
from heatlens.questions.readers.layouts import look
from heatlens.questions.readers.parquet import read_parquet
from heatlens.questions.readers.sources import UNREADABLE, SourceFile, opened
from heatlens.questions.readers.table import csv_header, read_csv

MOST_BYTES = 4 * MAX_ITEM
"""of a file that is one JSON object"""


def file_of(name: str, path: Path | None, what: str) -> SourceFile:
    """The one file that ``--truth NAME:PATH`` names. ConfigError when it is not there."""
    if path is None:
        raise ConfigError(f"--truth={name}: which file? --truth {name}:PATH; {what}")
    if not path.is_file():
        raise ConfigError(f"--truth={name}:{path}: {'this is a folder' if path.is_dir() else 'not there'}; {what}")
    return SourceFile(path, path.name, path.stem)


def records(name: str, source: SourceFile, known: str) -> tuple[set[str], Iterator[Record]]:
    """(columns or keys at the head, the rows) of a table. ConfigError for a file that is none."""
    try:
        with reading(source):
            container, keys = look(source)
            rows = {
                "CSV": lambda: read_csv(source),
                "Parquet": lambda: read_parquet(source, sorted(keys)),
                "JSON lines": lambda: read_json(source),
                "JSON list": lambda: read_json(source),
            }.get(container)
            twice = _twice(source) if container == "CSV" else ""
    except DataSetError as error:
        raise ConfigError(f"--truth={name}: {error}") from None
    if rows is None:
        wrong_layout(name, source, container, keys, known)
    if twice:
        raise ConfigError(f"--truth={name}: {source.path} has the column {twice} more than once: which one counts?")
    return keys, _streamed(name, source, rows())


def _twice(source: SourceFile) -> str:
    """The first column name that a CSV's header has more than once; empty ones aside."""
    return next((name for name, times in Counter(csv_header(source)).items() if name.strip() and times > 1), "")


def _streamed(name: str, source: SourceFile, rows: Iterable[Record]) -> Iterator[Record]:
    try:
        with reading(source):
            yield from rows
    except DataSetError as error:
        raise ConfigError(f"--truth={name}: {error}") from None


def read_object(name: str, source: SourceFile, known: str) -> dict[str, Any]:
    """A file that is one JSON object."""
    try:
        with opened(source.path) as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"--truth={name}: {source.path} has more than {MOST_BYTES >> 20} MiB; {known}")
        found = json.loads(data.decode("utf-8-sig"))
    except UNREADABLE as error:
        raise ConfigError(f"--truth={name}: {source.path} cannot be read: {one_line(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--truth={name}: {source.path} is not JSON ({one_line(error)[:120]}); {known}") from None
    if not isinstance(found, dict):
        wrong_layout(name, source, "a JSON list" if isinstance(found, list) else "JSON", (), known)
    return found


def wrong_layout(name: str, source: SourceFile, container: str, keys: Iterable[str], known: str) -> NoReturn:
    """What was found, and what is known."""
    listed = sorted(map(str, keys))
    names = ", ".join(listed[:30]) + (" ..." if len(listed) > 30 else "")
    raise ConfigError(
        f"--truth={name}: {source.path} is not of this layout. Found {container} with: {names or 'nothing'}; {known}"
    )


def beside(path: str) -> PurePosixPath:
    """A mask's path, relative to the folder of its table. ItemError for one that leads out of it."""
    try:
        return safe_relative(path)
    except ItemError as error:
        reason = error.reason.replace("image_path", "mask", 1).replace("IMAGE_ROOT", "its table's folder")
        raise ItemError("row", reason) from None


def number(value: Any) -> float | None:
    """A cell as a finite number; None for everything else."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(values: Iterable[Any]) -> tuple[float, ...] | None:
    """Cells as finite numbers, or None if one is none."""
    found = [number(value) for value in values]
    return None if None in found else tuple(one for one in found if one is not None)


def text(value: Any) -> str:
    """A cell as text; "" for everything that is neither a text nor a number."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else ""
