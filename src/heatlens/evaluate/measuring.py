"""One heat map and its baselines in numbers: what a process of ``heatlens evaluate`` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.batch.openers import pixels_for
from heatlens.boxes.find import BoxRules, find_boxes
from heatlens.boxes.threshold import threshold_of
from heatlens.cam.protocols import PatchGrid
from heatlens.errors import ItemError, SetupError, one_line
from heatlens.evaluate.baselines import BASELINES, Model, body_numbers, centre_numbers, noise_for, random_numbers
from heatlens.evaluate.cases import Case, load_map
from heatlens.evaluate.metrics import KEYS, Aim, Area, Box, Values, measure, nowhere
from heatlens.evaluate.pointing import peak
from heatlens.images.bodymask import BodyMask, body_mask, pixels_needed
from heatlens.images.decode import read_film
from heatlens.images.locate import locate_image

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun

Size = tuple[int, int]

OWN = ("target_share", "threshold", "constant")
FIGURES = (*KEYS, *(f"{baseline}:{key}" for baseline in BASELINES for key in KEYS))
"""metrics of the map and of the baselines"""
NUMBERS = (*OWN, *FIGURES)

MISSING = "the raw map is missing"
BROKEN = "the raw map is broken"
NO_TARGET = "the target cannot be read"
UNKNOWN = "it cannot be measured"

_LOOKED_AT = 3
"""raw maps among which the grid is looked for"""


@dataclass(frozen=True)
class Found:
    """Of a task: numbers (heat maps, columns), and (place in the task, reason, text) of those that failed."""

    numbers: NDArray[np.float64]
    failed: list[tuple[int, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Measuring:
    """All that a process must know beside the cases.

    ``own_boxes``: take the boxes that the run wrote. ``masked``: the run's maps are 0 outside the body. ``longest``:
    pixels at which the run decoded its films, None for all of them.
    """

    rules: BoxRules
    own_boxes: bool
    masked: bool
    longest: int | None
    image_root: Path | None
    model: Model
    seed: int

    def task(self, cases: Sequence[Case]) -> Found:
        """Measure heat maps; those of an image follow each other."""
        found = Found(np.full((len(cases), len(NUMBERS)), np.nan))
        place = 0
        for _, group in groupby(cases, key=lambda case: case.source_image):
            together = list(group)
            body = self._body(together[0])
            for case in together:
                try:
                    numbers = self.case(case, body)
                    found.numbers[place] = [numbers.get(name, np.nan) for name in NUMBERS]
                except _Unusable as problem:
                    found.failed.append((place, problem.reason, str(problem)))
                except Exception as error:  # one heat map, whatever is wrong with it, never ends the evaluation
                    found.failed.append((place, UNKNOWN, one_line(error)))
                place += 1
        return found

    def case(self, case: Case, body: BodyMask | None) -> dict[str, float]:
        """The numbers of one heat map and of the baselines by column; NaN or nothing for what does not exist."""
        values, aim = _opened(case)
        height, width = values.shape
        size = width, height
        inside = self._inside(case, size, body)
        low, high, _, _ = cv2.minMaxLoc(values, inside.view(np.uint8)) if inside.any() else (0.0, 0.0, None, None)
        constant = not high > low
        own = {"target_share": aim.share, "constant": float(constant)}
        if constant:
            own |= nowhere()
        else:
            boxes, threshold = self._boxes(case, values, inside)
            own["threshold"] = threshold
            own |= measure(values, (values > threshold) & inside, boxes, aim.hit(*peak(values)), aim)
        noise = noise_for(case.source_image, case.row, self.model.grid, self.seed)
        baselines = {
            "centre": centre_numbers(aim, self.rules, case.source),
            "random": random_numbers(aim, self.rules, case.source, noise, self.model),
        }
        patient = None if body is None else body.at(size)
        if patient is not None and patient.any():
            baselines["body"] = body_numbers(aim, patient, case.source)
        return own | {f"{name}:{key}": value for name, of in baselines.items() for key, value in of.items()}

    def _boxes(self, case: Case, values: Values, inside: Area) -> tuple[Sequence[Box], float]:
        """The map's boxes, best first, and its threshold."""
        if self.own_boxes and case.found is not None:
            return case.found, threshold_of(self.rules.threshold, values, inside)
        found = find_boxes(values, inside, self.rules, case.source)
        assert found.threshold is not None, "the map is not constant"
        return [box.xyxy for box in found.boxes], found.threshold

    def _inside(self, case: Case, size: Size, body: BodyMask | None) -> Area:
        """Where the run looked for boxes: body (the whole film where it cannot be read) and view, (h, w)."""
        seen = self.model.geometry(case.source).seen(self.model.grid, size)
        inside = seen & body.at(size) if self.masked and body is not None else seen
        return np.ascontiguousarray(inside)

    def _body(self, case: Case) -> BodyMask | None:
        """The body on the case's film; None where the film cannot be read."""
        if self.image_root is None:
            return None
        try:
            return body_mask(read_film(locate_image(self.image_root, case.source_image), self.longest).pixels)
        except ItemError:
            return None


