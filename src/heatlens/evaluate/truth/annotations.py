"""Annotations from a file: kept by image, matched with heat maps by name, put together to one target."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heatlens.errors import ConfigError, ItemError
from heatlens.evaluate.target import Box, Mask, Size, Target
from heatlens.evaluate.truth.base import Asked, Match
from heatlens.evaluate.truth.images import AMBIGUOUS, match_images
from heatlens.evaluate.truth.masks import BoxMask, Drawn, outline, together
from heatlens.images.geometry import clip_box
from heatlens.questions.expand import canonical_image_path
from heatlens.questions.readers.jsonfiles import Record
from heatlens.questions.readers.sources import SourceFile

SEVERAL = "several findings"
NO_IMAGE = "no annotation for its image"
OTHER_LABEL = "its image is annotated, but not what it asks for"
EMPTY = "its annotation is empty or lies outside the film"
NAMED = 5
"""broken rows and unusable annotations that are named, of all that are counted"""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One row of an annotation file.

    ``finding`` is the name to group by; ``names`` are all texts that mean it (a phrase, a prompt). ``boxes`` are
    measured in ``frame`` (width, height), or in the film's own pixels where that is None. With a ``mask``, that is the
    area. ``place`` is "file:line".
    """

    finding: str
    names: tuple[str, ...]
    place: str
    boxes: tuple[Box, ...] = ()
    frame: tuple[float, float] | None = None
    mask: Drawn | None = None


class Collected:
    """What a reader of a format gathers: annotations by image, and what is wrong with the file."""

    def __init__(self) -> None:
        self.by_image: dict[str, list[Annotation]] = defaultdict(list)
        self.broken = 0
        self.named: list[str] = []

    def add(self, image: str, annotation: Annotation | None) -> None:
        """An annotation of ``image`` (as the file spells it); None says: looked at, and nothing is there."""
        known = self.by_image[canonical_image_path(image)]
        if annotation is not None:
            known.append(annotation)

    def take(self, source: SourceFile, rows: Iterable[Record], use: Callable[[dict[str, Any], str], None]) -> None:
        """Give every row with its "file:line" to ``use``; a broken one, or an ItemError of it, is a :meth:`bad` row."""
        for row in rows:
            place = f"{source.label}:{row.place}"
            if row.data is None:
                self.bad(place, row.error)
                continue
            try:
                use(row.data, place)
            except ItemError as error:
                self.bad(place, error.reason)

    def bad(self, place: str, reason: str) -> None:
        """A row that cannot be used."""
        self.broken += 1
        if len(self.named) < NAMED:
            self.named.append(f"{place}: {reason}")


