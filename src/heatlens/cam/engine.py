"""The engine: one forward, many targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from heatlens.cam.capture import Reference, reference_pass
from heatlens.cam.masked import MaskedForwards
from heatlens.cam.methods.base import CamMethod, MethodResult
from heatlens.cam.precision import resolve_batch_size, resolve_precision
from heatlens.cam.protocols import ModelAdapter, PatchGrid, Target
from heatlens.cam.targets import RandomDirection
from heatlens.errors import ModelError, ZeroGradientError
from heatlens.registry import find

# Images per reference pass. One on a CPU (nothing is gained by more); padded to the same number on a GPU.
_REFERENCE_ROWS = {"cuda": 8}


@dataclass(frozen=True)
class ImageExplanation:
    """One image's maps and their record.

    ``maps`` (T, h, w) float32 on the CPU, at least 0, on the patch grid; ``scores`` the T targets' scores of
    the whole image; ``warnings`` per target. A map that is not finite is all NaN and has a warning that begins
    with ``error: ``.
    """

    maps: Tensor
    scores: list[float]
    warnings: list[tuple[str, ...]]


class CamEngine:
    """Explains images with one CAM method.

    Use as a context manager, or not: hooks live only inside a pass. ``method`` is a name of the registry.
    ``batch_size`` and ``precision`` (``auto``, ``fp32``, ``bf16``, ``fp16``) govern the masked forwards; the
    reference pass always runs in the model's own dtype.

    Raises ZeroGradientError at construction when the method needs gradients and the target layer's patch
    tokens structurally have none, unless ``allow_zero_gradient``.
    """

    def __init__(
        self,
        model: ModelAdapter,
        *,
        method: str = "gScoreCAM",
        top_k: int = 300,
        batch_size: int | None = None,
        precision: str = "auto",
        allow_zero_gradient: bool = False,
    ) -> None:
        self.model = model
        self.method: CamMethod = find("method", method).load()(top_k=top_k)
        device = str(model.device)
        self.batch_size = resolve_batch_size(batch_size, device)
        self.precision = "fp32" if model.dtype == torch.float64 else resolve_precision(precision, device)
        self._masked = MaskedForwards(model, batch_size=self.batch_size, precision=self.precision)
        self._reference_rows = _REFERENCE_ROWS.get(model.device.type, 1)
        if self.method.needs_gradients and not allow_zero_gradient:
            self._refuse_zero_gradient()

    def __enter__(self) -> CamEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing outlives a pass; the context manager marks the engine's span in the caller's code."""

    @property
    def grid(self) -> PatchGrid:
        """Where the maps' cells lie in the input frame."""
        return self.model.grid

    @property
    def masked_forwards(self) -> int:
        """Masked images forwarded so far (padding not counted)."""
        return self._masked.forwards

    def settings(self) -> dict[str, object]:
        """What determines the maps, for a run's fingerprint."""
        return {
            "method": self.method.name,
            **self.method.parameters(),
            "precision": self.precision,
            "batch_size": self.batch_size,
            "target_layer": self.model.target_layer_name,
        }

    def explain(self, images: Tensor, targets: Sequence[Sequence[Target]]) -> list[Tensor]:
        """``images`` (B, 3, H, W) normalised, one list of targets per image -> one (T_b, h, w) float32 CPU
        tensor per image, at least 0, on the patch grid."""
        return [explanation.maps for explanation in self.explain_full(images, targets)]

    def explain_full(self, images: Tensor, targets: Sequence[Sequence[Target]]) -> list[ImageExplanation]:
        """As :meth:`explain`, with scores and warnings."""
        if images.ndim != 4 or len(images) != len(targets):
            raise ModelError(
                f"explain() wants images (B, 3, H, W) and B lists of targets; "
                f"got {tuple(images.shape)} and {len(targets)} lists"
            )
        images = images.to(device=self.model.device, dtype=self.model.dtype)
        references = self._references(images, targets)
        results = self.method.maps(references, self._masked)
        return [_record(ref, result) for ref, result in zip(references, results, strict=True)]

    def _references(self, images: Tensor, targets: Sequence[Sequence[Target]]) -> list[Reference]:
        """Reference passes of a fixed number of rows, padded with empty images."""
        rows = self._reference_rows
        references: list[Reference] = []
        for start in range(0, len(images), rows):
            part, wanted = images[start : start + rows], list(targets[start : start + rows])
            if missing := rows - len(part):
                part = torch.cat([part, part.new_zeros((missing, *part.shape[1:]))])
                wanted += [[] for _ in range(missing)]
            found = reference_pass(self.model, part, wanted, gradients=self.method.needs_gradients)
            references += found[: rows - missing]
        return references

    def _refuse_zero_gradient(self) -> None:
        if has_patch_gradient(self.model):
            return
        chosen, advice = self.model.target_layer_name, self.model.default_layer_name
        raise ZeroGradientError(
            f"TARGET_LAYER={chosen}: the score has no gradient at this layer's patch tokens (a CLS-pooled transformer "
            f"reads only the CLS token from there on), so {self.method.name} would rank channels by zeros and draw the "
            f"same map for every prompt. Use TARGET_LAYER={advice}; ALLOW_ZERO_GRADIENT=true overrides for studies."
        )


def has_patch_gradient(model: ModelAdapter) -> bool:
    """Does any patch token at the target layer have a gradient? Structural, so one random image answers it."""
    width, height = model.frame
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, 3, height, width), generator=generator)
    image = image.to(device=model.device, dtype=model.dtype)
    (reference,) = reference_pass(model, image, [[RandomDirection()]], gradients=True)
    assert reference.gradients is not None
    return bool((reference.gradients != 0).any())


def _record(reference: Reference, result: MethodResult) -> ImageExplanation:
    maps = result.maps.float().cpu()
    remarks = result.remarks or [()] * len(maps)
    warnings: list[tuple[str, ...]] = []
    for position, one in enumerate(maps):
        warnings.append((*remarks[position], *_map_warnings(one)))
        if not bool(one.isfinite().all()):
            maps[position] = float("nan")
    return ImageExplanation(maps, [float(score) for score in reference.scores], warnings)


def _map_warnings(one: Tensor) -> tuple[str, ...]:
    if not bool(one.isfinite().all()):
        return ("error: the map is not finite (NaN or infinity in the activations, gradients or scores)",)
    if float(one.max()) == float(one.min()):
        return (f"the map is constant ({float(one.max()):.3g} everywhere): nothing in the image speaks for this text",)
    return ()
