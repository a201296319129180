"""The plan: rows grouped by image, every heat map with its number and name, shards of whole images.

Numbers and names are decided over the whole data set in one pass, so they never depend on the selection, on
STOP_AFTER, on sharding or on failures. Memory: the selected rows, and a counter per image of the data set;
unselected rows are not kept. (A plan of 1.6 million selected rows takes a few GB this way; an out-of-core
plan can take this module's place, for callers see only ``Plan``.)
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from heatlens.errors import ConfigError, DataSetError, ItemError
from heatlens.files import digest_text, safe_relative
from heatlens.questions.outputs import name_fault, output_bases
from heatlens.questions.prompts import check_template, fill
from heatlens.questions.rows import QuestionRow, Reader, Region
from heatlens.questions.select import RowFilter, Sampler, Selection

REGION_MODES = ("split", "joint")
_MIMIC = re.compile(r"p\d{2}/p\d+/s\d+/")


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
class ImageTask:
    """The unit of work: one image (canonical relative path) with all its heat maps, by ascending number."""

    image_path: str
    heat_maps: tuple[HeatMap, ...]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A selected row, or one heat map of it, that cannot be made. ``region`` is "" for a whole row."""

    row: int
    source: str
    image_path: str
    question_id: str
    question: str
    region: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a run is about. ``rows`` counts the selected rows, the bad ones among them."""

    images: tuple[ImageTask, ...]
    bad_rows: tuple[BadRow, ...]
    rows: int
    digest: str

    @property
    def heat_map_count(self) -> int:
        """Heat maps of all images."""
        return sum(len(image.heat_maps) for image in self.images)

    def shard(self, index: int, count: int) -> tuple[ImageTask, ...]:
        """The images of shard ``index`` of ``count``: whole images, in plan order, balanced by heat maps.

        Greedy: the largest image goes to the lightest shard. Every image is in exactly one shard.
        """
        if count < 1 or not 0 <= index < count:
            raise ConfigError(f"SHARD_INDEX={index} of NUM_SHARDS={count}: allowed is 0 to NUM_SHARDS - 1")
        loads = [(0, shard) for shard in range(count)]
        mine = []
        for place in sorted(range(len(self.images)), key=lambda place: (-len(self.images[place].heat_maps), place)):
            load, shard = loads[0]
            heapq.heapreplace(loads, (load + len(self.images[place].heat_maps), shard))
            if shard == index:
                mine.append(place)
        return tuple(self.images[place] for place in sorted(mine))


class _Pending(NamedTuple):
    """A selected row that waits for the names; ``image`` is None if its path is unusable."""

    row: QuestionRow
    image: str | None
    first_number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Share:
    """What one heat map of a row covers."""

    index: int
    name: str
    boxes: tuple[Region, ...]


@lru_cache(maxsize=1 << 14)
def canonical_image_path(text: str) -> str:
    """The one spelling of an image's path: relative, POSIX, and with MIMIC-CXR's "files/" in front.

    "/files/p10/..", "files/p10/.." and "p10/.." are one image. Raises ItemError as ``files.safe_relative``.
    """
    path = safe_relative(text).as_posix()
    return f"files/{path}" if _MIMIC.match(path) else path


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


def make_plan(
    reader: Reader, *, regions: str, prompt_template: str, selection: Selection, stop_after: int | None
) -> Plan:
    """Read the data set once and plan the selected rows. Raises DataSetError and ConfigError for people."""
    if regions not in REGION_MODES:
        raise ConfigError(f"REGIONS={regions!r}: allowed: {', '.join(REGION_MODES)}")
    check_template(prompt_template)
    numbers, chosen = _read(reader, regions, selection, stop_after)
    bases = output_bases(numbers)
    groups: dict[str | None, list[_Pending]] = {}
    rows = 0
    for pending in chosen:
        groups.setdefault(pending.image if not pending.reason else None, []).append(pending)
        rows += 1
    bad = [_bad_row(pending) for pending in groups.pop(None, [])]
    images = []
    for image in [name for name in groups if name is not None]:
        heat_maps: list[HeatMap] = []
        for pending in groups.pop(image):  # popped: rows and heat maps need not be held side by side
            _expand(pending, image, bases[image], regions, prompt_template, heat_maps, bad)
        if heat_maps:
            images.append(ImageTask(image, tuple(heat_maps)))
    bad.sort(key=lambda entry: entry.row)
    return Plan(tuple(images), tuple(bad), rows, _digest(images, bad))


def _read(
    reader: Reader, regions: str, selection: Selection, stop_after: int | None
) -> tuple[dict[str, int], Iterator[_Pending]]:
    """One pass: heat maps per image over the whole data set, and the rows that the run is about."""
    numbers: dict[str, int] = {}
    wanted, sampler = RowFilter(selection), Sampler[_Pending](selection, stop_after)
    seen = 0
    for row in reader.rows():
        seen += 1
        image, reason = _image_of(row)
        first = 1
        if image is not None:
            first = numbers.get(image, 0) + 1
            numbers[image] = first - 1 + len(shares(row, regions))
        if wanted.keeps(row, image):
            sampler.offer(row.number, _Pending(row, image, first, reason))
    if not seen:
        raise DataSetError(f"the data set holds no rows: {', '.join(map(str, reader.files()[:5]))}")
    wanted.check(seen, sampler.offered)
    return numbers, sampler.taken()


def _image_of(row: QuestionRow) -> tuple[str | None, str]:
    """(canonical path or None, why the row cannot be used or "")."""
    if not row.image_path:
        return None, row.error or f"{row.source}: no image_path"
    try:
        return canonical_image_path(row.image_path), row.error
    except ItemError as error:
        return None, row.error or f"{row.source}: {error.reason}"


def _bad_row(pending: _Pending) -> BadRow:
    row = pending.row
    image = pending.image or row.image_path
    return BadRow(row.number, row.source, image, row.question_id, row.question, "", pending.reason)


def _expand(
    pending: _Pending,
    image: str,
    base: str,
    regions: str,
    template: str,
    heat_maps: list[HeatMap],
    bad: list[BadRow],
) -> None:
    """Add a row's heat maps to ``heat_maps``, and those that cannot be made to ``bad``."""
    row = pending.row
    for number, share in enumerate(shares(row, regions), start=pending.first_number):
        output, prompt = f"{base}_idx{number}", fill(template, row, share.name)
        fault = name_fault(output)
        if not prompt.strip():
            fault = f"the prompt is empty: nothing in this row fills PROMPT_TEMPLATE={template!r}"
        if fault:
            reason = f"{row.source}: {fault}"
            bad.append(BadRow(row.number, row.source, image, row.question_id, row.question, share.name, reason))
            continue
        key = digest_text(image, row.question, share.name, prompt, output)
        heat_maps.append(
            HeatMap(
                key, row.number, share.index, number, output,
                row.source, row.question_id, row.question, row.answer, row.choices, row.question_type,
                row.content_type, share.name, share.boxes, prompt, row.notes,
            )
        )  # fmt: skip


def _digest(images: Iterable[ImageTask], bad: Iterable[BadRow]) -> str:
    """Identifies the selected work: its keys in order, and the rows that cannot be made."""
    keys = [heat_map.key for image in images for heat_map in image.heat_maps]
    return digest_text(*keys, *(f"{entry.row} {entry.region} {entry.reason}" for entry in bad))
