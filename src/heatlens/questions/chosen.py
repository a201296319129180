"""Level 2 of the plan: which rows of a question index a run is about, and how much work each image is.

``selection-<digest>.npz`` holds a bit per row and a number per image, so reading it back takes no time. A run
of the whole data set needs no such file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from heatlens.errors import DataSetError
from heatlens.files import atomic_file, digest_file, digest_text
from heatlens.questions.index import QuestionIndex
from heatlens.questions.mimic import find_table
from heatlens.questions.select import RowFacts, RowFilter, Rows, Selection, sampled

_log = logging.getLogger(__name__)

FORMAT = 1
_FACTS = ("question_type", "content_type", "split", "view")
_CHUNK = 1 << 16

Mask = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """The selected rows. ``path``: the selection's file, None when every row of the data set is selected.

    ``rows`` counts all of them, ``bad_rows`` those that cannot be used, ``images`` and ``heat_maps`` the usable
    ones. ``digest`` depends on the rows alone, not on how they were asked for.
    """

    path: Path | None
    digest: str
    rows: int
    bad_rows: int
    images: int
    heat_maps: int


def choose(index: QuestionIndex, folder: Path, selection: Selection, stop_after: int | None) -> Chosen:
    """The rows that the selection keys take: read from ``folder`` if they were chosen before, else written there."""
    wanted = RowFilter(selection)
    if not wanted and selection.sample is None and (stop_after is None or stop_after >= index.rows):
        return _everything(index)
    path = folder / f"selection-{_digest(index, selection, stop_after)[:16]}.npz"
    facts = _stored(path)
    if facts is None:
        facts = _write(path, index, wanted, selection, stop_after)
    for text in facts.pop("warnings"):
        _log.warning("%s", text)
    return _everything(index) if facts["rows"] == index.rows else Chosen(path, **facts)


def mask_of(index: QuestionIndex, chosen: Chosen) -> Mask | None:
    """For every row number whether it is selected; None when all are."""
    if chosen.path is None:
        return None
    with np.load(chosen.path) as file:
        return np.unpackbits(file["rows"], count=index.rows).astype(bool)


def weights_of(index: QuestionIndex, chosen: Chosen) -> Weights:
    """The number of heat maps to make of every image of the data set, by image index."""
    if chosen.path is None:
        weights: Weights = pq.read_table(index.images, columns=["heat_maps"], use_threads=False)[0].to_numpy()
        return weights
    with np.load(chosen.path) as file:
        return np.asarray(file["weights"])


def _everything(index: QuestionIndex) -> Chosen:
    whole = Chosen(None, "all", index.rows, index.rows - index.usable, 0, 0)
    weights = weights_of(index, whole)
    return Chosen(None, "all", whole.rows, whole.bad_rows, int(np.count_nonzero(weights)), int(weights.sum()))


def _digest(index: QuestionIndex, selection: Selection, stop_after: int | None) -> str:
    """What the choice depends on, MIMIC-CXR's tables included where they may be asked."""
    tables = []
    for key, text in (("SPLIT", selection.split), ("VIEW", selection.view)):
        if selection.items(text):
            with suppress(DataSetError, OSError):  # no table: a data set with columns of its own needs none
                tables.append(f"{key} {digest_file(find_table(key, selection.image_root))}")
    keys = (selection.split, selection.view, selection.question_types, selection.sample, selection.seed, stop_after)
    return digest_text(str(FORMAT), index.digest, repr(keys), *tables)


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        with np.load(path) as file:
            facts: dict[str, Any] = json.loads(str(file["facts"]))
            return facts
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(
    path: Path, index: QuestionIndex, wanted: RowFilter, selection: Selection, stop_after: int | None
) -> dict[str, Any]:
    numbers = _fitting(index, wanted) if wanted else np.arange(index.rows, dtype=np.int64)
    wanted.check(index.rows, len(numbers))
    mask: Mask = np.zeros(index.rows, bool)
    mask[sampled(numbers, selection, stop_after)] = True
    weights, usable = _weigh(index, mask)
    packed = np.packbits(mask)
    rows = int(np.count_nonzero(mask))
    facts = {
        "digest": hashlib.sha256(packed.tobytes()).hexdigest(),
        "rows": rows,
        "bad_rows": rows - usable,
        "images": int(np.count_nonzero(weights)),
        "heat_maps": int(weights.sum()),
        "warnings": wanted.warnings(),
    }
    with atomic_file(path) as stream:
        np.savez(stream, rows=packed, weights=weights, facts=np.array(json.dumps(facts)))
    return facts


def _fitting(index: QuestionIndex, wanted: RowFilter) -> Rows:
    """The numbers of the rows that fit the filter, which is asked in data-set order."""
    table = pq.read_table(
        index.questions, columns=["number", "image_index", *_FACTS], read_dictionary=list(_FACTS), use_threads=False
    ).unify_dictionaries()
    numbers = table["number"].to_numpy()
    order = np.argsort(numbers, kind="stable")
    order = order[_fitting_types(index, wanted, table, order)]
    if wanted.asks_images:
        paths = pq.read_table(index.images, columns=["image"], use_threads=False)[0].to_pylist()
        kept = [position for position, facts in _facts(index, table, order, paths) if wanted.keeps_facets(facts)]
        order = np.array(kept, np.int64)
    return np.asarray(numbers[order])


def _fitting_types(index: QuestionIndex, wanted: RowFilter, table: pa.Table, order: Rows) -> Mask:
    """For the rows in ``order`` whether their types fit: asked once for every combination that occurs."""
    codes = np.zeros(len(order), np.int64)
    for name in ("question_type", "content_type"):
        column = table[name].combine_chunks()
        codes = codes * len(column.dictionary) + column.indices.to_numpy()[order]
    codes = codes * 2 + (order >= index.usable)
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    verdict: Mask = np.zeros(len(first), bool)
    asked = np.argsort(first)
    for place, (_, facts) in zip(asked, _facts(index, table, order[first[asked]], []), strict=True):
        verdict[place] = wanted.keeps_type(facts)
    return verdict[inverse]


def _facts(
    index: QuestionIndex, table: pa.Table, positions: Rows, paths: Sequence[str]
) -> Iterator[tuple[int, RowFacts]]:
    """(position, what the filter looks at) of rows of the index, in the order of ``positions``."""
    for start in range(0, len(positions), _CHUNK):
        chunk = positions[start : start + _CHUNK]
        part = table.take(pa.array(chunk))
        columns = [part[name].to_pylist() for name in (*_FACTS, "image_index")]
        for position, kind, content, split, view, image in zip(chunk.tolist(), *columns, strict=True):
            path = paths[image] if paths and image >= 0 else None
            yield position, RowFacts(kind, content, split, view, path, position >= index.usable)


def _weigh(index: QuestionIndex, mask: Mask) -> tuple[Weights, int]:
    """(selected heat maps of every image, selected rows that can be used)."""
    weights: Weights = np.zeros(index.image_count, np.int64)
    usable = 0
    for images, numbers, shares in _narrow(index):
        mine = mask[numbers]
        np.add.at(weights, images[mine], shares[mine])
        usable += int(np.count_nonzero(mine))
    return weights, usable


def _narrow(index: QuestionIndex) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """image_index, number and shares of the usable rows, batch by batch."""
    left = index.usable
    with pq.ParquetFile(index.questions) as file:
        for batch in file.iter_batches(_CHUNK, columns=["image_index", "number", "shares"], use_threads=False):
            batch = batch.slice(0, left)
            left -= batch.num_rows
            if batch.num_rows:
                yield tuple(batch[name].to_numpy() for name in ("image_index", "number", "shares"))
