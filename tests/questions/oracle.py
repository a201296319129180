"""A plan in plain Python, all in memory: slow, obvious, and what the real one is compared with."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from heatlens.questions.expand import BadRow, ImageTask, expand, shares, usable_image
from heatlens.questions.outputs import output_bases
from heatlens.questions.rows import QuestionRow
from heatlens.questions.select import RowFacts, RowFilter, Selection, rank


@dataclass
class Expected:
    """What a plan should hold. ``tasks``: all images that have a selected, usable row."""

    rows: int
    tasks: list[ImageTask]
    bad: list[BadRow]

    def shard(self, index: int, count: int) -> list[ImageTask]:
        """Largest image first, to the lightest shard."""
        loads = [(0, shard) for shard in range(count)]
        mine = []
        for place in sorted(range(len(self.tasks)), key=lambda place: (-weight(self.tasks[place]), place)):
            load, shard = heapq.heappop(loads)
            heapq.heappush(loads, (load + weight(self.tasks[place]), shard))
            if shard == index:
                mine.append(place)
        return [self.tasks[place] for place in sorted(mine)]


def image_of(row: QuestionRow) -> tuple[str | None, str]:
    """(canonical path or None, why the row cannot be used or "")."""
    image, fault = usable_image(row.image_path)
    return image, row.error or (f"{row.source}: {fault}" if fault else "")


def weight(task: ImageTask) -> int:
    return len(task.heat_maps) + len(task.bad)


def expected_plan(
    rows: list[QuestionRow], regions: str, prompt_template: str, selection: Selection, stop_after: int | None
) -> Expected:
    """The plan of ``rows``, which is a whole data set."""
    counts: dict[str, int] = {}
    first_numbers, images = [], []
    for row in rows:
        image, _ = image_of(row)
        images.append(image)
        first_numbers.append(1)
        if image is not None:
            first_numbers[-1] += counts.get(image, 0)
            counts[image] = counts.get(image, 0) + len(shares(row, regions))
    chosen = _selected(rows, images, selection, stop_after)
    bad = [_bad(rows[n], images[n]) for n in chosen if image_of(rows[n])[1]]
    bases, tasks = output_bases(counts), []
    for index, image in enumerate(counts):
        heat_maps, failed, any_row = [], [], False
        for n in chosen:
            if images[n] == image and not image_of(rows[n])[1]:
                made, not_made = expand(rows[n], image, bases[image], first_numbers[n], regions, prompt_template)
                heat_maps += made
                failed += not_made
                any_row = True
        if any_row:
            tasks.append(ImageTask(image, tuple(heat_maps), tuple(failed), index))
    return Expected(len(chosen), tasks, bad)


def _bad(row: QuestionRow, image: str | None) -> BadRow:
    reason = image_of(row)[1]
    return BadRow(row.number, row.source, image or row.image_path, row.question_id, row.question, "", reason)


def _selected(
    rows: list[QuestionRow], images: list[str | None], selection: Selection, stop_after: int | None
) -> list[int]:
    wanted = RowFilter(selection)
    fitting = []
    for row, image in zip(rows, images, strict=True):
        facts = RowFacts(
            row.question_type, row.content_type, row.split, row.view, image, bool(row.error) or image is None
        )
        if wanted.keeps(facts):
            fitting.append(row.number)
    wanted.check(len(rows), len(fitting))
    sample = selection.sample
    if sample is not None and sample < 1:
        fitting = [number for number in fitting if rank(selection.seed, number) < sample]
    elif sample is not None:
        fitting = sorted(sorted(fitting, key=lambda number: (rank(selection.seed, number), number))[: int(sample)])
    return fitting[:stop_after]
