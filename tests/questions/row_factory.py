"""Rows and readers for the tests, without files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from heatlens.files import digest_text
from heatlens.questions.plan import BadRow, HeatMap, Plan, make_plan
from heatlens.questions.rows import QuestionRow, Region
from heatlens.questions.select import Selection

DATA = Path(__file__).parent / "data"

quick = settings(deadline=None, max_examples=40)
"""No time limit per example: shared machines stall."""
few = settings(quick, max_examples=12)
"""For tests that plan several times per example."""
in_one_folder = settings(quick, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For tests whose examples may overwrite each other's files."""


def make_row(number: int = 0, image: str = "a.png", regions: Iterable[str] = (), **fields: Any) -> QuestionRow:
    """A usable row; regions by name."""
    values: dict[str, Any] = {
        "source": f"rows.jsonl:{number + 1}",
        "question_id": f"rows:{number}",
        "question": f"What is {number}?",
        "answer": "Yes.",
        "choices": (),
        "question_type": "closed_ended",
        "content_type": "finding",
    }
    values |= {"regions": tuple(Region(name) for name in regions)} | fields
    return QuestionRow(number=number, image_path=image, **values)


class ListReader:
    """A data set that is a list of rows, numbered afresh."""

    def __init__(self, rows: Iterable[QuestionRow]) -> None:
        self._rows = [row._replace(number=number) for number, row in enumerate(rows)]

    def rows(self) -> Iterator[QuestionRow]:
        return iter(self._rows)

    def files(self) -> list[Path]:
        return [Path("rows.jsonl")]

    def image_root(self) -> Path | None:
        return None


_folder = tempfile.TemporaryDirectory(prefix="heatlens-plans-")


def plan_of(rows: Iterable[QuestionRow], folder: Path | None = None, **options: Any) -> Plan:
    """The plan of ``rows`` with the default settings; its files live until the tests end."""
    settings: dict[str, Any] = {
        "regions": "split",
        "prompt_template": "{question} {region}",
        "selection": Selection(),
        "stop_after": None,
    }
    rows = list(rows)
    settings |= {"data_digest": digest_text(repr(rows)), "workers": 1} | options
    return make_plan(ListReader(rows), folder or Path(_folder.name), **settings)


def heat_maps(plan: Plan) -> list[HeatMap]:
    """All heat maps of a plan, image by image."""
    return [heat_map for image in plan.images() for heat_map in image.heat_maps]


def bad_rows(plan: Plan) -> list[BadRow]:
    """What cannot be made: whole rows and single heat maps, in data-set order."""
    single = [bad for image in plan.images() for bad in image.bad]
    return sorted([*plan.bad_rows(), *single], key=lambda bad: bad.row)


def whole(plan: Plan) -> str:
    """All that a plan holds, as text."""
    return repr([list(plan.images()), list(plan.bad_rows())])
