"""Films made for the tests, and files in every state that a file can be in."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage


def grey_picture(width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth noise, uint8 (height, width), with 0 and 255 in it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((width, height))
    pixels = np.array(coarse)
    pixels[0, 0], pixels[-1, -1] = 0, 255
    return pixels


def chest(width: int = 300, height: int = 360, *, gap: int = 0) -> np.ndarray:
    """A bright body with a neck on dark air, two lungs exactly as dark; ``gap`` opens the chest wall."""
    y, x = np.mgrid[0:height, 0:width]
    u, v = x / width, y / height
    body = ((u > 0.1) & (u < 0.9) & (v > 0.15)) | ((u > 0.4) & (u < 0.6))
    for centre in (0.33, 0.67):
        body &= ((u - centre) / 0.12) ** 2 + ((v - 0.55) / 0.25) ** 2 >= 1
    if gap:
        body &= ~((np.abs(y - round(0.55 * height)) < gap / 2) & (u < 0.3))
    rng = np.random.default_rng(0)
    return np.where(body, rng.normal(180, 10, body.shape), rng.normal(12, 3, body.shape)).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, name: str, **options: object) -> bytes:
    """``pixels`` as a file of Pillow's format ``name``."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=name, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    values: np.ndarray, *, colour: int, depth: int = 16, extra: bytes = b"", size: tuple[int, int] | None = None
) -> bytes:
    """A PNG by hand: ``values`` (h, w[, channels]) big-endian; ``size`` may lie about them."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, colour, 0, 0, 0)
    lines = values.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def dicom(stored: np.ndarray, **attributes: object) -> FileDataset:
    """A minimal uncompressed DICOM file around ``stored`` (h, w) or (h, w, 3), any integer type."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.Modality = "CR"
    file.Rows, file.Columns = stored.shape[:2]
    file.SamplesPerPixel = 1 if stored.ndim == 2 else stored.shape[2]
    file.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated = file.BitsStored = 8 * stored.dtype.itemsize
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(file, name, value)
    file.PixelData = stored.tobytes()
    return file


def save_dicom(file: FileDataset, path: Path) -> Path:
    """Write it; returns ``path``."""
    pydicom.dcmwrite(path, file)
    return path
