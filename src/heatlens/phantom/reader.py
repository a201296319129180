"""DATASET=phantom: the bundled demo data set, written on first use and read as GEMeX."""

from __future__ import annotations

import glob
from pathlib import Path

from heatlens.phantom.dataset import ensure_dataset
from heatlens.questions.readers.gemex import GemexReader


class PhantomReader(GemexReader):
    """Synthetic chest films with questions, in GEMeX's own format, in the folder that DATASET_PATH names."""

    def __init__(self, path: Path) -> None:
        self._folder = ensure_dataset(path)
        # The folder also holds truth.jsonl, which asks nothing.
        super().__init__(Path(glob.escape(str(self._folder))) / "*_question.jsonl")

    def image_root(self) -> Path | None:
        """The data set's folder: the films lie under its ``files/``."""
        return self._folder
