"""Every bad file is one clear line and nothing else: no traceback, no remark on stderr, no half picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatlens.errors import ItemError
from heatlens.images import decode
from heatlens.images.decode import read_film

from .pictures import dicom, encoded, grey_picture, png, save_dicom

PICTURE = grey_picture(160, 120)
CUTS = [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999]


def reason_of(path: Path) -> str:
    with pytest.raises(ItemError) as caught:
        read_film(path)
    assert caught.value.stage == "decode"
    assert "\n" not in caught.value.reason
    assert path.name in caught.value.reason
    return caught.value.reason


def written(folder: Path, data: bytes, name: str = "film.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("share", CUTS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
    ],
)
def test_cut_files(tmp_path, kind, options, share):
    data = encoded(PICTURE, kind, **options)
    reason_of(written(tmp_path, data[: max(1, min(len(data) - 2, int(len(data) * share)))]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_last_bytes_count_too(tmp_path, kind):
    data = encoded(PICTURE, kind)
    for missing in (1, 2, 5, 9, 13, 20):
        reason_of(written(tmp_path, data[:-missing]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_tail_of_zeros_is_an_interrupted_download(tmp_path, kind):
    data = encoded(PICTURE, kind)
    for share in (0.3, 0.8):
        kept = int(len(data) * share)
        reason_of(written(tmp_path, data[:kept] + bytes(len(data) - kept)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty (zero bytes)"),
        (b"not found\n", "is a text file (it begins with 'not found')"),
        ("été à la plage".encode(), "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (bytes(500), "file of zero bytes"),
        (b"\x00\x01\x02\x03\xff\xfe" * 9, "no image format that is known here (it begins with 00 01 02"),
        (b"GIF89a" + bytes(40), "is a GIF file"),
        (b"%PDF-1.7", "is a PDF file"),
        (b"\x1f\x8b\x08" + bytes(30), "is a gzip archive"),
        (b"\xff\xd8\xff", "cannot be decoded as jpeg"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded as png"),
        (b"II*\x00\x08\x00\x00\x00", "cannot be decoded as tiff"),
        (b"BM", "cannot be decoded as bmp"),
    ],
)
def test_files_that_are_something_else(tmp_path, data, words):
    assert words in reason_of(written(tmp_path, data))


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_too_small(tmp_path, size):
    reason = reason_of(written(tmp_path, encoded(np.zeros(size[::-1], np.uint8), "PNG")))
    assert f"{size[0]}x{size[1]} pixels is too small (at least 16 a side)" in reason


def test_a_bomb_is_refused_by_its_header(tmp_path):
    path = written(tmp_path, png(PICTURE, colour=0, depth=8, size=(60000, 60000)))
    assert "claims 60000x60000 pixels (at most 120 megapixels)" in reason_of(path)


def test_a_jpeg_bomb_too(tmp_path):
    data = encoded(PICTURE, "JPEG")
    at = data.index(b"\xff\xc0") + 5
    path = written(tmp_path, data[:at] + b"\xea\x60\xea\x60" + data[at + 4 :])
    assert "claims 60000x60000" in reason_of(path)


def test_a_png_with_fewer_rows_than_it_claims(tmp_path):
    reason = reason_of(written(tmp_path, png(PICTURE, colour=0, depth=8, size=(160, 121))))
    assert "fewer rows than its header says" in reason


def test_a_thumbnail_does_not_make_a_cut_jpeg_whole(tmp_path):
    thumbnail = encoded(PICTURE[:32, :32], "JPEG")
    data = encoded(PICTURE, "JPEG")
    extra = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + extra + data[2:]
    assert np.array_equal(read_film(written(tmp_path, whole)).pixels, read_film(written(tmp_path, data)).pixels)
    kept = len(whole) * 3 // 4
    reason_of(written(tmp_path, whole[:kept] + bytes(len(whole) - kept)))


def test_damage_in_the_middle_of_a_png(tmp_path):
    data = bytearray(encoded(PICTURE, "PNG"))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    assert "wrong checksum in its IDAT chunk" in reason_of(written(tmp_path, bytes(data)))


def test_huge_files_are_not_even_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "LARGEST_FILE", 1000)
    assert "bytes (at most 1,000)" in reason_of(written(tmp_path, bytes(1001)))


def test_folders_pipes_and_missing_files(tmp_path):
    assert "not a regular file" in reason_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in reason_of(tmp_path / "pipe.png")
    assert "No such file" in reason_of(tmp_path / "absent.png")


def test_float_tiff_has_no_known_white(tmp_path):
    assert "32-bit" in reason_of(written(tmp_path, encoded(PICTURE.astype(np.float32), "TIFF")))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "WEBP", "DICOM"]))
def test_random_damage_never_raises_anything_else(tmp_path_factory, data, kind):
    folder = tmp_path_factory.mktemp("damaged")
    whole = save_dicom(dicom(PICTURE), folder / "w").read_bytes() if kind == "DICOM" else encoded(PICTURE, kind)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = written(folder, bytes(damaged[: data.draw(st.integers(0, len(whole)))]), "film.dcm")
    try:
        film = read_film(path)
    except ItemError as error:
        assert error.stage == "decode"
    else:
        assert film.pixels.dtype == np.uint8
        assert film.pixels.ndim in (2, 3)


def test_decoders_are_silent(tmp_path):
    """In a process of its own: decoders write to the file descriptor, and pytest resets warning filters."""
    files = {
        "a.jpg": encoded(PICTURE, "JPEG")[:900],
        "b.png": encoded(PICTURE, "PNG")[:900],
        "c.tif": encoded(PICTURE, "TIFF", compression="tiff_lzw")[:-300],
        "d.tif": encoded(PICTURE, "TIFF")[:-30],
        "e.webp": encoded(PICTURE, "WEBP")[:-30],
        "f.png": png(np.dstack([PICTURE.astype(np.uint16) * 200] * 3), colour=2)[:-60],
        "g.png": b"text",
    }
    damaged = bytearray(encoded(PICTURE, "JPEG"))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 30] = b"\xff\xd1" * 15
    files["h.jpg"] = bytes(damaged)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    whole = save_dicom(dicom(PICTURE), tmp_path / "i.dcm").read_bytes()
    (tmp_path / "j.dcm").write_bytes(whole[:-100])
    (tmp_path / "k.dcm").write_bytes(whole.replace(b"MONOCHROME2", b"MONOCHROME9"))
    script = (
        "import sys, pathlib\nfrom heatlens.images.decode import read_film\nfrom heatlens.errors import ItemError\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: read_film(path); print('ok', path.name)\n"
        "    except ItemError as error: print(error.reason)\n"
    )
    command = [sys.executable, "-W", "default::UserWarning", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 11
