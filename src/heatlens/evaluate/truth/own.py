"""``--truth own``: the boxes that the run's own data set has for each row (details.parquet, ``boxes``).

GEMeX's boxes are those of anatomical regions: weak ground truth for a finding inside one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.batch.annotated import annotated_box
from heatlens.errors import ConfigError
from heatlens.evaluate.target import Target
from heatlens.evaluate.truth.base import Asked, Match
from heatlens.questions.readers.draft import read_box
from heatlens.questions.rows import CONTENT_TYPES, Box, Region

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun

NO_BOX = "no box in its row"
UNUSABLE = "the box of its row lies outside the film, or its frame is not known"


class OwnBoxes:
    """The run's own boxes. The finding is the row's type where that is a name (a table's may be), not one of GEMeX's
    kinds of question; else the name of the region."""

    name = "own"
    by_image = False

    def __init__(self, path: Path | None = None, run: FinishedRun | None = None) -> None:  # noqa: ARG002
        if path is not None:
            raise ConfigError(f"--truth=own:{path}: the run's own boxes have no file; --truth own")

    def meet(self, images: Sequence[str]) -> None:
        """Nothing to match: a row has its own."""

    def why_not(self, image: str) -> str:  # noqa: ARG002
        """A row may have a box, whatever its image."""
        return ""

    def match(self, asked: Asked, by: str) -> Match:  # noqa: ARG002
        """The boxes of the row, together."""
        boxes = own_boxes(asked)
        if not boxes:
            return Match(None, UNUSABLE if any(region.box for region in own_regions(asked.boxes)) else NO_BOX)
        named = asked.content_type and asked.content_type.casefold() not in CONTENT_TYPES
        return Match(Target(asked.content_type if named else asked.region, tuple(boxes)), "own row")

    def describe(self) -> dict[str, Any]:
        """Format only: the boxes came with the data set."""
        return {"format": self.name, "path": None}

    def notes(self) -> list[str]:
        """Nothing: the run has named what was wrong with its rows."""
        return []


def own_boxes(asked: Asked) -> list[Box]:
    """The boxes that the heat map's row has, in pixels of the film."""
    return [box for region in own_regions(asked.boxes) if (box := annotated_box(region, asked.source))]


@lru_cache(maxsize=1 << 14)
def own_regions(text: str) -> tuple[Region, ...]:
    """The regions of details' ``boxes``; what is none is left out."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    regions = []
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, dict) and (box := read_box(one.get("box"))[0]):
            regions.append(Region(str(one.get("name") or ""), box, str(one.get("frame") or "")))
    return tuple(regions)
