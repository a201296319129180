"""Where the data set says that a region is, in pixels of the film."""

from __future__ import annotations

from heatlens.images.geometry import clip_box, gemex_box_to_source
from heatlens.questions.rows import LETTERBOX_224, SOURCE, Box, Region

Size = tuple[int, int]
RELATIVE = "relative"


def annotated_box(region: Region, size: Size) -> Box | None:
    """A data set's box in pixels of the source (W, H), cut off at its border; None where there is none, where its frame
    is not known, and where nothing of it lies in the image."""
    if region.box is None:
        return None
    if region.frame == LETTERBOX_224:
        box = gemex_box_to_source(region.box, size)
    elif region.frame in (SOURCE, RELATIVE):
        scale = size if region.frame == RELATIVE else (1, 1)
        box = clip_box([edge * side for edge, side in zip(region.box, (*scale, *scale), strict=True)], size)
    else:
        return None
    return box if box[0] < box[2] and box[1] < box[3] else None
