"""One image from its file to its record: read, explain, make, write. Failures become records here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.batch.folder import writing
from heatlens.batch.ledger import HeatMapRecord, ImageRecord
from heatlens.batch.protocols import Explainer, Explanation, OutputFile, Placed, Stage, Statistic
from heatlens.batch.signals import StopSignals
from heatlens.cam.protocols import ERROR_PREFIX
from heatlens.errors import HeatlensError, ItemError, SetupError, one_line
from heatlens.files import atomic_write, safe_relative

if TYPE_CHECKING:
    from heatlens.images.film import Film
    from heatlens.questions.plan import HeatMap, ImageTask

_DEVICE_ERRORS = ("OutOfMemoryError", "AcceleratorError")
_DEVICE_TEXTS = ("CUDA error", "CUDA out of memory", "CUBLAS", "cuDNN error", "can't allocate memory")


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that was read: what the stage and the model see of it, or why it cannot be used."""

    view: Any = None
    placed: Placed | None = None
    statistics: dict[str, Statistic] = field(default_factory=dict)
    failure: ItemError | None = None
    seconds: float = 0.0


class ImageWorker:
    """Makes all heat maps of one image. ``open_film`` turns a canonical image path into a Film."""

    def __init__(
        self,
        stage: Stage,
        explainer: Explainer,
        open_film: Callable[[str], Film],
        results: Path,
        stop: StopSignals,
    ) -> None:
        self._stage = stage
        self._explainer = explainer
        self._open_film = open_film
        self._results = results
        self._stop = stop

    def open(self, task: ImageTask) -> Opened:
        """Find, decode and place the image. Runs in the decode thread; never raises for a bad image."""
        start = time.monotonic()
        step = "decode"
        try:
            film = self._open_film(task.image_path)
            placed = self._explainer.place(film)
            step = "render"
            view = self._stage.open_image(film, placed, self._explainer.grid)
            statistics = dict(self._stage.image_statistics(view))
            return Opened(view, placed, statistics, seconds=time.monotonic() - start)
        except ItemError as error:
            return Opened(failure=error, seconds=time.monotonic() - start)
        except HeatlensError:
            raise
        except Exception as error:  # decoders raise whatever they like on damaged files
            return Opened(failure=ItemError(step, one_line(error)), seconds=time.monotonic() - start)

    def finish(self, task: ImageTask, opened: Opened) -> ImageRecord:
        """Explain and write; the image's record. All files of an ``ok`` record are durable."""
        if opened.failure is not None:
            return _all_failed(task, opened.failure, {"read": opened.seconds})
        start = time.monotonic()
        answers = self._explain(opened, list(dict.fromkeys(heat_map.prompt for heat_map in task.heat_maps)))
        explained = time.monotonic()
        records = tuple(self._make(opened.view, one, answers[one.prompt]) for one in task.heat_maps)
        write = time.monotonic() - explained
        seconds = {"read": opened.seconds, "explain": explained - start, "write": write}
        return ImageRecord(task.image_path, records, opened.statistics, seconds, peak_rss_mib())

    def _explain(self, opened: Opened, prompts: Sequence[str]) -> dict[str, Explanation | ItemError]:
        """An explanation or a failure per prompt. When all together fail, each is tried alone."""
        assert opened.placed is not None
        try:
            with self._stop.interruptible():
                return dict(zip(prompts, self._explainer.explain(opened.placed.frame, prompts), strict=True))
        except Exception as error:
            failure = _explain_failure(error)
        if len(prompts) == 1:
            return {prompts[0]: failure}
        return {prompt: self._explain(opened, [prompt])[prompt] for prompt in prompts}

    def _make(self, view: Any, heat_map: HeatMap, answer: Explanation | ItemError) -> HeatMapRecord:
        try:
            if isinstance(answer, ItemError):
                raise answer
            refuse_broken_map(answer)
            result = self._stage.make(view, heat_map, answer)
            self._write(result.files)
        except ItemError as error:
            return _failed(heat_map, error)
        except HeatlensError:
            raise
        except Exception as error:  # one picture that cannot be drawn or encoded does not cost the others
            return _failed(heat_map, ItemError("render", one_line(error)))
        return HeatMapRecord(
            key=heat_map.key,
            status="ok",
            output=result.files[0].path,
            score=answer.score,
            prompt_truncated=answer.truncated,
            statistics=result.statistics,
            warnings=(*answer.warnings, *result.warnings),
        )

    def _write(self, files: Iterable[OutputFile]) -> None:
        for one in files:
            relative = safe_relative(one.path)
            try:
                with writing(self._results):
                    atomic_write(self._results / relative, one.data)
            except OSError as error:
                raise ItemError("write", one_line(error)) from None


def refuse_broken_map(answer: Explanation) -> None:
    """ItemError for a map that the engine marked as not usable."""
    for text in answer.warnings:
        if text.startswith(ERROR_PREFIX):
            raise ItemError("explain", text.removeprefix(ERROR_PREFIX))


def peak_rss_mib() -> float:
    """The process's largest resident memory so far, in MiB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _explain_failure(error: BaseException) -> ItemError:
    """What failed for this image alone; errors of the device or the model's set-up end the run."""
    if isinstance(error, ItemError):
        return error
    if isinstance(error, HeatlensError):
        raise error
    text = one_line(error)
    broken = isinstance(error, MemoryError) or type(error).__name__ in _DEVICE_ERRORS
    if broken or any(sign in text for sign in _DEVICE_TEXTS):
        raise SetupError(
            f"the device failed: {text[:400]}. If memory is short, a smaller BATCH_SIZE needs less"
        ) from error
    return ItemError("explain", text)


def _failed(heat_map: HeatMap, error: ItemError) -> HeatMapRecord:
    return HeatMapRecord(heat_map.key, "failed", stage=error.stage, reason=error.reason)


def _all_failed(task: ImageTask, error: ItemError, seconds: dict[str, float]) -> ImageRecord:
    records = tuple(_failed(heat_map, error) for heat_map in task.heat_maps)
    return ImageRecord(task.image_path, records, {}, seconds, peak_rss_mib())