class _Unusable(Exception):
    """A heat map that is left out: the reason to count it under, and what exactly was wrong."""

    def __init__(self, reason: str, error: Exception) -> None:
        super().__init__(one_line(error))
        self.reason = reason


def _opened(case: Case) -> tuple[Values, Aim]:
    try:
        values = load_map(case)
    except SetupError as error:
        raise _Unusable(MISSING, error) from None
    except ItemError as error:
        raise _Unusable(BROKEN, error) from None
    try:
        return values, Aim.at(case.target, (values.shape[1], values.shape[0]), case.source)
    except (ItemError, SetupError, OSError, ValueError) as error:
        raise _Unusable(NO_TARGET, error) from None


def measuring_of(run: FinishedRun, items: Sequence[Case], seed: int, rule: str | None) -> Measuring:
    """How the heat maps ``items`` of ``run`` are measured; ``rule``: a threshold in place of the run's own."""
    rules = run.box_rules()
    longest = run.config.get("OUTPUT_SIZE")
    masked = run.config.get("ENABLE_BODY_MASK") is not False
    model = _model(run, items)
    return Measuring(
        rules=rules if rule is None else replace(rules, threshold=rule),
        own_boxes=rule is None or rule == rules.threshold,
        masked=masked,
        # As the stages do: the body must be the one that the run saw.
        longest=pixels_for(pixels_needed(int(longest) if longest else None, mask_body=masked), model.frame),
        image_root=run.image_root,
        model=model,
        seed=seed,
    )


def _model(run: FinishedRun, items: Sequence[Case]) -> Model:
    """PREPROCESS, the model's frame (from the details) and its patch grid (from a raw map); a ViT-B/16's where the
    files do not say."""
    usual = Model(str(run.config.get("PREPROCESS") or "letterbox"))
    frame, shape = _frame(run.folder) or usual.frame, (usual.grid.rows, usual.grid.cols)
    for case in items[:_LOOKED_AT]:
        try:
            shape = np.load(case.raw.with_suffix(".npy"), mmap_mode="r", allow_pickle=False).shape
            break
        except (OSError, ValueError):
            continue
    if len(shape) != 2 or not all(shape):
        shape = usual.grid.rows, usual.grid.cols
    return replace(usual, frame=frame, grid=PatchGrid(shape[0], shape[1], (frame[1] / shape[0], frame[0] / shape[1])))


def _frame(folder: Path) -> Size | None:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(folder / "details.parquet") as file:
            first = next(file.iter_batches(batch_size=1, columns=["geometry"]))
        width, height = json.loads(first.column(0)[0].as_py())["frame"]
        return int(width), int(height)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
