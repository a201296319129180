"""Masked forwards, shared: a channel's mask depends on the image alone, so it serves every question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heatlens.cam.capture import Reference
from heatlens.cam.precision import autocast
from heatlens.cam.protocols import ModelAdapter

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


class MaskedForwards:
    """Runs masked images through the model, ``batch_size`` rows at a time.

    Short batches are padded, so every forward has the same shape and a row's result does not depend on its
    neighbours. Masked images of different source images fill the same batch. Only ``batch_size`` masks exist
    at any time. ``forwards`` counts the masked images that were asked for (padding not counted).
    """

    def __init__(self, model: ModelAdapter, *, batch_size: int, precision: str) -> None:
        self.model = model
        self.batch_size = batch_size
        self.precision = precision
        self.forwards = 0

    def channel_scores(self, references: Sequence[Reference], channels: Sequence[Tensor]) -> list[Tensor]:
        """Scores of all targets with the image seen through one channel at a time.

        ``channels`` holds, per image, the distinct channel indices to try. Returns one (T_b, C) tensor per
        image; entries of channels that were not asked for are NaN.
        """
        scores = [
            ref.activations.new_full((len(ref.targets), ref.activations.shape[0]), float("nan")) for ref in references
        ]
        work = [(row, int(c)) for row, wanted in enumerate(channels) for c in wanted.tolist()]
        for chunk in _chunks(work, self.batch_size):
            outputs = self._forward(references, chunk)
            self._score(references, chunk, outputs, scores)
        self.forwards += len(work)
        return scores

    @torch.inference_mode()
    def _forward(self, references: Sequence[Reference], chunk: Sequence[tuple[int, int]]) -> Tensor:
        size = references[0].image.shape[-2:]
        masks = channel_masks(
            torch.stack([references[row].activations[channel] for row, channel in chunk]), (size[0], size[1])
        )
        images = torch.stack([references[row].image for row, _ in chunk])
        masked = images * masks
        if missing := self.batch_size - len(chunk):
            masked = torch.cat([masked, masked.new_zeros((missing, *masked.shape[1:]))])
        with autocast(self.precision, masked.device.type):
            return self.model.forward(masked)

    @staticmethod
    @torch.inference_mode()
    def _score(
        references: Sequence[Reference],
        chunk: Sequence[tuple[int, int]],
        outputs: Tensor,
        scores: Sequence[Tensor],
    ) -> None:
        """Targets see the whole padded batch: their arithmetic, too, must not depend on its other rows."""
        rows = torch.tensor([row for row, _ in chunk], device=outputs.device)
        columns = torch.tensor([channel for _, channel in chunk], device=outputs.device)
        for row in sorted({row for row, _ in chunk}):
            mine = (rows == row).nonzero()[:, 0]
            for position, target in enumerate(references[row].targets):
                scores[row][position, columns[mine]] = target(outputs)[mine].to(scores[row])


def _chunks(items: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
