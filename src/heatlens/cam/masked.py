"""Masked forwards, shared: an image's masks do not depend on the question, so they serve every question."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from heatlens.cam.batches import BatchRows, for_each_batch, is_out_of_memory, release_memory
from heatlens.cam.capture import Reference
from heatlens.cam.halves import HalfWeights
from heatlens.cam.precision import autocast
from heatlens.cam.protocols import ModelAdapter, Target
from heatlens.errors import SetupError, one_line

MASK_EPSILON = 1e-6


def channel_masks(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """Activations (N, h, w) -> masks (N, 1, H, W) in 0..1, as gScoreCAM's authors build them.

    Bilinear up-sampling with aligned corners, then min-max per channel with 1e-6 in the denominator, so that a
    constant channel gives an all-zero mask instead of NaN.
    """
    masks = F.interpolate(activations[:, None], size=size, mode="bilinear", align_corners=True)
    low = masks.amin(dim=(2, 3), keepdim=True)
    high = masks.amax(dim=(2, 3), keepdim=True)
    return (masks - low) / (high - low + MASK_EPSILON)


@dataclass(frozen=True)
class Segment:
    """Rows of one batch that belong to one source image: its number and the ``keys`` (n,) of its variants."""

    source: int
    keys: Tensor


# Writes the variants ``segment.keys`` of image ``segment.source`` into ``out`` (n, 3, H, W).
Painter = Callable[[Segment, Tensor], None]


class MaskedForwards:
    """Runs variants of images through the model, a fixed number of rows at a time.

    Short batches are padded, so every forward has the same shape and a row's result does not depend on its
    neighbours. Variants of different source images fill the same batch. Only one batch of masks exists at any
    time, on the model's device. ``forwards`` counts the variants that were asked for (padding not counted).
    ``compile`` passes the forward through ``torch.compile`` (its fixed shape suits it).
    """

    def __init__(self, model: ModelAdapter, *, batch_size: int, precision: str, compile: bool = False) -> None:
        self.model = model
        self.batch = BatchRows(batch_size)
        self.precision = precision
        self.forwards = 0
        self._forward: Callable[[Tensor], Tensor] = torch.compile(model.forward) if compile else model.forward

    def warm_up(self) -> None:
        """One empty batch: what torch.compile cannot do here shows before any work. SetupError."""
        model = self.model
        width, height = model.frame

        def run(_start: int, _stop: int) -> None:
            self._outputs(torch.zeros((self.batch.rows, 3, height, width), device=model.device, dtype=model.dtype))

        try:
            with self._halves():
                for_each_batch(1, self.batch, run)
        except SetupError:
            raise
        except Exception as error:  # the compiler's own errors, of many classes
            raise SetupError(
                f"COMPILE=true: torch.compile cannot build this model here ({one_line(error)[:300]}). "
                "On a CPU it needs a C++ compiler. COMPILE=false works everywhere."
            ) from None

    def channel_scores(self, references: Sequence[Reference], channels: Sequence[Tensor]) -> list[Tensor]:
        """Scores of all targets with the image seen through one channel at a time.

        ``channels`` holds, per image, the distinct channel indices to try. Returns one (T_b, C) tensor per
        image; entries of channels that were not asked for are NaN.
        """

        def paint(segment: Segment, out: Tensor) -> None:
            reference = references[segment.source]
            masks = channel_masks(reference.activations[segment.keys], (out.shape[2], out.shape[3]))
            torch.mul(reference.image, masks, out=out)

        return self.variant_scores(
            paint,
            channels,
            [reference.targets for reference in references],
            columns=[len(reference.activations) for reference in references],
        )

    def variant_scores(
        self,
        paint: Painter,
        wanted: Sequence[Tensor],
        targets: Sequence[Sequence[Target]],
        columns: Sequence[int],
    ) -> list[Tensor]:
        """Scores (T_b, columns_b) of every image's targets for its variants ``wanted``; NaN elsewhere."""
        width, height = self.model.frame
        rows = Rows.of(wanted, self.model.device)
        scores = Scores(targets, columns, self.model)

        def run(start: int, stop: int) -> None:
            segments = rows.segments(start, stop)
            variants = torch.zeros(
                (self.batch.rows, 3, height, width), device=self.model.device, dtype=self.model.dtype
            )
            with torch.inference_mode():
                at = 0
                for segment in segments:
                    paint(segment, variants[at : at + len(segment.keys)])
                    at += len(segment.keys)
                scores.take(segments, self._outputs(variants))

        with self._halves():
            for_each_batch(len(rows), self.batch, run)
        self.forwards += len(rows)
        return scores.tables

    @contextmanager
    def _halves(self) -> Iterator[None]:
        """Half-precision weights, where there is room for the copies; elsewhere autocast casts one at a time."""
        with ExitStack() as stack:
            full = False
            try:
                stack.enter_context(HalfWeights(self.model, self.precision))
            except (RuntimeError, MemoryError) as error:
                full = is_out_of_memory(error)
                if not full:
                    raise
            if full:
                release_memory()
            yield

    def _outputs(self, variants: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(self.precision, variants.device.type):
            return self._forward(variants)


@dataclass(frozen=True)
class Rows:
    """All variants of all images in one line: ``keys`` (N,) on the device, image b's in ``bounds[b:b+2]``."""

    keys: Tensor
    bounds: list[int]

    @classmethod
    def of(cls, wanted: Sequence[Tensor], device: torch.device) -> Rows:
        bounds = [0]
        for keys in wanted:
            bounds.append(bounds[-1] + len(keys))
        nothing = torch.zeros(0, dtype=torch.long)
        return cls(torch.cat([nothing.to(device), *(keys.to(device) for keys in wanted)]), bounds)

    def __len__(self) -> int:
        return self.bounds[-1]

    def segments(self, start: int, stop: int) -> list[Segment]:
        """The rows ``start`` to ``stop``, one segment per image."""
        pieces = [
            (source, max(low, start), min(high, stop))
            for source, (low, high) in enumerate(zip(self.bounds, self.bounds[1:], strict=False))
        ]
        return [Segment(source, self.keys[low:high]) for source, low, high in pieces if low < high]


class Scores:
    """Collects the scores of variants in ``tables``: one (T_b, columns_b) tensor per image, NaN where unknown."""

    def __init__(self, targets: Sequence[Sequence[Target]], columns: Sequence[int], model: ModelAdapter) -> None:
        self._targets = targets
        self.tables = [
            torch.full((len(mine), count), float("nan"), device=model.device, dtype=model.dtype)
            for mine, count in zip(targets, columns, strict=True)
        ]

    def take(self, segments: Sequence[Segment], outputs: Tensor) -> None:
        """``outputs`` (at least the segments' rows, ...): targets see the whole padded batch, because their
        arithmetic, too, must not depend on its other rows."""
        at = 0
        for segment in segments:
            stop = at + len(segment.keys)
            table = self.tables[segment.source]
            for position, target in enumerate(self._targets[segment.source]):
                table[position, segment.keys] = target(outputs)[at:stop].to(table)
            at = stop
