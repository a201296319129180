"""A CLIP model and a CAM engine behind the runner's :class:`~heatlens.batch.protocols.Explainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from heatlens.batch.openers import FramePlacer
from heatlens.batch.protocols import Explanation
from heatlens.cam.engine import CamEngine, ImageExplanation
from heatlens.cam.precision import reference_rows
from heatlens.cam.protocols import PatchGrid
from heatlens.models.clip import ClipAdapter
from heatlens.models.devices import resolve_device
from heatlens.models.loading import load_clip

if TYPE_CHECKING:
    from heatlens.config import Settings


def load_model(settings: Settings) -> ClipAdapter:
    """What MODEL names, on DEVICE, at TARGET_LAYER."""
    return load_clip(
        settings.model,
        revision=settings.model_revision or None,
        device=resolve_device(settings.device),
        target_layer=settings.target_layer,
    )


def build_engine(model: ClipAdapter, settings: Settings, **changes: Any) -> CamEngine:
    """CAM_VERSION with all its keys on ``model``; ``changes`` replace some of :class:`CamEngine`'s arguments."""
    options: dict[str, Any] = {
        "method": settings.cam_version,
        "top_k": settings.topk,
        "masks": settings.rise_masks,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "precision": settings.precision,
        "compile": settings.compile,
        "allow_zero_gradient": settings.allow_zero_gradient,
    }
    return CamEngine(model, **{**options, **changes})


class ModelExplainer:
    """Loads what MODEL names (or takes ``model``) and explains with CAM_VERSION. ModelError when it does not work."""

    def __init__(self, settings: Settings, model: ClipAdapter | None = None) -> None:
        self._model = model or load_model(settings)
        self._engine = build_engine(self._model, settings)
        self.placer = FramePlacer(settings.preprocess, self._model.frame)
        self.group = reference_rows(str(self._model.device))

    @property
    def grid(self) -> PatchGrid:
        """Where the maps' cells lie in the model's frame."""
        return self._engine.grid

    @property
    def masked_forwards(self) -> int:
        """Masked images forwarded so far."""
        return self._engine.masked_forwards

    def explain(self, frames: Sequence[np.ndarray], prompts: Sequence[Sequence[str]]) -> list[list[Explanation]]:
        """One explanation per prompt of every image."""
        targets = [[self._model.target(prompt) for prompt in mine] for mine in prompts]
        found = self._engine.explain_full(self._model.prepare(frames), targets)
        return [self._explanations(one, mine) for one, mine in zip(found, prompts, strict=True)]

    def _explanations(self, found: ImageExplanation, prompts: Sequence[str]) -> list[Explanation]:
        return [
            Explanation(
                map=found.maps[position].numpy(),
                score=float(found.scores[position]),
                warnings=tuple(found.warnings[position]),
                truncated=self._model.truncates(prompt),
            )
            for position, prompt in enumerate(prompts)
        ]

    def settings(self) -> Mapping[str, object]:
        """What determines the maps, as the engine resolved it."""
        return self._engine.settings()

    def close(self) -> None:
        """Hooks live only inside a pass; nothing is left to give back."""
        self._engine.__exit__(None, None, None)
