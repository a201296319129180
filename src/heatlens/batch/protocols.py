"""What the runner asks of a stage and of whatever explains images. Imports nothing heavy.

The runner knows neither colours nor models: a *stage* turns one explanation into files and numbers, an
*explainer* turns films and their prompts into explanations. Both are protocols, so that tests pass small
fakes and a new stage touches nothing here.

Films are opened in processes of their own (:mod:`heatlens.batch.openers`): stages and placers can be pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from heatlens.batch.ledger import HeatMapRecord
    from heatlens.cam.protocols import PatchGrid
    from heatlens.images.film import Film
    from heatlens.images.geometry import FrameGeometry
    from heatlens.questions.plan import HeatMap

Statistic = float | int | bool | str | None


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file to write: ``path`` relative to the results folder (POSIX), and its bytes."""

    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Explanation:
    """One prompt's map on the patch grid, (rows, cols) float32, at least 0, and its record."""

    map: np.ndarray
    score: float
    warnings: tuple[str, ...] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage makes of one heat map: files to write and the numbers that details.parquet keeps."""

    files: tuple[OutputFile, ...]
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A film in the model's frame: the geometry that maps between the two, and uint8 (h, w, 3) pixels."""

    geometry: FrameGeometry
    frame: np.ndarray


class Placer(Protocol):
    """Puts films into the model's frame. Can be pickled, and needs neither model nor torch."""

    @property
    def frame(self) -> tuple[int, int]:
        """(width, height) of the model's frame."""
        ...

    def __call__(self, film: Film) -> Placed:
        """The film in the model's frame."""
        ...


class Explainer(Protocol):
    """A loaded model with a CAM method."""

    @property
    def group(self) -> int:
        """Images per call that the device wants: more only wait for each other."""
        ...

    @property
    def placer(self) -> Placer:
        """How films come into the model's frame."""
        ...

    @property
    def masked_forwards(self) -> int:
        """Masked images forwarded so far, for the run's record of its speed."""
        ...

    @property
    def grid(self) -> PatchGrid:
        """Where the maps' cells lie in the model's frame."""
        ...

    def explain(self, frames: Sequence[np.ndarray], prompts: Sequence[Sequence[str]]) -> list[list[Explanation]]:
        """One explanation per (distinct) prompt of every image; ``prompts`` holds a list per frame."""
        ...

    def settings(self) -> Mapping[str, object]:
        """What determines the maps, as the engine resolved it."""
        ...

    def close(self) -> None:
        """Give hooks and memory back."""
        ...


class Stage(Protocol):
    """What is written for one heat map."""

    @property
    def name(self) -> str:
        """The stage's registry name."""
        ...

    @property
    def columns(self) -> Mapping[str, type]:
        """The statistics that details.parquet gets as columns: name -> float, int, bool or str."""
        ...

    def expected_files(self, heat_map: HeatMap) -> tuple[str, ...]:
        """Relative paths of the heat map's files. The first is its main output, named in the manifest."""
        ...

    @property
    def longest(self) -> int | None:
        """Pixels of the film that :meth:`open_image` needs along the longer side; None for all."""
        ...

    def open_image(self, film: Film, placed: Placed, grid: PatchGrid) -> Any:
        """What all heat maps of an image share (body mask, resized film): computed once, in a decoder process.

        It is sent to this process: small, and nothing that cannot be pickled.
        """
        ...

    def image_statistics(self, view: Any) -> Mapping[str, Statistic]:
        """Numbers of the image itself, the same for all of its heat maps."""
        ...

    def make(self, view: Any, heat_map: HeatMap, explanation: Explanation) -> StageResult:
        """The files and numbers of one heat map. ItemError when it cannot be made. Called by several threads."""
        ...

    def write_index(self, folder: Path, made: Iterator[MadeMap]) -> Sequence[Path]:
        """Write the stage's own tables (its index in the registry) from all finished heat maps in data-set order."""
        ...


@dataclass(frozen=True, slots=True)
class MadeMap:
    """A finished heat map: the image it belongs to, what was asked, and what the ledger says of it."""

    source_image: str
    heat_map: HeatMap
    record: HeatMapRecord
