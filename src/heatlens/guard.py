"""The frame around every command: an error becomes one clear text and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from heatlens.errors import EXIT_ENVIRONMENT, HeatlensError, one_line

EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


def guarded(command: Callable[[], int]) -> int:
    """Run ``command`` and return its exit code; HEATLENS_TRACEBACK=1 lets errors through."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone. Python's own flush at exit would fail loudly once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except HeatlensError as error:
        if os.environ.get("HEATLENS_TRACEBACK") == "1":
            raise
        print(f"heatlens: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if os.environ.get("HEATLENS_TRACEBACK") == "1":
            raise
        if isinstance(error, ModuleNotFoundError) and not (error.name or "heatlens").startswith("heatlens"):
            print(
                f"heatlens: {sys.executable} has no package {error.name}, which heatlens needs. Run `make setup`, "
                "or set HEATLENS_PYTHON to a Python that has it.",
                file=sys.stderr,
            )
            return EXIT_ENVIRONMENT
        print(
            f"heatlens: unexpected error, please report it: {one_line(error)}\n"
            "(HEATLENS_TRACEBACK=1 shows where it happened)",
            file=sys.stderr,
        )
        return EXIT_UNEXPECTED
