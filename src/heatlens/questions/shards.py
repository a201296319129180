"""Shards: whole images, balanced by their heat maps."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

NOBODY = -1


def assign(weights: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int32]:
    """The shard of every image (:data:`NOBODY` for one without heat maps), for ``count`` shards.

    Greedy: the largest image goes to the lightest shard; among equals the first image, and the lowest shard.
    """
    owners: npt.NDArray[np.int32] = np.full(len(weights), NOBODY, np.int32)
    order = np.argsort(-weights, kind="stable")[: np.count_nonzero(weights)]
    loads = [(0, shard) for shard in range(count)]
    mine = []
    for weight in weights[order].tolist():
        load, shard = loads[0]
        heapq.heapreplace(loads, (load + weight, shard))
        mine.append(shard)
    owners[order] = mine
    return owners
