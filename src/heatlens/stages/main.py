"""The command line of a stage: settings, the run, one clear text when something is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from heatlens.errors import HeatlensError


def main(stage_name: str, argv: Sequence[str] | None = None) -> int:
    """Run stage ``stage_name`` with the arguments ``argv`` (without the program); returns the exit code."""
    try:
        return _run(stage_name, list(sys.argv[1:] if argv is None else argv))
    except HeatlensError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130  # the second Ctrl-C: at once


def _run(stage_name: str, argv: list[str]) -> int:
    from heatlens.config import check_paths, load_settings, parse_arguments
    from heatlens.registry import find

    conf, flags = parse_arguments(stage_name, argv)
    settings = load_settings(conf, flags, os.environ, stage_name)
    check_paths(settings)

    # After the checks: wrong settings must not wait for heavy imports.
    from heatlens.batch.runner import run

    stage = find("stage", stage_name).load()(settings)
    stage.check()
    return run(settings, stage)
