"""Where an export lies: written beside its place, moved there when it is complete, never over anything else."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heatlens.errors import ConfigError, SetupError
from heatlens.files import temporary_folder

MARKER = "export.json"
_MAKER = "heatlens export"


@contextmanager
def new_export(
    target: Path, ours: Collection[str], facts: Mapping[str, Any], kept: Collection[str] = ()
) -> Iterator[Path]:
    """A folder to write into; afterwards it is ``target``. An earlier export there is replaced as a whole.

    ``ours``: the names at the top of such an export; ``kept``: names there that are its user's and move on into the
    new one. ConfigError for a folder that is no export, or holds anything else.
    """
    target = target.absolute()
    _check(target, {*ours, *kept})
    try:
        with temporary_folder(target.parent) as temporary:
            work = temporary / "new"  # made anew: the temporary folder itself is private whatever the umask
            work.mkdir()
            yield work
            text = json.dumps({"made_by": _MAKER, **facts}, indent=1)
            (work / MARKER).write_text(text + "\n", encoding="ascii")
            _exchange(work, target, temporary / "old", kept)
    except OSError as error:
        raise SetupError(
            f"the export {target} cannot be written: {error.strerror or error} ({error.filename})"
        ) from error


def _check(target: Path, ours: Collection[str]) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise ConfigError(f"{target} is there and no folder; name another --output")
    names = {path.name for path in target.iterdir()}
    if not names:
        return
    try:
        made_by = json.loads((target / MARKER).read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        made_by = ""
    foreign = sorted(names - {MARKER, *ours}) if made_by == _MAKER else sorted(names)
    if foreign:
        raise ConfigError(
            f"{target} is replaced only if it holds nothing but an earlier export; it holds {foreign[0]!r}. "
            "Name another --output, or move that away"
        )


def _exchange(work: Path, target: Path, old: Path, kept: Collection[str]) -> None:
    """Put ``work`` in the place of ``target``, which goes to ``old``, and everything back if that fails."""
    moves = [(target / name, work / name) for name in kept] + [(target, old), (work, target)]
    done: list[tuple[Path, Path]] = []
    try:
        for source, place in moves:
            if source.exists() or source.is_symlink():
                source.rename(place)
                done.append((source, place))
    except OSError:
        for source, place in reversed(done):
            place.rename(source)
        raise
