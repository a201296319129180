"""DICOM: the grey-scale pipeline of the standard, on real files and on files made for one question each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from heatlens.errors import ItemError
from heatlens.images.decode import read_film
from heatlens.images.dicom import window

from .pictures import dicom, encoded, grey_picture, save_dicom

GREY = grey_picture()
TWELVE = GREY.astype(np.uint16) * 16 + 7


def film_of(folder: Path, stored: np.ndarray, **attributes: object):
    return read_film(save_dicom(dicom(stored, **attributes), folder / "film.dcm"))


def refused(folder: Path, stored: np.ndarray, **attributes: object) -> str:
    with pytest.raises(ItemError) as caught:
        film_of(folder, stored, **attributes)
    assert caught.value.stage == "decode"
    return caught.value.reason


def test_eight_bit_pictures_keep_their_levels(tmp_path):
    film = film_of(tmp_path, GREY)
    assert np.array_equal(film.pixels, GREY)
    assert (film.format, film.bits, film.notes) == ("dicom", 8, ())


def test_monochrome1_is_inverted(tmp_path):
    film = film_of(tmp_path, GREY, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(film.pixels, 255 - GREY)
    assert film.notes == ("MONOCHROME1 inverted",)


def test_without_a_window_the_range_of_the_data_is_shown(tmp_path):
    film = film_of(tmp_path, TWELVE, BitsStored=12, HighBit=11)
    assert np.array_equal(film.pixels, np.rint((TWELVE.astype(float) - 7) / 4080 * 255))
    assert film.bits == 12
    assert film.notes == ("no window in the file: scaled from its smallest to its largest value (7 to 4087)",)


def test_rescale_then_window(tmp_path):
    stored = np.tile(np.arange(64, dtype=np.int16), (32, 1)) * 50 - 1000
    film = film_of(
        tmp_path, stored, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=400, WindowWidth=1000,
        VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    expected = np.clip((stored * 2.0 - 100 - 400) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(film.pixels - expected).max() <= 0.5001
    assert film.pixels.min() == 0
    assert film.pixels.max() == 255


def test_the_three_window_functions():
    values = np.arange(-10, 300, dtype=np.int32)
    linear = window(values, 128, 256)
    # PS3.3 C.11.2.1.2.1, written as the standard does
    by_the_book = np.where(
        values <= 128 - 0.5 - 255 / 2, 0, np.where(values > 128 - 0.5 + 255 / 2, 1, (values - 127.5) / 255 + 0.5)
    )
    assert np.allclose(linear, by_the_book, atol=1e-6)
    assert np.allclose(window(values, 128, 256, "LINEAR_EXACT"), np.clip((values - 128) / 256 + 0.5, 0, 1), atol=1e-6)
    assert np.allclose(window(values, 128, 256, "SIGMOID"), 1 / (1 + np.exp(-4 * (values - 128) / 256)), atol=1e-6)
    assert set(np.unique(window(values, 128, 1))) == {0.0, 1.0}


def test_the_first_of_several_windows_is_used_and_noted(tmp_path):
    film = film_of(tmp_path, TWELVE, WindowCenter=[2048, 10], WindowWidth=[4096, 20])
    assert film.notes == ("first of 2 windows (2048/4096)",)
    assert film.pixels.std() > 20


@pytest.mark.parametrize("width", [0, -5])
def test_an_impossible_window_counts_as_none(tmp_path, width):
    assert "no window in the file" in film_of(tmp_path, TWELVE, WindowCenter=40, WindowWidth=width).notes[0]


def test_voi_lut_wins_over_the_window(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (4095 - 16 * np.arange(256)).astype("<u2").tobytes()  # 12 bits in a 16-bit table, falling
    film = film_of(tmp_path, GREY, VOILUTSequence=Sequence([table]), WindowCenter=1, WindowWidth=1)
    assert np.array_equal(film.pixels, np.rint((4095 - 16 * GREY.astype(float)) / 4095 * 255))


def test_padding_is_black_and_does_not_stretch_the_range(tmp_path):
    stored = GREY.astype(np.int16) + 100
    stored[:, :10] = -2000
    stored[:, 10:12] = -1900
    film = film_of(
        tmp_path, stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900
    )
    inside = stored[:, 12:].astype(float)
    expected = 255 - (inside - inside.min()) / (inside.max() - inside.min()) * 255
    assert (film.pixels[:, :12] == 0).all()
    assert np.abs(film.pixels[:, 12:] - expected).max() <= 0.5001
    assert film.notes[1:] == ("MONOCHROME1 inverted", "padding pixels set to black")


def test_first_frame_of_many(tmp_path):
    file = dicom(GREY, NumberOfFrames=3)
    file.PixelData = GREY.tobytes() + bytes(2 * GREY.size)
    film = read_film(save_dicom(file, tmp_path / "film.dcm"))
    assert np.array_equal(film.pixels, GREY)
    assert film.notes == ("frame 1 of 3",)


def test_a_constant_picture_is_no_division_by_zero(tmp_path):
    assert (film_of(tmp_path, np.full((20, 20), 700, np.uint16)).pixels == 0).all()


def test_colour(tmp_path):
    colour = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)
    assert np.array_equal(film_of(tmp_path, colour).pixels, colour)
    assert np.array_equal(film_of(tmp_path, np.repeat(GREY[..., None], 3, 2)).pixels, GREY)


def test_jpeg_2000_and_rle_are_lossless(tmp_path):
    for syntax in (JPEG2000Lossless, RLELossless):
        file = dicom(TWELVE, BitsStored=12, HighBit=11)
        if syntax == RLELossless:
            file.compress(RLELossless)
        else:
            file.file_meta.TransferSyntaxUID = syntax
            file.PixelData = encapsulate([encoded(TWELVE, "JPEG2000", irreversible=False, no_jp2=True)])
            file["PixelData"].is_undefined_length = True
        film = read_film(save_dicom(file, tmp_path / "film.dcm"))
        assert np.array_equal(film.pixels, film_of(tmp_path, TWELVE, BitsStored=12, HighBit=11).pixels)


def test_a_file_without_preamble_is_known_by_its_suffix(tmp_path):
    whole = save_dicom(dicom(GREY), tmp_path / "a").read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole[132:])
    assert np.array_equal(read_film(tmp_path / "b.dcm").pixels, GREY)
    (tmp_path / "c.dcm").write_bytes(b"not a DICOM file at all, whatever its name says")
    with pytest.raises(ItemError, match="is a text file"):
        read_film(tmp_path / "c.dcm")


@pytest.mark.parametrize("share", [0.1, 0.2, 0.35, 0.6, 0.99])
def test_cut_files(tmp_path, share):
    whole = save_dicom(dicom(GREY), tmp_path / "film.dcm").read_bytes()
    (tmp_path / "film.dcm").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ItemError) as caught:
        read_film(tmp_path / "film.dcm")
    assert caught.value.stage == "decode"


def test_attribute_bombs(tmp_path):
    assert "claims 65535x65535 pixels" in refused(tmp_path, GREY, Rows=65535, Columns=65535)
    assert "pixel data are cut off" in refused(tmp_path, GREY, NumberOfFrames=2**31 - 1)
    assert "pixel data are cut off" in refused(tmp_path, GREY, Rows=10_000)
    assert "64x15 pixels is too small" in refused(tmp_path, GREY, Rows=15)
    assert "claims 64x0 pixels" in refused(tmp_path, GREY, Rows=0)


def test_a_jpeg_2000_stream_may_not_be_larger_than_its_attributes(tmp_path):
    stream = bytearray(encoded(GREY, "JPEG2000", no_jp2=True))
    stream[8:16] = (60000).to_bytes(4, "big") * 2
    file = dicom(GREY)
    file.file_meta.TransferSyntaxUID = JPEG2000Lossless
    file.PixelData = encapsulate([bytes(stream)])
    file["PixelData"].is_undefined_length = True
    with pytest.raises(ItemError, match="is not Rows x Columns"):
        read_film(save_dicom(file, tmp_path / "film.dcm"))


def test_files_without_a_picture_and_unknown_compressions(tmp_path):
    file = dicom(GREY)
    del file.PixelData
    with pytest.raises(ItemError, match="no pixel data"):
        read_film(save_dicom(file, tmp_path / "a.dcm"))
    del file.Rows
    with pytest.raises(ItemError, match=r"holds no picture \(modality CR\)"):
        read_film(save_dicom(file, tmp_path / "b.dcm"))
    file = dicom(GREY)
    file.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    file.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    file["PixelData"].is_undefined_length = True
    with pytest.raises(ItemError, match="JPEG Lossless"):
        read_film(save_dicom(file, tmp_path / "c.dcm"))


def test_the_real_radiograph(package_file):
    film = read_film(package_file("RG1_UNCR.dcm"))
    assert film.size == (1841, 1955)
    assert film.bits == 15
    assert film.notes == ("MONOCHROME1 inverted",)
    # Lungs are darker than the mediastinum, air over the shoulder darker than both.
    lung, mediastinum = film.pixels[400:600, 500:650], film.pixels[900:1100, 850:1000]
    air = film.pixels[20:60, 30:90]
    assert air.mean() < lung.mean() - 20 < mediastinum.mean() - 40


def test_the_same_radiograph_in_jpeg_2000(package_file):
    plain = read_film(package_file("RG1_UNCR.dcm")).pixels.astype(int)
    assert np.array_equal(read_film(package_file("RG1_J2KR.dcm")).pixels, plain)  # lossless
    lossy = read_film(package_file("RG1_J2KI.dcm")).pixels.astype(int)
    assert np.abs(lossy - plain).max() <= 6
    assert np.abs(lossy - plain).mean() < 0.5


@pytest.mark.parametrize(
    ("name", "size", "grey"),
    [
        ("693_J2KI.dcm", (512, 512), True),
        ("MR_small_RLE.dcm", (64, 64), True),
        ("MR_small_bigendian.dcm", (64, 64), True),
        ("mlut_18.dcm", (512, 512), True),
        ("vlut_04.dcm", (512, 512), True),
        ("emri_small_RLE.dcm", (64, 64), True),
        ("SC_rgb.dcm", (100, 100), False),
        ("SC_rgb_16bit.dcm", (100, 100), False),
        ("SC_ybr_full_uncompressed.dcm", (100, 100), False),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100), False),
        ("examples_palette.dcm", (800, 350), False),
        ("US1_J2KI.dcm", (640, 480), False),
    ],
)
def test_many_kinds(package_file, name, size, grey):
    film = read_film(package_file(name))
    assert film.size == size
    assert (film.pixels.ndim == 2) == grey
    assert film.pixels.std() > 5


def test_ybr_is_the_same_picture_as_rgb(package_file):
    rgb = read_film(package_file("SC_rgb.dcm")).pixels.astype(int)
    ybr = read_film(package_file("SC_ybr_full_uncompressed.dcm")).pixels.astype(int)
    assert np.abs(rgb - ybr).max() <= 8  # the file went through 8-bit YBR


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm", "rtplan.dcm"])
def test_real_bad_files(package_file, name):
    with pytest.raises(ItemError) as caught:
        read_film(package_file(name))
    assert caught.value.stage == "decode"
