"""Which annotated image is which image of the run?

The same path, first. Where a run and an annotation file are rooted differently, one path is the other's end
(``files/p10/.../x.jpg`` and ``p10/.../x.jpg``); or only the name of the file is shared. Both count only when they fit
one image on either side, and the suffix is left aside: annotations are often made on a PNG of a DICOM film.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

SAME_PATH, SAME_END, SAME_NAME = "same path", "same end of the path", "same file name"
AMBIGUOUS = "its image may be one of several annotated ones"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom", ".bmp", ".tif", ".tiff", ".webp")

Parts = tuple[str, ...]


def match_images(ours: Sequence[str], theirs: Iterable[str]) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """(image of the run -> annotated image and how it was found, images of the run that fit several or share one).

    Both are canonical paths, each once.
    """
    annotated = list(theirs)
    same = set(annotated) & set(ours)
    found = {image: (image, SAME_PATH) for image in ours if image in same}
    unclear: set[str] = set()
    for how, candidates in ((SAME_END, _same_end), (SAME_NAME, _same_name)):
        left = [image for image in ours if image not in found]
        fits = candidates(left, [image for image in annotated if image not in same])
        users: dict[str, int] = defaultdict(int)
        for several in fits.values():
            for image in several:
                users[image] += 1
        for image, several in fits.items():
            other = next(iter(several))
            if len(several) == 1 and users[other] == 1:
                found[image] = (other, how)
            else:
                unclear.add(image)
        same |= {found[image][0] for image in fits if image in found}
    return found, unclear - found.keys()


Candidates = Callable[[Sequence[str], Sequence[str]], dict[str, set[str]]]


def _same_end(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, set[str]]:
    """Image of the run -> annotated images one of whose path is the end of the other's."""
    whole: dict[Parts, set[str]] = defaultdict(set)
    ends: dict[Parts, set[str]] = defaultdict(set)
    for image in theirs:
        parts = _parts(image)
        whole[parts].add(image)
        for start in range(len(parts)):
            ends[parts[start:]].add(image)
    found = {}
    for image in ours:
        parts = _parts(image)
        fits = set(ends.get(parts, ()))
        for start in range(1, len(parts)):
            fits |= whole.get(parts[start:], set())
        if fits:
            found[image] = fits
    return found


def _same_name(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, set[str]]:
    names: dict[str, set[str]] = defaultdict(set)
    for image in theirs:
        names[_parts(image)[-1]].add(image)
    return {image: names[name] for image in ours if (name := _parts(image)[-1]) in names}


def _parts(image: str) -> Parts:
    """The path's components, without an image's suffix."""
    path = PurePosixPath(image)
    return (path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path).parts
