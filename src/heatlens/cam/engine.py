"""The engine: one forward, many targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from heatlens.cam.attention import DEAF
from heatlens.cam.batches import BatchRows
from heatlens.cam.capture import reference_pass
from heatlens.cam.locks import model_lock
from heatlens.cam.masked import MaskedForwards
from heatlens.cam.methods.base import CamMethod, MethodOptions, MethodResult, Passes
from heatlens.cam.precision import reference_rows, resolve_batch_size, resolve_precision
from heatlens.cam.protocols import ERROR_PREFIX, HALVED_PREFIX, ModelAdapter, PatchGrid, Target
from heatlens.cam.targets import RandomDirection, random_image
from heatlens.errors import ModelError, ZeroGradientError
from heatlens.registry import find


@dataclass(frozen=True)
class ImageExplanation:
    """One image's maps and their record.

    ``maps`` (T, h, w) float32 on the CPU, at least 0, on the engine's grid; ``scores`` the T targets' scores of
    the whole image; ``warnings`` per target. A map that is not finite is all NaN and has a warning that begins
    with ``error: ``.
    """

    maps: Tensor
    scores: list[float]
    warnings: list[tuple[str, ...]]


class CamEngine:
    """Explains images with one CAM method.

    Use as a context manager, or not: hooks live only inside a pass. ``method`` is a name of the registry, or
    ``grad-cam:NAME``. ``top_k`` channels are what gScoreCAM masks; ``masks`` random ones from ``seed`` what RISE
    does. ``batch_size``, ``precision`` (``auto``, ``fp32``, ``bf16``, ``fp16``) and ``compile`` (torch.compile)
    govern the masked forwards; the reference pass always runs in the model's own dtype.

    Raises ModelError at construction when the method cannot work on this model, and ZeroGradientError when it
    says nothing at a target layer whose patches have no gradient, unless ``allow_zero_gradient``.
    """

    def __init__(
        self,
        model: ModelAdapter,
        *,
        method: str = "gScoreCAM",
        top_k: int = 300,
        masks: int = 4000,
        seed: int = 0,
        batch_size: int | None = None,
        precision: str = "auto",
        compile: bool = False,
        allow_zero_gradient: bool = False,
    ) -> None:
        self.model = model
        self.method: CamMethod = find("method", method).load()(MethodOptions(top_k, masks, seed))
        device = str(model.device)
        self.batch_size = resolve_batch_size(batch_size, device)
        self.precision = "fp32" if model.dtype == torch.float64 else resolve_precision(precision, device)
        self._compile = compile
        self._passes = Passes(
            MaskedForwards(model, batch_size=self.batch_size, precision=self.precision, compile=compile),
            BatchRows(reference_rows(device)),
        )
        with _plain_mode(model):
            self.method.check(model)
            self.grid: PatchGrid = self.method.grid(model)
            if self.method.needs_live_layer and not allow_zero_gradient:
                self._refuse_zero_gradient()
            if compile:
                self._passes.masked.warm_up()

    def __enter__(self) -> CamEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing outlives a pass; the context manager marks the engine's span in the caller's code."""

    @property
    def masked_forwards(self) -> int:
        """Masked images forwarded so far (padding not counted)."""
        return self._passes.masked.forwards

    @property
    def halved_rows(self) -> int | None:
        """Rows per masked forward after running out of memory; None while it never did.

        Maps made with fewer rows agree with the others to rounding, not bit for bit.
        """
        batch = self._passes.masked.batch
        return None if batch.rows == batch.started_with else batch.rows

    @property
    def _halved(self) -> bool:
        reference = self._passes.reference
        return self.halved_rows is not None or reference.rows != reference.started_with

    def settings(self) -> dict[str, object]:
        """What determines the maps, for a run's fingerprint."""
        compiled = {"compile": True} if self._compile else {}
        return {
            "method": self.method.name,
            **self.method.parameters(),
            "precision": self.precision,
            "batch_size": self.batch_size,
            **compiled,
            "target_layer": self.model.target_layer_name,
        }

    def explain(self, images: Tensor, targets: Sequence[Sequence[Target]]) -> list[Tensor]:
        """``images`` (B, 3, H, W) normalised, one list of targets per image -> one (T_b, h, w) float32 CPU
        tensor per image, at least 0, on the engine's grid."""
        return [explanation.maps for explanation in self.explain_full(images, targets)]

    def explain_full(self, images: Tensor, targets: Sequence[Sequence[Target]]) -> list[ImageExplanation]:
        """As :meth:`explain`, with scores and warnings."""
        _check_arguments(self.model, images, targets)
        with _plain_mode(self.model):
            images = images.to(device=self.model.device, dtype=self.model.dtype)
            images = images.clone() if images.is_inference() else images
            results = self.method.explain(images, targets, self._passes)
        return [_record(result, self._halving_remark()) for result in results]

    def _halving_remark(self) -> tuple[str, ...]:
        if not self._halved:
            return ()
        rows = self._passes.masked.batch.rows
        return (
            f"{HALVED_PREFIX}made with {rows} rows per forward, BATCH_SIZE={self.batch_size}: equal to rounding only",
        )

    def _refuse_zero_gradient(self) -> None:
        if has_patch_gradient(self.model):
            return
        chosen, advice = self.model.target_layer_name, self.model.default_layer_name
        if chosen == advice:
            raise ZeroGradientError(
                f"the model's output does not depend on its layer {chosen} for a random image; {DEAF} "
                "Or set TARGET_LAYER to a layer that it reads."
            )
        raise ZeroGradientError(
            f"TARGET_LAYER={chosen}: the score has no gradient at this layer's patch tokens (a CLS-pooled transformer "
            f"reads only the CLS token from there on), so {self.method.name} would work with zeros and draw the same "
            f"map for every prompt. Use TARGET_LAYER={advice or '(a layer further from the output)'}; "
            "ALLOW_ZERO_GRADIENT=true overrides for studies."
        )


