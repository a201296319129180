"""MIMIC-CXR's own tables: which image belongs to which split, and which view it is."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from heatlens.errors import DataSetError
from heatlens.questions.readers.sources import UNREADABLE, opened

TABLES = {"SPLIT": ("split", "split"), "VIEW": ("metadata", "ViewPosition")}
"""Key -> (the middle of the table's file name, the column)."""


def find_table(key: str, image_root: Path | None) -> Path:
    """The table for ``SPLIT`` or ``VIEW``, in IMAGE_ROOT or the folder above it.

    Raises DataSetError that names the tried paths. MIMIC-CXR-JPG 2.1.0 still calls its tables
    mimic-cxr-2.0.0-*.csv.gz, so those names come first.
    """
    kind = TABLES[key][0]
    if image_root is None:
        raise DataSetError(
            f"{key} is set, but a row says nothing about it, and IMAGE_ROOT (where MIMIC-CXR's {kind} table "
            "would lie) is empty"
        )
    tried = []
    for folder in (image_root, image_root.absolute().parent):
        for name in (f"mimic-cxr-2.0.0-{kind}.csv", f"mimic-cxr-2.0.0-{kind}.csv.gz"):
            tried.append(folder / name)
            if tried[-1].is_file():
                return tried[-1]
        for other in sorted(folder.glob(f"mimic-cxr-*-{kind}.csv*")) if folder.is_dir() else ():
            return other
    raise DataSetError(
        f"{key} is set, but a row says nothing about it and MIMIC-CXR's own table is not there; tried: "
        f"{', '.join(map(str, tried))}. Put the table into IMAGE_ROOT, or clear {key}"
    )


@dataclass(frozen=True)
class ImageTable:
    """dicom id -> one column of a MIMIC-CXR table (377,110 rows: about 60 MB)."""

    values: dict[str, str]

    @classmethod
    def read(cls, path: Path, column: str) -> ImageTable:
        """Read ``dicom_id`` and ``column`` of a CSV, plain or gzipped."""
        known: dict[str, str] = {}  # a few distinct values: keep one string of each
        try:
            with opened(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
                rows = csv.reader(text)
                header = next(rows, [])
                identity, wanted = header.index("dicom_id"), header.index(column)
                values = {row[identity]: known.setdefault(row[wanted], row[wanted]) for row in rows if row}
        except (ValueError, IndexError, csv.Error, *UNREADABLE) as error:
            raise DataSetError(f"{path}: not a table with the columns dicom_id and {column}: {error}") from error
        return cls(values)

    def of_image(self, image_path: str) -> str | None:
        """The value of an image, by its file name without suffix; None if the table does not know it."""
        return self.values.get(PurePosixPath(image_path).stem)
