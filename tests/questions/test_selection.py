"""SPLIT, VIEW, QUESTION_TYPES, SAMPLE."""

from __future__ import annotations

import gzip
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_factory import bad_rows, few, heat_maps, make_row, plan_of

from heatlens.errors import ConfigError, DataSetError
from heatlens.questions.select import Selection, rank


def selected(rows, **keys):
    plan = plan_of(rows, selection=Selection(**keys))
    return sorted({entry.row for entry in heat_maps(plan)} | {bad.row for bad in bad_rows(plan)})


def test_question_and_content_types():
    rows = [
        make_row(0, question_type="open_ended", content_type="size"),
        make_row(1, question_type="single_choice", content_type="size"),
        make_row(2, question_type="single_choice", content_type="location"),
        make_row(3, question_type="multi_choice", content_type="Device"),
    ]
    assert selected(rows, question_types="single_choice") == [1, 2]
    assert selected(rows, question_types="Single-Choice, multi_choice_questions") == [1, 2, 3]
    assert selected(rows, question_types="size") == [0, 1]
    assert selected(rows, question_types="size,single_choice") == [1]
    assert selected(rows, question_types="device") == [3]


def test_an_unknown_type_names_the_allowed_ones_and_the_nearest():
    with pytest.raises(ConfigError, match=r"'locaton'.*did you mean location.*open_ended.*severity, device"):
        plan_of([make_row(content_type="device")], selection=Selection(question_types="locaton"))


@pytest.mark.parametrize("sample", [0, -1, 2.5, float("nan"), float("inf")])
def test_a_sample_that_means_nothing_is_refused(sample):
    with pytest.raises(ConfigError, match="SAMPLE"):
        Selection(sample=sample)


@few
@given(st.integers(1, 40), st.integers(0, 5))
def test_samples_are_exact_nested_and_in_order(count, seed):
    rows = [make_row(number, f"{number}.png") for number in range(30)]
    small = [entry.row for entry in heat_maps(plan_of(rows, selection=Selection(sample=count, seed=seed)))]
    large = selected(rows, sample=count + 7, seed=seed)
    assert len(small) == min(count, 30)
    assert small == sorted(small)
    assert set(small) <= set(large)


def test_samples_do_not_depend_on_broken_rows_and_do_on_the_seed():
    rows = [make_row(number, f"{number}.png") for number in range(200)]
    broken = [make_row(n, "", error="x") if n % 3 == 0 else row for n, row in enumerate(rows)]
    for sample in (0.2, 20):
        assert selected(rows, sample=sample, seed=1) == selected(broken, sample=sample, seed=1)
        assert selected(rows, sample=sample, seed=1) != selected(rows, sample=sample, seed=2)
    assert set(selected(rows, sample=0.2)) <= set(selected(rows, sample=0.4))


def test_a_fraction_is_about_right():
    assert 0.28 < sum(rank(0, number) < 0.3 for number in range(20_000)) / 20_000 < 0.32


def test_stop_after_takes_the_first_of_the_sample():
    rows = [make_row(number) for number in range(50)]
    whole = selected(rows, sample=10)
    plan = plan_of(rows, selection=Selection(sample=10), stop_after=4)
    assert [entry.row for entry in heat_maps(plan)] == whole[:4]


def test_own_columns_need_no_table():
    rows = [
        make_row(0, split="test", view="PA"),
        make_row(1, split="train", view="PA"),
        make_row(2, split="test", view="AP"),
    ]
    assert selected(rows, split="TEST", view="pa") == [0]
    assert selected(rows, split="test, train", view="PA") == [0, 1]
    assert selected([*rows, make_row(3)], split="test") == [0, 2]


def write_tables(folder, packed):
    opener = gzip.open if packed else open
    with opener(folder / f"mimic-cxr-2.0.0-split.csv{'.gz' if packed else ''}", "wt") as file:
        file.write("dicom_id,study_id,subject_id,split\nd1,1,1,train\nd2,2,2,test\n")
    with opener(folder / f"mimic-cxr-2.0.0-metadata.csv{'.gz' if packed else ''}", "wt") as file:
        file.write("dicom_id,subject_id,ViewPosition\nd1,1,PA\nd2,2,AP\n")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "files"])
def test_mimic_tables(tmp_path, packed, below, caplog):
    write_tables(tmp_path, packed)
    root = tmp_path / below
    root.mkdir(exist_ok=True)
    rows = [make_row(n, f"p10/p1/s1/d{n}.jpg") for n in (1, 2, 3)]
    assert selected(rows, split="test", image_root=root) == [1]
    assert selected(rows, view="PA", image_root=root) == [0]
    with caplog.at_level(logging.WARNING):
        assert selected(rows, view="pa,ap", image_root=root) == [0, 1]
    assert "1 rows are not selected" in caplog.text


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(DataSetError) as caught:
        plan_of([make_row()], selection=Selection(split="test", image_root=tmp_path / "files"))
    assert str(tmp_path / "files" / "mimic-cxr-2.0.0-split.csv.gz") in str(caught.value)
    assert str(tmp_path / "mimic-cxr-2.0.0-split.csv") in str(caught.value)
    with pytest.raises(DataSetError, match="IMAGE_ROOT"):
        plan_of([make_row()], selection=Selection(view="PA"))


def test_a_table_of_something_else_is_refused(tmp_path):
    (tmp_path / "mimic-cxr-2.0.0-split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataSetError, match="dicom_id and split"):
        plan_of([make_row()], selection=Selection(split="test", image_root=tmp_path))


def test_broken_rows_stay_unless_their_fields_say_otherwise():
    broken = [
        make_row(0, "", question_type="", content_type="", error="not valid JSON"),
        make_row(1, "", question_type="open_ended", content_type="", error="not valid JSON"),
        make_row(2, "a.png", question_type="open_ended", content_type="size", error="no question", split="train"),
        make_row(3, "a.png", question_type="", content_type="size"),
        make_row(4, "a.png", question_type="closed_ended", content_type="size", split="test"),
    ]
    assert selected(broken, question_types="closed_ended") == [0, 4]
    assert selected(broken, question_types="finding,size") == [0, 1, 2, 3, 4]
    assert selected(broken[4:] + broken[:4], split="test") == [0, 1, 2]


def test_a_selection_that_fits_no_row_says_what_there_is():
    rows = [make_row(0, split="train"), make_row(1, split="validate")]
    with pytest.raises(ConfigError, match=r"none of the 2 rows: SPLIT=tset; SPLIT has the values: train, validate"):
        plan_of(rows, selection=Selection(split="tset"))
