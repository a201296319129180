"""The numbers of images and categories: what every format needs before it can write its first box."""

from __future__ import annotations

from dataclasses import dataclass, field

from heatlens.errors import SetupError
from heatlens.export.rows import Run, Size


@dataclass
class Catalogue:
    """``images``: path -> (number from 0 in order of first appearance, size); ``labels``: label -> number from 0, in
    the order of their letters, so that they do not depend on the rows' order.

    An image without boxes is in it, and so is a label that nothing was found for.
    """

    images: dict[str, tuple[int, Size]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    heat_maps: int = 0
    found: int = 0


def read_catalogue(run: Run, label: str) -> Catalogue:
    """The first of two passes over the run."""
    catalogue = Catalogue()
    labels: set[str] = set()
    for row in run.rows(label):
        _, size = catalogue.images.setdefault(row.image, (len(catalogue.images), row.size))
        if size != row.size:
            raise SetupError(
                f"{run.folder}: {row.image} has two sizes, {size} and {row.size} (at {row.overlay}); "
                "the films have changed while the run was made"
            )
        labels.add(row.label)
        catalogue.heat_maps += 1
        catalogue.found += len(row.found)
    catalogue.labels = {name: number for number, name in enumerate(sorted(labels))}
    if not catalogue.heat_maps:
        raise SetupError(f"{run.folder}: the run has no heat maps, so there is nothing to export")
    return catalogue
