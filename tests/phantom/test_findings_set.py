"""DATASET=phantom_findings: the bench's films and prompts, as a data set that is written whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heatlens.config import load_settings
from heatlens.errors import ConfigError, DataSetError
from heatlens.phantom import heldout
from heatlens.phantom.dataset import ensure_dataset
from heatlens.phantom.film import SEEDS, make_film
from heatlens.phantom.findings import NAMES
from heatlens.phantom.findings_reader import FindingsReader
from heatlens.phantom.heldout import cases, ensure_findings, main, write_findings
from heatlens.registry import DATASETS
from tests.integration.runs import ROOT

FIRST = 1_000_000
COUNT = 12
CONF = ROOT / "configs" / "demo" / "exp_01_held_out.conf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "held_out"
    write_findings(folder, COUNT, FIRST)
    return folder


def truth_of(folder: Path) -> dict[str, dict]:
    return {row["image_path"]: row for row in map(json.loads, (folder / "truth.jsonl").read_text().splitlines())}


def test_rows_are_the_benchs_cases(folder: Path) -> None:
    rows, expected = list(FindingsReader(folder).rows()), list(cases(COUNT))
    assert len(rows) == COUNT
    truth = truth_of(folder)
    for row, (film, finding, prompt) in zip(rows, expected, strict=True):
        assert (row.error, row.notes) == ("", ())
        assert (row.question, row.answer, row.content_type) == (prompt, finding.name, finding.name)
        (region,) = row.regions
        assert (region.name, region.box, region.frame) == (finding.region, finding.box, "source")
        assert truth[row.image_path]["seed"] == film.seed
    assert len({row.question_id for row in rows}) == COUNT
    assert {row.answer for row in rows} <= set(NAMES)


def test_films_are_the_benchs_pixels_but_for_jpeg(folder: Path) -> None:
    for path, film in truth_of(folder).items():
        expected = make_film(film["seed"], long_side=1200).pixels
        buffer = io.BytesIO()
        Image.fromarray(expected).save(buffer, "JPEG", quality=95)
        assert (folder / "files" / path).read_bytes() == buffer.getvalue()
        assert (film["width"], film["height"]) == expected.shape[::-1]


def test_truth_has_what_an_evaluation_needs(folder: Path) -> None:
    """Name, region, box, mask and prompt of every finding; a prompt is about one finding of its film alone."""
    rows = list(FindingsReader(folder).rows())
    for path, film in truth_of(folder).items():
        asked = {row.question: row for row in rows if row.image_path == path}
        assert asked
        assert len({one["prompt"] for one in film["findings"]}) == len(film["findings"])
        for one in film["findings"]:
            mask = np.asarray(Image.open(folder / one["mask"])) > 0
            assert mask.shape == (film["height"], film["width"])
            y, x = np.nonzero(mask)
            assert one["box"] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            if row := asked.get(one["prompt"]):
                assert (row.answer, row.regions[0].name) == (one["name"], one["region"])
                assert list(row.regions[0].box) == one["box"]


def test_written_once_with_200_held_out_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(heldout, "write_findings", lambda folder, n, first: asked.append((n, first)))
    ensure_findings(tmp_path / "new")
    assert asked == [(200, SEEDS["held out"].start)]


def test_a_complete_folder_is_used_whatever_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tuning"
    assert main([str(folder), "--seeds", "validation", "--findings", "2", "--first", "500010"]) == 0
    assert "2 findings of validation seeds" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    reader = FindingsReader(folder)
    assert len(list(reader.rows())) == 2
    assert reader.image_root() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    seeds = [row["seed"] for row in truth_of(folder).values()]
    assert seeds and all(seed in SEEDS["validation"] for seed in seeds)


def test_a_folder_of_another_format_is_made_again_with_its_own_arguments(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    write_findings(folder, 1, 500_000)
    before = (folder / "findings.jsonl").read_bytes()
    (folder / "complete.json").write_text('{"format": 0, "findings": 1, "first_seed": 500000}')
    (folder / "findings.jsonl").write_text("old")
    assert (ensure_findings(folder) / "findings.jsonl").read_bytes() == before


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    ensure_dataset(tmp_path / "phantom", films=1, seed=2_500_000)
    with pytest.raises(DataSetError, match="DATASET=phantom"):
        FindingsReader(tmp_path / "phantom")
    write_findings(tmp_path / "findings", 1, 500_000)
    with pytest.raises(DataSetError, match=r"findings\.jsonl"):
        ensure_dataset(tmp_path / "findings", films=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(DataSetError, match=r"thesis\.txt"):
        FindingsReader(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["findings", "mine", "phantom"]


@pytest.mark.parametrize(
    "flags",
    [("--findings", "0"), ("--seeds", "training", "--first", "500000"), ("--seeds", "demo", "--first", "2999999")],
)
def test_seeds_stay_in_their_range(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="seeds are"):
        main([str(tmp_path / "x"), *flags])
    assert not (tmp_path / "x").exists()


def test_the_experiment() -> None:
    settings = load_settings(CONF, {}, {"PATH": "/usr/bin:/bin"}, "bbox")
    assert (settings.dataset, settings.model, settings.topk) == ("phantom_findings", "demo", 160)
    assert (settings.stop_after, settings.save_raw_cam, settings.prompt_template) == (None, True, "{question}")
    assert settings.dataset_path == ROOT / ".demo" / "held_out"
    assert settings.results_dir == ROOT / "Bounding_Box" / "results" / "demo" / "exp_01_held_out"
    assert DATASETS["phantom_findings"].load() is FindingsReader
