"""A slow run in its own process, for tests that kill it: ``python -m tests.batch.crash_child FOLDER``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from heatlens.batch.runner import run
from tests.batch.kit import FakeExplainer, FakeParts, FakeStage, make_settings

if __name__ == "__main__":
    settings = make_settings(Path(sys.argv[1]))
    explainer = FakeExplainer(lambda prompt: time.sleep(0.15))
    sys.exit(run(settings, FakeStage(), FakeParts(settings, explainer)))
