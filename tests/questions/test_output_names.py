"""Names on disk: mirrored, unique on any file system, decided by the set of images alone."""

from __future__ import annotations

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_factory import quick

from heatlens.questions.outputs import RESERVED, name_fault, output_bases

PARTS = st.sampled_from(
    [
        "a",
        "A",
        "a.png",
        "a.PNG",
        "a.dcm",
        "a.png.jpg",
        "a_idx1",
        "a_idx1.png",
        "é",
        "e\u0301",
        "raw",
        "1.2.3",
        "1.2.4",
    ]
)


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def test_a_lone_image_loses_its_suffix():
    assert output_bases(["files/p10/x.jpg"]) == {"files/p10/x.jpg": "files/p10/x"}


def test_the_same_stem_keeps_the_suffix_of_both():
    assert output_bases(["a.png", "x/a.png", "a.dcm"]) == {
        "a.png": "a.png",
        "a.dcm": "a.dcm",
        "x/a.png": "x/a",
    }


def test_a_name_that_a_kept_suffix_would_take_gives_way_too():
    names = output_bases(["a.png", "a.dcm", "a.png.jpg"])
    assert names["a.png.jpg"] == "a.png.jpg"
    assert names["a.dcm"] == "a.dcm"
    assert names["a.png"].startswith("a.png~")


def test_names_that_differ_in_case_only_get_a_digest():
    names = output_bases(["scan.png", "Scan.png"])
    assert names["scan.png"].startswith("scan.png~") and names["Scan.png"].startswith("Scan.png~")


def test_a_dicom_uid_has_no_suffix():
    assert output_bases(["1.2.840.113619"]) == {"1.2.840.113619": "1.2.840.113619"}


@pytest.mark.parametrize("name", RESERVED)
def test_what_a_run_writes_itself_is_not_overwritten(name):
    assert output_bases([f"{name.upper()}/x.png"]) == {f"{name.upper()}/x.png": f"{name.upper()}_/x"}
    assert output_bases([f"sub/{name}/x.png"])[f"sub/{name}/x.png"] == f"sub/{name}/x"


def test_a_folder_named_like_a_picture_is_renamed():
    assert output_bases(["a.png", "a_idx1.png/b.png"])["a_idx1.png/b.png"] == "a_idx1.png_/b"


@quick
@given(
    st.sets(st.lists(PARTS, min_size=1, max_size=3).map("/".join), max_size=12),
    st.randoms(use_true_random=False),
)
def test_bases_are_unique_on_any_file_system_and_independent_of_order(images, dice: random.Random):
    names = output_bases(images)
    assert len({folded(name) for name in names.values()}) == len(images)
    shuffled = sorted(images)
    dice.shuffle(shuffled)
    assert output_bases(shuffled) == names
    pictures = {folded(f"{name}_idx{n}.png") for name in names.values() for n in (1, 2)}
    folders = {folded(name[:cut]) for name in names.values() for cut, sign in enumerate(name) if sign == "/"}
    assert not pictures & folders


def test_name_faults():
    assert name_fault("a/b_idx1") == ""
    assert "255" in name_fault("é" * 130)
    assert "3500" in name_fault("/".join(["x" * 200] * 20))
