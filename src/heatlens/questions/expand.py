"""From a row to its heat maps: the canonical image path, the regions that share a row, names, prompts, keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from heatlens.errors import ItemError
from heatlens.files import digest_text, safe_relative
from heatlens.questions.outputs import name_fault
from heatlens.questions.prompts import fill
from heatlens.questions.rows import QuestionRow, Region

REGION_MODES = ("split", "joint")
_MIMIC = re.compile(r"p\d{2}/p\d+/s\d+/")
# Paths that files.safe_relative returns as they are, but for the first slash.
_PLAIN = re.compile(r"/?(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One heat map to make. ``output`` is the overlay's relative POSIX path without suffix.

    ``key`` identifies the work across runs: a digest of canonical image path, question, region, prompt and
    output. ``number`` is the n of "_idx<n>". ``region_index`` is the first of the row's regions it covers.
    """

    key: str
    row: int
    region_index: int
    number: int
    output: str
    source: str
    question_id: str
    question: str
    answer: str
    choices: tuple[str, ...]
    question_type: str
    content_type: str
    region: str
    boxes: tuple[Region, ...]
    prompt: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A selected row, or one heat map of it, that cannot be made.

    For a whole row ``region`` is "" and ``region_index`` -1; else they are the heat map's.
    """

    row: int
    source: str
    image_path: str
    question_id: str
    question: str
    region: str
    reason: str
    region_index: int = -1


@dataclass(frozen=True, slots=True)
class ImageTask:
    """The unit of work: one image (canonical relative path) with all its heat maps, by ascending number.

    ``bad``: heat maps of it that cannot be made (an empty prompt, a name no file system takes). ``index``: the
    image's place in the whole data set, by first appearance.
    """

    image_path: str
    heat_maps: tuple[HeatMap, ...]
    bad: tuple[BadRow, ...] = ()
    index: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What one heat map of a row covers."""

    index: int
    name: str
    boxes: tuple[Region, ...]


def canonical_image_path(text: str) -> str:
    """The one spelling of an image's path: relative, POSIX, and with MIMIC-CXR's "files/" in front.

    "/files/p10/..", "files/p10/.." and "p10/.." are one image. Raises ItemError as ``files.safe_relative``.
    """
    path = text.removeprefix("/") if _PLAIN.fullmatch(text) else safe_relative(text).as_posix()
    return f"files/{path}" if _MIMIC.match(path) else path


@lru_cache(maxsize=1 << 14)
def usable_image(text: str) -> tuple[str | None, str]:
    """(canonical path, "") of a row's path, or (None, what is wrong with it)."""
    if not text:
        return None, "no image_path"
    try:
        return canonical_image_path(text), ""
    except ItemError as error:
        return None, error.reason


def shares(row: QuestionRow, mode: str) -> list[Share]:
    """The heat maps of a row, in order: one per named region with ``split``, else one.

    Regions without a name ask nothing of their own (the prompt would be the same), so together they make one.
    """
    regions = row.regions
    if mode == "joint" or not regions:
        return [Share(0, ", ".join(region.name for region in regions if region.name), regions)]
    found: list[Share] = []
    nameless = tuple(region for region in regions if not region.name)
    for index, region in enumerate(regions):
        if region.name:
            found.append(Share(index, region.name, (region,)))
        elif nameless:
            found.append(Share(index, "", nameless))
            nameless = ()
    return found


def share_count(regions: tuple[Region, ...], mode: str) -> int:
    """``len(shares(row, mode))`` of a row with these regions, for the pass that only counts."""
    if mode == "joint" or len(regions) < 2:
        return 1
    named = [region for region in regions if region.name]
    return len(named) + (len(named) < len(regions))


def expand(
    row: QuestionRow, image: str, base: str, first_number: int, mode: str, template: str
) -> tuple[list[HeatMap], list[BadRow]]:
    """A usable row's heat maps, and those of them that cannot be made. ``base``: the name before "_idx<n>"."""
    heat_maps: list[HeatMap] = []
    bad: list[BadRow] = []
    for number, share in enumerate(shares(row, mode), start=first_number):
        output, prompt = f"{base}_idx{number}", fill(template, row, share.name)
        fault = name_fault(output)
        if not prompt.strip():
            fault = f"the prompt is empty: nothing in this row fills PROMPT_TEMPLATE={template!r}"
        if fault:
            reason = f"{row.source}: {fault}"
            bad.append(
                BadRow(row.number, row.source, image, row.question_id, row.question, share.name, reason, share.index)
            )
            continue
        key = digest_text(image, row.question, share.name, prompt, output)
        heat_maps.append(
            HeatMap(
                key, row.number, share.index, number, output,
                row.source, row.question_id, row.question, row.answer, row.choices, row.question_type,
                row.content_type, share.name, share.boxes, prompt, row.notes,
            )
        )  # fmt: skip
    return heat_maps, bad
