"""A fetched model's folder: SHA256SUMS (as ``sha256sum -c`` reads it) and, beside it, where the files come from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from heatlens.errors import ModelError, one_line
from heatlens.files import atomic_write, digest_file
from heatlens.models.sources import locate_model

SUMS = "SHA256SUMS"
SOURCE = "heatlens-source.json"
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class Source:
    """Where a folder's files were fetched: the repository on the hub, its full commit id, and what was asked for."""

    repository: str
    commit: str
    revision: str


def read_source(folder: Path) -> Source | None:
    """What :data:`SOURCE` of ``folder`` says; None without a readable one."""
    try:
        found = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        return Source(*(str(found[name]) for name in ("repository", "commit", "revision")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_sums(folder: Path, digests: Mapping[str, str], source: Source) -> None:
    """Write :data:`SOURCE` and then SHA256SUMS (relative path -> SHA-256), the sign that a folder is complete."""
    atomic_write(folder / SOURCE, json.dumps(asdict(source), indent=1) + "\n")
    atomic_write(folder / SUMS, "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)))


def read_sums(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256. ModelError without a SHA256SUMS, or with one that names files elsewhere."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ModelError(f"{path} is not there: `heatlens fetch-model` writes it when all files are") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from None
    sums = {}
    for number, line in enumerate(lines, 1):
        found = _SUM_LINE.fullmatch(line)
        if found is None or Path(found[2]).is_absolute() or ".." in Path(found[2]).parts:
            raise ModelError(f"{path}:{number}: not a SHA-256 and a file of this folder")
        sums[found[2]] = found[1]
    if not sums:
        raise ModelError(f"{path} is empty")
    return sums


def faults(folder: Path) -> list[str]:
    """What is wrong with a folder by its SHA256SUMS, without network; empty when all is as it was fetched.

    Also when a file that is not listed would be loaded: other weights in the folder may come first.
    """
    sums = read_sums(folder)
    found = [fault for name, digest in sums.items() if (fault := _fault(folder / name, digest))]
    if found:
        return found
    source = locate_model(f"local-dir:{folder}")
    unlisted = [path.name for path in source.weights if path.name not in sums]
    return [f"{folder / name}: would be loaded, but {SUMS} does not list it" for name in unlisted]


def _fault(path: Path, digest: str) -> str:
    try:
        found = digest_file(path)
    except FileNotFoundError:
        return f"{path}: not there"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return "" if found == digest else f"{path}: its SHA-256 is {found}, not {digest}"
