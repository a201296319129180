"""Dense CRF: a map's borders moved to the film's edges.

Kraehenbuehl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NIPS 2011,
https://arxiv.org/abs/1210.5644, by their own program (package pydensecrf2, an optional extra). Two labels, background
and foreground. What a pixel's own heat p says (its unary energies) is

    background: -log(1 - p + eps) / (tau sigmoid(1 - p))        foreground: -log(p + eps) / (tau sigmoid(p))

as in the post-processing of salient-object maps (Hou et al., DSS, https://arxiv.org/abs/1611.04849) that MedCLIP-SAM
(https://arxiv.org/abs/2403.20253) took over; so are the defaults of the keys, but for the steps: 5 instead of 1.
Every pair of pixels is to agree the more, the nearer the two are (Gaussian term), and the nearer and more alike they
are (bilateral term).

**Threads.** pydensecrf does not release Python's interpreter lock: of all the threads of a process one at a time
refines, and the others' Python waits for a call to end. Every mean-field step is therefore a call of its own. Results
do not depend on it: a film's maps are refined one after the other, and no number of one gets into the next.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatlens.errors import SetupError

if TYPE_CHECKING:
    from heatlens.config import Settings

UNDECIDED = 0.5
"""the heat that speaks for neither label"""
INSTALL = "pip install 'heatlens[crf]' (it is compiled: Debian, Ubuntu: apt install g++ python3-dev)"


@dataclass(frozen=True)
class CrfOptions:
    """The CRF_* keys. ``*_sxy`` in pixels of the small film, ``bilateral_srgb`` in grey levels of 255; ``size``: the
    small film's longer side at most."""

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    tau: float
    eps: float
    steps: int
    size: int

    @classmethod
    def of(cls, settings: Settings) -> CrfOptions | None:
        """None for SKIP_CRF=true."""
        if settings.skip_crf:
            return None
        return cls(**{name: getattr(settings, f"crf_{name}") for name in cls.__dataclass_fields__})


def require_package() -> Any:
    """The module ``pydensecrf.densecrf``. SetupError where it cannot be imported."""
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise SetupError(
            f"SKIP_CRF=false needs the package pydensecrf2, which cannot be imported here ({error}): {INSTALL}. "
            "Or SKIP_CRF=true: maps without dense CRF"
        ) from None
    return densecrf


class FilmCrf:
    """The CRF over one film, for all of its maps.

    ``film`` is uint8, grey (h, w) or RGB (h, w, 3). What depends on it alone is computed for the first map and kept;
    of a copy that was pickled, for the copy's first map.
    """

    def __init__(self, film: NDArray[np.uint8], options: CrfOptions) -> None:
        self._film, self._options = film, options
        self._turn = threading.Lock()
        self._model: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of film and maps."""
        return self._film.shape[1], self._film.shape[0]

    def foreground(self, heat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Heat (h, w) in 0..1 -> how probably each pixel is foreground, float32 (h, w). Any thread may call it."""
        energies = unary_energies(heat.ravel(), self._options)
        with self._turn:
            if self._model is None:
                self._model = self._pairs()
            self._model.setUnaryEnergy(energies)
            beliefs, *scratch = self._model.startInference()
            for _ in range(self._options.steps):
                self._model.stepInference(beliefs, *scratch)
            found = np.array(beliefs, dtype=np.float32)[1]
        return np.ascontiguousarray(found).reshape(heat.shape)

    def _pairs(self) -> Any:
        """The model with both pairwise terms, without a map."""
        options, film = self._options, self._film
        model = require_package().DenseCRF2D(*self.size, 2)
        model.addPairwiseGaussian(sxy=options.gaussian_sxy, compat=options.gaussian_compat)
        colours = film if film.ndim == 3 else np.repeat(film[..., None], 3, axis=2)
        model.addPairwiseBilateral(
            sxy=options.bilateral_sxy,
            srgb=options.bilateral_srgb,
            rgbim=np.ascontiguousarray(colours),
            compat=options.bilateral_compat,
        )
        return model

    def __reduce__(self) -> tuple[type[FilmCrf], tuple[NDArray[np.uint8], CrfOptions]]:
        """Films are opened in a process of their own; locks and compiled objects cannot be sent."""
        return FilmCrf, (self._film, self._options)


def unary_energies(heat: NDArray[np.float32], options: CrfOptions) -> NDArray[np.float32]:
    """Heat (n,) in 0..1 -> energies (2, n) of background and foreground."""
    shares = np.stack([1 - heat, heat]).astype(np.float32, copy=False)
    weights = np.float32(options.tau) / (1 + np.exp(-shares))
    return np.ascontiguousarray(-np.log(shares + np.float32(options.eps)) / weights)
