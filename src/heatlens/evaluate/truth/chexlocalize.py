"""``--truth chexlocalize:FILE.json``: CheXlocalize (Saporta et al., 2022), ten findings with masks on CheXpert films.

One JSON object: image -> finding -> {"size": [height, width], "counts": COCO's run lengths}. An image is named
``patient64622_study1_view1_frontal`` and is CheXpert's ``.../patient64622/study1/view1_frontal.jpg``. Every image has
all ten findings; a mask without a pixel says that this one is not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.errors import ItemError
from heatlens.evaluate.truth.annotations import Annotation, AnnotationFile, Collected
from heatlens.evaluate.truth.masks import run_lengths
from heatlens.evaluate.truth.reading import file_of, read_object, wrong_layout

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun

NAME = "chexlocalize"
KNOWN = 'known is CheXlocalize\'s JSON: {"patient1_study1_view1_frontal": {"Edema": {"size": [h, w], "counts": ..}}}'


def open_chexlocalize(path: Path | None, run: FinishedRun) -> AnnotationFile:  # noqa: ARG001
    """The findings and masks of CheXlocalize's JSON."""
    source = file_of(NAME, path, KNOWN)
    images = read_object(NAME, source, KNOWN)
    if not any(_looks_right(findings) for findings in images.values()):
        wrong_layout(NAME, source, "a JSON object", images, KNOWN)
    collected = Collected()
    for image, findings in images.items():
        place = f"{source.label}:{image[:80]}"
        try:
            if not isinstance(findings, dict):
                raise ItemError("row", "not an object of findings")
            collected.add(chexpert_path(image), None)
        except ItemError as error:
            collected.bad(place, error.reason)
            continue
        for finding, mask in findings.items():
            _collect(chexpert_path(image), finding, mask, f"{place}, {finding[:80]}", collected)
    return AnnotationFile(NAME, source.path, collected)


def _looks_right(findings: Any) -> bool:
    return isinstance(findings, dict) and any(
        isinstance(mask, dict) and {"size", "counts"} <= mask.keys() for mask in findings.values()
    )


def _collect(image: str, finding: str, mask: Any, place: str, collected: Collected) -> None:
    try:
        if not isinstance(mask, dict):
            raise ItemError("row", "not a mask (size and counts)")
        lengths = run_lengths(mask.get("size"), mask.get("counts"))
    except ItemError as error:
        collected.bad(place, error.reason)
        return
    if any(lengths.counts[1::2]):
        collected.add(image, Annotation(finding, (finding,), place, mask=lengths))


def chexpert_path(image: str) -> str:
    """``patient1_study1_view1_frontal`` -> ``patient1/study1/view1_frontal``; a name of another kind as it is."""
    parts = image.split("_", 2)
    if len(parts) == 3 and parts[0].startswith("patient") and parts[1].startswith("study"):
        return "/".join(parts)
    return image
