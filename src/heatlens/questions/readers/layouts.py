"""Which layouts are known, which one a file has, and what to say when it is another than DATASET names."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice

from heatlens.errors import DataSetError
from heatlens.questions.readers import columns
from heatlens.questions.readers.jsonfiles import Record, json_container, read_json, read_lines
from heatlens.questions.readers.sources import SourceFile, opened

HEAD = 20
"""Rows at the head of a file that decide its layout."""
_UTF16 = "UTF-16 text (save it as UTF-8)"
NEVER_LINES = (_UTF16, "binary data", "Parquet")


@dataclass(frozen=True)
class Layout:
    """How a data set format is recognised: its container formats and the keys that a row must have."""

    dataset: str
    containers: tuple[str, ...]
    keys: str
    matches: Callable[[set[str]], bool]
    touches: Callable[[set[str]], bool]


def _layout(dataset: str, containers: tuple[str, ...], required: set[str]) -> Layout:
    keys = ", ".join(sorted(required))
    return Layout(dataset, containers, keys, required.issubset, lambda found: bool(required & found))


LAYOUTS = {
    layout.dataset: layout
    for layout in (
        _layout("gemex", ("JSON lines", "JSON list"), {"question", "image_path"}),
        _layout("gemex_train", ("JSON list", "JSON lines"), {"conversations", "image"}),
        _layout("thinkvg", ("Parquet",), {"image_path", "question", "response"}),
        Layout("table", ("CSV", "JSON lines", "JSON list", "Parquet"),
               f"{'|'.join(columns.IMAGE)} and {'|'.join(columns.QUESTION)}",
               lambda found: columns.usable(found), lambda found: columns.touched(found)),
    )
}  # fmt: skip


def checked_json(dataset: str, source: SourceFile) -> Iterator[Record]:
    """The records of a JSON file, after a look at the first ones: DataSetError if this is another layout."""
    if source.span:
        return read_lines(source)
    container, stream = json_container(source), read_json(source)
    layout, head, keys = LAYOUTS[dataset], list[Record](), set[str]()
    for record in islice(stream, HEAD):
        head.append(record)
        keys.update(record.data or ())
        if layout.matches(keys):
            return chain(head, stream)
    if keys and (not layout.touches(keys) or fitting(container, keys)):
        raise unknown_layout(dataset, container, source, keys)
    if head and not keys:
        refuse_foreign(dataset, source, sure=len(head) == HEAD)
    return chain(head, stream)


def fitting(container: str, keys: set[str]) -> list[str]:
    """The DATASET values whose layout has this container and these keys."""
    return [name for name, layout in LAYOUTS.items() if container in layout.containers and layout.matches(keys)]


def unknown_layout(dataset: str, container: str, source: SourceFile, keys: Iterable[str]) -> DataSetError:
    """The error text: what was found, what would fit, what is known."""
    found = sorted(map(str, keys))
    names = ", ".join(found[:30]) + (" ..." if len(found) > 30 else "")
    fits = fitting(container, set(found))
    hint = f"DATASET={fits[0]} reads this layout" if fits else "no known layout fits"
    known = "; ".join(
        f"{layout.dataset}: {' or '.join(layout.containers)} with {layout.keys}" for layout in LAYOUTS.values()
    )
    return DataSetError(
        f"{source.path}: not the layout of DATASET={dataset}. Found {container} with: {names or 'nothing'}; "
        f"{hint}. Known layouts: {known}"
    )


def refuse_foreign(dataset: str, source: SourceFile, *, sure: bool = False) -> None:
    """Raise DataSetError if the file is plainly of another container format, or ``sure`` not this one."""
    container, keys = look(source)
    other = container not in LAYOUTS[dataset].containers
    if other and (sure or container in NEVER_LINES or fitting(container, keys)):
        raise unknown_layout(dataset, container, source, keys)
    if sure:
        raise DataSetError(
            f"{source.path}: none of the first {HEAD} rows can be read; not a file for DATASET={dataset}?"
        )


def look(source: SourceFile) -> tuple[str, set[str]]:
    """(container format, keys or columns) of a file, from its head alone."""
    with opened(source.path) as stream:
        head = stream.read(1 << 16)
    if head[:4] == b"PAR1":
        from heatlens.questions.readers.parquet import column_names

        return "Parquet", set(column_names(source.path))
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _UTF16, set()
    text = head.decode("utf-8-sig", "surrogateescape").lstrip()
    if text[:1] in ("[", "{"):
        records: list[Record] = []
        with suppress(DataSetError):  # a list that breaks off: what came before tells its keys
            records.extend(islice(read_json(source), HEAD))
        return "JSON list" if text[0] == "[" else "JSON lines", set().union(*(record.data or () for record in records))
    if "\0" in text:
        return "binary data", set()
    line = io.StringIO(text, newline="").readline().rstrip("\r\n")  # a lone "\r" ends it, too, as in read_csv
    return "CSV", set(next(csv.reader([line], delimiter=columns.delimiter(line)), []))
