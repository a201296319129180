"""Is a JPEG or PNG file whole? Decoders fill what is missing with grey, so this is asked before they run."""

from __future__ import annotations

import struct
import zlib

from heatlens.errors import ItemError

_PNG_START = 8
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"


def check_jpeg_end(data: bytes) -> None:
    """The end marker has to follow the first scan. Raises ItemError.

    Inside a scan 0xFF is always followed by 0x00 or a restart marker, so FFD9 there can only be the end; before
    the scan it may be a thumbnail's. A download that reserved its space ends in zeros and has none.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        if data[at + 1] == _START_OF_SCAN:
            if data.find(_END_OF_IMAGE, at) < 0:
                break
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ItemError("decode", "the JPEG file is cut off or damaged (no end marker after its picture)")


def check_png_chunks(data: bytes) -> None:
    """Every chunk that the picture needs is there with the right checksum, up to IEND, and holds every row.

    Raises ItemError.
    """
    at, rows = _PNG_START, _Rows(data)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            break
        needed = kind[:1].isupper()  # PNG's own sign for critical chunks
        if needed and zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            name = kind.decode("ascii", "replace")
            raise ItemError("decode", f"the PNG file is damaged (wrong checksum in its {name} chunk)")
        if kind == b"IDAT":
            rows.take(data[at + 8 : end])
        if kind == b"IEND":
            if rows.missing > 0:
                raise ItemError("decode", "the PNG file is damaged (its picture has fewer rows than its header says)")
            return
        at = end + 4
    raise ItemError("decode", "the PNG file is cut off (no IEND chunk)")


class _Rows:
    """Counts unpacked bytes without keeping them, up to what the header asks for; interlaced files are trusted."""

    _SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # noqa: RUF012 - by PNG colour type

    def __init__(self, data: bytes) -> None:
        width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, _PNG_START + 8)
        line = 1 + (width * depth * self._SAMPLES.get(colour, 1) + 7) // 8
        self.missing = 0 if interlaced else height * line
        self._unpacker = zlib.decompressobj()

    def take(self, packed: bytes) -> None:
        while packed and self.missing > 0 and not self._unpacker.eof:
            self.missing -= len(self._unpacker.decompress(packed, 1 << 20))
            packed = self._unpacker.unconsumed_tail
