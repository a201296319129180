"""A data row's image path -> the file on disk."""

from __future__ import annotations

import stat
from pathlib import Path

from heatlens.errors import ItemError
from heatlens.files import safe_relative

MIMIC_FOLDER = "files"


def locate_image(root: Path, relative: str) -> Path:
    """The regular file ``relative`` under ``root``, tried as it is and with or without ``files/``.

    GEMeX writes ``p10/...``, MIMIC-CXR-JPG on disk has ``files/p10/...``, and IMAGE_ROOT may be either folder.
    Symbolic links are followed: cluster data is made of them. ``..`` and absolute paths elsewhere never get
    this far (ItemError of stage ``row``). Raises ItemError (stage ``locate``) that names every path tried.
    """
    path = safe_relative(relative)
    others = path.parts[1:] if path.parts[0] == MIMIC_FOLDER else (MIMIC_FOLDER, *path.parts)
    candidates = [root / path] + ([root.joinpath(*others)] if others else [])
    problems = [f"{candidate} ({problem})" for candidate in candidates if (problem := _problem(candidate))]
    for candidate in candidates:
        if not _problem(candidate):
            return candidate
    raise ItemError("locate", f"no image file at {', nor at '.join(problems)}")


def _problem(path: Path) -> str:
    """Why ``path`` is no file to read; empty when it is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a broken link" if path.is_symlink() else "not there"
    except OSError as error:
        return error.strerror or str(error)
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "not a regular file"
