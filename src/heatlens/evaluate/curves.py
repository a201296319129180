"""Deletion and insertion: does the model's score follow the map?

Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
https://arxiv.org/abs/1806.07421. The pixels of the model's frame are ordered by the map, hottest first. Deletion
sets them, share by share, to the data set's mean colour (0 after normalisation) and wants the score to fall early:
a small area under the curve. Insertion starts from a blurred film and puts the film's own pixels back: a large area.

Differences from the paper, all on purpose: the score is a CLIP's cosine similarity and not a probability, so areas
are also given on a scale where the emptied film is 0 and the whole film 1; black padding around the film (letterbox)
is no evidence and stays; and the same is done with a random order and with the distance from the film's centre.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatlens.cam.masked import MaskedForwards, Segment
from heatlens.cam.precision import resolve_batch_size
from heatlens.errors import ItemError, SetupError
from heatlens.evaluate.curve_sums import KINDS, ORDERS, summed
from heatlens.files import digest_text

if TYPE_CHECKING:
    from heatlens.cam.protocols import ModelAdapter, Target
    from heatlens.config import Settings
    from heatlens.evaluate.cases import Case
    from heatlens.evaluate.finished_run import FinishedRun
    from heatlens.images.geometry import FrameGeometry
    from heatlens.models.clip import ClipAdapter

STEPS = 32
FRAME = 224
BLUR_KERNEL, BLUR_SIGMA = 11, 5.0
"""pixels of a 224 frame, as in the paper's code"""

_MORE = 4  # times the wished number of cases that are tried: films may be gone
_AT_ONCE = 16  # films in memory, some megabytes each


@dataclass(frozen=True)
class Film:
    """One film in the model's frame, normalised, on the model's device: the ``whole``, the ``blurred`` and the
    ``emptied`` one, (3, H, W) each, and per order the rank of every pixel, (orders, H, W), 0 the first; padding has
    rank ``pixels`` and is never touched."""

    whole: Tensor
    blurred: Tensor
    emptied: Tensor
    ranks: Tensor
    pixels: int

    def variant(self, key: int, steps: int) -> Tensor:
        """Number ``key`` of :func:`variants`: after ``step`` of ``steps`` equal shares of the pixels."""
        kind, order, step = variant_of(key, steps)
        reached = self.ranks[order] < round(step * self.pixels / steps)
        start, end = (self.whole, self.emptied) if KINDS[kind] == "deletion" else (self.blurred, self.whole)
        return torch.where(reached, end, start)


def variant_of(key: int, steps: int) -> tuple[int, int, int]:
    """(kind, order, step) of a variant's number."""
    rest, step = divmod(key, steps + 1)
    kind, order = divmod(rest, len(ORDERS))
    return kind, order, step


def curve_scores(
    model: ModelAdapter, films: Sequence[Film], targets: Sequence[Target], *, batch_size: int, steps: int = STEPS
) -> NDArray[np.float64]:
    """The scores of all curves: (films, kinds, orders, steps + 1). Full precision, BATCH_SIZE rows per forward.

    The ends of the curves are the same pictures for every order; each is scored once.
    """
    count = len(KINDS) * len(ORDERS) * (steps + 1)
    shared = [_representative(key, steps) for key in range(count)]
    wanted = torch.tensor(sorted(set(shared)))
    forwards = MaskedForwards(model, batch_size=batch_size, precision="fp32")

    def paint(segment: Segment, out: Tensor) -> None:
        for row, key in enumerate(segment.keys.tolist()):
            out[row] = films[segment.source].variant(key, steps)

    tables = forwards.variant_scores(paint, [wanted] * len(films), [[one] for one in targets], [count] * len(films))
    scores = torch.stack([table[0] for table in tables])[:, shared]
    shape = (len(films), len(KINDS), len(ORDERS), steps + 1)
    found: NDArray[np.float64] = scores.double().cpu().numpy().reshape(shape)
    return found


def _representative(key: int, steps: int) -> int:
    """The variant that shows the same picture: nothing or everything done is the same for every order."""
    kind, order, step = variant_of(key, steps)
    if kind == 1 and step == steps:  # everything put back is nothing deleted
        return 0
    same = 0 if step in (0, steps) else order
    return (kind * len(ORDERS) + same) * (steps + 1) + step


