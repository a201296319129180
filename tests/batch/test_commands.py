"""``heatlens plan`` and ``heatlens merge``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heatlens.batch.commands import merge_command, plan_command, read_plan_options
from heatlens.batch.fingerprint import FINGERPRINT
from heatlens.batch.parts import Parts
from heatlens.batch.preview import preview_text
from heatlens.cli import main
from heatlens.errors import EXIT_CONFIG, EXIT_OK, EXIT_STOPPED, ConfigError, ResumeError
from heatlens.phantom.film import make_film
from heatlens.render.encode import encode_png
from tests.batch.kit import pictures, write_table

ROWS = [
    ("a/one.png", "Where is the tube?", "C"),
    ("a/one.jpg", "Where is the heart?", "D"),
    ("a/one.png", "Where is the wire?", "D"),
    ("b/two.png", "Where is the tube?", "A"),
    ("gone.png", "Where is the tube?", "A"),
    ("../climbs.png", "Where?", "-"),
]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The flags of a run on three films; a fourth is missing."""
    write_table(tmp_path / "data.csv", ROWS)
    for number, (image, _, _) in enumerate(ROWS[:4]):
        path = tmp_path / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(make_film(number, long_side=256).pixels))
    flags = {
        "dataset": "table", "dataset-path": tmp_path / "data.csv", "image-root": tmp_path / "images",
        "results-dir": tmp_path / "results", "model": "demo", "device": "cpu", "cam-version": "GradCAM",
        "max-failure-rate": 0.5, "output-size": 64,
    }  # fmt: skip
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def plan(words: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    assert plan_command([*words, *more, "--json"]) == EXIT_OK
    return json.loads(capsys.readouterr().out)


def test_dry_run_says_what_would_be_and_writes_nothing(words, tmp_path, capsys):
    found = plan(words, capsys, "--dry-run", "--rate", "2", "--num-shards", "2", "--missing", "all")
    numbers = {"rows": 6, "bad_rows": 1, "images": 4, "heat_maps": 5}
    assert numbers.items() <= found.items()
    assert sorted(shard["heat_maps"] for shard in found["shards"]) == [2, 3]
    assert found["first"][:3] == ["a/one.png_idx1.png", "a/one.png_idx2.png", "a/one.jpg_idx1.png"]
    assert any("a/one" in text for text in found["collisions"])
    assert found["missing"] == {"checked": 4, "missing": 1, "examples": ["gone.png"]}
    assert found["estimate"]["seconds"] == 2.5
    assert found["estimate"]["seconds_per_shard"] == 1.25
    assert 5 * 500 < found["estimate"]["bytes"] < 5 * 40_000
    assert not (tmp_path / "results").exists()
    text = preview_text(found)
    assert "1 of 4 images looked for are not under IMAGE_ROOT" in text
    assert "nothing was written" in text


def test_measuring_runs_the_model_and_leaves_no_file(words, tmp_path, capsys):
    found = plan(words, capsys, "--dry-run", "--measure", "1")
    assert found["estimate"]["measured_heat_maps"] == 1
    assert found["estimate"]["heat_maps_per_second"] > 0
    assert found["estimate"]["bytes"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "images"]


def test_a_model_that_is_not_here_costs_the_estimate_only(words, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ["demo" if word == "demo" else word for word in words]
    words[words.index("demo")] = str(tmp_path / "empty")
    code = plan_command([*words, "--dry-run", "--json"])
    captured = capsys.readouterr()
    assert code == EXIT_OK
    assert json.loads(captured.out)["estimate"] is None
    assert "no estimate of time and disk" in captured.err


def test_a_plan_that_is_kept_is_the_run_s(words, tmp_path, capsys):
    found = plan(words, capsys, "--measure", "0")
    kept = sorted(path.name for path in (tmp_path / "results/shards/plan").iterdir())
    assert any(name.startswith("questions-") for name in kept)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "results/shards/plan").iterdir()}
    assert main(["run", "attn_map", *words]) == EXIT_OK
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results/shards/plan").iterdir()} == stamps
    record = json.loads((tmp_path / "results/run.json").read_text())
    assert record["plan_digest"] == found["digest"]
    assert record["counts"]["made"] == 4


