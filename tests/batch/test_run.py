"""A whole run with fakes: what it writes, what a second one does, what bad input does."""

from __future__ import annotations

import csv
import json
import os
import stat

import pyarrow.parquet as pq
import pytest

from heatlens.errors import EXIT_FAILURES, EXIT_OK, ConfigError, DataSetError, ResumeError, SetupError
from tests.batch.kit import (
    QUESTIONS,
    FakeExplainer,
    FakeStage,
    go,
    leftovers,
    make_settings,
    pictures,
    record,
)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def test_a_run_writes_what_the_design_says(tmp_path):
    settings = make_settings(tmp_path)
    parts = go(settings)
    results = settings.results_dir
    assert parts.code == EXIT_OK
    manifest = rows_of(results / "vqa_manifest.csv")
    assert manifest[0] == ["image_path", "question", "answer"]
    good = [row for row in QUESTIONS if row[0].split("/")[0] not in ("bad", "gone", "..")]
    assert [row[1:] for row in manifest[1:]] == [[question, answer] for _, question, answer in good]
    assert manifest[1][0] == "a/one_idx1.png"
    assert manifest[3][0] == "a/one_idx2.png"
    assert all((results / row[0]).is_file() and (results / "raw" / row[0]).with_suffix(".npy").is_file()
               for row in manifest[1:])  # fmt: skip
    failures = rows_of(results / "failures.csv")
    assert failures[0] == ["image_path", "question_id", "question", "region", "stage", "reason", "retry"]
    assert [(row[0], row[4]) for row in failures[1:]] == [
        ("bad/four.png", "decode"), ("gone/six.png", "locate"), ("../climbs.png", "row"),
    ]  # fmt: skip
    assert failures[1][5] == "not an image"
    assert "--retry-failed true" in failures[1][6]
    assert leftovers(results) == []
    assert parts.fake.closed


def test_nothing_is_written_outside_the_results_folder(tmp_path):
    settings = make_settings(tmp_path)
    go(settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "images", "results"]
    assert list((tmp_path / "images").iterdir()) == []


def test_example_row_of_the_issue_is_written_unquoted(tmp_path):
    image = "p10/p10268877/s50042142/4c3c1335-0fce9b11-027c582b-a0ed8d89-ca614d90.jpg"
    question = "What is the position of the ET tube as seen in the CXR?"
    settings = make_settings(tmp_path, [(image, question, "C")])
    go(settings)
    assert (settings.results_dir / "vqa_manifest.csv").read_bytes().decode() == (
        "image_path,question,answer\n"
        "files/p10/p10268877/s50042142/4c3c1335-0fce9b11-027c582b-a0ed8d89-ca614d90_idx1.png,"
        "What is the position of the ET tube as seen in the CXR?,C\n"
    )


def test_details_has_one_row_per_heat_map_in_manifest_order(tmp_path):
    settings = make_settings(tmp_path)
    go(settings)
    table = pq.read_table(settings.results_dir / "details.parquet").to_pylist()
    manifest = rows_of(settings.results_dir / "vqa_manifest.csv")[1:]
    assert [[row["image_path"], row["question"], row["answer"]] for row in table] == manifest
    first = table[0]
    assert first["source_image"] == "a/one.png"
    assert first["row"] == 0
    assert first["prompt"] == "Where is the tube?"
    assert first["geometry"] == '{"size": [8, 4]}'
    assert first["peak_x"] is None  # NaN is no number for a table
    assert first["map_max"] > 0
    assert first["whole_film"] is False
    assert first["warnings"][-1] == "from the stage"
    assert json.loads(first["boxes"]) == []


def test_run_record_says_what_was_run(tmp_path):
    settings = make_settings(tmp_path, PROMPT_TEMPLATE="{question} {answer}")
    go(settings)
    data = record(settings.results_dir)
    assert data["status"] == "complete"
    assert data["exit_code"] == 0
    expected = {"rows": 10, "heat_maps": 9, "made": 7, "failed": 3, "bad_rows": 1, "missing": 0}
    assert expected.items() <= data["counts"].items()
    assert data["config"]["MODEL"] == {"value": "demo", "origin": "flag"}
    assert data["config"]["ALPHA"] == {"value": 0.5, "origin": "default"}
    assert data["fingerprint"]["MODEL (weights)"] == "0" * 64
    assert data["engine"]["target_layer"] == "fake.layer"
    assert {"heatlens", "python", "torch", "open_clip", "timm", "opencv"} <= set(data["versions"])
    assert {"read_s", "explain_s", "write_s", "total_s", "peak_rss_mib"} <= set(data["timings"])
    assert any("{answer}" in text for text in data["warnings"])
    assert set(data["files"]) == {"details.parquet", "failures.csv", "vqa_manifest.csv"}


