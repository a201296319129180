"""DATASET=phantom_findings: one question per finding on films of held-out seeds, written on first use."""

from __future__ import annotations

from pathlib import Path

from heatlens.phantom.heldout import FINDINGS, ensure_findings
from heatlens.questions.readers.table import TableReader


class FindingsReader(TableReader):
    """A table of findings on synthetic chest films, in the folder that DATASET_PATH names. `truth.jsonl` beside it
    has their exact masks."""

    def __init__(self, path: Path) -> None:
        self._folder = ensure_findings(path)
        # The folder also holds truth.jsonl, which asks nothing.
        super().__init__(self._folder / FINDINGS)

    def image_root(self) -> Path | None:
        """The data set's folder: the films lie under its ``files/``."""
        return self._folder
