"""The plan: rows grouped by image, every heat map with its number and name, shards of whole images.

Numbers and names are decided over the whole data set, so they never depend on the selection, on STOP_AFTER, on
sharding or on failures. Nothing here grows with the data set but a few bytes per row or image; the rows lie in
files (``index``, ``chosen``) and are read as they are needed (``stream``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from heatlens.errors import ConfigError
from heatlens.files import digest_text
from heatlens.questions.expand import (
    REGION_MODES,
    BadRow,
    HeatMap,
    ImageTask,
    Share,
    canonical_image_path,
    expand,
    shares,
)  # fmt: skip
from heatlens.questions.prompts import check_template
from heatlens.questions.rows import Reader
from heatlens.questions.select import Selection

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from heatlens.questions.chosen import Chosen
    from heatlens.questions.index import QuestionIndex

__all__ = [
    "BadRow", "HeatMap", "ImageTask", "Plan", "Share", "canonical_image_path", "expand", "make_plan", "shares",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a run is about; small, and picklable. What it yields is read from the plan's files.

    ``rows`` counts the selected rows, ``bad_row_count`` those of them that cannot be used at all.
    ``image_count`` and ``heat_map_count`` count what the others ask for; the few heat maps that turn out not to
    be possible (an empty prompt, a name no file system takes) are among them, in :attr:`ImageTask.bad`.
    """

    index: QuestionIndex
    chosen: Chosen
    regions: str
    prompt_template: str

    @property
    def rows(self) -> int:
        return self.chosen.rows

    @property
    def bad_row_count(self) -> int:
        return self.chosen.bad_rows

    @property
    def image_count(self) -> int:
        return self.chosen.images

    @property
    def heat_map_count(self) -> int:
        return self.chosen.heat_maps

    @property
    def digest(self) -> str:
        """Identifies the selected work: data set, rows, prompts. Folders and shards are not in it."""
        return digest_text(self.index.digest, self.chosen.digest, self.prompt_template)

    def images(self) -> Iterator[ImageTask]:
        """All images with their selected heat maps, by first appearance in the data set."""
        return self._tasks(_weights(self) > 0)

    def shard(self, index: int, count: int, only: Sequence[int] | None = None) -> Iterator[ImageTask]:
        """The images of shard ``index`` of ``count``: whole images, in plan order, balanced by heat maps.

        Greedy: the largest image goes to the lightest shard. Every image is in exactly one shard. ``only`` these
        image indexes of it, if given: the rows of others are not looked at.
        """
        import numpy as np

        mine = _owners(self, _checked(index, count)) == index
        if only is not None:
            mine &= np.isin(np.arange(len(mine)), only)
        return self._tasks(mine)

    def shard_size(self, index: int, count: int) -> tuple[int, int]:
        """(images, heat maps) of a shard."""
        mine = _weights(self)[_owners(self, _checked(index, count)) == index]
        return len(mine), int(mine.sum())

    def bad_rows(self) -> Iterator[BadRow]:
        """The selected rows that cannot be used at all, in data-set order."""
        from heatlens.questions.chosen import mask_of
        from heatlens.questions.stream import bad_rows

        return bad_rows(self.index, mask_of(self.index, self.chosen))

    def first(self, count: int) -> list[ImageTask]:
        """The first images."""
        return list(islice(self.images(), count))

    def image_paths(self) -> Iterator[str]:
        """The canonical paths of the images, without reading a question."""
        from heatlens.questions.stream import image_paths

        return image_paths(self.index, _weights(self) > 0)

    def collisions(self) -> list[str]:
        """Images of the data set whose names on disk are longer because others would share them.

        At most a few lines, the last of them with the number of those that are not named.
        """
        examples = list(self.index.collision_examples)
        more = self.index.collisions - len(examples)
        return [*examples, f"... and {more} more"] if more else examples

    def _tasks(self, images: npt.NDArray[np.bool_]) -> Iterator[ImageTask]:
        from heatlens.questions.chosen import mask_of
        from heatlens.questions.stream import image_tasks

        rows = mask_of(self.index, self.chosen)
        return image_tasks(self.index, rows, images, self.regions, self.prompt_template)


def _checked(index: int, count: int) -> int:
    if count < 1 or not 0 <= index < count:
        raise ConfigError(f"SHARD_INDEX={index} of NUM_SHARDS={count}: allowed is 0 to NUM_SHARDS - 1")
    return count


@lru_cache(maxsize=2)
def _weights(plan: Plan) -> npt.NDArray[np.int64]:
    from heatlens.questions.chosen import weights_of

    return weights_of(plan.index, plan.chosen)


@lru_cache(maxsize=2)
def _owners(plan: Plan, count: int) -> npt.NDArray[np.int32]:
    from heatlens.questions.shards import assign

    return assign(_weights(plan), count)


def make_plan(
    reader: Reader,
    folder: Path,
    *,
    data_digest: str,
    regions: str,
    prompt_template: str,
    selection: Selection,
    stop_after: int | None,
    workers: int = 2,
) -> Plan:
    """Plan the selected rows of a data set whose content ``data_digest`` identifies.

    What ``folder`` already holds for them is used; the rest is made there. It may be killed at any moment, and
    several processes may do it at once (each makes all of it: let the others wait if that matters). With
    ``workers`` processes a large data set is read in parallel; they are started afresh, so the caller must not
    be a daemonic process. Raises DataSetError and ConfigError for people.
    """
    from heatlens.questions.chosen import choose
    from heatlens.questions.index import index_digest, make_index, open_index

    if regions not in REGION_MODES:
        raise ConfigError(f"REGIONS={regions!r}: allowed: {', '.join(REGION_MODES)}")
    check_template(prompt_template)
    digest = index_digest(reader, data_digest, regions)
    index = open_index(folder, digest) or make_index(reader, folder, digest, regions, workers)
    return Plan(index, choose(index, folder, selection, stop_after), regions, prompt_template)
