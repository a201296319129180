"""Atomic writes, digests and safe paths: every file of a run goes through here."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from heatlens.errors import ItemError

TEMPORARY_PREFIX = ".heatlens-tmp-"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; rename it onto ``path`` after an fsync, or leave nothing.

    The temporary lies in the same folder so that the rename never crosses a file system.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files 0600 whatever the umask says; give the run's umask its say.
        temporary.chmod(0o666 & ~current_umask())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path`` so that a reader sees the old file or the new, never a part."""
    with atomic_file(path) as stream:
        stream.write(data.encode("utf-8") if isinstance(data, str) else data)


def current_umask() -> int:
    """The process's umask (reading it means setting it twice; there is no other portable way)."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_text(*parts: str) -> str:
    """SHA-256 over several strings, each with its length before it, so that no two lists collide by joining."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def safe_relative(text: str) -> PurePosixPath:
    """A data row's path as a relative POSIX path: one leading slash is dropped, climbing out is refused.

    Raises ItemError (stage ``row``) for an empty path, ``..`` components, NUL or control characters,
    back slashes and drive letters.
    """
    if not text or not text.strip():
        raise ItemError("row", "image_path is empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ItemError("row", f"image_path {text!r} holds a control character")
    if "\\" in text or (len(text) > 1 and text[1] == ":"):
        raise ItemError("row", f"image_path {text!r} is not a POSIX path relative to IMAGE_ROOT")
    path = PurePosixPath(text.removeprefix("/"))
    if ".." in path.parts:
        raise ItemError("row", f"image_path {text!r} climbs out of IMAGE_ROOT ('..' is refused)")
    if path.is_absolute() or path == PurePosixPath("."):
        raise ItemError("row", f"image_path {text!r} is not a path relative to IMAGE_ROOT")
    return path
