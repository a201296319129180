"""Names on disk: one base per source image, such that no two heat maps ever share a file.

A heat map is "<base>_idx<n>", so two of them share a name only if their bases do. Bases are compared as a
careless file system would (case, Unicode composition), and a clash is settled by the set of images alone:
neither their order nor what a run selects matters.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from heatlens.files import TEMPORARY_PREFIX

RESERVED = (
    "raw",
    "shards",
    "report",
    "vqa_manifest.csv",
    "boxes.jsonl",
    "details.parquet",
    "details.csv",
    "failures.csv",
    "run.json",
)
"""What a run writes beside the pictures (DESIGN section 5): no image may claim these top-level names."""
LONGEST_SUFFIX = ".jpeg"
MAX_COMPONENT = 255
MAX_PATH = 3500
"""Bytes: PATH_MAX is 4096 on Linux, and the results folder comes before."""

# "1.2.840.113619" is a DICOM UID, not a name with the suffix .113619.
_SUFFIX = re.compile(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{0,5}$")
_PICTURE = re.compile(r"_idx\d+\.[a-z0-9]+$", re.IGNORECASE)


def output_bases(images: Iterable[str]) -> dict[str, str]:
    """Canonical image path -> base of its heat maps' names (relative, without "_idx<n>").

    Mirrors the image's path without its suffix. Images with the same stem in one folder all keep their
    suffix; names that still differ in case only get "~" and a digest of the path.
    """
    return bases_and_clashes(images)[0]


def bases_and_clashes(images: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """:func:`output_bases`, and the images whose base is longer because of other images."""
    known = list(images)
    levels: dict[str, int] = {}
    while True:
        bases: dict[str, str] = {}
        owners: dict[str, str] = {}
        clashing: set[str] = set()
        for image in known:
            base = bases[image] = _base(image, levels.get(image, 0))
            other = owners.setdefault(_folded(base), image)
            if other != image:
                clashing.update((image, other))
        if not clashing:
            return bases, [image for image in bases if image in levels]
        for image in clashing:
            levels[image] = levels.get(image, 0) + 1


def _base(image: str, level: int) -> str:
    """Level 0: without suffix; 1: with it; from 2 on: with an ever longer digest of the whole path."""
    folder, _, name = image.rpartition("/")
    if level == 0:
        name = _SUFFIX.sub("", name)
    elif level > 1:
        name += "~" + hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()[: 8 << (level - 2)]
    folders = [_folder(part, index) for index, part in enumerate(folder.split("/"))] if folder else []
    return "/".join([*folders, f"_{name}" if name.startswith(TEMPORARY_PREFIX) else name])


def _folder(name: str, depth: int) -> str:
    """A folder's name; one that a run's own file or a picture could bear gets an underscore behind it."""
    if (depth == 0 and name.casefold() in RESERVED) or ("_" in name and _PICTURE.search(name)):
        return name + "_"
    return f"_{name}" if name.startswith(TEMPORARY_PREFIX) else name


def _folded(base: str) -> str:
    return base.lower() if base.isascii() else unicodedata.normalize("NFC", base).casefold()


def name_fault(output: str) -> str:
    """Why a file system would refuse ``output`` (relative, without suffix), or ""."""
    if output.isascii() and len(output) + len(LONGEST_SUFFIX) <= MAX_COMPONENT:
        return ""
    longest = max(PurePosixPath(output + LONGEST_SUFFIX).parts, key=lambda part: len(part.encode()))
    if len(longest.encode()) > MAX_COMPONENT:
        size = len(longest.encode())
        return f"the name {longest[:40]}... has {size} bytes; a file system takes {MAX_COMPONENT}"
    if len(output.encode()) > MAX_PATH:
        return f"the path has {len(output.encode())} bytes; {MAX_PATH} is the limit"
    return ""
