"""A call that is ready to work: everything that can be wrong before the model is loaded, cheapest first."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.batch.fingerprint import FINGERPRINT, check_or_store, data_digest, make_fingerprint, recorded
from heatlens.batch.folder import claim, writing
from heatlens.batch.lock import describe, live_locks
from heatlens.batch.parts import Parts
from heatlens.batch.planning import PLAN_FOLDER, shared_plan
from heatlens.batch.protocols import Stage
from heatlens.batch.signals import StopSignals
from heatlens.errors import SetupError

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.questions.plan import Plan
    from heatlens.questions.rows import Reader


@dataclass(frozen=True)
class Request:
    """What a call asks for, before anything is written."""

    settings: Settings
    stage: Stage
    parts: Parts
    reader: Reader
    image_root: Path
    data_digest: str
    fingerprint: dict[str, Any]
    weights: dict[str, Any]
    started: float

    @classmethod
    def of(cls, settings: Settings, stage: Stage, parts: Parts, *, model: bool = True, device: bool = True) -> Request:
        """Look at data set and weights. DataSetError, ConfigError or SetupError for what cannot work.

        Without ``model`` the weights are not looked for, and there is no fingerprint; without ``device`` nothing is
        computed here, and the fingerprint has what the results folder says of the devices that did.
        """
        started = time.monotonic()
        reader = parts.reader()
        image_root = parts.image_root(reader)
        weights = dict(parts.weights()) if model else {}
        digest = data_digest(reader.files())
        fingerprint = {}
        if model:
            resolved = parts.resolved() if device else recorded(settings)
            fingerprint = _fingerprint(settings, stage, digest, weights, *resolved)
        return cls(settings, stage, parts, reader, image_root, digest, fingerprint, weights, started)


@dataclass(frozen=True)
class Job:
    """A request with its plan, in a results folder that is ours."""

    request: Request
    plan: Plan

    @property
    def settings(self) -> Settings:
        """The call's settings."""
        return self.request.settings

    @property
    def stage(self) -> Stage:
        """What is written for a heat map."""
        return self.request.stage

    @property
    def results(self) -> Path:
        """The results folder."""
        return self.settings.results_dir

    @property
    def shard(self) -> tuple[int, int]:
        """(index, number of shards)."""
        return self.settings.shard_index, self.settings.num_shards

    @property
    def shard_folder(self) -> Path:
        """This process's part of ``shards/``."""
        return self.results / "shards" / "{:04d}-of-{:04d}".format(*self.shard)

    def cut_into(self, shards: int) -> Job:
        """The same run with another NUM_SHARDS, at its first shard."""
        settings = self.settings.model_copy(update={"num_shards": shards, "shard_index": 0})
        return replace(self, request=replace(self.request, settings=settings))


def prepare(settings: Settings, stage: Stage, parts: Parts, stop: StopSignals, *, device: bool = True) -> Job:
    """Check what is asked, claim the results folder, and plan.

    Without ``device`` (plan and merge, on a login node perhaps), a run that is there has to fit, and none is begun.
    """
    for line in settings.announcements:
        print(line)
    with stop.interruptible():
        request = Request.of(settings, stage, parts, device=device)
    moved = claim(settings.results_dir, overwrite=settings.overwrite)
    if moved is not None:
        print(f"OVERWRITE=true: the earlier results are now in {moved}")
    with writing(settings.results_dir):
        if device or (settings.results_dir / FINGERPRINT).exists():
            check_or_store(settings.results_dir, FINGERPRINT, request.fingerprint)
        _refuse_other_shard_count(settings)
        with stop.interruptible():
            plan = shared_plan(
                parts, request.reader, request.image_root, request.data_digest, settings.results_dir / PLAN_FOLDER
            )
    return Job(request, plan)


def _fingerprint(
    settings: Settings, stage: Stage, digest: str, weights: dict[str, Any], precision: str, batch_size: int
) -> dict[str, Any]:
    return make_fingerprint(
        stage=stage.name,
        settings=settings.fixed_for(stage.name),
        data_digest=digest,
        weights=weights,
        precision=precision,
        batch_size=batch_size,
    )


def _refuse_other_shard_count(settings: Settings) -> None:
    for folder, holder in live_locks(settings.results_dir).items():
        if not folder.endswith(f"-of-{settings.num_shards:04d}"):
            raise SetupError(
                f"NUM_SHARDS={settings.num_shards}, but shard {folder} of {settings.results_dir} is being "
                f"worked on by {describe(holder)}; two ways of sharing the work would do it twice"
            )