def test_same_prompt_of_an_image_is_explained_once_and_written_twice(tmp_path):
    rows = [("x.png", "Where?", "A"), ("x.png", "Where?", "B"), ("x.png", "What?", "C")]
    settings = make_settings(tmp_path, rows)
    parts = go(settings)
    assert parts.fake.calls == [["Where?", "What?"]]
    results = settings.results_dir
    assert (results / "x_idx1.png").read_bytes() == (results / "x_idx2.png").read_bytes()
    assert (results / "x_idx1.png").read_bytes() != (results / "x_idx3.png").read_bytes()


def test_second_call_loads_no_model_and_touches_nothing(tmp_path, capsys):
    settings = make_settings(tmp_path)
    go(settings)
    before = {path: path.stat().st_mtime_ns for path in settings.results_dir.rglob("*") if path.is_file()}
    capsys.readouterr()
    again = go(settings)
    assert again.code == EXIT_OK
    assert again.loads == 0
    assert again.opened == []
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in settings.results_dir.rglob("*") if path.is_file()} == before


def test_damaged_tables_and_deleted_pictures_are_made_again(tmp_path):
    settings = make_settings(tmp_path)
    go(settings)
    before = pictures(settings.results_dir)
    (settings.results_dir / "vqa_manifest.csv").write_text("scribbled over")
    (settings.results_dir / "a/one_idx2.png").unlink()
    (settings.results_dir / "raw/b/two_idx1.npy").unlink()
    again = go(settings)
    assert again.fake.calls == [["Line\nbreak, comma"], ['Is it "here", or there?']]
    assert pictures(settings.results_dir) == before


def test_growing_stop_after_only_adds(tmp_path):
    small = make_settings(tmp_path, STOP_AFTER=4)
    go(small)
    results = small.results_dir
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in results.rglob("*.png")}
    assert len(before) == 4
    grown = go(make_settings(tmp_path, STOP_AFTER=7))
    assert [prompt for call in grown.fake.calls for prompt in call] == [
        "Where is the nodule?",
        "Where is the tube?",
    ]
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in results.rglob("*.png")}
    assert {path: after[path] for path in before} == before
    assert len(after) == 6

    fresh = make_settings(tmp_path, STOP_AFTER=7, RESULTS_DIR=tmp_path / "fresh")
    go(fresh)
    assert pictures(fresh.results_dir).keys() == pictures(results).keys()
    for name, data in pictures(fresh.results_dir).items():
        if name != "failures.csv":  # names its own results folder in the retry command
            assert pictures(results)[name] == data, name


def test_shrinking_stop_after_keeps_everything_on_disk_and_says_so(tmp_path, capsys):
    go(make_settings(tmp_path))
    results = tmp_path / "results"
    full = pictures(results)
    small = go(make_settings(tmp_path, STOP_AFTER=2))
    assert small.loads == 0
    assert len(rows_of(results / "vqa_manifest.csv")) == 1 + 2
    assert record(results)["counts"]["beyond_this_run"] == 5
    assert any(text.startswith("5 finished heat maps of an earlier, larger") for text in record(results)["warnings"])
    assert "5 finished heat maps of an earlier, larger selection" in capsys.readouterr().out
    back = go(make_settings(tmp_path))
    assert back.loads == 0
    assert pictures(results) == full


def test_another_fingerprint_is_refused_with_the_keys_that_differ(tmp_path):
    go(make_settings(tmp_path))
    before = pictures(tmp_path / "results")
    with pytest.raises(ResumeError) as caught:
        go(make_settings(tmp_path, ALPHA=0.7, COLORMAP="turbo"))
    text = str(caught.value)
    assert "ALPHA: 0.5 -> 0.7" in text
    assert 'COLORMAP: "jet" -> "turbo"' in text
    assert "OVERWRITE=true" in text
    assert "TOPK" not in text
    assert caught.value.exit_code == 2
    assert pictures(tmp_path / "results") == before


