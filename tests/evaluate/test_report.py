"""What a report says, compared whole, and what it must survive: foreign texts, missing numbers, no matplotlib.

UPDATE_GOLDEN=1 rewrites tests/evaluate/golden/.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatlens.batch.runner import umask
from heatlens.errors import HeatlensError
from heatlens.evaluate import curve_sums
from heatlens.evaluate.compare_report import (
    comparison_lines,
    comparison_text,
    settings_that_differ,
    verdict,
    write_comparison,
)
from heatlens.evaluate.markup import code, columns, escaped, mean_cell, number
from heatlens.evaluate.metrics import METRICS
from heatlens.evaluate.plots import draw_findings
from heatlens.evaluate.report import best_and_worst, best_baseline, report_text, summary_lines, write_report
from tests.evaluate.records import example_comparison, example_record, group

GOLDEN = Path(__file__).with_name("golden")
NASTY = "a|b\n# <img src=x> `rm` [x](http://y) *z* $\\alpha$ \u202e"


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def curves_record():
    """Eight films of four patients whose score falls from 0.5 to 0.1, faster by the map."""
    steps = np.linspace(0, 1, 33)
    shape = {"map": 0.3, "random": 1.0, "centre": 0.7}
    down = np.stack([0.1 + 0.4 * (1 - steps**power) for power in shape.values()])
    down[:, -1] = 0.1
    up = np.stack([0.2 + 0.3 * steps**power for power in shape.values()])
    scores = np.stack([np.stack([down, up]) + 0.01 * number for number in range(8)])
    cases = [SimpleNamespace(output=f"{n}.png", patient=f"p{n // 2}") for n in range(8)]
    return {
        "asked_for": 10,
        "left_out": {"locate": 2},
        "steps": 32,
        "fill": "0 after normalisation",
        "blur": {"kernel_px": 11, "sigma_px": 5.0, "frame": [224, 224]},
        "model": {"model": "demo"},
        "logit": {"scale": 85.0, "bias": 0.0},
        "largest_difference_from_the_runs_scores": 2e-06,
        **curve_sums.summed(scores, cases, seed=0),
    }


def sanity_record():
    def found(state, text):
        return {"verdict": {"state": state, "text": text, "advice": ""}}

    method = {"method": "GradCAM", "prompts": found("ok", "they differ"), "weights": found("FAILS", "no | change")}
    return {"passed": False, "layers": found("ok", "26 of 31 layers"), "methods": [method]}


def full_record():
    return {
        **example_record(),
        "curves": curves_record(),
        "sanity": sanity_record(),
        "command": "heatlens evaluate results --truth phantom --curves 10 --sanity",
    }


def example_rows(count: int = 12) -> pd.DataFrame:
    numbers = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "output": [f"files/{n}.png" for n in range(count)],
            "source_image": [f"files/{n}.jpg" for n in range(count)],
            "question": ["where, exactly?"] * count,
            "finding": [NASTY] * count,
            "target_share": numbers.uniform(0.001, 0.1, count),
            "target_size": ["2-10%"] * count,
        }
    )
    for key in METRICS:
        rows[key] = numbers.uniform(0, 1, count)
        rows[f"centre:{key}"] = 0.25
    return rows


def evaluation(record=None):
    return SimpleNamespace(rows=example_rows(), record=record or full_record())


def test_the_report_whole():
    pictures = ("metrics.png", "by_finding.png", "by_target_size.png", "curves.png")
    golden("report.md", report_text(full_record(), pictures))


def test_the_plain_report_whole():
    golden("report_plain.md", report_text(example_record(), missing="no plots: matplotlib is not installed"))


def test_the_comparison_whole():
    record = {
        **example_comparison(),
        "folders": ["results/a", "results/b"],
        "settings": {"CAM_VERSION": ["gScoreCAM", "GradCAM"], "TARGET_LAYER": ["", "a|b"]},
        "command": "heatlens evaluate results/a results/b",
    }
    golden("compare.md", comparison_text(record))
    assert any("B minus A" in line for line in comparison_lines(record))


def test_the_terminal_table_holds_every_metric_finding_and_baseline():
    lines = summary_lines(full_record())
    text = "\n".join(lines)
    for metric in METRICS.values():
        assert any(line.startswith(metric.label) for line in lines)
    assert all(name in text for name in ("centre", "random", "body", "Pleural Effusion", "Nodule", "12 heat maps"))
    assert "50.0% [45.0 to 55.0]" in text
    assert max(map(len, lines)) < 160


def test_files_are_written_with_the_runs_rights_and_are_plain_json(tmp_path):
    with umask("077"):
        written = write_report(evaluation(), tmp_path / "new" / "report")
    assert [path.name for path in written[:3]] == ["report.md", "report.json", "per_map.csv"]
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    record = json.loads(written[1].read_text(), parse_constant=pytest.fail)
    assert record["groups"] == example_record()["groups"]
    assert {path.parent.name for path in written[3:]} == {"plots"}
    text = written[0].read_text(encoding="utf-8")
    for path in written[3:]:
        assert f"](plots/{path.name})" in text
        picture = cv2.imread(str(path))
        assert 800 <= picture.shape[1] <= 1000
        assert len(np.unique(picture)) > 20


def test_per_map_csv_has_every_number_and_quotes_texts(tmp_path):
    write_report(evaluation(), tmp_path)
    rows = pd.read_csv(tmp_path / "per_map.csv")
    assert len(rows) == 12
    assert list(rows.columns[:3]) == ["output", "source_image", "finding"]
    assert not {"question", "prompt"} & set(rows.columns)  # may be sentences of a report
    assert {*METRICS, "centre:iou"} <= set(rows.columns)
    assert rows["finding"][0] == NASTY
    np.testing.assert_allclose(rows["iou"], example_rows()["iou"], rtol=1e-5)


def test_the_same_record_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_report(evaluation(), tmp_path / name)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    )
    assert len(first) == 7
    assert first == second


def test_without_matplotlib_everything_else_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = write_report(evaluation(), tmp_path)
    assert [path.name for path in written] == ["report.md", "report.json", "per_map.csv"]
    assert "pip install 'heatlens" in written[0].read_text(encoding="utf-8")
    assert "](plots/" not in written[0].read_text(encoding="utf-8")
    comparison = {**example_comparison(), "folders": ["a", "b"], "settings": {}}
    assert [path.name for path in write_comparison(comparison, tmp_path)] == ["compare.md", "compare.json"]
    assert "matplotlib" in (tmp_path / "compare.md").read_text(encoding="utf-8")


def test_an_output_that_is_a_file_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeatlensError, match="--output"):
        write_report(evaluation(), tmp_path / "file")


def test_numbers_that_are_not_there_are_no_zeros(tmp_path):
    record = example_record()
    missing = dict.fromkeys(("mean", "mean_low", "mean_high", "median", "median_low", "median_high"))
    for name in ("all", "finding"):
        for one in record["groups"][name].values():
            one["metrics"]["cnr"] = {"n": 0, **missing}
            one["baselines"] = {"centre": {key: {"n": 0, **missing} for key in METRICS}}
    text = report_text(record)
    (line,) = [line for line in text.splitlines() if line.startswith("| CNR |")]
    assert line == "| CNR | **–** | – | – |"
    assert "None" not in text
    assert "nan" not in text
    rows = example_rows()
    rows["cnr"] = np.nan
    write_report(SimpleNamespace(rows=rows, record=record), tmp_path)
    assert "None" not in "\n".join(summary_lines(record))


def test_one_heat_map_of_one_patient(tmp_path):
    record = example_record()
    alone = group(0.5, n=1, patients=1)
    record["groups"] = {"all": {"all": alone}, "finding": {NASTY: alone}, "region": {}, "question_type": {}}
    written = write_report(SimpleNamespace(rows=example_rows(1), record=record), tmp_path)
    assert [path.name for path in written] == ["report.md", "report.json", "per_map.csv", "metrics.png"]


def test_best_and_worst_come_from_the_numbers():
    record = example_record()
    record["groups"]["finding"] = {
        "middling": group(0.5),
        "good": group(0.9),
        "few": group(1.0, n=4),
        "bad": group(0.1),
    }
    worse = record["groups"]["finding"]["bad"]
    worse["baselines"]["body"]["pointing_8"]["mean"] = 0.4
    first, _, second = best_and_worst(record)
    assert first.startswith("Best: good, 90.0%")
    assert "Worst: bad, 10.0%" in first
    assert "few" not in first
    assert second == "**No better than a baseline that has not seen the question:** bad (body: 40.0%)."
    assert best_baseline(worse, "pointing_8") == ("body", 0.4)
    worse["metrics"]["pointing_8"]["mean"] = 0.5
    assert best_and_worst(record)[2:] == [
        "Above every baseline, but with an interval that reaches one: bad (body: 40.0%)."
    ]
    worse["metrics"]["pointing_8"]["mean_low"] = 0.41
    assert "Every one of these findings" in best_and_worst(record)[2]
    worse["metrics"]["pointing_8"]["mean_low"] = None
    assert "reaches one: bad" in best_and_worst(record)[2]
    record["groups"]["finding"] = {"alone": group(0.5)}
    assert best_and_worst(record) == []


def test_verdicts_say_when_zero_is_inside():
    def part(low, high, patients=10):
        figures = {"mean": 0.1, "mean_low": low, "mean_high": high}
        return {"patients": patients, "metrics": {"iou": figures}}

    assert "contains 0" in verdict("iou", part(-0.1, 0.3))
    assert "B is better" in verdict("iou", part(0.05, 0.3))
    assert "A is better" in verdict("iou", part(-0.3, -0.1))
    assert "says little" in verdict("iou", part(0.05, 0.3, patients=9))
    assert "no interval" in verdict("iou", part(None, None, patients=1))


def test_settings_that_differ_leave_out_where_and_how():
    one = {"CAM_VERSION": "GradCAM", "RESULTS_DIR": "a", "TOPK": 3, "SEED": 0}
    other = {"CAM_VERSION": "gScoreCAM", "RESULTS_DIR": "b", "TOPK": 3}
    assert settings_that_differ(one, other) == {"CAM_VERSION": ["GradCAM", "gScoreCAM"], "SEED": [0, None]}


def test_foreign_texts_do_nothing(tmp_path):
    record = example_record()
    record["groups"]["finding"] = {NASTY: group(0.5), "b" * 500: group(0.2)}
    record["left_out"] = {NASTY: 1}
    record["notes"] = [NASTY]
    record["truth"] = {"path": "/x`y`|z"}
    text = report_text(record)
    assert "<img" not in text
    assert "\u202e" not in text
    assert "b" * 101 not in text
    assert not [line for line in text.splitlines() if line.startswith("# ") and "heat maps point" not in line]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| a\\|b")}
    assert widths == {10}
    draw_findings(record, tmp_path / "findings.png")  # "$\\alpha$" is no formula
    assert (tmp_path / "findings.png").stat().st_size > 5000


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_escaped_text_is_one_line_without_live_signs(text):
    found = escaped(text)
    assert "\n" not in found
    assert "<" not in found
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_\[\]]", found)
    for sign in ("|", "`", "*", "["):
        assert found.count(sign) == found.count(f"\\{sign}")


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_code_cannot_be_left(text):
    found = code(text)
    fence = re.match("`+", found).group()
    inner = found[len(fence) : -len(fence)]
    assert "\n" not in found
    assert fence not in re.findall("`+", inner)


def test_numbers_as_people_write_them():
    assert number("iou", 0.12345) == "0.123"
    assert number("pointing", 0.9166) == "91.7%"
    assert number("pointing", -0.05, sign=True) == "−5.0 pp"
    assert number("cnr", -0.00001) == "0.000"
    assert number("iou", 0.1, sign=True) == "+0.100"
    assert number("iou", None) == "–"
    assert mean_cell("iou", {"mean": 0.5, "mean_low": None, "mean_high": None}) == "0.500"
    assert columns(["", "a"], [["long", "1"]]) == ["      a", "long  1"]


def test_pictures_of_an_earlier_report_go(tmp_path):
    (tmp_path / "plots").mkdir()
    for name in ("curves.png", "my own.png"):
        (tmp_path / "plots" / name).write_bytes(b"old")
    made = evaluation()
    made.record.pop("curves", None)
    write_report(made, tmp_path)
    kept = {path.name for path in (tmp_path / "plots").iterdir()}
    assert "curves.png" not in kept
    assert {"metrics.png", "my own.png"} <= kept
