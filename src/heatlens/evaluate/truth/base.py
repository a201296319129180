"""What every annotation format gives, and ``--truth FORMAT[:PATH]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from heatlens.errors import ConfigError
from heatlens.evaluate.target import Size, Target
from heatlens.registry import find

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun

MATCHES = ("auto", "region", "question", "prompt", "image")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a heat map was asked, as far as annotations are matched with it. ``boxes``: details' JSON text."""

    image: str
    region: str
    question: str
    prompt: str
    content_type: str
    boxes: str
    source: Size


@dataclass(frozen=True, slots=True)
class Match:
    """A target and ``how`` it was found, or None and ``how`` it was not: words for the record."""

    target: Target | None
    how: str


class Truth(Protocol):
    """Annotations of films."""

    name: str
    by_image: bool
    """False: the annotation lies in the run's own ``boxes``, and rows without a box have none."""

    def meet(self, images: Sequence[str]) -> None:
        """Match the run's images (canonical paths, each once) with the annotated ones."""
        ...

    def why_not(self, image: str) -> str:
        """Why nothing can be said about this image of the run; "" when something can."""
        ...

    def match(self, asked: Asked, by: str) -> Match:
        """The target of a heat map; ``by`` is one of MATCHES."""
        ...

    def describe(self) -> dict[str, Any]:
        """Format, path and numbers: plain data for the record."""
        ...

    def notes(self) -> list[str]:
        """What was wrong with the annotations, by place."""
        ...


def open_truth(text: str, run: FinishedRun) -> Truth:
    """``FORMAT`` or ``FORMAT:PATH`` as the command line has it. ConfigError for an unknown format or a file of another
    layout."""
    name, _, path = text.partition(":")
    if not name.strip():
        raise ConfigError(f"--truth={text}: which format? FORMAT or FORMAT:PATH; `heatlens list truths` has the names")
    try:
        entry = find("truth", name)
    except ConfigError as error:
        raise ConfigError(f"--truth={text}: {error}") from None
    truth: Truth = entry.load()(Path(path) if path else None, run)
    return truth