def test_changed_data_and_changed_weights_are_refused(tmp_path):
    settings = make_settings(tmp_path)
    go(settings)
    table = tmp_path / "data.csv"
    content = table.read_text(encoding="utf-8")
    table.write_text(content.replace("Yes.", "No.."), encoding="utf-8")
    with pytest.raises(ResumeError, match=r"DATASET_PATH \(content\)"):
        go(settings)
    table.write_text(content, encoding="utf-8")
    from heatlens.batch.runner import run
    from tests.batch.kit import FakeParts

    parts = FakeParts(settings)
    parts.weights_digest = "1" * 64
    with pytest.raises(ResumeError, match=r"MODEL \(weights\)"):
        run(settings, FakeStage(), parts)


def test_another_default_layer_is_refused_once_the_model_is_loaded(tmp_path):
    go(make_settings(tmp_path, STOP_AFTER=1))

    class OtherLayer(FakeExplainer):
        def settings(self):
            return {"method": "fake", "target_layer": "another.layer"}

    with pytest.raises(ResumeError, match=r'target_layer: "fake.layer" -> "another.layer"'):
        go(make_settings(tmp_path), explainer=OtherLayer())


def test_overwrite_moves_the_old_folder_aside(tmp_path):
    go(make_settings(tmp_path))
    old = pictures(tmp_path / "results")
    fresh = go(make_settings(tmp_path, ALPHA=0.7, OVERWRITE=True, STOP_AFTER=1))
    assert fresh.code == EXIT_OK
    (moved,) = [path for path in tmp_path.iterdir() if path.name.startswith("results.old-")]
    assert pictures(moved) == old
    assert len(rows_of(tmp_path / "results" / "vqa_manifest.csv")) == 2


def test_overwrite_continues_for_other_tasks_of_the_same_array(tmp_path, monkeypatch):
    go(make_settings(tmp_path))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    first = go(make_settings(tmp_path, OVERWRITE=True, NUM_SHARDS=2, SHARD_INDEX=0))
    second = go(make_settings(tmp_path, OVERWRITE=True, NUM_SHARDS=2, SHARD_INDEX=1))
    assert first.loads == second.loads == 1
    assert len([path for path in tmp_path.iterdir() if ".old-" in path.name]) == 1
    assert record(tmp_path / "results")["counts"]["made"] == 7


def test_folder_with_other_peoples_files_is_refused_and_never_moved(tmp_path):
    settings = make_settings(tmp_path, OVERWRITE=True)
    settings.results_dir.mkdir()
    (settings.results_dir / "thesis.docx").write_text("x")
    with pytest.raises(ResumeError, match=r"thesis\.docx"):
        go(settings)
    assert (settings.results_dir / "thesis.docx").exists()


def test_results_dir_that_is_a_file(tmp_path):
    settings = make_settings(tmp_path)
    settings.results_dir.write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        go(settings)


def test_results_are_private_unless_umask_says_otherwise(tmp_path):
    before = os.umask(0o022)
    try:
        go(make_settings(tmp_path, STOP_AFTER=1))
        go(make_settings(tmp_path, STOP_AFTER=1, UMASK="027", RESULTS_DIR=tmp_path / "group"))
        assert os.umask(0o022) == 0o022  # given back after the run
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "results/a/one_idx1.png").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "results/a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "group/vqa_manifest.csv").stat().st_mode) == 0o640


def test_one_heat_map_that_fails_does_not_cost_the_others(tmp_path):
    def no_answer(prompt):
        if prompt == "Line\nbreak, comma":
            raise ValueError("this prompt breaks the model")

    def no_picture(question):
        if question == "Where is the nodule?":
            raise ZeroDivisionError("this map breaks the picture")

    settings = make_settings(tmp_path)
    go(settings, explainer=FakeExplainer(no_answer), stage=FakeStage(no_picture))
    failures = {row[2]: (row[4], row[5]) for row in rows_of(settings.results_dir / "failures.csv")}
    assert failures["Line\nbreak, comma"] == ("explain", "ValueError: this prompt breaks the model")
    assert failures["Where is the nodule?"] == ("render", "ZeroDivisionError: this map breaks the picture")
    assert (settings.results_dir / "a/one_idx1.png").exists()
    assert (settings.results_dir / "b/two_idx1.png").exists()


