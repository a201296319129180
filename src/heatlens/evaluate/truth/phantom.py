"""``--truth phantom[:FOLDER]``: truth.jsonl and the exact masks of a phantom data set; default: the run's own.

A row per film: image_path, width, height and findings, each with name, region, box [x1, y1, x2, y2] in film pixels,
mask (a PNG's path in the folder) and prompt. A heat map belongs to the finding whose prompt is its prompt, else to the
one whose box its row points at: rows about something that is not on the film point at a whole region, and have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.errors import ConfigError, ItemError
from heatlens.evaluate.metrics import box_iou
from heatlens.evaluate.truth.annotations import Annotation, AnnotationFile, Collected, plain
from heatlens.evaluate.truth.base import Asked
from heatlens.evaluate.truth.masks import FileMask
from heatlens.evaluate.truth.own import own_boxes
from heatlens.evaluate.truth.reading import beside, file_of, numbers, records, text, wrong_layout
from heatlens.questions.readers.draft import read_box

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun

NAME = "phantom"
FILE = "truth.jsonl"
KNOWN = "known is the truth.jsonl of a phantom data set, with image_path, width, height and findings"
LEAST_OVERLAP = 0.5
"""IoU of a finding's box and the row's, which is rounded outwards to whole pixels of 224. On the demo's 16 films, a row
has at least 0.83 with its own finding and at most 0.33 with any other."""


def open_phantom(path: Path | None, run: FinishedRun) -> PhantomTruth:
    """The findings of the phantom films that a run was made of, or of the folder ``path``."""
    folder = path if path is not None else _own_folder(run)
    source = file_of(NAME, folder / FILE if folder.is_dir() else folder, KNOWN)
    keys, rows = records(NAME, source, KNOWN)
    if not keys.issuperset({"image_path", "findings"}):
        wrong_layout(NAME, source, "a table", keys, KNOWN)
    collected = Collected()
    collected.take(source, rows, lambda data, place: _collect(data, place, source.path.parent, collected))
    return PhantomTruth(NAME, source.path, collected)


def _own_folder(run: FinishedRun) -> Path:
    path = Path(str(run.config.get("DATASET_PATH") or ""))
    for folder in (path, path.parent):
        if (folder / FILE).is_file():
            return folder
    raise ConfigError(
        f"--truth=phantom: there is no {FILE} in {path}; --truth phantom:FOLDER names the phantom data set's folder"
    )


def _collect(data: dict[str, Any], place: str, folder: Path, collected: Collected) -> None:
    findings, frame = data.get("findings"), numbers((data.get("width"), data.get("height")))
    if not isinstance(findings, list) or not all(isinstance(one, dict) for one in findings):
        raise ItemError("row", "findings is not a list of objects")
    if frame is None or min(frame) <= 0:
        raise ItemError("row", "width and height are not numbers above 0")
    image = text(data.get("image_path"))
    collected.add(image, None)
    for one in findings:
        box, fault = read_box(one.get("box"))
        if box is None:
            collected.bad(place, f"the box of {text(one.get('name'))!r} {fault}")
            continue
        mask = text(one.get("mask"))
        names = tuple(text(one.get(key)) for key in ("name", "prompt", "region"))
        drawn = FileMask(folder / beside(mask)) if mask else None
        collected.add(image, Annotation(names[0], names, place, (box,), (frame[0], frame[1]), drawn))


class PhantomTruth(AnnotationFile):
    """Findings of phantom films."""

    def choose(self, known: Sequence[Annotation], asked: Asked, by: str) -> tuple[list[Annotation], str]:
        """With ``auto``: the finding whose prompt is the heat map's, else the one that its row points at."""
        if by != "auto":
            return super().choose(known, asked, by)
        if prompt := plain(asked.prompt):
            found = [one for one in known if prompt in map(plain, one.names[:2])]
            if found:
                return found, "prompt"
        chosen: list[Annotation] = []
        for own in own_boxes(asked):
            best = max(known, key=lambda one: box_iou(one.boxes[0], own), default=None)
            if best is not None and box_iou(best.boxes[0], own) >= LEAST_OVERLAP and best not in chosen:
                chosen.append(best)
        return chosen, "box"
