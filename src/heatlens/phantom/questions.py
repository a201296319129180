"""Questions and answers about a phantom film, as rows in GEMeX's own format.

`visual_locations` holds the finding's own tight box (GEMeX has the box of the anatomical region), so the
demo's boxes are exact; where a row asks after something that is not there, the box is that of the region to
look at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from heatlens.images.geometry import source_box_to_gemex
from heatlens.phantom.film import FRAME, Finding, PhantomFilm
from heatlens.phantom.findings import NAMES
from heatlens.phantom.language import place_of, question_for

KINDS = ("open_ended", "closed_ended", "single_choice", "multi_choice")
Box = tuple[float, float, float, float]


@dataclass
class Row:
    """One question: which file it belongs to, and its fields (all but image and numbering)."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


def frame_box(box: Box, width: int, height: int) -> list[int]:
    """A box in film pixels -> [x1, y1, x2, y2] in the 224 x 224 letterbox frame, rounded outwards, inside the
    frame."""
    x1, y1, x2, y2 = source_box_to_gemex(box, (width, height), FRAME)
    return [int(np.clip(v, 0, FRAME)) for v in (np.floor(x1), np.floor(y1), np.ceil(x2), np.ceil(y2))]


def region_box(film: PhantomFilm, region: str) -> Box:
    """The box of an anatomical region in film pixels: both lungs, the heart, the windpipe or the
    mediastinum."""
    anatomy = film.anatomy
    outline = {
        "cardiac region": anatomy.heart,
        "trachea": anatomy.trachea,
        "mediastinum": anatomy.mediastinum,
    }.get(region, np.concatenate(list(anatomy.lungs.values())))
    points = film.canvas.pixels(outline)
    low, high = np.maximum(points.min(0), 0), np.minimum(points.max(0), [film.canvas.width, film.canvas.height])
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def rows_about(film: PhantomFilm, rng: np.random.Generator) -> Iterator[Row]:
    """All questions about a film, in the order of `KINDS` per finding."""
    for finding in film.findings:
        yield _where(film, finding)
    if film.findings:
        yield _which(film)
    for finding in film.findings[:1]:
        yield _is_there(film, finding.name, finding)
    absent = [name for name in NAMES if all(f.name != name for f in film.findings)]
    yield _is_there(film, str(rng.choice(absent)), None)
    for finding in film.findings:
        if finding.region.endswith("lung zone"):
            yield _place_choice(film, finding, rng)
    if film.findings:
        yield _seen_choice(film, absent, rng)


def _row(
    film: PhantomFilm, kind: str, question: str, about: str, answer: object, reason: str, found: list[Finding]
) -> Row:
    height, width = film.pixels.shape
    return Row(kind, {
        "question": question, "type": about, "answer": answer, "reason": reason,
        "visual_regions": [f.region for f in found],
        "visual_locations": [frame_box(f.box, width, height) for f in found],
    })  # fmt: skip


def _phrase(finding: Finding) -> str:
    place = place_of(finding)
    return f"{finding.name} in the {place}" if place else finding.name


def _where(film: PhantomFilm, finding: Finding) -> Row:
    place = place_of(finding) or finding.region
    text = f"The {finding.name} is seen in the {place}."
    return _row(
        film,
        "open_ended",
        question_for(finding),
        "location",
        text,
        f"The film shows the {_phrase(finding)}.",
        [finding],
    )


def _which(film: PhantomFilm) -> Row:
    names = ", ".join(_phrase(f) for f in film.findings)
    reason = "Each of the named regions differs from a normal film."
    return _row(
        film,
        "open_ended",
        "What are the findings on this film?",
        "finding",
        f"{names.capitalize()}.",
        reason,
        film.findings,
    )


def _is_there(film: PhantomFilm, name: str, finding: Finding | None) -> Row:
    question = f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name}?"
    about = "disease" if name in NAMES[3:] else "finding"
    if finding is not None:
        return _row(film, "closed_ended", question, about, "Yes.", f"The film shows the {_phrase(finding)}.", [finding])
    row = _row(film, "closed_ended", question, about, "No.", f"No {name} is seen.", [])
    region = {"enlarged heart": "cardiac region", "endotracheal tube": "trachea", "nasogastric tube": "mediastinum"}
    where = region.get(name, "bilateral lung")
    height, width = film.pixels.shape
    row.fields["visual_regions"] = [where]
    row.fields["visual_locations"] = [frame_box(region_box(film, where), width, height)]
    return row


def _place_choice(film: PhantomFilm, finding: Finding, rng: np.random.Generator) -> Row:
    others = [f"{s} {z} lung zone" for s in ("right", "left") for z in ("upper", "mid", "lower")]
    true = f"{finding.side} {finding.zone} lung zone"
    options = [true, *rng.permutation([o for o in others if o != true])[:3]]
    options = [str(o) for o in rng.permutation(options)]
    question, answer = f"In which zone is the {finding.name} seen?", "ABCD"[options.index(true)]
    reason = f"The film shows the {_phrase(finding)}."
    row = _row(film, "single_choice", question, "location", answer, reason, [finding])
    return _with_choices(row, [o.capitalize() for o in options])


def _seen_choice(film: PhantomFilm, absent: list[str], rng: np.random.Generator) -> Row:
    present = list(dict.fromkeys(f.name for f in film.findings))
    options = present + [str(n) for n in rng.permutation(absent)[: 4 - len(present)]]
    options = [str(o) for o in rng.permutation(options)]
    answer = [letter for letter, option in zip("ABCD", options, strict=True) if option in present]
    row = _row(film, "multi_choice", "Which of these are seen on this film?", "abnormality", answer,
               "Each of the named regions shows one of them.", film.findings)  # fmt: skip
    return _with_choices(row, [o.capitalize() for o in options])


def _with_choices(row: Row, options: list[str]) -> Row:
    row.fields["choices"] = [f"{letter}: {option}" for letter, option in zip("ABCD", options, strict=True)]
    return row
