"""CSV as the manifest needs it: the same bytes with every Python version, read back unchanged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from heatlens.batch.protocols import MadeMap
from heatlens.files import atomic_file
from heatlens.registry import STAGES

MANIFEST = STAGES["attn_map"].index
MANIFEST_COLUMNS = ("image_path", "question", "answer")
_SPECIAL = re.compile('[,"\r\n]')


def index_of(stage: str) -> str:
    """The file name of a stage's own table of all heat maps; for a stage that is not known here, the manifest."""
    return STAGES[stage].index if stage in STAGES else MANIFEST


def write_manifest(folder: Path, made: Iterator[MadeMap]) -> Path:
    """``vqa_manifest.csv``: one row per finished heat map, in the order given; ``image_path`` is relative
    to the results folder; question and answer as the data set has them."""
    path = folder / MANIFEST
    rows = ((one.record.output, one.heat_map.question, one.heat_map.answer) for one in made)
    write_csv(path, MANIFEST_COLUMNS, rows)
    return path


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file atomically: UTF-8, ``\\n`` after every row, quotes only where RFC 4180 needs them."""
    with atomic_file(path) as stream:
        stream.write(csv_line(header).encode())
        for row in rows:
            stream.write(csv_line(row).encode())


def csv_line(fields: Sequence[str]) -> str:
    """One CSV row with its line break.

    Not the csv module: before Python 3.13 it leaves a lone carriage return unquoted when rows end in ``\\n``,
    which its own reader then takes for the end of the row.
    """
    return ",".join(_quoted(valid_text(field)) for field in fields) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _SPECIAL.search(text) else text


def valid_text(text: str) -> str:
    """``text`` without lone surrogates (JSON can spell them, UTF-8 cannot): each becomes U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
