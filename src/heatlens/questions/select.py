"""SPLIT, VIEW, QUESTION_TYPES and SAMPLE: which rows of a data set a run is about."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heatlens.errors import ConfigError
from heatlens.questions.mimic import TABLES, ImageTable, find_table
from heatlens.questions.rows import CONTENT_TYPES, QUESTION_TYPES, question_type_named
from heatlens.registry import nearest_hint

Rows = npt.NDArray[np.int64]
"""Numbers of rows."""


@dataclass(frozen=True)
class Selection:
    """The selection keys, as text and numbers from the configuration. The default selects everything.

    ``split``, ``view`` and ``question_types`` are comma-separated lists and ignore case. A row is selected if
    it fits every key that is set; with question types *and* content types in ``question_types`` it must fit
    one of each kind ("single_choice,location": single-choice questions about a location). ``sample`` then
    takes that many of the fitting rows (a whole number), or each with that probability (below 1), by a hash
    of ``seed`` and the row's number: the order is kept, a larger sample contains the smaller one, and whether
    another row is broken changes nothing. A row that cannot be used is selected, and so reported, unless what
    is known of it says that it does not belong.
    """

    split: str = ""
    view: str = ""
    question_types: str = ""
    sample: float | None = None
    seed: int = 0
    image_root: Path | None = None

    def __post_init__(self) -> None:
        sample = self.sample
        if sample is None:
            return
        if not math.isfinite(sample) or sample <= 0 or (sample >= 1 and sample != int(sample)):
            raise ConfigError(
                f"SAMPLE={sample}: allowed is a whole number of rows from 1, or a fraction between 0 and 1"
            )

    def items(self, text: str) -> set[str]:
        """The entries of a comma-separated list, in lower case."""
        return {item.strip().casefold() for item in text.split(",") if item.strip()}


class RowFacts(NamedTuple):
    """What a selection looks at. ``image``: the canonical path, None if the row has no usable one."""

    question_type: str
    content_type: str
    split: str
    view: str
    image: str | None
    broken: bool


class RowFilter:
    """One pass over a data set in its own order; remembers what it met, for the error texts."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        types = selection.items(selection.question_types)
        self._types = {name for item in types if (name := question_type_named(item))}
        self._contents = {item for item in types if not question_type_named(item)}
        self._met_contents: dict[str, None] = {}
        asked = (
            ("SPLIT", selection.split, attrgetter("split")),
            ("VIEW", selection.view, attrgetter("view")),
        )
        self._facets = [
            _Facet(key, wanted, own, selection.image_root)
            for key, text, own in asked
            if (wanted := selection.items(text))
        ]

    def __bool__(self) -> bool:
        """Whether there is anything to ask of the rows."""
        return bool(self._types or self._contents or self._facets)

    def keeps(self, row: RowFacts) -> bool:
        """Whether a row is selected."""
        return self.keeps_type(row) and self.keeps_facets(row)

    @property
    def asks_images(self) -> bool:
        """Whether SPLIT or VIEW are set."""
        return bool(self._facets)

    def keeps_facets(self, row: RowFacts) -> bool:
        """Whether a row fits SPLIT and VIEW."""
        return all(facet.keeps(row) for facet in self._facets)

    def keeps_type(self, row: RowFacts) -> bool:
        """Whether a row fits QUESTION_TYPES; its image does not matter."""
        if self._contents:
            self._met_contents.setdefault(row.content_type)
        for wanted, value in (
            (self._types, row.question_type),
            (self._contents, row.content_type.casefold()),
        ):
            if wanted and value not in wanted and not (row.broken and not value):
                return False
        return True

    def check(self, seen: int, kept: int) -> None:
        """After the pass: ConfigError for a question type nobody knows, or a selection that fits no row."""
        met = [name for name in self._met_contents if name]
        for name in sorted(self._contents - set(CONTENT_TYPES) - {value.casefold() for value in met}):
            known = list(dict.fromkeys([*QUESTION_TYPES, *CONTENT_TYPES, *met]))
            raise ConfigError(f"QUESTION_TYPES: unknown type {name!r}; {nearest_hint(name, known[:60])}")
        if seen and not kept:
            chosen = self._selection
            keys = {"SPLIT": chosen.split, "VIEW": chosen.view, "QUESTION_TYPES": chosen.question_types}
            texts = [f"{key}={value}" for key, value in keys.items() if value]
            texts += [facet.met_text() for facet in self._facets]
            raise ConfigError(
                f"the selection fits none of the {seen} rows: {'; '.join(texts) or f'SAMPLE={chosen.sample}'}"
            )

    def warnings(self) -> list[str]:
        """How many rows were left out because nothing is known about them."""
        return [text for facet in self._facets if (text := facet.warning())]


class _Facet:
    """SPLIT or VIEW: a row's own column if it has a value there, else MIMIC-CXR's table."""

    def __init__(
        self, key: str, wanted: set[str], own: Callable[[RowFacts], str], image_root: Path | None
    ) -> None:  # fmt: skip
        self._key, self._wanted, self._own, self._root = key, wanted, own, image_root
        self._table: ImageTable | None = None
        self._met: dict[str, None] = {}
        self._silent = 0

    def keeps(self, row: RowFacts) -> bool:
        value: str | None = self._own(row)
        if not value and row.image is not None:
            value = self._of_table(row.image, has_own_column=bool(self._met))
        if not value:
            self._silent += not row.broken
            return row.broken
        if self._table is None:
            self._met.setdefault(value)
        return value.casefold() in self._wanted

    def _of_table(self, image: str, *, has_own_column: bool) -> str | None:
        if self._table is None:
            if has_own_column:
                return None  # an empty cell of the data set's own column
            self._table = ImageTable.read(find_table(self._key, self._root), TABLES[self._key][1])
        return self._table.of_image(image)

    def warning(self) -> str:
        """How many rows were left out because nothing is known about them, or ""."""
        if not self._silent:
            return ""
        return f"{self._key}: {self._silent} rows are not selected, for nothing says what they are"

    def met_text(self) -> str:
        """The values that occur, for the error text."""
        values = sorted(set(self._table.values.values())) if self._table else list(self._met)
        return f"{self._key} has the values: {', '.join(values[:20]) or 'none'}"


def rank(seed: int, number: int) -> float:
    """A row's place in the lottery, 0 <= rank < 1; depends on nothing but the seed and the row's number."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def sampled(numbers: Rows, selection: Selection, stop_after: int | None) -> Rows:
    """Those of the rows (ascending numbers) that SAMPLE and STOP_AFTER take, in data-set order."""
    sample = selection.sample
    if sample is None:
        return numbers[:stop_after]
    ranks = np.fromiter((rank(selection.seed, number) for number in numbers.tolist()), float, len(numbers))
    if sample < 1:
        return numbers[ranks < sample][:stop_after]
    best = np.lexsort((numbers, ranks))[: int(sample)]
    return np.sort(numbers[best])[:stop_after]
