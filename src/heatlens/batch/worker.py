"""What is done with an opened image: explain, make, write. Failures become records here, and only here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.batch.folder import writing
from heatlens.batch.ledger import HeatMapRecord, ImageRecord
from heatlens.batch.openers import Opened
from heatlens.batch.protocols import Explainer, Explanation, OutputFile, Stage
from heatlens.batch.signals import StopSignals
from heatlens.cam.protocols import ERROR_PREFIX
from heatlens.errors import HeatlensError, ItemError, SetupError, one_line
from heatlens.files import atomic_write, safe_relative

if TYPE_CHECKING:
    from heatlens.questions.plan import HeatMap, ImageTask

_DEVICE_ERRORS = ("OutOfMemoryError", "AcceleratorError")
_DEVICE_TEXTS = ("CUDA error", "CUDA out of memory", "CUBLAS", "cuDNN error", "can't allocate memory")

# What came of a prompt, by prompt.
Answers = dict[str, Explanation | ItemError]


@dataclass(frozen=True)
class ImageWorker:
    """Explains groups of images and makes single heat maps. ``results`` is the folder for the files."""

    stage: Stage
    explainer: Explainer
    results: Path
    stop: StopSignals

    def explain(self, group: Sequence[tuple[ImageTask, Opened]]) -> list[Answers]:
        """An explanation or a failure per prompt, for every image of ``group``; equal prompts share one.

        When all images together fail, each is tried alone, and when an image fails, each of its prompts. A stop
        signal raises StoppedEarly at once.
        """
        prompts = [list(dict.fromkeys(heat_map.prompt for heat_map in task.heat_maps)) for task, _ in group]
        return self._explain([opened for _, opened in group], prompts)

    def _explain(self, images: Sequence[Opened], prompts: Sequence[Sequence[str]]) -> list[Answers]:
        frames = [one.placed.frame for one in images if one.placed is not None]
        try:
            with self.stop.interruptible():
                found = self.explainer.explain(frames, prompts)
                return [dict(zip(mine, maps, strict=True)) for mine, maps in zip(prompts, found, strict=True)]
        except Exception as error:
            failure = explain_failure(error)
        if len(images) > 1:
            return [self._explain([one], [mine])[0] for one, mine in zip(images, prompts, strict=True)]
        (mine,) = prompts
        if len(mine) == 1:
            return [{mine[0]: failure}]
        alone: Answers = {}
        for prompt in mine:
            alone.update(self._explain(images, [[prompt]])[0])
        return [alone]

    def make(self, view: Any, heat_map: HeatMap, answer: Explanation | ItemError) -> HeatMapRecord:
        """Make and write one heat map; all files of an ``ok`` record are durable. Called by several threads."""
        try:
            if isinstance(answer, ItemError):
                raise answer
            refuse_broken_map(answer)
            result = self.stage.make(view, heat_map, answer)
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
                with writing(self.results):
                    atomic_write(self.results / relative, one.data)
            except OSError as error:
                raise ItemError("write", one_line(error)) from None


def all_failed(task: ImageTask, error: ItemError, seconds: dict[str, float]) -> ImageRecord:
    """The record of an image that could not be opened."""
    records = tuple(_failed(heat_map, error) for heat_map in task.heat_maps)
    return ImageRecord(task.image_path, records, {}, seconds, peak_rss_mib())


def refuse_broken_map(answer: Explanation) -> None:
    """ItemError for a map that the engine marked as not usable."""
    for text in answer.warnings:
        if text.startswith(ERROR_PREFIX):
            raise ItemError("explain", text.removeprefix(ERROR_PREFIX))


def explain_failure(error: Exception) -> ItemError:
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


def peak_rss_mib() -> float:
    """The process's largest resident memory so far, in MiB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _failed(heat_map: HeatMap, error: ItemError) -> HeatMapRecord:
    return HeatMapRecord(heat_map.key, "failed", stage=error.stage, reason=error.reason)
