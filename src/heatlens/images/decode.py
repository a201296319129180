"""One image file -> a :class:`Film`. Every way in which a file can be bad is an ItemError of one line.

The kind of file is found by content. Each Pillow format is opened through its own reader class: only the
formats below can ever run, sizes are checked from the header before a pixel is decoded, and Pillow's
process-wide limits stay untouched.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from heatlens.errors import ItemError, one_line
from heatlens.images.endings import check_jpeg_end, check_png_chunks
from heatlens.images.film import Film, Pixels, check_size, depth_of, grey_if_equal, to_eight_bits
from heatlens.images.sniff import READABLE, kind_of

LARGEST_FILE = 1 << 30
"""bytes"""

# A damaged file is reported once, by its ItemError; the readers' own remarks would only repeat it on stderr.
warnings.filterwarnings("ignore", module=r"PIL\..*ImagePlugin")

Array = npt.NDArray[Any]

_SCALES = (8, 4, 2)  # what every libjpeg can leave out, coarsest first

_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}

_WHOLE: dict[str, Callable[[bytes], None]] = {"jpeg": check_jpeg_end, "png": check_png_chunks}

_TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # EXIF orientation -> the turn that sets the picture upright


def read_film(path: Path, longest: int | None = None) -> Film:
    """Decode ``path`` (JPEG, PNG, DICOM, BMP, TIFF, WebP; by content, not by name).

    The grey levels of an 8-bit grey file arrive as they are. Deeper files are scaled by the smallest
    2^bits - 1 that holds their maximum, never stretched; DICOM goes through its own grey-scale pipeline.

    ``longest``: whoever asks needs no more pixels than this along the longer side. A JPEG is then decoded at the
    smallest scale of 1/8, 1/4 and 1/2 that has as many, where it has; ``Film.size`` is the file's all the same.
    Raises ItemError (stage ``decode``) with one line on what is wrong.
    """
    data = _read_bytes(path)
    kind = kind_of(data[:512], path.suffix)
    if kind not in READABLE:
        raise ItemError("decode", f"{path.name} is {kind}; read are JPEG, PNG, DICOM, BMP, TIFF and WebP")
    try:
        if kind == "dicom":
            from heatlens.images.dicom import read_dicom  # pydicom takes a third of a second to import

            return read_dicom(data)
        return _read_picture(data, kind, longest)
    except ItemError as error:
        raise ItemError("decode", f"{path.name}: {error.reason}") from None
    except MemoryError:
        raise ItemError("decode", f"{path.name} does not fit into memory") from None
    except Exception as error:  # decoders raise whatever they like on damaged input
        raise ItemError("decode", f"{path.name} cannot be decoded as {kind} ({one_line(error)[:160]})") from None


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ItemError("decode", f"{path.name} is not a regular file")
        if status.st_size == 0:
            raise ItemError("decode", f"{path.name} is empty (zero bytes)")
        if status.st_size > LARGEST_FILE:
            raise ItemError("decode", f"{path.name} has {status.st_size:,} bytes (at most {LARGEST_FILE:,})")
        return path.read_bytes()
    except OSError as error:
        raise ItemError("decode", f"{path.name} cannot be read: {error.strerror or error}") from None


def _read_picture(data: bytes, kind: str, longest: int | None) -> Film:
    with _READERS[kind](io.BytesIO(data)) as image:
        check_size(*image.size)
        if kind in _WHOLE:
            _WHOLE[kind](data)
        source = _draft(image, longest)
        orientation = _orientation(image)
        frames = getattr(image, "n_frames", 1)
        image.load()
        notes = [f"frame 1 of {frames}"] if frames > 1 else []
        pixels, bits = _pixels(image, data, notes)
    if orientation in _TURNS:
        # Pillow has turned TIFF files itself.
        pixels = pixels if kind == "tiff" else np.ascontiguousarray(_TURNS[orientation](pixels))
        if source is not None and orientation >= 5:
            source = source[1], source[0]
        notes.append(f"turned upright (EXIF orientation {orientation})")
    if pixels.ndim == 3:
        pixels = grey_if_equal(pixels)
    return Film(pixels, kind, bits, tuple(notes), source)


def _draft(image: ImageFile.ImageFile, longest: int | None) -> tuple[int, int] | None:
    """Have a JPEG decoded at a smaller scale if that leaves ``longest`` pixels; its own size, None if it stays.

    One pixel is the mean over a square of 2, 4 or 8 a side; the last one of a row or column may stand for less.
    """
    if longest is None or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    width, height = image.size
    for scale in _SCALES:
        if -(-max(width, height) // scale) >= longest:
            image.draft(None, (width // scale, height // scale))
            return (width, height) if image.size != (width, height) else None
    return None


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken EXIF is no reason to lose the picture
        return 1


def _pixels(image: ImageFile.ImageFile, data: bytes, notes: list[str]) -> tuple[Pixels, int]:
    """The loaded picture as grey or RGB uint8, with its depth; what was changed goes to ``notes``."""
    if deep := _deep_values(image, data):
        return _from_deep(*deep, notes)
    if image.mode in ("I", "F"):
        raise ItemError("decode", "32-bit grey levels have no known white; convert the file to 16 bits")
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        if (rgba[..., 3] < 255).any():
            notes.append("transparent parts composited on black")
        return _on_black(rgba[..., :3], rgba[..., 3], 255).astype(np.uint8), 8
    if image.mode in ("1", "L"):
        return np.array(image if image.mode == "L" else image.convert("L")), 8
    return np.array(image.convert("RGB")), 8


def _deep_values(image: ImageFile.ImageFile, data: bytes) -> tuple[Array, Array | None] | None:
    """(values, alpha or None) of a 16-bit picture, None for all others.

    Pillow keeps 16 bits for grey only; it has checked a colour or grey+alpha PNG by now, and OpenCV reads
    it a second time at full depth.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        key = image.info.get("transparency")
        alpha = None if key is None else np.where(values == key, 0, 65535)
        if getattr(image, "tag_v2", {}).get(262) == 0:  # TIFF, WhiteIsZero
            values = np.uint16((1 << depth_of(int(values.max()))) - 1) - values
        return values, alpha
    if image.format == "PNG" and data[24] == 16:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
            raise ItemError("decode", "the 16-bit PNG file cannot be decoded")
        alpha = decoded[..., 3] if decoded.shape[2] == 4 else None
        return decoded[..., 2::-1], alpha
    return None


def _from_deep(values: Array, alpha: Array | None, notes: list[str]) -> tuple[Pixels, int]:
    bits = depth_of(int(values.max(initial=0)))
    notes.append(f"16-bit file with {bits}-bit grey levels, scaled by 255/{(1 << bits) - 1}")
    if alpha is not None and (alpha < 65535).any():
        notes.append("transparent parts composited on black")
        values = _on_black(values, alpha, 65535).astype(np.uint16)
    return to_eight_bits(values, bits), bits


def _on_black(values: Array, alpha: Array, opaque: int) -> Array:
    """values * alpha / opaque, rounded; ``alpha`` is (H, W)."""
    weight = alpha.astype(np.uint64)
    if values.ndim == 3:
        weight = weight[..., None]
    return (values.astype(np.uint64) * weight + opaque // 2) // opaque
