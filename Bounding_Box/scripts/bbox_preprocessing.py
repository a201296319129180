#!/usr/bin/env python3
"""The stage Bounding_Box: bbox_preprocessing.py --config FILE.conf [--key value ...]; --help lists keys."""

import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
if SOURCE.is_dir():
    sys.path.insert(0, str(SOURCE))

from heatlens.guard import guarded  # noqa: E402 - the line above makes it importable in a checkout
from heatlens.stages.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(guarded(lambda: main("bbox", sys.argv[1:])))
