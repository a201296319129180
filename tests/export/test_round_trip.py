"""Numbers: what other readers make of the files is what was found."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.export.command import main
from heatlens.export.yolo import file_names
from tests.export.kit import ROWS, write_run

coco = pytest.importorskip("pycocotools.coco")


def edges(length: int):
    return st.tuples(st.integers(0, length - 1), st.integers(1, length)).map(
        lambda pair: (min(pair[0], pair[1] - 1), max(pair[0] + 1, pair[1]))
    )


@st.composite
def films(draw):
    """A film's size, and boxes on it."""
    width, height = draw(st.integers(1, 9000)), draw(st.integers(1, 9000))
    pairs = draw(st.lists(st.tuples(edges(width), edges(height)), min_size=1, max_size=4, unique=True))
    return (width, height), [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in pairs]


@given(film=films())
def test_yolo_boxes_come_back_to_the_pixel(tmp_path_factory, film):
    size, boxes = film
    folder = tmp_path_factory.mktemp("run")
    main([str(write_run(folder, [("a.png", size, "x", [(box, 0.5, 0.1) for box in boxes], [])])), "--format", "yolo"])
    read = []
    for line in (folder / "export/yolo/labels/a.txt").read_text().splitlines():
        label, *shares = line.split(" ")
        cx, cy, w, h = map(float, shares)
        assert label == "0" and all(0 <= share <= 1 for share in (cx, cy, w, h))
        corners = ((cx - w / 2) * size[0], (cy - h / 2) * size[1], (cx + w / 2) * size[0], (cy + h / 2) * size[1])
        read.append(tuple(map(round, corners)))
    assert read == boxes


@given(st.lists(st.sampled_from(["x.png", "x.jpg", "x", "x.png.bmp", "x.png.bmp.gz", "d/x.png", "y.png"]), unique=True))
def test_every_film_has_a_label_file_of_its_own(images):
    names, kept = file_names(images)
    assert len(set(names)) == len(images)
    plain = {"x.png": "x.txt", "y.png": "y.txt", "d/x.png": "d/x.txt"}
    usual = {image: plain.get(image) for image in images}
    assert usual.get("y.png") in (None, *names)
    assert usual.get("d/x.png") in (None, *names)
    assert kept == 0 or {"x.png.txt", "x.jpg.txt", "x.txt"} & set(names)


def test_films_that_differ_in_their_suffix_only_keep_it():
    assert file_names(["x.png", "x.jpg", "y.png"]) == (["x.png.txt", "x.jpg.txt", "y.txt"], 2)
    assert file_names(["x.png", "x.jpg", "x.png.bmp"]) == (["x.png.txt", "x.jpg.txt", "x.png.bmp.txt"], 3)


def evaluated(folder) -> list[float]:
    """The twelve numbers of COCOeval, annotated against found."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(folder / "annotated.json"))
        score = COCOeval(truth, truth.loadRes(str(folder / "found_results.json")), "bbox")
        score.evaluate()
        score.accumulate()
        score.summarize()
    return list(score.stats)


def annotated_rows(rows, box_of):
    """The rows with what ``box_of`` makes of their box, as the data set's."""
    return [(*row[:4], [(tuple(map(float, box_of(found[0]))), "source") for found in row[3]]) for row in rows]


def test_boxes_that_are_the_annotated_ones_score_one(tmp_path):
    rows = annotated_rows(ROWS, lambda box: box)
    main([str(write_run(tmp_path / "run", rows))])
    stats = evaluated(tmp_path / "run/export/coco")
    assert stats[0] == stats[1] == stats[2] == pytest.approx(1.0)


def test_a_box_of_known_overlap_counts_up_to_that_threshold(tmp_path):
    """IoU 0.62: a hit at 0.50, 0.55 and 0.60, a miss at the seven thresholds above: AP 3 / 10."""
    rows = [("a.png", (200, 200), "x", [((0, 0, 100, 62), 0.5, 0.5)], [((0.0, 0.0, 100.0, 100.0), "source")])]
    main([str(write_run(tmp_path / "run", rows))])
    assert evaluated(tmp_path / "run/export/coco")[:3] == pytest.approx([0.3, 1.0, 0.0])


def test_a_label_that_nothing_was_found_for_costs_recall(tmp_path):
    rows = annotated_rows(ROWS[:2], lambda box: box)
    rows.append(("d.png", (50, 50), "trachea", [], [((1.0, 1.0, 9.0, 9.0), "source")]))
    main([str(write_run(tmp_path / "run", rows))])
    assert evaluated(tmp_path / "run/export/coco")[0] == pytest.approx(2 / 3)


def test_pycocotools_reads_every_file(tmp_path):
    main([str(write_run(tmp_path / "run"))])
    folder = tmp_path / "run/export/coco"
    with contextlib.redirect_stdout(io.StringIO()):
        found, annotated = (coco.COCO(str(folder / name)) for name in ("found.json", "annotated.json"))
        results = annotated.loadRes(str(folder / "found_results.json"))
    assert found.getImgIds() == annotated.getImgIds() == [1, 2, 3, 4]
    assert found.loadCats(found.getCatIds()) == annotated.loadCats(annotated.getCatIds())
    own = {
        key: [one[key] for one in found.dataset["annotations"]] for key in ("image_id", "category_id", "bbox", "score")
    }
    assert own == {key: [one[key] for one in results.dataset["annotations"]] for key in own}
    assert json.loads((folder / "annotated.json").read_text())["annotations"][1]["bbox"] == [20.5, 30.25, 39.5, 59.75]


def test_the_lines_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    main([str(write_run(tmp_path / "run", annotated_rows(ROWS, lambda box: box)))])
    monkeypatch.chdir(tmp_path / "run/export/coco")
    page = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.+?)```", page, flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, "export.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(blocks) == 2
    assert "maxDets=100 ] = 1.000" in printed
    assert "category_id" in printed
