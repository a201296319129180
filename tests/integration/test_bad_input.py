"""Bad images and rows: each is one line in failures.csv, the run goes on, nothing lands outside the folder."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.integration.runs import Results, run_stage

pytestmark = pytest.mark.xdist_group("demo")


def film(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (90, 70)).astype(np.uint8)
    return Image.fromarray(values).resize((280, 360))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad input")
    images = root / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/ü name.png"):
        film().save(images / name)
    film(1).save(images / "c.jpg", quality=95)
    sixteen = np.linspace(0, 4095, 300 * 280).reshape(300, 280).astype(np.uint16)
    Image.fromarray(sixteen).save(images / "sixteen.png")
    (images / "short.jpg").write_bytes((images / "c.jpg").read_bytes()[:3000])
    (images / "text.png").write_text("this is no picture")
    (images / "empty.png").touch()
    Image.new("L", (1, 1)).save(images / "dot.png")
    (images / "bomb.png").write_bytes(png_header(60000, 60000))
    film().save(root / "outside.png")
    (images / "folder.png").mkdir()
    lines = [
        '{"image": "a.png", "question": "Where is the heart?", "answer": "A, \\"quoted\\"\\nsecond line ü"}',
        '{"image": "missing.png", "question": "Where is it?", "answer": ""}',
        '{"image": "short.jpg", "question": "Truncated?", "answer": ""}',
        '{"image": "text.png", "question": "Text?", "answer": ""}',
        '{"image": "empty.png", "question": "Empty?", "answer": ""}',
        '{"image": "dot.png", "question": "One pixel?", "answer": ""}',
        '{"image": "a.png", "question": ',
        '{"image": "bomb.png", "question": "Bomb?", "answer": ""}',
        '{"image": "b.png", "answer": "no question"}',
        '{"question": "No image?", "answer": ""}',
        '{"image": "../outside.png", "question": "Climbing?", "answer": ""}',
        f'{{"image": "{root}/outside.png", "question": "Absolute?", "answer": ""}}',
        '{"image": "folder.png", "question": "A folder?", "answer": ""}',
        '{"image": "sixteen.png", "question": "Sixteen bits?", "answer": ["A", "B"]}',
        '{"image": "/sub/ü name.png", "question": "Slash and umlaut?", "answer": "ja"}',
        '{"image": "c.jpg", "question": "A good JPEG?", "answer": "yes"}',
    ]
    data = root / "rows.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    before = set(root.rglob("*"))
    results = Results(root / "results")
    done = run_stage(
        "--dataset", "table", "--dataset-path", str(data), "--image-root", str(images), "--stop-after", "",
        "--results-dir", str(results.folder), "--max-failure-rate", "1", "--topk", "4",
    )  # fmt: skip
    outside = {path for path in root.rglob("*") if results.folder not in (path, *path.parents)} - before
    return results, done, outside


def test_the_run_goes_on_and_ends_well(outcome):
    results, done, _ = outcome
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    asked = [row["question"] for row in results.manifest]
    assert asked == ["Where is the heart?", "Sixteen bits?", "Slash and umlaut?", "A good JPEG?"]
    assert results.manifest[0]["answer"] == 'A, "quoted"\nsecond line ü'
    assert results.manifest[1]["answer"] == '["A", "B"]'
    for row in results.manifest:
        assert (results.folder / row["image_path"]).is_file()


@pytest.mark.parametrize(
    ("needle", "reason"),
    [
        ("missing.png", "missing.png"),
        ("short.jpg", "cut off"),
        ("text.png", ""),
        ("empty.png", "empty"),
        ("dot.png", "1x1"),
        ("bomb.png", "60000"),
        ("b.png", "question"),
        ("../outside.png", ".."),
        ("outside.png", ""),
        ("folder.png", ""),
        ("rows.jsonl:7", "JSON"),
        ("rows.jsonl:10", "image"),
    ],
)
def test_each_bad_input_is_one_line_with_its_reason(outcome, needle, reason):
    results, _, _ = outcome
    lines = [row for row in results.failures if needle in row["image_path"] or needle in row["reason"]]
    assert lines, results.failures
    assert any(reason.casefold() in row["reason"].casefold() for row in lines), lines
    assert all(row["stage"] and row["reason"] and "\n" not in row["reason"] for row in lines)


def test_twelve_failures_no_more_no_less(outcome):
    assert len(outcome[0].failures) == 12


def test_nothing_is_written_outside_the_results_folder(outcome):
    assert outcome[2] == set()


def test_too_many_failures_are_exit_3(outcome, tmp_path):
    results, _, _ = outcome
    config = results.record["config"]
    done = run_stage(
        "--dataset", "table", "--dataset-path", config["DATASET_PATH"]["value"], "--stop-after", "",
        "--image-root", config["IMAGE_ROOT"]["value"], "--results-dir", str(tmp_path / "run"), "--topk", "4",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert Results(tmp_path / "run").record["status"] == "failed"
    assert len(Results(tmp_path / "run").manifest) == 4
