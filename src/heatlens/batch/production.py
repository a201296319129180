"""A request's model and decoders, started and ended together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heatlens.batch.openers import Decoders, Opener
from heatlens.batch.pipeline import Commits, make_all
from heatlens.batch.protocols import Explainer
from heatlens.batch.signals import StopSignals
from heatlens.batch.worker import ImageWorker

if TYPE_CHECKING:
    from heatlens.batch.job import Request
    from heatlens.questions.plan import ImageTask


@dataclass(frozen=True)
class Production:
    """Ready to make heat maps."""

    explainer: Explainer
    _worker: ImageWorker
    _decoders: Decoders
    _writers: int

    def make(self, tasks: Iterable[ImageTask], commits: Commits) -> None:
        """All heat maps of ``tasks``, as :func:`heatlens.batch.pipeline.make_all` does it."""
        make_all(tasks, self._worker, commits, self._worker.stop, decoders=self._decoders, writers=self._writers)


@contextmanager
def production(request: Request, results: Path, stop: StopSignals) -> Iterator[Production]:
    """Load the model and start the decoders for files in ``results``. SetupError or ModelError when that fails."""
    parts, stage = request.parts, request.stage
    # Decoders first: they start while the model is loaded.
    with parts.decoders(stage) as decoders:
        with stop.interruptible():
            explainer = parts.explainer()
        try:
            read = parts.film_reader(request.image_root)
            decoders.open_with(Opener(read, stage, explainer.placer, explainer.grid))
            yield Production(explainer, ImageWorker(stage, explainer, results, stop), decoders, parts.writers())
        finally:
            explainer.close()
