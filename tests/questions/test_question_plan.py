"""The plan: names and numbers depend on the data set alone, shards partition the work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import weight
from row_factory import bad_rows, few, heat_maps, make_row, plan_of

from heatlens.errors import ConfigError, DataSetError, ItemError
from heatlens.questions.plan import canonical_image_path
from heatlens.questions.rows import Region
from heatlens.questions.select import Selection

IMAGES = [
    "a.png",
    "a.dcm",
    "A.png",
    "x/a.png",
    "a_idx1.png",
    "p10/p1/s1/a.jpg",
    "/files/p10/p1/s1/a.jpg",
    "../b.png",
    "",
]


@st.composite
def data_sets(draw: st.DrawFn) -> list:
    """Rows over few images, some broken, some with regions (names may repeat)."""
    names = st.lists(st.sampled_from(["lung", "heart", ""]), max_size=3)
    cells = st.tuples(st.sampled_from(IMAGES), names, st.booleans(), st.sampled_from(["finding", "size"]))
    return [
        make_row(number, image, regions, error="rows.jsonl: no question" if broken else "", content_type=kind)
        for number, (image, regions, broken, kind) in enumerate(draw(st.lists(cells, min_size=1, max_size=25)))
    ]


@few
@given(data_sets(), st.integers(1, 12), st.sampled_from(["split", "joint"]))
def test_names_never_depend_on_selection_or_stop_after(rows, stop_after, regions):
    whole = {(entry.row, entry.region_index): entry for entry in heat_maps(plan_of(rows, regions=regions))}
    choices = [{"stop_after": stop_after}, {"selection": Selection(sample=stop_after, seed=3)}]
    if any(row.content_type == "size" for row in rows):
        choices.append({"selection": Selection(question_types="size")})
    for options in choices:
        part = heat_maps(plan_of(rows, regions=regions, **options))
        assert all(whole[entry.row, entry.region_index] == entry for entry in part)


@few
@given(data_sets())
def test_names_never_depend_on_failures(rows):
    mended = [row._replace(error="") for row in rows]
    names = {(entry.row, entry.region_index): entry.output for entry in heat_maps(plan_of(mended))}
    assert all(names[entry.row, entry.region_index] == entry.output for entry in heat_maps(plan_of(rows)))


@few
@given(data_sets())
def test_numbers_are_dense_per_image_and_names_unique(rows):
    mended = [row._replace(error="") for row in rows]
    plan = plan_of(mended)
    for image in plan.images():
        assert [entry.number for entry in image.heat_maps] == list(range(1, len(image.heat_maps) + 1))
    outputs = [entry.output.casefold() for entry in heat_maps(plan)]
    assert len(set(outputs)) == len(outputs)


@few
@given(data_sets())
def test_every_selected_row_is_planned_or_bad(rows):
    plan = plan_of(rows)
    assert {entry.row for entry in heat_maps(plan)} | {bad.row for bad in bad_rows(plan)} == set(range(len(rows)))
    assert plan.rows == len(rows)
    assert [bad.row for bad in plan.bad_rows()] == sorted(bad.row for bad in plan.bad_rows())
    assert plan.bad_row_count == len(list(plan.bad_rows()))


@few
@given(data_sets(), st.integers(1, 5))
def test_shards_partition_the_images_in_order(rows, count):
    plan = plan_of(rows)
    images = list(plan.images())
    shards = [list(plan.shard(index, count)) for index in range(count)]
    together = [image for shard in shards for image in shard]
    assert sorted(map(images.index, together)) == list(range(len(images)))
    for index, shard in enumerate(shards):
        assert shard == [image for image in images if image in shard]
        assert plan.shard_size(index, count) == (len(shard), sum(map(weight, shard)))
    loads = [sum(map(weight, shard)) for shard in shards]
    largest = max(map(weight, images), default=0)
    assert max(loads) - min(loads) <= largest


@pytest.mark.parametrize(("index", "count"), [(3, 3), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(index, count):
    with pytest.raises(ConfigError, match="NUM_SHARDS"):
        plan_of([make_row()]).shard(index, count)


def test_spellings_of_one_image_share_their_numbers():
    paths = ["p10/p10000001/s5/a.jpg", "/files/p10/p10000001/s5/a.jpg", "files/p10/p10000001/s5/./a.jpg"]
    plan = plan_of([make_row(number, path) for number, path in enumerate(paths)])
    assert [image.image_path for image in plan.images()] == ["files/p10/p10000001/s5/a.jpg"]
    assert [entry.output for entry in heat_maps(plan)] == [f"files/p10/p10000001/s5/a_idx{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("path", ["", "  ", "../../x", "a/../b.png", "C:\\x.png", "a\0b.png", "//etc/passwd"])
def test_paths_that_are_refused(path):
    with pytest.raises(ItemError):
        canonical_image_path(path)


def test_images_keep_the_order_of_their_first_row_whatever_is_selected():
    rows = [make_row(0, "b.png"), make_row(1, "a.png", content_type="size"), make_row(2, "b.png", content_type="size")]
    for selection in (Selection(), Selection(question_types="size")):
        tasks = list(plan_of(rows, selection=selection).images())
        assert [(task.image_path, task.index) for task in tasks] == [("b.png", 0), ("a.png", 1)]


def test_split_gives_a_heat_map_per_region_and_joint_one():
    row = make_row(0, "a.png", ["left lung", "heart", "left lung"])
    split = heat_maps(plan_of([row]))
    assert [(entry.number, entry.region, entry.prompt) for entry in split] == [
        (1, "left lung", "What is 0? left lung"),
        (2, "heart", "What is 0? heart"),
        (3, "left lung", "What is 0? left lung"),
    ]
    assert len({entry.key for entry in split}) == 3
    (joint,) = heat_maps(plan_of([row], regions="joint"))
    assert (joint.region, joint.boxes, joint.number) == ("left lung, heart, left lung", row.regions, 1)


def test_regions_without_a_name_make_one_heat_map():
    first, second = (Region("", (0.0, 0.0, 1.0, float(n)), "letterbox224") for n in (1, 2))
    row = make_row()._replace(regions=(first, Region("heart"), second))
    planned = heat_maps(plan_of([row]))
    assert [(entry.region, entry.boxes, entry.region_index) for entry in planned] == [
        ("", (first, second), 0),
        ("heart", (Region("heart"),), 1),
    ]


def test_a_bad_row_consumes_its_numbers_and_keeps_its_reason():
    rows = [
        make_row(0, "a.png", ["lung", "heart"], error="rows.jsonl:1: no question"),
        make_row(1, "a.png"),
        make_row(2, "../../x.png"),
        make_row(3, "", error="rows.jsonl:4: not valid JSON: x"),
    ]
    plan = plan_of(rows)
    assert [entry.number for entry in heat_maps(plan)] == [3]
    assert [(bad.row, bad.image_path) for bad in plan.bad_rows()] == [(0, "a.png"), (2, "../../x.png"), (3, "")]
    first, second, _ = plan.bad_rows()
    assert first.reason == "rows.jsonl:1: no question"
    assert "climbs out" in second.reason and second.reason.startswith("rows.jsonl:3: ")


def test_a_row_without_a_prompt_is_bad_and_consumes_its_number():
    plan = plan_of([make_row(0), make_row(1, regions=["lung"])], prompt_template="{region}")
    assert [entry.number for entry in heat_maps(plan)] == [2]
    (task,) = plan.images()
    assert "the prompt is empty" in task.bad[0].reason
    assert (task.bad[0].row, task.bad[0].region_index, plan.bad_row_count) == (0, 0, 0)


def test_a_name_too_long_for_a_file_system_is_a_bad_row():
    plan = plan_of([make_row(0, "x" * 247 + ".png"), make_row(1, "ä" * 120 + ".png")])
    assert [len(task.heat_maps) for task in plan.images()] == [0, 1]
    assert "255" in bad_rows(plan)[0].reason


def test_stop_after_counts_selected_rows_bad_ones_too():
    rows = [make_row(0, ""), make_row(1), make_row(2, content_type="size"), make_row(3), make_row(4)]
    plan = plan_of(rows, stop_after=3, selection=Selection(question_types="finding"))
    assert plan.rows == 3
    assert [entry.row for entry in heat_maps(plan)] == [1, 3]
    assert plan_of(rows, stop_after=0).rows == 0


def test_the_digest_identifies_the_selected_work():
    rows = [make_row(number, f"{number % 3}.png") for number in range(9)]
    assert plan_of(rows).digest == plan_of(rows).digest
    digests = {plan_of(rows, stop_after=n).digest for n in range(1, 10)}
    assert len(digests) == 9
    assert plan_of([*rows, make_row(9, "")]).digest not in digests
    assert plan_of(rows, prompt_template="{question}!").digest not in digests


def test_an_empty_data_set_and_a_wrong_mode_are_refused():
    with pytest.raises(DataSetError, match="no rows"):
        plan_of([])
    with pytest.raises(ConfigError, match="split, joint"):
        plan_of([make_row()], regions="both")