class AnnotationFile:
    """The annotations of a file, as a :class:`~heatlens.evaluate.truth.base.Truth`."""

    by_image = True

    def __init__(self, name: str, path: Path, collected: Collected) -> None:
        self.name = name
        self._path = path
        self._collected = collected
        self._images: dict[str, tuple[str, str]] = {}
        self._unclear: set[str] = set()
        self._unusable: dict[str, str] = {}
        count = sum(map(len, collected.by_image.values()))
        if not count:
            first = f" (first: {collected.named[0]})" if collected.named else ""
            raise ConfigError(f"--truth={name}: {path} has no annotation that can be used{first}")

    def meet(self, images: Sequence[str]) -> None:
        """Match the run's images with the annotated ones."""
        self._images, self._unclear = match_images(images, self._collected.by_image)

    def why_not(self, image: str) -> str:
        """Why nothing can be said about this image of the run; "" when something can."""
        if image in self._images:
            return ""
        return AMBIGUOUS if image in self._unclear else NO_IMAGE

    def match(self, asked: Asked, by: str) -> Match:
        """The annotations of the heat map's image that ``by`` says, as one target."""
        if reason := self.why_not(asked.image):
            return Match(None, reason)
        chosen, how = self.choose(self._collected.by_image[self._images[asked.image][0]], asked, by)
        if not chosen:
            return Match(None, OTHER_LABEL)
        target, reason = self._target(chosen, asked.source)
        return Match(target, reason or how)

    def choose(self, known: Sequence[Annotation], asked: Asked, by: str) -> tuple[list[Annotation], str]:
        """The annotations of an image that belong to a heat map, and how they were found."""
        if by == "image":
            return list(known), "image"
        for way in ("region", "question", "prompt") if by == "auto" else (by,):
            text = plain(getattr(asked, way))
            if text and (found := [one for one in known if text in map(plain, one.names)]):
                return found, way
        # What has no name is there for whatever its image is asked.
        nameless = [one for one in known if not any(one.names)] if by == "auto" else []
        return nameless, "image" if nameless else ""

    def _target(self, chosen: Iterable[Annotation], source: Size) -> tuple[Target | None, str]:
        """One target of all of them, or None and why."""
        boxes: list[Box] = []
        masks: list[Mask] = []
        used: list[Annotation] = []
        fault = ""
        for annotation in chosen:
            try:
                own = placed(annotation, source)
            except ItemError as error:
                fault = (
                    f"its annotation cannot be used: {error.reason}" if error.stage == "row" else "its mask is broken"
                )
                self._unusable.setdefault(annotation.place, error.reason)
                continue
            if own:
                used.append(annotation)
                boxes += own
                masks.append(annotation.mask or BoxMask(tuple(own), source))
        if not used:
            return None, fault or EMPTY
        findings = {annotation.finding for annotation in used}
        drawn = any(annotation.mask for annotation in used)
        name = findings.pop() if len(findings) == 1 else SEVERAL
        return Target(name, tuple(boxes), together(masks) if drawn else None), ""

    def describe(self) -> dict[str, Any]:
        """Format, path and numbers."""
        collected = self._collected
        return {
            "format": self.name,
            "path": str(self._path),
            "annotated_images": len(collected.by_image),
            "annotations": sum(map(len, collected.by_image.values())),
            "broken_rows": collected.broken,
            "images_matched": dict(Counter(how for _, how in self._images.values())),
        }

    def notes(self) -> list[str]:
        """What was wrong with the file's rows, by place."""
        notes = []
        if self._collected.broken:
            notes.append(
                _listed("row(s) of the annotation file cannot be used", self._collected.broken, self._collected.named)
            )
        if self._unusable:
            first = [f"{place}: {reason}" for place, reason in list(self._unusable.items())[:NAMED]]
            notes.append(_listed("annotation(s) cannot be placed on their film", len(self._unusable), first))
        return notes


def _listed(what: str, count: int, first: Sequence[str]) -> str:
    more = f" (and {count - len(first)} more)" if count > len(first) else ""
    return f"{count} {what}: {'; '.join(first)}{more}"


def plain(text: str) -> str:
    """A label without case, its blanks collapsed."""
    return " ".join(text.casefold().split())


def placed(annotation: Annotation, source: Size) -> list[Box]:
    """The annotation's boxes in pixels of the film, cut off at its border; empty when nothing of them is left.

    ItemError (row) when it was made on a picture of another shape, (decode) when its mask cannot be read.
    """
    boxes, frame = annotation.boxes, annotation.frame
    if annotation.mask is not None:
        frame, tight = outline(annotation.mask)
        boxes = (tight,) if tight else ()
    if frame is None:
        return cut_off(boxes, source)
    if not same_shape(frame, source):
        raise ItemError("row", f"made on {frame[0]:g}x{frame[1]:g} pixels, the film's shape is {source[0]}x{source[1]}")
    across, along = source[0] / frame[0], source[1] / frame[1]
    return cut_off([(x1 * across, y1 * along, x2 * across, y2 * along) for x1, y1, x2, y2 in boxes], source)


def cut_off(boxes: Iterable[Box], source: Size) -> list[Box]:
    """Boxes without what lies outside the film."""
    inside = [clip_box(box, source) for box in boxes]
    return [box for box in inside if box[0] < box[2] and box[1] < box[3]]


def same_shape(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Is one size (width, height) the other scaled and rounded to whole pixels?"""
    # a = s A + e and b = s B + f with |e|, |f| <= 1 make |a B - b A| at most A + B, for the larger one (A, B).
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(sum(one), sum(other))
