"""DICOM -> a :class:`Film`, through the grey-scale pipeline of the standard (PS3.3 C.7.6.3, C.11.1, C.11.2).

Order: stored values -> modality LUT or rescale -> VOI LUT or window -> inverted for MONOCHROME1.
"""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, get_decoder, pixel_array
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000TransferSyntaxes

from heatlens.errors import ItemError
from heatlens.images.film import Film, Pixels, check_size, depth_of, grey_if_equal, to_eight_bits

# Old and foreign files break the standard in small ways by the thousand; what matters is in Film.notes.
warnings.filterwarnings("ignore", module=r"pydicom\..*")
if (_log := logging.getLogger("pydicom")).level == logging.NOTSET:
    _log.setLevel(logging.ERROR)

Array = npt.NDArray[Any]
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def read_dicom(data: bytes) -> Film:
    """Decode the first frame of a DICOM file given as bytes.

    Uncompressed, RLE, JPEG baseline and JPEG 2000 work as installed; JPEG lossless and JPEG-LS do where
    python-gdcm is there too. Raises ItemError for a file without a picture, one that is cut, one whose
    attributes claim more than the limits, and a compression nobody here can read.
    """
    if _DEFLATED in data[:1024]:
        raise ItemError("decode", "deflated DICOM is not read (its size is unknown before it is unpacked)")
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    _check(dataset)
    notes: list[str] = []
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        notes.append(f"frame 1 of {frames}")
    stored = pixel_array(dataset, index=0)
    if stored.ndim == 3:
        return _colour(stored, int(dataset.BitsStored), notes)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        notes.append("palette applied")
        coloured = apply_color_lut(stored, dataset)
        return _colour(coloured, 8 * coloured.dtype.itemsize, notes)
    pixels = _grey(stored, dataset, notes)
    return Film(pixels, "dicom", int(dataset.BitsStored), tuple(notes))


def _check(dataset: Dataset) -> None:
    """Everything that can be said from the attributes, before decoding."""
    if "Rows" not in dataset or "Columns" not in dataset:
        modality = dataset.get("Modality") or "not given"
        raise ItemError("decode", f"the DICOM file holds no picture (modality {modality})")
    rows, columns = int(dataset.Rows or 0), int(dataset.Columns or 0)
    check_size(columns, rows)
    data = dataset.get("PixelData")
    if data is None:
        raise ItemError("decode", "the DICOM file has no pixel data, or is cut off before their end")
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
        _guess_syntax(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        _check_length(dataset, rows, columns, len(data))
        return
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise ItemError("decode", f"no decoder for the DICOM compression {syntax.name} is installed (see python-gdcm)")
    if syntax in JPEG2000TransferSyntaxes:
        _check_codestream(next(generate_frames(data, number_of_frames=1)), rows, columns)


def _guess_syntax(dataset: Dataset) -> None:
    """A file without the 0002 group is uncompressed in the encoding that it was just read with."""
    implicit, little = dataset.original_encoding
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _check_length(dataset: Dataset, rows: int, columns: int, present: int) -> None:
    """Uncompressed pixel data must be as long as the attributes say."""
    samples, allocated = int(dataset.get("SamplesPerPixel") or 1), int(dataset.BitsAllocated)
    if "422" in str(dataset.get("PhotometricInterpretation")):
        samples = 2  # two chroma samples are shared by two pixels
    needed = rows * columns * samples * allocated * int(dataset.get("NumberOfFrames") or 1) // 8
    if present < needed:
        raise ItemError("decode", f"the DICOM pixel data are cut off ({present:,} of {needed:,} bytes)")


def _check_codestream(frame: bytes, rows: int, columns: int) -> None:
    """A JPEG 2000 stream carries its own size (SIZ marker), which a decoder believes before Rows and Columns."""
    at = frame.find(b"\xff\x4f\xff\x51")
    if at < 0:
        raise ItemError("decode", "the DICOM file's JPEG 2000 data have no header")
    size = np.frombuffer(frame[at + 8 : at + 24], ">u4").astype(np.int64)
    if len(size) < 4 or (size[0] - size[2], size[1] - size[3]) != (columns, rows):
        raise ItemError("decode", "the size in the DICOM file's JPEG 2000 data is not Rows x Columns")


def _colour(values: Array, bits: int, notes: list[str]) -> Film:
    if values.dtype != np.uint8:
        if bits > 16:
            raise ItemError("decode", f"colour DICOM with {bits} bits per sample is not read")
        bits = depth_of(int(values.max(initial=0)))
        if bits > 8:
            notes.append(f"{bits}-bit colour scaled by 255/{(1 << bits) - 1}")
        values = to_eight_bits(values, bits)
    return Film(grey_if_equal(np.ascontiguousarray(values)), "dicom", bits, tuple(notes))


def _grey(stored: Array, dataset: Dataset, notes: list[str]) -> Pixels:
    """Stored values -> uint8 grey, black = air, with padding black."""
    padding = _padding(stored, dataset)
    values = apply_modality_lut(stored, dataset)
    levels = _voi(values, padding, dataset, notes)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 1.0 - levels
        notes.append("MONOCHROME1 inverted")
    if padding is not None:
        levels[padding] = 0.0
        notes.append("padding pixels set to black")
    return np.rint(levels * 255).astype(np.uint8)


def _padding(stored: Array, dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Where the detector has no data: PixelPaddingValue, or the range up to PixelPaddingRangeLimit."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() and not mask.all() else None


def _voi(values: Array, padding: Array | None, dataset: Dataset, notes: list[str]) -> npt.NDArray[np.float32]:
    """Values of interest as 0..1: the VOI LUT, the first window, or min-max where the file has neither."""
    if dataset.get("VOILUTSequence"):
        return _voi_lut(values, dataset)
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if centre is not None and width is not None and width > 0:
        if isinstance(dataset.WindowCenter, MultiValue):
            notes.append(f"first of {len(dataset.WindowCenter)} windows ({centre:g}/{width:g})")
        return window(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    if values.dtype == np.uint8 and values.dtype.itemsize * 8 == dataset.BitsStored:
        return (values / 255).astype(np.float32)  # an 8-bit picture is ready to be shown
    inside = values if padding is None else values[~padding]
    low, high = float(inside.min()), float(inside.max())
    notes.append(f"no window in the file: scaled from its smallest to its largest value ({low:g} to {high:g})")
    scaled = (values.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12))
    return np.clip(scaled, 0, 1).astype(np.float32)


def _voi_lut(values: Array, dataset: Dataset) -> npt.NDArray[np.float32]:
    """White is the depth that the table really uses: 12-bit tables are often declared as 16 bits."""
    count, first = (int(value) for value in dataset.VOILUTSequence[0].LUTDescriptor[:2])
    entries = apply_voi(np.arange(first, first + (count or 1 << 16), dtype=np.int32), dataset)
    full = (1 << depth_of(int(entries.max()))) - 1
    looked_up = apply_voi(np.rint(values).astype(np.int32), dataset)
    return looked_up.astype(np.float32) / np.float32(full)


def window(values: Array, centre: float, width: float, function: str = "LINEAR") -> npt.NDArray[np.float32]:
    """PS3.3 C.11.2.1: LINEAR (half a value off centre by definition), LINEAR_EXACT or SIGMOID, as 0..1."""
    x = values.astype(np.float32)
    if function == "SIGMOID":
        return (1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -80, 80)))).astype(np.float32)
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return np.clip((x - np.float32(centre)) / np.float32(width) + np.float32(0.5), 0, 1).astype(np.float32)


def _first(dataset: Dataset, name: str) -> float | None:
    value = dataset.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value in (None, "") else float(value)