def test_a_map_that_is_not_finite_is_a_failure(tmp_path):
    class Broken(FakeExplainer):
        def explain_one(self, frame, prompts):
            from dataclasses import replace

            return [
                replace(one, warnings=("error: the map is not finite",)) for one in super().explain_one(frame, prompts)
            ]

    settings = make_settings(tmp_path, [("a.png", "Where?", "A")], MAX_FAILURE_RATE=1)
    go(settings, explainer=Broken())
    assert rows_of(settings.results_dir / "failures.csv")[1][4:6] == ["explain", "the map is not finite"]


def test_maps_made_with_smaller_batches_are_counted_and_said(tmp_path):
    class Hungry(FakeExplainer):
        def explain_one(self, frame, prompts):
            from dataclasses import replace

            text = "out of memory: made with 4 instead of 8 rows per forward, equal to rounding only"
            return [replace(one, warnings=(text,)) for one in super().explain_one(frame, prompts)]

    settings = make_settings(tmp_path, [("a.png", "Where?", "A"), ("b.png", "Where?", "A")])
    go(settings, explainer=Hungry())
    found = record(settings.results_dir)
    assert found["counts"]["halved_batches"] == 2
    assert any(text.startswith("2 heat maps were made with smaller batches") for text in found["warnings"])


def test_recorded_failures_are_finished_until_retried(tmp_path):
    settings = make_settings(tmp_path)
    go(settings)
    assert go(settings).opened == []
    retried = go(make_settings(tmp_path, RETRY_FAILED=True))
    assert sorted(retried.opened) == ["bad/four.png", "gone/six.png"]


def test_a_missing_image_that_appears_is_taken_up(tmp_path):
    from heatlens.batch.runner import run
    from tests.batch.kit import FakeParts

    settings = make_settings(tmp_path)
    go(settings)
    parts = FakeParts(settings)
    parts.there = {"gone/six.png"}
    assert run(settings, FakeStage(), parts) == EXIT_OK
    assert parts.opened == ["gone/six.png"]
    assert record(settings.results_dir)["counts"]["failed"] == 2


def test_too_many_failures_are_exit_3_with_complete_tables(tmp_path):
    settings = make_settings(tmp_path, MAX_FAILURE_RATE=0.1)
    assert go(settings).code == EXIT_FAILURES
    assert record(settings.results_dir)["status"] == "failed"
    assert len(rows_of(settings.results_dir / "vqa_manifest.csv")) == 8
    assert go(make_settings(tmp_path, MAX_FAILURE_RATE=0.3)).code == EXIT_OK


def test_first_twenty_images_failing_is_a_wrong_mount(tmp_path):
    rows = [(f"gone/{number}.png", "Where?", "A") for number in range(30)]
    settings = make_settings(tmp_path, rows)
    with pytest.raises(SetupError, match="IMAGE_ROOT=") as caught:
        go(settings)
    assert caught.value.exit_code == 4
    # Nothing was recorded: once the mount is right, the same command makes everything.
    assert sum(path.stat().st_size for path in settings.results_dir.rglob("ledger.jsonl")) == 0


def test_twenty_failures_after_a_success_are_data(tmp_path):
    rows = [("fine.png", "Where?", "A"), *((f"gone/{number}.png", "Where?", "A") for number in range(25))]
    settings = make_settings(tmp_path, rows, MAX_FAILURE_RATE=1)
    assert go(settings).code == EXIT_OK
    assert record(settings.results_dir)["counts"]["failed"] == 25


def test_a_data_set_without_rows(tmp_path):
    with pytest.raises(DataSetError):
        go(make_settings(tmp_path, []))


@pytest.mark.parametrize("workers", [0, 4])
def test_number_of_writers_changes_nothing(tmp_path, workers):
    settings = make_settings(tmp_path, NUM_WORKERS=workers)
    parts = go(settings)
    assert parts.opened == list(dict.fromkeys(row[0] for row in QUESTIONS[:-1]))
    assert record(settings.results_dir)["counts"]["made"] == 7
