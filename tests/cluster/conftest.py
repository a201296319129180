"""What the tests of the shell side share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.stubs import Checkout, kill_left, left_running


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Checkout]:
    """A checkout with stand-ins. Nothing may be left of it: no process, no temporary file."""
    if shutil.which("bash") is None:
        pytest.skip("no bash on this machine")
    made = Checkout(tmp_path)
    yield made
    left = list(left_running(made))
    kill_left(made)
    assert left == []
    assert list(made.temporary.iterdir()) == []
