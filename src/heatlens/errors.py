"""The errors that people see.

Every error that leaves a command is a :class:`HeatlensError`: its text says what was wrong, where (file,
line, key) and what would be right, and its class carries the exit code of the contract. An
:class:`ItemError` concerns one row or one image; it is recorded and never ends a run.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_FAILURES = 3
EXIT_ENVIRONMENT = 4
EXIT_STOPPED = 75


class HeatlensError(Exception):
    """Base of all errors with a text for people. ``exit_code`` is what the command returns."""

    exit_code = EXIT_ENVIRONMENT


class ConfigError(HeatlensError):
    """A key, a value, a .conf file or a combination of keys is wrong (exit code 2)."""

    exit_code = EXIT_CONFIG


class DataSetError(HeatlensError):
    """The data set as a whole cannot be used: not there, unknown layout (exit code 2)."""

    exit_code = EXIT_CONFIG


class ResumeError(ConfigError):
    """The results folder belongs to a run with other settings (exit code 2)."""


class SetupError(HeatlensError):
    """The environment cannot run the job: device, mounts, results folder (exit code 4)."""


class ModelError(SetupError):
    """A model or its weights cannot be loaded, or do not fit what is asked of them (exit code 4)."""


class ZeroGradientError(ModelError):
    """The gradient at the target layer's patch tokens is structurally zero; names a layer that has one."""


class StoppedEarly(HeatlensError):
    """A signal ended the run; finished work is kept and the same command continues (exit code 75)."""

    exit_code = EXIT_STOPPED


class ItemError(HeatlensError):
    """One row, image or heat map that cannot be made.

    ``stage`` is the step that failed: ``row``, ``locate``, ``decode``, ``explain``, ``render`` or ``write``.
    ``reason`` is one line for failures.csv.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = " ".join(reason.split())


def one_line(error: BaseException) -> str:
    """The error's text on one line, with its type's name where the text alone would not say enough."""
    text = " ".join(str(error).split())
    if isinstance(error, HeatlensError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
