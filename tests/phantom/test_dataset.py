"""The phantom data set is valid GEMeX, exact, deterministic and written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heatlens.errors import DataSetError
from heatlens.phantom import dataset
from heatlens.phantom.dataset import ensure_dataset
from heatlens.phantom.questions import KINDS

FIELDS = {
    "question", "type", "answer", "reason", "visual_regions", "visual_locations", "image_path", "ori_report", "q_id",
    "row_id",
}  # fmt: skip
TYPES = {"disease", "abnormality", "finding", "size", "location", "severity"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_dataset(tmp_path_factory.mktemp("data") / "phantom", films=8, seed=2_500_000)


def rows(folder: Path, kind: str) -> list[dict]:
    text = (folder / f"{kind}_question.jsonl").read_text(encoding="utf-8")
    assert text and not text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_gemex(folder: Path, kind: str) -> None:
    for number, row in enumerate(rows(folder, kind)):
        assert set(row) == FIELDS | ({"choices"} if "choice" in kind else set())
        assert row["type"] in TYPES and row["q_id"] == number
        assert not row["image_path"].startswith(("/", "files/"))
        assert row["image_path"].split("/")[0] == "p10" and (folder / "files" / row["image_path"]).is_file()
        assert len(row["visual_regions"]) == len(row["visual_locations"]) > 0
        for box in row["visual_locations"]:
            assert all(isinstance(v, int) and 0 <= v <= 224 for v in box)
            assert box[0] < box[2] and box[1] < box[3]


def test_answers_have_their_kinds_form(folder: Path) -> None:
    assert all(r["answer"] in ("Yes.", "No.") for r in rows(folder, "closed_ended"))
    assert {r["answer"] for r in rows(folder, "closed_ended")} == {"Yes.", "No."}
    for row in rows(folder, "single_choice"):
        true = row["choices"]["ABCD".index(row["answer"])]
        assert true.split(": ")[1].lower() == row["visual_regions"][0]
    for row in rows(folder, "multi_choice"):
        assert isinstance(row["answer"], list) and row["answer"] == sorted(row["answer"])
        assert [c[:3] for c in row["choices"]] == ["A: ", "B: ", "C: ", "D: "]
    assert any(len(r["visual_regions"]) > 1 for r in rows(folder, "multi_choice"))


def test_frame_boxes_map_back_onto_the_masks(folder: Path) -> None:
    """GEMeX's formula, from the 224 letterbox frame to film pixels, gives the mask's box within rounding."""
    truth = {t["image_path"]: t for t in map(json.loads, (folder / "truth.jsonl").read_text().splitlines())}
    for row in rows(folder, "multi_choice"):
        film = truth[row["image_path"]]
        scale = max(film["width"], film["height"]) / 224
        for box, finding in zip(row["visual_locations"], film["findings"], strict=True):
            mask = np.asarray(Image.open(folder / finding["mask"])) > 0
            y, x = np.nonzero(mask)
            shift = [(224 - film["width"] / scale) / 2, (224 - film["height"] / scale) / 2] * 2
            back = (np.array(box) - shift) * scale
            exact = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert list(exact) == finding["box"]
            assert np.abs(back - exact).max() <= scale + 1e-6
            assert back[0] <= exact[0] and back[3] >= exact[3] - 1e-6


def test_images(folder: Path) -> None:
    sizes = []
    for path in sorted((folder / "files").rglob("*.jpg")):
        with Image.open(path) as image:
            assert image.mode == "L" and 1024 <= max(image.size) <= 1400
            sizes.append(image.size)
    assert len(sizes) == 8
    assert any(w > h for w, h in sizes) and any(h > w for w, h in sizes)


def test_deterministic_and_instant_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (ensure_dataset(tmp_path / n, films=2, seed=2_500_000) for n in "ab")
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert [p.relative_to(two) for p in sorted(two.rglob("*")) if p.is_file()] == files
    assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
    monkeypatch.setattr(dataset, "_write", None)
    assert ensure_dataset(one, films=2, seed=2_500_000) == one


def test_a_half_written_folder_is_redone_and_a_foreign_one_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "phantom"
    (folder / "files").mkdir(parents=True)
    (folder / "truth.jsonl").write_text("{", encoding="utf-8")
    ensure_dataset(folder, films=1, seed=2_500_001)
    assert (folder / "complete.json").is_file() and len(list(folder.rglob("*.jpg"))) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(DataSetError, match=r"thesis\.txt"):
        ensure_dataset(tmp_path / "mine", films=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "phantom"]
