"""Opening images in processes of their own: decoding costs the device no time, and a crash there no run.

Each process is driven by one thread of this one over a socket. A process that dies, or takes too long, costs the
image that it had (a recorded failure) and is replaced. It imports no torch, ignores the stop signals (this process
decides), and ends when this process does, however that ends.

    with start_decoders(2, stage) as decoders:    # they import while the model is loaded
        decoders.open_with(Opener(FilmReader(root), stage, explainer.placer, explainer.grid))
        make_all(tasks, worker, commits, stop, decoders=decoders, writers=2)
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from heatlens.batch.protocols import Placed, Placer, Stage, Statistic
from heatlens.errors import HeatlensError, ItemError, one_line

if TYPE_CHECKING:
    from heatlens.cam.protocols import PatchGrid
    from heatlens.images.film import Film

# Of decoders and writers, 0 to 19. Low enough to step back, high enough not to starve beside other programs.
NICENESS = 5

# The model's frame is sampled from at least so many pixels of the film per pixel, along each side.
OVERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that was read: what the stage and the model see of it, or why it cannot be used."""

    view: Any = None
    placed: Placed | None = None
    statistics: dict[str, Statistic] = field(default_factory=dict)
    failure: ItemError | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class FilmReader:
    """Canonical image path -> film, of at least ``longest`` pixels (None: all there are). ``root`` is IMAGE_ROOT."""

    root: Path

    def __call__(self, image_path: str, longest: int | None = None) -> Film:
        """Raises ItemError (locate, decode) for an image that cannot be used."""
        from heatlens.images.decode import read_film
        from heatlens.images.locate import locate_image

        return read_film(locate_image(self.root, image_path), longest)


def pixels_for(longest: int | None, frame: tuple[int, int]) -> int | None:
    """``longest``, what a stage needs along the film's longer side (None: all pixels), or more where ``frame``, the
    model's (width, height), asks for it. Whoever opens a run's film again must do so alike, or sees other pixels."""
    return None if longest is None else max(longest, OVERSAMPLING * max(frame))


@dataclass(frozen=True)
class FramePlacer:
    """Letterboxes, crops or squashes (PREPROCESS) films into ``frame`` (width, height)."""

    preprocess: str
    frame: tuple[int, int]

    def __call__(self, film: Film) -> Placed:
        """The film in the model's frame."""
        from heatlens.images.geometry import FrameGeometry

        geometry = FrameGeometry.fit(self.preprocess, source=film.size, frame=self.frame)
        return Placed(geometry, geometry.place(film.pixels))


@dataclass(frozen=True)
class Opener:
    """Canonical image path -> :class:`Opened`: find, decode, place, and what the stage makes of it once."""

    read: Callable[[str, int | None], Film]
    stage: Stage
    placer: Placer
    grid: PatchGrid

    @property
    def longest(self) -> int | None:
        """Pixels along the film's longer side that stage and model need; None for all."""
        return pixels_for(self.stage.longest, self.placer.frame)

    def __call__(self, image_path: str) -> Opened:
        """Never raises for a bad image; a HeatlensError that is no ItemError ends the run."""
        start = time.monotonic()
        step = "decode"
        try:
            film = self.read(image_path, self.longest)
            placed = self.placer(film)
            step = "render"
            view = self.stage.open_image(film, placed, self.grid)
            statistics = dict(self.stage.image_statistics(view))
            return Opened(view, placed, statistics, seconds=time.monotonic() - start)
        except ItemError as error:
            return Opened(failure=error, seconds=time.monotonic() - start)
        except HeatlensError:
            raise
        except Exception as error:  # decoders raise whatever they like on damaged files
            return Opened(failure=ItemError(step, one_line(error)), seconds=time.monotonic() - start)


def step_back() -> None:
    """Lower this thread's priority (Linux: a thread's own): the device's thread and torch's come first.

    Otherwise every step of a model on the CPU waits for the one of its threads that a decoder has displaced.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


# What came of an image: opened, or the error that ends the run.
Outcome = Opened | BaseException


class Decoders(Protocol):
    """Whoever opens images for the pipeline."""

    @property
    def readers(self) -> int:
        """Images that are opened at the same time; 0: by the caller, while it waits."""
        ...

    def open_with(self, open_image: Callable[[str], Opened]) -> None:
        """What opens an image. Before the first :meth:`submit`."""
        ...

    def submit(self, image_path: str, done: Callable[[Outcome], None]) -> None:
        """Have an image opened; ``done`` is called once, from any thread."""
        ...

    def close(self) -> None:
        """End processes and threads; what is still being opened is dropped."""
        ...

    def __enter__(self) -> Decoders: ...

    def __exit__(self, *_: object) -> None: ...


class InlineDecoder:
    """Opens in the thread that asks."""

    readers = 0
    _open: Callable[[str], Opened]

    def open_with(self, open_image: Callable[[str], Opened]) -> None:
        """See :class:`Decoders`."""
        self._open = open_image

    def submit(self, image_path: str, done: Callable[[Outcome], None]) -> None:
        """Opens it now."""
        done(self._open(image_path))

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> InlineDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_decoders(readers: int, stage: Stage) -> Decoders:
    """``readers`` decoder processes, which import what they need for ``stage`` at once; with 0 the caller opens."""
    if readers == 0:
        return InlineDecoder()
    from heatlens.batch.decoder_process import DecoderProcesses

    imports = ("heatlens.images.decode", "heatlens.images.locate", type(stage).__module__)
    return DecoderProcesses(readers, imports)
