"""The heat maps of a run that can be measured: each with the place it should point at."""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from heatlens.errors import ConfigError, ItemError, SetupError, one_line
from heatlens.evaluate.finished_run import FOUND_BOXES, TEXT_COLUMNS, film_size, found_boxes
from heatlens.evaluate.target import Target
from heatlens.evaluate.truth.base import MATCHES, Asked
from heatlens.files import safe_relative
from heatlens.images.film import LARGEST_AREA

if TYPE_CHECKING:
    from heatlens.evaluate.finished_run import FinishedRun
    from heatlens.evaluate.truth.base import Truth

Size = tuple[int, int]
RAW_FOLDER = "raw"
NO_MAPS = "run the stage with SAVE_RAW_CAM=true, or let `heatlens evaluate --recompute` make the maps once more"
NOT_DRAWN = "not drawn (--sample)"
DAMAGED = "its row in details.parquet is damaged"
_PATIENT = re.compile(r"(?:^|/)(p\d{2}/p\d+|patient\d+)/")
_PNG = struct.Struct(">8s8xII")  # signature, length and name of the first chunk, width, height


@dataclass(frozen=True, slots=True)
class Case:
    """One heat map and its target.

    ``output`` is the run's picture, relative to its folder; ``patient`` the group for the bootstrap; ``source`` the
    film's (width, height); ``found`` the boxes that the bbox stage wrote, best first, in pixels of the film (None for
    other stages); ``raw`` the final map as 16-bit PNG.
    """

    source_image: str
    output: str
    row: int
    question_id: str
    question: str
    region: str
    prompt: str
    question_type: str
    patient: str
    source: Size
    target: Target
    found: tuple[tuple[int, int, int, int], ...] | None
    raw: Path


@dataclass(frozen=True)
class Cases:
    """``left_out``: reason -> number of heat maps. ``truth``: format, path and how it was matched, for the record.
    ``notes``: what a reader of the numbers should know (broken rows of the annotation file by place)."""

    items: tuple[Case, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_cases(
    run: FinishedRun, truth: Truth | None, match: str = "auto", *, sample: int | None = None, seed: int = 0
) -> Cases:
    """One case per heat map of ``run`` that ``truth`` (None: the run's own boxes) has a target for, in data-set order.

    ``match``: auto, region, question, prompt or image. ``sample``: so many heat maps, drawn by ``seed`` from those
    whose image is annotated. SetupError when the run kept no maps, ConfigError when nothing can be measured.
    """
    from heatlens.evaluate.truth.own import OwnBoxes

    if match not in MATCHES:
        raise ConfigError(f"--match={match}: allowed: {', '.join(MATCHES)}")
    if not run.has_raw_maps:
        raise SetupError(f"{run.folder} has no raw maps: {NO_MAPS}")
    truth = truth or OwnBoxes()
    left_out: Counter[str] = Counter()
    wanted = _drawn(_annotated(run, truth, left_out), sample, seed, left_out)
    cases, ways = _matched(run, truth, match, wanted, left_out)
    described = {**truth.describe(), "match": match, "matched": dict(ways)}
    notes = truth.notes()
    if not cases:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "the run made no heat map"
        raise ConfigError(
            f"none of the heat maps in {run.folder} has a target in --truth={truth.name} ({reasons})"
            + "".join(f"\n{note}" for note in notes)
        )
    if not cases[0].raw.is_file():
        raise SetupError(f"{cases[0].raw} is missing: {NO_MAPS}")
    return Cases(tuple(cases), dict(left_out), described, tuple(notes))


def _annotated(run: FinishedRun, truth: Truth, left_out: Counter[str]) -> NDArray[np.int64]:
    """The numbers of the rows whose image is annotated. One column is read, and each of its values once."""
    from heatlens.evaluate.truth.own import NO_BOX

    column = run.column("source_image" if truth.by_image else "boxes").combine_chunks()
    encoded = column if hasattr(column, "dictionary") else column.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    if truth.by_image:
        truth.meet(list(dict.fromkeys(value for value in values if value)))
        reasons = [truth.why_not(value) if value else DAMAGED for value in values]
    else:
        reasons = [NO_BOX if value in (None, "", "[]") else "" for value in values]
    codes = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    counts = np.bincount(codes, minlength=len(values) + 1)
    for reason, count in zip([*reasons, DAMAGED], counts.tolist(), strict=True):
        if reason and count:
            left_out[reason] += count
    keep = np.array([not reason for reason in reasons] + [False])
    return np.flatnonzero(keep[codes]).astype(np.int64)


def _drawn(rows: NDArray[np.int64], sample: int | None, seed: int, left_out: Counter[str]) -> NDArray[np.int64]:
    if sample is None or sample >= len(rows):
        return rows
    if sample < 1:
        raise ConfigError(f"--sample={sample}: allowed: a whole number from 1 on")
    left_out[NOT_DRAWN] += len(rows) - sample
    return np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))


