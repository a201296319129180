"""Level 0 of the plan: the readers' rows as parts (Arrow streams), read by several processes.

The readers stay the one place that knows what a row means. A part holds the rows of one slice of the data set
(:meth:`FileReader.slices`) in order, numbered from 0; what their numbers are in the whole data set is known
when all parts are there.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from heatlens.questions.expand import share_count, usable_image
from heatlens.questions.readers.base import FileReader
from heatlens.questions.readers.sources import SourceFile
from heatlens.questions.rows import QuestionRow, Reader, Region

if TYPE_CHECKING:
    from heatlens.questions.readers.plain import PlainRows

_log = logging.getLogger(__name__)

SLICE_BYTES = 16 << 20
SMALL = 32 << 20
"""Bytes of data set below which starting processes takes longer than reading."""
BATCH_ROWS = 16_384
BATCH_CHARACTERS = 32 << 20
"""Text that a batch may hold before it is written, whatever its rows."""

_SURROGATE = re.compile("[\ud800-\udfff]")
TEXTS = (
    "reason",  # why the row cannot be used, or ""
    "bad_image",  # of a row that cannot be used: the path as people should see it
    *("source", "question_id", "question", "answer"),
    "choices",  # JSON list of texts, or ""
    *("question_type", "content_type"),
    "regions",  # JSON list of [name, box or null, frame], or ""
    *("split", "view"),
    "notes",  # JSON list of texts, or ""
)
SCHEMA = pa.schema(
    [
        ("image", pa.dictionary(pa.int32(), pa.string())),  # canonical; null when the row has no usable path
        ("shares", pa.int32()),  # heat maps of the row
        *((name, pa.string()) for name in TEXTS),
    ]
)
OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class Part(NamedTuple):
    """A written part and the number of its rows."""

    path: Path
    rows: int


def write_parts(reader: Reader, folder: Path, mode: str, workers: int) -> list[Part]:
    """All rows of the data set as parts in ``folder``, in data-set order. Raises DataSetError as the reader does."""
    if not isinstance(reader, FileReader):
        return [_write(_batches(reader.rows(), mode), folder, 0)]
    size = sum(path.stat().st_size for path in reader.files())
    slices = reader.slices(SLICE_BYTES)
    if workers < 2 or size < SMALL or multiprocessing.current_process().daemon:
        return [_write_slice(reader, piece, folder, number, mode) for number, piece in enumerate(slices)]
    try:
        return list(_in_processes(reader, slices, folder, mode, workers))
    except BrokenProcessPool:
        # Out of memory, or a caller's script without a __main__ guard: slower is better than not at all.
        _log.warning("the processes that read the data set ended without a word; reading it in one process")
        return write_parts(reader, folder, mode, workers=1)


def _in_processes(
    reader: FileReader, slices: Iterable[SourceFile], folder: Path, mode: str, workers: int
) -> Iterator[Part]:
    """The parts in order. Files are still being cut while the first slices are read, a few ahead of the readers."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        waiting: deque[Future[Part]] = deque()
        try:
            for number, piece in enumerate(slices):
                waiting.append(pool.submit(_write_slice, reader, piece, folder, number, mode))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """A worker whose parent was killed would wait for work for ever. Rows make no cycles to be collected."""
    gc.disable()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _write_slice(reader: FileReader, piece: SourceFile, folder: Path, part: int, mode: str) -> Part:
    return _write(_read(reader, piece, mode), folder, part)


def _read(reader: FileReader, piece: SourceFile, mode: str) -> Iterator[pa.RecordBatch]:
    """A slice's rows: as columns where the reader has them, else one by one."""
    for block, plain in reader.blocks(piece):
        if plain:
            yield _plain_table(plain, mode)
        else:
            yield from _batches(reader.rows_of(block), mode)


def _batches(rows: Iterable[QuestionRow], mode: str) -> Iterator[pa.RecordBatch]:
    """Rows in batches."""
    batch: list[QuestionRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.question) + len(row.answer)
        if len(batch) >= BATCH_ROWS or characters > BATCH_CHARACTERS:
            yield _table(batch, mode)
            batch, characters = [], 0
    if batch:
        yield _table(batch, mode)


def _write(batches: Iterable[pa.RecordBatch], folder: Path, part: int) -> Part:
    """Write batches as part number ``part``."""
    path, count = folder / f"part-{part}.arrow", 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA, options=OPTIONS) as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return Part(path, count)


def _table(rows: list[QuestionRow], mode: str) -> pa.RecordBatch:
    """Rows as the columns of :data:`SCHEMA`. Whole columns at a time: that costs a third of row by row."""
    cells: dict[str, Sequence[Any]] = dict(zip(QuestionRow._fields, zip(*rows, strict=True), strict=True))
    found = list(map(usable_image, cells["image_path"]))
    cells["reason"] = [
        error or (f"{source}: {fault}" if fault else "")
        for error, source, (_, fault) in zip(cells["error"], cells["source"], found, strict=True)
    ]
    cells["bad_image"] = [
        (image or path) if reason else ""
        for reason, path, (image, _) in zip(cells["reason"], cells["image_path"], found, strict=True)
    ]
    regions_of = cells["regions"]
    cells["choices"] = [_json(value) if value else "" for value in cells["choices"]]
    cells["notes"] = [_json(value) if value else "" for value in cells["notes"]]
    cells["regions"] = [f"[{','.join(map(_region, value))}]" if value else "" for value in regions_of]
    columns = {name: _texts(cells[name]) for name in TEXTS}
    columns["image"] = _texts([image for image, _ in found]).dictionary_encode()
    columns["shares"] = pa.array([share_count(regions, mode) for regions in regions_of], pa.int32())
    return pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _plain_table(rows: PlainRows, mode: str) -> pa.RecordBatch:
    """Plain rows as the columns of :data:`SCHEMA`. Each of their regions has a name, so it has its own heat map."""
    count = rows.region_count
    shares = np.ones_like(count) if mode == "joint" else np.maximum(count, 1)
    columns = rows._asdict() | {"shares": pa.array(shares)}
    nothing = pa.repeat("", len(count))
    return pa.RecordBatch.from_arrays([columns.get(name, nothing) for name in SCHEMA.names], schema=SCHEMA)


# What json.JSONEncoder makes for every single call, made once.
_encode = c_make_encoder(None, float, encode_basestring, None, ":", ",", False, False, True)


def _json(value: tuple[Any, ...]) -> str:
    """A tuple as a JSON list, lone surrogates and all; Python's text of a float reads back as the same float."""
    return "".join(_encode(value, 0))


class _Known(dict[Any, str]):
    """JSON texts of values that repeat: names of regions and whole numbers."""

    def __missing__(self, value: Any) -> str:
        text = "".join(_encode(value, 0))
        if value and len(self) < 1 << 14:  # 0.0 and -0.0 are one key and two texts
            self[value] = text
        return text


_known = _Known()


def _region(region: Region) -> str:
    name, box, frame = region
    if box is None:
        return _json(region)
    x1, y1, x2, y2 = box
    return f"[{_known[name]},[{_known[x1]},{_known[y1]},{_known[x2]},{_known[y2]}],{_known[frame]}]"


def _texts(cells: Sequence[str | None]) -> pa.Array:
    """An Arrow column; half a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD as in the readers."""
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:
        return pa.array([cell and _SURROGATE.sub("\ufffd", cell) for cell in cells], pa.string())
