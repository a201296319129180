"""Which heat maps are summed up together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
BY = ("finding", "region", "question_type")
TARGET_SIZE = "target_size"
SIZES = ("< 0.5%", "0.5-2%", "2-10%", "> 10%")
_EDGES = (0.005, 0.02, 0.1)
NOT_NAMED = "(not named)"
MOST_GROUPS = 200

Places = dict[str, NDArray[np.intp]]


def target_size(share: float) -> str:
    """The class of a target that covers this share of the film, 0..1; each has its lower edge (the last one not)."""
    if share > _EDGES[-1]:
        return SIZES[-1]
    return SIZES[int(np.searchsorted(_EDGES[:-1], share, side="right"))]


def groups_of(rows: pd.DataFrame) -> tuple[dict[str, Places], list[str]]:
    """Grouping -> name -> places of its rows, and notes. Most heat maps first, target sizes from small to large.

    A grouping is empty where no heat map has a name for it. Of more than MOST_GROUPS names the largest are kept.
    """
    found: dict[str, Places] = {ALL: {ALL: np.arange(len(rows), dtype=np.intp)}}
    notes = []
    for column in BY:
        places = _places(rows[column])
        found[column] = {} if set(places) <= {NOT_NAMED} else dict(list(places.items())[:MOST_GROUPS])
        if len(places) > MOST_GROUPS:
            notes.append(f"by {column.replace('_', ' ')}: the {MOST_GROUPS} with most heat maps of {len(places)}")
    sizes = _places(rows[TARGET_SIZE])
    found[TARGET_SIZE] = {name: sizes[name] for name in SIZES if name in sizes}
    return found, notes


def _places(names: pd.Series) -> Places:
    """Name (blanks collapsed) -> places, most first, equals by name."""
    found: Places = {}
    for name, places in names.groupby(names, sort=False).indices.items():
        key = " ".join(str(name).split()) or NOT_NAMED
        found[key] = np.sort(np.concatenate([found[key], places])) if key in found else np.asarray(places, np.intp)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))
