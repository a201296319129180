"""The processes that measure heat maps: bounded work under way, and an end at Ctrl-C."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

import cv2

from heatlens.errors import SetupError
from heatlens.evaluate.cases import Case
from heatlens.evaluate.measuring import Found, Measuring

TASK = 16
"""heat maps that a process is given at once; those of an image stay together"""


def measured(measuring: Measuring, items: Sequence[Case], workers: int) -> Iterator[tuple[list[int], Found]]:
    """Places among ``items`` and their numbers, task by task. SetupError when a process dies."""
    tasks = list(_tasks(items))
    workers = min(workers, len(tasks))
    if workers < 2 or multiprocessing.current_process().daemon:
        for places in tasks:
            yield places, measuring.task([items[place] for place in places])
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        waiting: deque[tuple[list[int], Future[Found]]] = deque()
        try:
            for places in tasks:
                waiting.append((places, pool.submit(measuring.task, [items[place] for place in places])))
                if len(waiting) > 2 * workers:
                    yield _result(waiting)
            while waiting:
                yield _result(waiting)
        finally:
            # After Ctrl-C too: what is under way takes a second or two, what waits is dropped.
            pool.shutdown(wait=True, cancel_futures=True)


def _result(waiting: deque[tuple[list[int], Future[Found]]]) -> tuple[list[int], Found]:
    places, future = waiting.popleft()
    try:
        return places, future.result()
    except BrokenProcessPool:
        raise SetupError(
            "a process that measured heat maps ended without a word, perhaps for lack of memory; try fewer --workers"
        ) from None


def _start_worker() -> None:
    """Ctrl-C is the parent's business; a worker whose parent was killed ends too. One thread each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    gc.freeze()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _tasks(items: Sequence[Case]) -> Iterator[list[int]]:
    """Places of about TASK heat maps each, image by image: a film is read once for all of its questions."""
    images: dict[str, list[int]] = {}
    for place, case in enumerate(items):
        images.setdefault(case.source_image, []).append(place)
    task: list[int] = []
    for places in images.values():
        task += places
        if len(task) >= TASK:
            yield task
            task = []
    if task:
        yield task
