"""What is still to be made: the plan's heat maps without those that are finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from heatlens.batch.folder import Listing
from heatlens.batch.ledger import Finished, HeatMapRecord
from heatlens.batch.protocols import Stage

if TYPE_CHECKING:
    from heatlens.questions.plan import HeatMap, ImageTask


def is_made(record: HeatMapRecord, heat_map: HeatMap, listing: Listing, stage: Stage) -> bool:
    """Was the heat map made, and are all of its files still there?

    Files that somebody deleted are made again, and so are raw maps that SAVE_RAW_CAM asks for only now.
    """
    return record.ok and listing.has_all(stage.expected_files(heat_map))


def outstanding(
    images: Iterable[ImageTask],
    finished: Finished,
    listing: Listing,
    stage: Stage,
    *,
    retry_failed: bool,
    is_there: Callable[[str], bool],
) -> list[ImageTask]:
    """The images with at least one unfinished heat map, each with its unfinished heat maps only.

    A recorded failure is finished, with two exceptions: ``retry_failed``, and an image that was missing and
    is there now (``is_there`` looks): a data set that is still being copied needs no special command.
    """

    def is_finished(image_path: str, heat_map: HeatMap) -> bool:
        record = finished.get(heat_map.key)
        if record is None:
            return False
        if record.ok:
            return is_made(record, heat_map, listing, stage)
        return not retry_failed and not (record.stage == "locate" and is_there(image_path))

    tasks = []
    for task in images:
        missing = tuple(one for one in task.heat_maps if not is_finished(task.image_path, one))
        if missing:
            tasks.append(replace(task, heat_maps=missing))
    return tasks
