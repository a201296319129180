"""Forwards of a fixed number of rows, halved when the memory does not suffice."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from heatlens.cam.protocols import Target
from heatlens.errors import SetupError

# The CPU's allocator, CUDA's and MPS's, and the libraries that allocate for themselves (cuBLAS, cuDNN).
_TEXTS = ("not enough memory", "out of memory", "ALLOC_FAILED")

_LOG = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


class BatchRows:
    """The number of rows of every forward. ``started_with`` is the setting, ``rows`` what is left after halvings."""

    def __init__(self, rows: int) -> None:
        self.started_with = rows
        self.rows = rows

    def halve(self, error: str) -> None:
        """Half as many rows from now on. SetupError when a single row does not fit."""
        if self.rows == 1:
            raise SetupError(f"out of memory with one row per forward (BATCH_SIZE=1): {error}") from None
        self.rows //= 2
        _LOG.warning("out of memory: continuing with %d rows per forward", self.rows)


def for_each_batch(total: int, batch: BatchRows, run: Callable[[int, int], None]) -> None:
    """Calls ``run(start, stop)`` over ``total`` items, at most ``batch.rows`` at a time.

    On out-of-memory the rows are halved and the same items are run again; what was finished stays finished.
    """
    start = 0
    while start < total:
        stop = min(start + batch.rows, total)
        if (error := _attempt(run, start, stop)) is None:
            start = stop
        else:
            release_memory()
            batch.halve(error)


def in_padded_batches(
    images: Tensor,
    targets: Sequence[Sequence[Target]],
    batch: BatchRows,
    run: Callable[[Tensor, Sequence[Sequence[Target]]], Sequence[ResultT]],
) -> list[ResultT]:
    """``run(images, targets)`` gives one result per image; it always gets ``batch.rows`` images.

    What is missing is filled up with zeros that have no targets, and their results are dropped.
    """
    results: list[ResultT] = []

    def padded(start: int, stop: int) -> None:
        missing = batch.rows - (stop - start)
        part = torch.cat([images[start:stop], images.new_zeros((missing, *images.shape[1:]))])
        results.extend(run(part, [*targets[start:stop], *([] for _ in range(missing))])[: stop - start])

    for_each_batch(len(images), batch, padded)
    return results


def _attempt(run: Callable[[int, int], None], start: int, stop: int) -> str | None:
    """None, or the text of an out-of-memory error: the exception itself would keep the failed batch alive."""
    try:
        run(start, stop)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Is this PyTorch's (or Python's) way of saying that memory ran out? The CPU has no error class of its own."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def release_memory() -> None:
    """Give cached blocks back before the next, smaller attempt."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
