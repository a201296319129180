"""Atomic writes, digests and safe paths: every file of a run goes through here."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
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
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{path.suffix}")
    try:
        handle = _create(temporary)
    except FileNotFoundError:  # the folder is nearly always there
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _create(temporary)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _create(path: Path) -> int:
    """A new file's handle. Not mkstemp: its files are 0600, and asking for the umask to mend that means setting it, for
    all threads."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path`` so that a reader sees the old file or the new, never a part."""
    with atomic_file(path) as stream:
        stream.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder in ``parent`` that is gone afterwards, whatever happens (a killed process's is swept later)."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporaries_in(folder: Path) -> list[Path]:
    """Temporary files and folders that lie in ``folder``."""
    return list(folder.glob(f"{TEMPORARY_PREFIX}*"))


def remove_temporary(path: Path) -> None:
    """Remove a temporary file or folder, if it is still there. Only for who knows that nobody writes it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_text(*parts: str) -> str:
    """SHA-256 over several strings, each with its length before it, so that no two lists collide by joining."""
    text = "".join([f"{len(part)}:{part}" for part in parts])
    if text.isascii():  # as most are: characters are bytes
        return hashlib.sha256(text.encode()).hexdigest()
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return hashlib.sha256(b"".join([b"%d:%b" % (len(data), data) for data in encoded])).hexdigest()


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