def test_merge_names_unfinished_shards_and_makes_lost_tables_again(words, tmp_path, capsys):
    results = tmp_path / "results"
    assert main(["run", "attn_map", *words, "--num-shards", "2", "--shard-index", "0"]) == EXIT_OK
    capsys.readouterr()
    assert merge_command([*words, "--num-shards", "2"]) == EXIT_STOPPED
    assert "not finished: shard 1 of 2" in capsys.readouterr().out
    assert not (results / "run.json").exists()
    assert main(["run", "attn_map", *words, "--num-shards", "2", "--shard-index", "1"]) == EXIT_OK
    wanted = pictures(results)
    (results / "vqa_manifest.csv").unlink()
    (results / "run.json").unlink()
    assert merge_command([*words, "--num-shards", "2", "--overwrite"]) == EXIT_OK
    assert pictures(results) == wanted
    assert merge_command([*words, "--num-shards", "2"]) == EXIT_OK  # nothing left to do


def test_merge_finds_the_number_of_shards_by_itself(words, tmp_path, capsys):
    results = tmp_path / "results"
    assert main(["run", "attn_map", *words, "--num-shards", "2", "--shard-index", "0"]) == EXIT_OK
    capsys.readouterr()
    assert merge_command(words) == EXIT_STOPPED
    assert "not finished: shard 1 of 2" in capsys.readouterr().out
    assert main(["run", "attn_map", *words, "--num-shards", "2", "--shard-index", "1"]) == EXIT_OK
    tables = {name: (results / name).read_bytes() for name in ("vqa_manifest.csv", "failures.csv")}
    for name in (*tables, "run.json"):
        (results / name).unlink()
    assert merge_command(words) == EXIT_OK
    assert {name: (results / name).read_bytes() for name in tables} == tables


def as_on_a_gpu(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A finished run whose precision and batch size were resolved on a GPU, and its command for a node without one."""
    monkeypatch.setattr(Parts, "resolved", lambda self: ("fp16", 128))
    for shard in ("0", "1"):
        main(["run", "attn_map", *words, "--num-shards", "2", "--shard-index", shard])
    monkeypatch.undo()
    return [*words, "--num-shards", "2"]


def test_a_node_without_a_gpu_merges_and_plans_what_gpus_have_made(words, tmp_path, capsys, monkeypatch):
    words = as_on_a_gpu(words, tmp_path, monkeypatch)
    record = json.loads((tmp_path / "results/run.json").read_text())
    (tmp_path / "results/run.json").unlink()
    auto = [*words, "--device", "cuda"]  # a merge asks for no device at all
    assert merge_command(auto) == EXIT_OK
    merged = json.loads((tmp_path / "results/run.json").read_text())
    assert merged["fingerprint"] == record["fingerprint"]
    assert (merged["fingerprint"]["PRECISION"], merged["fingerprint"]["BATCH_SIZE"]) == ("fp16", 128)
    assert plan_command([*auto, "--measure", "0"]) == EXIT_OK
    with pytest.raises(ResumeError, match="PRECISION"):
        merge_command([*words, "--precision", "fp32"])
    with pytest.raises(ResumeError, match="ALPHA"):
        plan_command([*words, "--alpha", "0.9"])


def test_a_plan_begins_no_run(words, tmp_path, capsys, monkeypatch):
    """A plan that was kept on a login node does not say what a GPU computes in."""
    plan(words, capsys, "--measure", "0")
    assert not (tmp_path / "results" / FINGERPRINT).exists()
    as_on_a_gpu(words, tmp_path, monkeypatch)
    assert (tmp_path / "results/run.json").exists()


def test_merge_of_nothing(words, capsys):
    with pytest.raises(ConfigError, match="holds no run"):
        merge_command(words)
    assert main(["merge", *words]) == EXIT_CONFIG


@pytest.mark.parametrize(
    "argv", [["--rate", "fast"], ["--rate", "-1"], ["--rate", "inf"], ["--measure", "x"], ["--missing", "some"]]
)
def test_wrong_options(argv):
    with pytest.raises(ConfigError, match=argv[0]):
        read_plan_options(argv)