@contextmanager
def _plain_mode(model: ModelAdapter) -> Iterator[None]:
    """The model to ourselves, and neither inference mode nor autocast of the caller: both would change gradients."""
    with model_lock(model.model), torch.inference_mode(False), torch.autocast(model.device.type, enabled=False):
        yield


def _check_arguments(model: ModelAdapter, images: Tensor, targets: Sequence[Sequence[Target]]) -> None:
    width, height = model.frame
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.shape[1:] != (3, height, width):
        got = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise ModelError(f"explain() wants normalised images, float (B, 3, {height}, {width}); got {got}")
    lists = all(isinstance(mine, Sequence) for mine in targets)
    if not lists or len(images) != len(targets):
        got = f"{len(targets)} lists" if lists else "targets that are not in lists"
        raise ModelError(f"explain() wants one list of targets per image: {len(images)} images, {got}")


def has_patch_gradient(model: ModelAdapter) -> bool:
    """Does any patch token at the target layer have a gradient? Structural, so one random image answers it."""
    (reference,) = reference_pass(model, random_image(model), [[RandomDirection()]], gradients=True)
    assert reference.gradients is not None
    return bool((reference.gradients != 0).any())


def _record(result: MethodResult, halved: tuple[str, ...]) -> ImageExplanation:
    maps = result.maps.float().cpu()
    remarks = result.remarks or [()] * len(maps)
    warnings: list[tuple[str, ...]] = []
    for position, one in enumerate(maps):
        warnings.append((*remarks[position], *_map_warnings(one), *halved))
        if not bool(one.isfinite().all()):
            maps[position] = float("nan")
    return ImageExplanation(maps, [float(score) for score in result.scores], warnings)


def _map_warnings(one: Tensor) -> tuple[str, ...]:
    if not bool(one.isfinite().all()):
        return (f"{ERROR_PREFIX}the map is not finite (NaN or infinity in the activations, gradients or scores)",)
    if float(one.max()) == float(one.min()):
        return (f"the map is constant ({float(one.max()):.3g} everywhere): nothing in the image speaks for this text",)
    return ()
