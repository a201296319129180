"""Fixtures for all tests."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Two workers share the cores; more threads only fight. Also what makes sums repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a hub

# Whoever starts the tests in the background may have Ctrl-C ignored, and all that they start inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No example is too slow on a busy machine; in CI the same examples every time.
hypothesis.settings.register_profile("heatlens", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("heatlens")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture(scope="session")
def biomedclip_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """BiomedCLIP's architecture with random weights. Tests that use it share an xdist group: 784 MB on disk."""
    from tests.biomedclip import write_model_folder

    folder = write_model_folder(tmp_path_factory.mktemp("biomedclip") / "model")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def real_films() -> list[Path]:
    """Two NIH ChestX-ray14 films that are not part of this repository; skipped where they are absent."""
    folder = Path(os.environ.get("HEATLENS_FILMS", ROOT.parent / "shared" / "data" / "cxr"))
    films = sorted(folder.glob("*.png"))
    if not films:
        pytest.skip(f"no real films in {folder} (HEATLENS_FILMS names another folder)")
    return films


@pytest.fixture(scope="session")
def package_file() -> Callable[[str], Path]:
    """Finds one of pydicom-data's files by name (real DICOM films; MIT; a test dependency)."""
    from pydicom.data import get_testdata_file

    def find(name: str) -> Path:
        path = get_testdata_file(name, download=False)
        if path is None:
            pytest.skip(f"pydicom-data has no {name}")
        return Path(str(path))

    return find