def ranks_of(values: NDArray[np.float32], seen: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """Rank of every pixel (H, W): random, but always the same, among equals; unseen pixels have the last rank.

    Equals in reading order would let a map with a large flat part (no heat outside the body) look at the top first.
    """
    order = np.flatnonzero(seen)
    np.random.default_rng(seed).shuffle(order)
    order = order[np.argsort(-values.ravel()[order], kind="stable")]
    ranks = np.full(values.size, len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks.reshape(values.shape)


def map_in_frame(values: NDArray[np.float32], geometry: FrameGeometry) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A map of the whole film (h, w) -> the model's frame (H, W), bilinear, and which of its pixels show the film."""
    width, height = geometry.frame
    steps = max(width, height)
    along = np.stack([np.arange(steps) + 0.5] * 2, axis=1)
    source = geometry.frame_to_source(along)
    xs, ys = source[:width, 0], source[:height, 1]
    seen = ((ys >= 0) & (ys < geometry.source[1]))[:, None] & ((xs >= 0) & (xs < geometry.source[0]))[None, :]
    columns = np.tile(xs * values.shape[1] / geometry.source[0] - 0.5, (height, 1)).astype(np.float32)
    rows = np.tile((ys * values.shape[0] / geometry.source[1] - 0.5)[:, None], (1, width)).astype(np.float32)
    placed = cv2.remap(values, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(seen, placed, 0).astype(np.float32), seen


def film_of(whole: Tensor, values: NDArray[np.float32], geometry: FrameGeometry, seed: int) -> Film:
    """``whole``: the film in the model's frame, normalised (3, H, W); ``values`` the map of the whole film (h, w)."""
    heat, seen = map_in_frame(values, geometry)
    height, width = seen.shape
    rows, columns = np.nonzero(seen)
    y, x = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    down, across = np.mgrid[:height, :width]
    orders = (heat, np.zeros_like(heat), -np.hypot(down - y, across - x).astype(np.float32))
    ranks = np.stack([ranks_of(one, seen, seed) for one in orders])
    on_device = torch.from_numpy(seen).to(whole.device)
    return Film(
        whole=whole,
        blurred=torch.where(on_device, _blurred(whole, rows, columns), whole),
        emptied=torch.zeros_like(whole),  # its padding is never shown
        ranks=torch.from_numpy(ranks).to(whole.device),
        pixels=int(seen.sum()),
    )


def blur_of(frame: tuple[int, int]) -> tuple[int, float]:
    """(width of the kernel, odd; sigma) in pixels of this frame."""
    scale = max(frame) / FRAME
    return 2 * round((BLUR_KERNEL * scale - 1) / 2) + 1, BLUR_SIGMA * scale


def _blurred(whole: Tensor, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Tensor:
    """Only the film is blurred, not its padding into it."""
    kernel, sigma = blur_of((whole.shape[2], whole.shape[1]))
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    pixels = np.ascontiguousarray(whole[:, top:bottom, left:right].permute(1, 2, 0).cpu().numpy())
    soft = cv2.GaussianBlur(pixels, (kernel, kernel), sigma, borderType=cv2.BORDER_REPLICATE)
    result = whole.clone()
    result[:, top:bottom, left:right] = torch.from_numpy(soft).to(whole).permute(2, 0, 1)
    return result


def settings_of_run(run: FinishedRun) -> Settings:
    """The settings that the run had, as run.json tells them: no .conf and no variable has a say."""
    from heatlens.batch.retry import text_of
    from heatlens.config import KEYS, load_settings

    moved = {} if run.image_root is None else {"IMAGE_ROOT": run.image_root}
    flags = {name: text_of(value) for name, value in {**run.config, **moved}.items() if name in KEYS}
    return load_settings(None, flags, {}, run.stage)


def drawn(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """``count`` cases in an order that depends on nothing but ``seed`` and what they are."""
    return sorted(cases, key=lambda case: digest_text(str(seed), case.source_image, case.output))[:count]


def curves_of_run(run: FinishedRun, cases: Sequence[Case], *, count: int, seed: int) -> dict[str, Any]:
    """Curves of ``count`` cases with the run's own model; plain data, see :func:`heatlens.evaluate.curve_sums.summed`.

    Films that cannot be read are passed over and counted. SetupError when none can.
    """
    from heatlens.batch.explainer import load_model

    settings = settings_of_run(run)
    model = load_model(settings)
    batch_size = resolve_batch_size(settings.batch_size, str(model.device))
    left_out: dict[str, int] = {}
    chosen: list[Case] = []
    scored: list[NDArray[np.float64]] = []
    usable = islice(_usable(run, drawn(cases, _MORE * count, seed), settings, model, left_out), count)
    while part := list(islice(usable, _AT_ONCE)):
        targets = [model.target(case.prompt) for case, _ in part]
        scored.append(curve_scores(model, [film for _, film in part], targets, batch_size=batch_size))
        chosen += [case for case, _ in part]
    if not chosen:
        reasons = ", ".join(f"{stage}: {number}" for stage, number in left_out.items())
        raise SetupError(
            f"--curves: no film of {len(cases)} heat maps can be read under {run.image_root} ({reasons}); "
            "--image-root says where they are"
        )
    logits = np.concatenate(scored)
    kernel, sigma = blur_of(model.frame)
    return {
        "asked_for": count,
        "left_out": left_out,
        "steps": STEPS,
        "fill": "0 after normalisation: the mean colour of the model's training data",
        "blur": {"kernel_px": kernel, "sigma_px": round(sigma, 2), "frame": list(model.frame)},
        "model": {key: value for key, value in model.identity().items() if isinstance(value, (str, int, float))},
        "logit": {"scale": round(model.logit_scale, 4), "bias": round(model.logit_bias, 4)},
        "largest_difference_from_the_runs_scores": _difference(run, chosen, logits[:, 0, 0, 0]),
        **summed(_cosine(logits, model), chosen, seed),
    }


def _cosine(logits: NDArray[np.float64], model: ClipAdapter) -> NDArray[np.float64]:
    """The cosine similarity behind the scaled logit; areas of the one are areas of the other, scaled and shifted."""
    return (logits - model.logit_bias) / model.logit_scale


def _usable(
    run: FinishedRun, cases: Sequence[Case], settings: Settings, model: ClipAdapter, left_out: dict[str, int]
) -> Iterator[tuple[Case, Film]]:
    """The cases whose film and map can be read, one film at a time; ``left_out`` counts the others by reason."""
    for case in cases:
        try:
            yield case, _film(run, case, settings, model)
        except ItemError as error:
            left_out[error.stage] = left_out.get(error.stage, 0) + 1


def _film(run: FinishedRun, case: Case, settings: Settings, model: ClipAdapter) -> Film:
    from heatlens.batch.openers import FilmReader, FramePlacer, pixels_for
    from heatlens.evaluate.cases import load_map
    from heatlens.images.bodymask import pixels_needed

    if run.image_root is None:
        raise SetupError(f"--curves needs the films, and {run.folder} does not say where they are: --image-root DIR")
    needed = pixels_for(pixels_needed(settings.output_size, mask_body=settings.enable_body_mask), model.frame)
    placed = FramePlacer(settings.preprocess, model.frame)(FilmReader(run.image_root)(case.source_image, needed))
    own_seed = int(digest_text(case.source_image, case.output)[:8], 16)
    return film_of(model.prepare([placed.frame])[0], load_map(case), placed.geometry, own_seed)


def _difference(run: FinishedRun, cases: Sequence[Case], scores: NDArray[np.float64]) -> float | None:
    """Of the whole film's logit from the one that the run recorded: other weights or films would show here."""
    outputs, kept = (run.column(name).to_pylist() for name in ("image_path", "score"))
    recorded = dict(zip(outputs, kept, strict=True))
    found = [abs(float(recorded[case.output] or np.nan) - score) for case, score in zip(cases, scores, strict=True)]
    return round(float(max(found)), 6) if found and np.isfinite(found).all() else None
