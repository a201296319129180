"""From a row's path to a file: with and without files/, links followed, nothing but regular files."""

from __future__ import annotations

import os
import socket

import pytest

from heatlens.errors import ItemError
from heatlens.images.locate import locate_image

MIMIC = "p10/p10268877/s50042142/4c3c1335.jpg"


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize("relative", [MIMIC, f"files/{MIMIC}", f"/files/{MIMIC}", f"/{MIMIC}"])
@pytest.mark.parametrize("stored", [MIMIC, f"files/{MIMIC}"])
def test_files_may_be_there_or_not_on_both_sides(tmp_path, relative, stored):
    image = put(tmp_path / stored)
    assert locate_image(tmp_path, relative) == image


def test_as_it_is_comes_first(tmp_path):
    first = put(tmp_path / "a.png")
    put(tmp_path / "files" / "a.png")
    assert locate_image(tmp_path, "a.png") == first


def test_links_inside_the_root_are_followed(tmp_path):
    put(tmp_path / "elsewhere" / "p10" / "a.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "files").symlink_to(tmp_path / "elsewhere")
    (root / "b.png").symlink_to(tmp_path / "elsewhere" / "p10" / "a.png")
    assert locate_image(root, "p10/a.png") == root / "files" / "p10" / "a.png"
    assert locate_image(root, "b.png") == root / "b.png"


def test_a_missing_file_names_both_places(tmp_path):
    with pytest.raises(ItemError) as caught:
        locate_image(tmp_path, "p10/a.png")
    assert caught.value.stage == "locate"
    assert caught.value.reason == (
        f"no image file at {tmp_path}/p10/a.png (not there), nor at {tmp_path}/files/p10/a.png (not there)"
    )


def test_folders_pipes_sockets_and_broken_links_are_refused(tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    monkeypatch.chdir(tmp_path)  # a socket's path may only have about 100 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        for name, word in [
            ("folder.png", "a folder"),
            ("pipe.png", "not a regular file"),
            ("socket.png", "not a regular file"),
            ("link.png", "a broken link"),
        ]:
            with pytest.raises(ItemError, match=rf"{name} \({word}\)"):
                locate_image(tmp_path, name)


@pytest.mark.parametrize("relative", ["../a.png", "files/../../a.png", "//etc/passwd", "", "a\0b"])
def test_climbing_out_is_refused_before_anything_is_looked_up(tmp_path, relative):
    put(tmp_path / "a.png")
    with pytest.raises(ItemError):
        locate_image(tmp_path / "root", relative)


def test_a_file_where_a_folder_should_be(tmp_path):
    put(tmp_path / "p10")
    with pytest.raises(ItemError, match="not there"):
        locate_image(tmp_path, "p10/a.png")


def test_files_itself_is_not_an_image(tmp_path):
    (tmp_path / "files").mkdir()
    with pytest.raises(ItemError, match="a folder"):
        locate_image(tmp_path, "files")
