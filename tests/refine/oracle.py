"""The mean field of a two-label dense CRF in plain float64 numpy: every pair of pixels, exact Gaussian kernels."""

from __future__ import annotations

import numpy as np

from heatlens.refine.crf import CrfOptions

PUBLISHED = CrfOptions(
    gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=60, bilateral_srgb=5, bilateral_compat=5,
    tau=1.05, eps=1e-8, steps=5, size=448,
)  # fmt: skip


def exact_foreground(heat: np.ndarray, film: np.ndarray, options: CrfOptions) -> np.ndarray:
    """Heat (h, w) in 0..1 and film, uint8 grey (h, w) or RGB (h, w, 3) -> probability of the foreground, (h, w)."""
    height, width = heat.shape
    p = heat.astype(np.float64).ravel()
    background = -np.log(1 - p + options.eps) / (options.tau * sigmoid(1 - p))
    foreground = -np.log(p + options.eps) / (options.tau * sigmoid(p))
    unary = np.stack([background, foreground])
    rows, columns = np.mgrid[:height, :width]
    place = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)
    colour = (film if film.ndim == 3 else np.stack([film] * 3, axis=2)).reshape(-1, 3).astype(np.float64)
    near = normalised_kernel(place / options.gaussian_sxy)
    alike = normalised_kernel(np.hstack([place / options.bilateral_sxy, colour / options.bilateral_srgb]))
    pull = options.gaussian_compat * near + options.bilateral_compat * alike
    beliefs = softmax(-unary)
    for _ in range(options.steps):
        beliefs = softmax(-unary + beliefs @ pull)
    return beliefs[1].reshape(height, width)


def normalised_kernel(features: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, n): exp(-distance^2 / 2), divided by the roots of its row and column sums, as the authors'
    program does it; like there, a pixel is its own neighbour, too."""
    squared = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    kernel = np.exp(-squared / 2)
    root = np.sqrt(kernel.sum(axis=1))
    return kernel / root[:, None] / root[None]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(energies: np.ndarray) -> np.ndarray:
    shares = np.exp(energies - energies.max(axis=0))
    return shares / shares.sum(axis=0)