def _matched(
    run: FinishedRun, truth: Truth, match: str, wanted: NDArray[np.int64], left_out: Counter[str]
) -> tuple[list[Case], Counter[str]]:
    boxes = [FOUND_BOXES] if run.has_boxes else []
    cases: list[Case] = []
    ways: Counter[str] = Counter()
    for row in run.rows([*TEXT_COLUMNS, "row", *boxes], wanted):
        case, how = _case(run, truth, match, row)
        if case is None:
            left_out[how] += 1
        else:
            ways[how] += 1
            cases.append(case)
    return cases, ways


def _case(run: FinishedRun, truth: Truth, match: str, row: dict[str, Any]) -> tuple[Case | None, str]:
    """(case, how its target was found) or (None, why there is none)."""
    text = {name: row[name] or "" for name in TEXT_COLUMNS}
    source = _film_size(text["geometry"])
    found = found_boxes(row[FOUND_BOXES] or "") if FOUND_BOXES in row else None
    if source is None or not text["source_image"] or row["row"] is None or (FOUND_BOXES in row and found is None):
        return None, DAMAGED
    try:
        raw = run.folder / RAW_FOLDER / safe_relative(text["image_path"]).with_suffix(".png")
    except ItemError:
        return None, DAMAGED
    asked = Asked(
        text["source_image"], text["region"], text["question"], text["prompt"], text["content_type"], text["boxes"],
        source,
    )  # fmt: skip
    answer = truth.match(asked, match)
    if answer.target is None:
        return None, answer.how
    case = Case(
        text["source_image"], text["image_path"], row["row"], text["question_id"], text["question"], text["region"],
        text["prompt"], text["question_type"], patient_of(text["source_image"]), source, answer.target, found, raw,
    )  # fmt: skip
    return case, answer.how


_film_size = lru_cache(maxsize=1 << 12)(film_size)


def patient_of(image: str) -> str:
    """Whose film it is: ``p10/p10268877`` in MIMIC-CXR's paths, ``patient64622`` in CheXpert's, else the whole path."""
    found = _PATIENT.search(image)
    return found[1] if found else image


def load_map(case: Case) -> NDArray[np.float32]:
    """The final map, float32 (h, w) in 0..1. SetupError when the file is missing, ItemError when it is broken."""
    try:
        data = case.raw.read_bytes()
    except FileNotFoundError:
        raise SetupError(f"{case.raw} is missing: {NO_MAPS}") from None
    except OSError as error:
        raise ItemError("decode", f"{case.raw} cannot be read: {one_line(error)}") from None
    _check_header(case.raw, data)
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 2:
        raise ItemError("decode", f"{case.raw} is damaged, or no map of a run (16-bit grey PNG)")
    (height, width), (source_width, source_height) = values.shape, case.source
    if abs(width * source_height - height * source_width) > source_width + source_height:
        raise ItemError(
            "decode", f"{case.raw}: {width}x{height} pixels are not a film of {source_width}x{source_height}"
        )
    scaled: NDArray[np.float32] = values.astype(np.float32) / np.float32(65535)
    return scaled


def _check_header(path: Path, data: bytes) -> None:
    """Only a PNG of moderate size is decoded."""
    if len(data) < _PNG.size:
        raise ItemError("decode", f"{path} is damaged: {len(data)} bytes")
    signature, width, height = _PNG.unpack_from(data)
    if signature != b"\x89PNG\r\n\x1a\n" or not 0 < width * height <= LARGEST_AREA:
        raise ItemError("decode", f"{path} is damaged, or no map of a run (16-bit grey PNG)")
