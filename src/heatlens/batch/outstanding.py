"""What is still to be made of a shard: the plan's heat maps without those that are finished."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from heatlens.batch.finished import FinishedKeys
from heatlens.batch.folder import Listing
from heatlens.batch.protocols import Stage

if TYPE_CHECKING:
    from heatlens.questions.plan import HeatMap, ImageTask, Plan


class Outstanding:
    """The images with at least one unfinished heat map, each with its unfinished heat maps only.

    Streamed from the plan each time it is iterated; kept are the numbers of the images alone. ``planned``
    counts the shard's heat maps, ``failed_before`` those of them that stay failures, ``images`` and ``heat_maps``
    what is left. They are upper bounds where no ledger knows anything yet: then the plan is not gone through
    twice, and heat maps that it finds impossible itself are among them.

    A recorded failure is finished, with two exceptions: ``retry_failed``, and an image that was missing and
    is there now (``is_there`` looks): a data set that is still being copied needs no special command.
    Files that somebody deleted are made again, and so are raw maps that SAVE_RAW_CAM asks for only now.
    """

    def __init__(
        self,
        plan: Plan,
        shard: tuple[int, int],
        finished: FinishedKeys,
        listing: Listing,
        stage: Stage,
        *,
        retry_failed: bool,
        is_there: Callable[[str], bool],
    ) -> None:
        self._plan = plan
        self._shard = shard
        self._finished = finished
        self._listing = listing
        self._stage = stage
        self._retry_failed = retry_failed
        self._is_there = is_there
        self._left: array[int] | None = None
        self.failed_before = 0
        if len(finished):
            self._count()
        else:
            self.images, self.heat_maps = plan.shard_size(*shard)
            self.planned = self.heat_maps

    def _count(self) -> None:
        self._left, self.heat_maps, self.planned = array("q"), 0, 0
        for task in self._plan.shard(*self._shard):
            left, failed = self._rest(task)
            self.planned += len(task.heat_maps)
            self.failed_before += failed
            if left:
                self._left.append(task.index)
                self.heat_maps += len(left)
        self.images = len(self._left)

    def __iter__(self) -> Iterator[ImageTask]:
        tasks = self._plan.shard(*self._shard, only=self._left)
        if self._left is None:
            yield from (task for task in tasks if task.heat_maps)
            return
        for task in tasks:
            left, _ = self._rest(task)
            if left:
                yield replace(task, heat_maps=left)

    def _rest(self, task: ImageTask) -> tuple[tuple[HeatMap, ...], int]:
        """(unfinished heat maps, number of those that stay failures)."""
        states = [self._state(heat_map) for heat_map in task.heat_maps]
        wanted = {""}
        if self._retry_failed:
            wanted |= {"failed", "missing"}
        elif "missing" in states and self._is_there(task.image_path):
            wanted.add("missing")
        left = tuple(one for one, state in zip(task.heat_maps, states, strict=True) if state in wanted)
        return left, sum(state not in wanted and state != "ok" for state in states)

    def _state(self, heat_map: HeatMap) -> str:
        """What the ledgers say; "" for nothing, and for a heat map whose files are gone."""
        status = self._finished.status(heat_map.key)
        if status == "ok" and not self._listing.has_all(self._stage.expected_files(heat_map)):
            return ""
        return status
