"""The real pieces that a run is put together from, each replaceable by a fake in tests.

Heavy modules are imported inside the methods: a second call of a finished run needs no model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.batch.openers import Decoders, FilmReader, start_decoders
from heatlens.batch.protocols import Explainer, Stage
from heatlens.errors import ConfigError
from heatlens.registry import find

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.images.film import Film
    from heatlens.questions.plan import Plan
    from heatlens.questions.rows import Reader

WAITING = 2
"""writers that wait for the disk while the others work"""


class Parts:
    """Reader, plan, films, weights and model as the settings name them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def reader(self) -> Reader:
        """The data set's reader. DataSetError when its files are not there."""
        settings = self.settings
        reader: Reader = find("dataset", settings.dataset).load()(settings.dataset_path)
        return reader

    def image_root(self, reader: Reader) -> Path:
        """IMAGE_ROOT, or where the data set says its images are."""
        root = self.settings.image_root or reader.image_root()
        if root is None:
            raise ConfigError("IMAGE_ROOT is empty, and the data set does not say where its images are")
        return Path(root)

    def plan(self, reader: Reader, image_root: Path, folder: Path, digest: str) -> Plan:
        """What is to be made, kept in ``folder``; ``digest`` is that of the data set's files."""
        from heatlens.questions.plan import make_plan
        from heatlens.questions.select import Selection

        settings = self.settings
        selection = Selection(
            split=settings.split,
            view=settings.view,
            question_types=settings.question_types,
            sample=settings.sample,
            seed=settings.seed,
            image_root=image_root,
        )
        return make_plan(
            reader,
            folder,
            data_digest=digest,
            regions=settings.regions,
            prompt_template=settings.prompt_template,
            selection=selection,
            stop_after=settings.stop_after,
        )

    def plan_begun(self, reader: Reader, folder: Path, digest: str) -> bool:
        """Are the questions in ``folder`` already, read and numbered? Then a plan takes no time."""
        from heatlens.questions.index import index_digest, open_index

        return open_index(folder, index_digest(reader, digest, self.settings.regions)) is not None

    def film_reader(self, image_root: Path) -> Callable[[str, int | None], Film]:
        """What decodes an image (canonical path, pixels needed along its longer side): ItemError if it cannot."""
        return FilmReader(image_root)

    def decoders(self, stage: Stage) -> Decoders:
        """The processes that open images for ``stage``."""
        readers, _ = worker_counts(self.settings.num_workers, available_cores(), self._on_gpu())
        return start_decoders(readers, stage)

    def writers(self) -> int:
        """Threads that draw, encode and write."""
        return worker_counts(self.settings.num_workers, available_cores(), self._on_gpu())[1]

    def _on_gpu(self) -> bool:
        from heatlens.models.devices import resolve_device

        return resolve_device(self.settings.device).startswith("cuda")

    def is_there(self, image_root: Path, image_path: str) -> bool:
        """Does the image's file exist now?"""
        from heatlens.errors import ItemError
        from heatlens.images.locate import locate_image

        try:
            locate_image(image_root, image_path)
        except (ItemError, OSError, ValueError):
            return False
        return True

    def weights(self) -> Mapping[str, Any]:
        """The weights' identity (model, revision, file, SHA-256) without building the model."""
        from heatlens.models.sources import weights_identity

        return weights_identity(self.settings.model, self.settings.model_revision or None)

    def resolved(self) -> tuple[str, int]:
        """Precision and batch size as the engine will use them."""
        from heatlens.cam.precision import resolve_batch_size, resolve_precision
        from heatlens.models.devices import resolve_device

        device = resolve_device(self.settings.device)
        return (
            resolve_precision(self.settings.precision, device),
            resolve_batch_size(self.settings.batch_size, device),
        )

    def explainer(self) -> Explainer:
        """The loaded model with its CAM method."""
        from heatlens.batch.explainer import ModelExplainer

        return ModelExplainer(self.settings)


def worker_counts(num_workers: int | None, cores: int, gpu: bool) -> tuple[int, int]:
    """(decoder processes, writer threads) for NUM_WORKERS, by the number of cores where it is empty.

    On a CPU the model takes the cores, and a film is decoded in a hundredth of the time that it is explained in.
    On a GPU they are free, and writing takes most of them. There are more writers than cores for them, because some
    always wait for the disk.
    """
    if num_workers is not None:
        return num_workers, max(1, num_workers)
    if gpu:
        readers = max(1, cores // 4)
        return readers, max(2, cores - readers) + WAITING
    return (1 if cores <= 4 else 2), max(2, cores) + WAITING


def available_cores() -> int:
    """Cores that this process may use: what a scheduler or a container left it, not what the machine has."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux tells
        cores = os.cpu_count() or 1
    return max(1, min(cores, round(cpu_quota() or cores)))


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPUs that a control group grants this process (docker's --cpus), or None without a limit."""
    for quota, period in ((root / "cpu.max", None), (root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError, ZeroDivisionError):
            words = quota.read_text().split() + (period.read_text().split() if period else [])
            granted = float(words[0]) / float(words[1])  # "max" and -1: no limit
            return granted if granted > 0 else None
    return None
