"""Eigen-CAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heatlens.cam.capture import Reference
from heatlens.cam.methods.base import LayerMethod, MethodResult, Passes


class EigenCAM(LayerMethod):
    """Eigen-CAM (Muhammad and Yeasin, IJCNN 2020).

    https://arxiv.org/abs/2008.00299
    ``ReLU(first principal component of A over the cells)``
    A (C,h,w) -> maps (T,h,w)

    The map is the same whatever is asked: it shows what stands out in the image for the model.
    """

    name = "EigenCAM"
    uses_target = False

    def maps(self, references: Sequence[Reference], passes: Passes) -> list[MethodResult]:  # noqa: ARG002
        return [
            MethodResult(principal_map(ref.activations).expand(len(ref.targets), -1, -1).clone(), ref.scores)
            for ref in references
        ]


def principal_map(features: Tensor) -> Tensor:
    """(C, h, w) -> (h, w): every cell's projection on the first principal component of all cells, ReLU.

    Cells are centred first, as usual for a principal component and as the grad-cam package does (the paper
    does not say). A component has no sign of its own; here it is the one that grows with the strength (the norm) of
    the features. Found in float64 from the smaller of the two Gram matrices (cells or channels), which is exact
    and far cheaper than the singular value decomposition. Features that are not finite give a map of NaN.
    """
    cells = features.flatten(1).T.double()
    if not bool(cells.isfinite().all()):
        return torch.full_like(features[0], float("nan"))
    strength = cells.norm(dim=1)
    centred = cells - cells.mean(dim=0)
    if len(cells) <= cells.shape[1]:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        projection = vectors[:, -1] * values[-1].clamp(min=0).sqrt()
    else:
        projection = centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    agreement = projection @ (strength - strength.mean())
    largest = projection[projection.abs().argmax()]
    sign = torch.where(agreement == 0, largest.sign(), agreement.sign())
    return (projection * sign).relu().reshape(features.shape[1:]).to(features)
