"""A run that kept no maps, once more: the same stage, by the ordinary runner, in a process of its own.

It writes into ``report/recomputed`` of the run's folder and can be resumed like every run. Before the model is loaded,
everything that decides what the maps are (weights, data, method, sizes ...) is compared with the run's record.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heatlens.batch.fingerprint import differences
from heatlens.errors import EXIT_OK, HeatlensError, SetupError
from heatlens.evaluate.finished_run import FinishedRun, read_run

FOLDER = Path("report/recomputed")
NOT_THE_MAPS = frozenset({"SAVE_RAW_CAM"})
"""Of the fingerprint: what may differ, because the maps do not depend on it."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class RecomputeEnded(HeatlensError):
    """The run ended otherwise than well; ``exit_code`` is its own."""

    def __init__(self, folder: Path, code: int) -> None:
        again = "; the same command continues it" if code == 75 else ""
        super().__init__(f"--recompute: the run into {folder} ended with exit code {code} (its words are above){again}")
        self.exit_code = code


def recompute(run: FinishedRun) -> Path:
    """The folder with the run's maps. SetupError when they would be others; RecomputeEnded when the run fails."""
    folder = run.folder / FOLDER
    keys = _settings(run, folder)
    _check_same(run, keys)
    code = _run(run.stage, keys)
    # A run that had too many failures has them again.
    if code not in (EXIT_OK, run.record.get("exit_code")):
        raise RecomputeEnded(folder, code)
    made = read_run(folder, run.image_root)
    if made.record.get("plan_digest") != run.record.get("plan_digest"):
        raise SetupError(
            f"--recompute: {folder} holds other heat maps than {run.folder} (the plan's digest differs): the "
            "tables that the selection reads have changed since; run the stage again with SAVE_RAW_CAM=true"
        )
    return folder


def _settings(run: FinishedRun, folder: Path) -> dict[str, str]:
    """KEY -> text of every key that this program has, as the run had it."""
    from heatlens.batch.retry import text_of
    from heatlens.config import KEYS

    fingerprint = run.record.get("fingerprint") or {}
    resolved = {key: fingerprint[key] for key in ("PRECISION", "BATCH_SIZE") if fingerprint.get(key)}
    values: dict[str, Any] = {**run.config, **resolved}
    if run.image_root is not None:
        values["IMAGE_ROOT"] = run.image_root
    values |= {"SAVE_RAW_CAM": True, "OVERWRITE": False, "RETRY_FAILED": False, "NUM_SHARDS": 1, "SHARD_INDEX": 0}
    values["RESULTS_DIR"] = folder.absolute()
    return {key: text_of(value) for key, value in values.items() if key in KEYS}


def _check_same(run: FinishedRun, keys: Mapping[str, str]) -> None:
    """Would this make the run's own maps? Looks at weights and data, loads no model."""
    from heatlens.batch.job import Request
    from heatlens.batch.parts import Parts
    from heatlens.config import check_paths, load_settings
    from heatlens.registry import find

    settings = load_settings(None, keys, {}, run.stage)
    check_paths(settings)
    request = Request.of(settings, find("stage", run.stage).load()(settings), Parts(settings))
    stored, now = (
        {key: value for key, value in one.items() if key not in NOT_THE_MAPS}
        for one in (run.record.get("fingerprint") or {}, request.fingerprint)
    )
    if changed := differences(stored, now):
        lines = "\n  ".join(changed)
        raise SetupError(
            f"--recompute: the maps would not be those of {run.folder}; what differs (then -> now):\n  {lines}\n"
            "Bring back what was, or run the stage again with SAVE_RAW_CAM=true"
        )


def _run(stage: str, keys: Mapping[str, str]) -> int:
    """``heatlens run STAGE`` with all keys given; its exit code.

    A process of its own: the model's threads and memory are gone before the maps are read.
    """
    command = [sys.executable, "-m", "heatlens.cli", "run", stage]
    command += [f"--{key.lower().replace('_', '-')}={text}" for key, text in keys.items()]
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    sys.stdout.flush()
    with (
        subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True
        ) as child,
        _handed_on(child),
    ):
        code = child.wait()
    return 128 - code if code < 0 else code


@contextmanager
def _handed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whoever stops this command stops the run, which then closes its books."""
    before = {number: signal.signal(number, lambda got, _: child.send_signal(got)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
