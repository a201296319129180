"""What a file is, by its first bytes; names and suffixes lie."""

from __future__ import annotations

_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (b"GIF8", "a GIF file"),
    (b"%PDF", "a PDF file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"NRRD", "an NRRD volume"),
)
READABLE = ("jpeg", "png", "bmp", "tiff", "webp", "dicom")


def kind_of(head: bytes, suffix: str) -> str:
    """One of READABLE, or words for what the file is instead.

    ``head`` is the file's first 256 bytes or more. A DICOM file has ``DICM`` at byte 128; old ones without
    that preamble are taken by their suffix ``.dcm`` and a first element of group 0002 or 0008.
    """
    if head[128:132] == b"DICM" or (suffix.lower() in (".dcm", ".dicom") and _begins_with_element(head)):
        return "dicom"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    return _describe(head)


def _begins_with_element(head: bytes) -> bool:
    """A DICOM tag of group 0002 or 0008, in either byte order, with a small even element number."""
    return head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08") and 0 in head[2:4]


def _describe(head: bytes) -> str:
    if not head.strip(b"\x00"):
        return "a file of zero bytes, as an interrupted download leaves it"
    try:
        text = head.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        # A multi-byte character may be cut at the end of the head.
        if error.start < len(head) - 4:
            return f"no image format that is known here (it begins with {head[:8].hex(' ')})"
        text = head[: error.start].decode("utf-8").strip()
    if any(ord(character) < 9 for character in text):
        return f"no image format that is known here (it begins with {head[:8].hex(' ')})"
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    return f"a text file (it begins with {' '.join(text.split())[:40]!r})"
