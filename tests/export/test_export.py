"""heatlens export: whole files, refusals, and that nothing but an earlier export is ever replaced."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heatlens.errors import ConfigError, SetupError
from heatlens.export.command import main
from tests.export.kit import ROWS, change_line, tree, write_run

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def results(tmp_path):
    return write_run(tmp_path / "run")


def export(results: Path, *flags: str) -> Path:
    assert main([str(results), *flags]) == 0
    return results / "export" / ("yolo" if "yolo" in flags else "coco")


@pytest.mark.parametrize("name", ["coco", "yolo"])
def test_the_files_whole(results, name, capsys):
    folder = export(results, "--format", name)
    assert tree(folder) == tree(GOLDEN / name)
    assert capsys.readouterr().out.splitlines()[:2] == [str(folder), "  5 heat maps of 4 films, 4 categories"]


def test_scores_are_a_sixth_column_and_equal_boxes_keep_the_best(results):
    plain = (GOLDEN / "yolo/labels/files/p10/a.txt").read_text().splitlines()
    lines = (export(results, "--format", "yolo", "--scores") / "labels/files/p10/a.txt").read_text().splitlines()
    assert lines == [f"{plain[0]} 0.900000", f"{plain[1]} 0.700000"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("region", ['a: "quoted" name', "finding", "left lung", "trachea"]),
        ("question", ["Where 0?", "Where 1?"]),
        ("prompt", ['a: "quoted" name', "finding", "left lung", "trachea"]),
        ("type", ["single choice", "size"]),
    ],
)
def test_what_a_category_is(results, labels, names):
    found = json.loads((export(results, "--labels", labels) / "found.json").read_text())
    assert [one["name"] for one in found["categories"]] == names
    folder = export(results, "--labels", labels, "--format", "yolo")
    assert (folder / "classes.txt").read_text().splitlines() == names


def test_categories_do_not_depend_on_the_rows_order(results, tmp_path):
    other = write_run(tmp_path / "other", ROWS[::-1])
    heads = [json.loads((export(one) / "found.json").read_text())["categories"] for one in (results, other)]
    assert heads[0] == heads[1]


def test_names_survive_a_yaml_reader(tmp_path):
    yaml = pytest.importorskip("yaml")
    labels = ["no", "3", "ü: 'x' \"y\" # z", "{a}", "back\\slash", "\U0001f600", "bell\x07", "- item", "nel\x85x"]
    rows = [("a.png", (10, 10), label, [((0, 0, 1, 1), 0.5, 0.5)], []) for label in labels]
    folder = export(write_run(tmp_path / "run", rows), "--format", "yolo")
    data = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    names = (folder / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert list(data["names"].values()) == names
    assert set(names) == {*labels[:6], "bell\ufffd", "- item", "nel x"}
    assert (folder / data["train"]).read_text() == "./images/a.png\n"


def test_a_data_set_without_boxes_has_no_annotated_file(tmp_path, capsys):
    rows = [(image, size, region, found, []) for image, size, region, found, _ in ROWS]
    folder = export(write_run(tmp_path / "run", rows))
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "found.json", "found_results.json"]
    assert "no annotated.json" in capsys.readouterr().out


def test_a_run_without_any_box(tmp_path):
    run = write_run(tmp_path / "run", [(image, size, region, [], []) for image, size, region, _, _ in ROWS])
    folder = export(run)
    assert json.loads((folder / "found_results.json").read_text()) == []
    assert len(json.loads((folder / "found.json").read_text())["images"]) == 4
    labels = tree(export(run, "--format", "yolo") / "labels")
    assert len(labels) == 4
    assert set(labels.values()) == {""}


def test_boxes_are_as_private_as_the_run(results):
    folder = export(results)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert (stat.S_IMODE(folder.stat().st_mode), modes) == (0o750, {0o640})


def test_an_earlier_export_is_replaced_and_its_users_link_stays(results, tmp_path):
    folder = export(results, "--format", "yolo")
    (tmp_path / "films").mkdir()
    (tmp_path / "films/film.png").touch()
    (folder / "images").symlink_to(tmp_path / "films")
    (folder / "labels/old.txt").touch()
    export(results, "--format", "yolo", "--scores")
    assert (folder / "images/film.png").exists()
    assert not (folder / "labels/old.txt").exists()
    assert json.loads((folder / "export.json").read_text())["scores"] is True
    assert sorted(path.name for path in folder.parent.iterdir()) == ["yolo"]


@pytest.mark.parametrize("flags", [(), ("--format", "yolo")])
def test_nothing_else_is_ever_replaced(results, tmp_path, flags):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        main([str(results), "--output", str(mine), *flags])
    assert tree(mine) == {"thesis.txt": "years of work"}
    folder = export(results, *flags)
    (folder / "notes.md").write_text("mine")
    before = tree(folder)
    with pytest.raises(ConfigError, match=r"notes\.md"):
        main([str(results), *flags])
    assert tree(folder) == before
    with pytest.raises(ConfigError, match="no folder"):
        main([str(results), "--output", str(mine / "thesis.txt"), *flags])


@pytest.mark.parametrize("flags", [(), ("--format", "yolo")])
def test_a_broken_line_is_named_and_leaves_the_earlier_export(results, flags):
    folder = export(results, *flags)
    before = tree(results / "export")
    with (results / "boxes.jsonl").open("a") as stream:
        stream.write('{"image_path": "half a li\n')
    with pytest.raises(SetupError, match=r"boxes\.jsonl:6: not a line of JSON"):
        main([str(results), *flags])
    assert tree(results / "export") == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


BOX = {"xyxy": [0, 0, 5, 5], "score": 0.5, "mass": 0.5}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"image_path": "../../climbs.png"}, "climbs out"),
        ({"image_path": "/etc//../x.png"}, "climbs out"),
        ({"image_path": "a\nb.png"}, "control character"),
        ({"image_path": 3}, "image_path is not a text"),
        ({"overlay": ...}, "overlay is missing"),
        ({"image_size": [100, 0]}, "image_size"),
        ({"image_size": [1e2, 300]}, "image_size"),
        ({"image_size": [50, 300]}, "does not lie in an image of 50 x 300"),
        ({"boxes": None}, "boxes is not a list"),
        ({"boxes": ["x"]}, "xyxy"),
        ({"boxes": [BOX | {"xyxy": [5, 0, 5, 5]}]}, "does not lie"),
        ({"boxes": [BOX | {"xyxy": [0, 0, 5.5, 5]}]}, "whole numbers"),
        ({"boxes": [BOX | {"xyxy": [-1, 0, 5, 5]}]}, "does not lie"),
        ({"boxes": [BOX | {"score": float("nan")}]}, "no score"),
        ({"boxes": [BOX | {"mass": "much"}]}, "no mass"),
    ],
)
def test_what_a_line_may_not_hold(results, tmp_path, fields, text):
    change_line(results, 2, **fields)
    for form in ("coco", "yolo"):
        with pytest.raises(SetupError, match=rf"boxes\.jsonl:2: .*{text}"):
            main([str(results), "--format", form])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert not list((results / "export").iterdir())


def test_tables_of_two_runs_are_noticed(results):
    table = pq.read_table(results / "details.parquet")
    pq.write_table(table.slice(1), results / "details.parquet")
    with pytest.raises(SetupError, match=r"boxes\.jsonl:1: details\.parquet has no such heat map"):
        main([str(results)])
    pq.write_table(table.slice(0, 4), results / "details.parquet")
    with pytest.raises(SetupError, match=r"boxes\.jsonl:5"):
        main([str(results)])
    (results / "boxes.jsonl").write_text("".join((results / "boxes.jsonl").open().readlines()[:3]))
    with pytest.raises(SetupError, match="more heat maps"):
        main([str(results)])


def test_a_film_of_two_sizes_is_refused(results):
    change_line(results, 4, image_size=[400, 201])
    with pytest.raises(SetupError, match=r"p10/a\.jpg has two sizes"):
        main([str(results)])


def test_what_is_no_finished_bbox_run(tmp_path):
    for stage, status, error, text in (
        ("attn_map", "complete", ConfigError, "`heatlens run bbox --config FILE.conf` makes boxes"),
        ("bbox", "partial", SetupError, "stopped early"),
    ):
        folder = write_run(tmp_path / f"{stage}-{status}", stage=stage, status=status)
        with pytest.raises(error, match=text):
            main([str(folder)])
        assert not (folder / "export").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no run"):
        main([str(tmp_path / "empty")])
    (tmp_path / "begun/shards").mkdir(parents=True)
    with pytest.raises(SetupError, match="heatlens status"):
        main([str(tmp_path / "begun")])
    with pytest.raises(ConfigError, match="no such folder"):
        main([str(tmp_path / "nowhere")])
    (tmp_path / "empty/run.json").write_text("[]")
    with pytest.raises(SetupError, match="unreadable"):
        main([str(tmp_path / "empty")])
    # Too many failures, but its tables are complete.
    assert main([str(write_run(tmp_path / "failed", status="failed"))]) == 0


@pytest.mark.parametrize("flags", [("--format", "voc"), ("--labels", "colour"), ("--scores",), ("--frmat", "yolo")])
def test_wrong_options(results, flags):
    with pytest.raises(ConfigError, match=r"^export: "):
        main([str(results), *flags])
