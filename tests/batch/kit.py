"""Small fakes for the runner: a model that needs no torch, a stage that needs no picture library."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from heatlens.batch.openers import InlineDecoder
from heatlens.batch.parts import Parts
from heatlens.batch.protocols import Explanation, OutputFile, Placed, StageResult
from heatlens.batch.runner import run
from heatlens.batch.tables import write_manifest
from heatlens.cam.protocols import PatchGrid
from heatlens.config import Settings, load_settings
from heatlens.errors import ItemError

QUESTIONS = [
    # image, question, answer
    ("a/one.png", "Where is the tube?", "C"),
    ("b/two.png", 'Is it "here", or there?', "Yes."),
    ("a/one.png", "Line\nbreak, comma", "No."),
    ("c/three.png", "Größe des Herzens – ≥ 15 cm?", "Größer"),
    ("bad/four.png", "A film that cannot be decoded?", "-"),
    ("a/five.png", "Where is the tube?", "D"),
    ("b/two.png", "Where is the nodule?", "A"),
    ("gone/six.png", "A film that is not there?", "-"),
    ("a/seven.png", "=1+1 is text", "E"),
    ("../climbs.png", "A path that climbs out?", "-"),
]


def write_table(path: Path, rows: list[tuple[str, str, str]] = QUESTIONS) -> Path:
    """A data set: CSV with image, question, answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "question", "answer"])
        writer.writerows(rows)
    return path


def make_settings(
    folder: Path, rows: list[tuple[str, str, str]] = QUESTIONS, *, stage: str = "attn_map", **keys: object
) -> Settings:
    """Settings of a run of ``stage`` below ``folder``; its data set is written on first use."""
    table = folder / "data.csv"
    if not table.exists():
        write_table(table, rows)
    (folder / "images").mkdir(exist_ok=True)
    flags = {
        "DATASET": "table",
        "DATASET_PATH": str(table),
        "IMAGE_ROOT": str(folder / "images"),
        "RESULTS_DIR": str(folder / "results"),
        "MODEL": "demo",
        "DEVICE": "cpu",
        "MAX_FAILURE_RATE": "0.5",
        "PROMPT_TEMPLATE": "{question}",
        **{name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in keys.items()},
    }
    return load_settings(None, flags, {}, stage)


class FakePlacer:
    """The film is the frame."""

    frame = (8, 8)

    def __call__(self, film: Any) -> Placed:
        return Placed(SimpleNamespace(as_dict=lambda: {"mode": "fake"}), film.pixels)  # type: ignore[arg-type]


class FakeExplainer:
    """A map of 4x4 numbers from a hash of frame and prompt. ``on_explain`` is called with each prompt."""

    grid = PatchGrid(4, 4, (2.0, 2.0))
    placer = FakePlacer()
    group = 1
    masked_forwards = 0

    def __init__(self, on_explain: Callable[[str], None] | None = None) -> None:
        self.calls: list[list[str]] = []
        self.closed = False
        self._on_explain = on_explain

    def explain(self, frames: Any, prompts: Any) -> list[list[Explanation]]:
        return [self.explain_one(frame, mine) for frame, mine in zip(frames, prompts, strict=True)]

    def explain_one(self, frame: np.ndarray, prompts: Any) -> list[Explanation]:
        self.calls.append(list(prompts))
        found = []
        for prompt in prompts:
            if self._on_explain:
                self._on_explain(prompt)
            seed = hashlib.sha256(frame.tobytes() + prompt.encode("utf-8", "replace")).digest()
            values = np.frombuffer(seed[:16], np.uint8).reshape(4, 4).astype(np.float32)
            found.append(Explanation(values, float(values.mean()), ("a remark",) if seed[0] % 2 else ()))
        return found

    def settings(self) -> dict[str, object]:
        return {"method": "fake", "target_layer": "fake.layer"}

    def close(self) -> None:
        self.closed = True


class FakeParts(Parts):
    """Real reader and plan; films out of thin air, bad ones by their folder's name; no weights, no model."""

    def __init__(self, settings: Settings, explainer: FakeExplainer | None = None) -> None:
        super().__init__(settings)
        self.fake = explainer or FakeExplainer()
        self.loads = 0
        self.opened: list[str] = []
        self.weights_digest = "0" * 64
        self.there: set[str] = set()
        self.broken: Callable[[str], None] | None = None

    def decoders(self, stage: Any) -> InlineDecoder:
        return InlineDecoder()

    def film_reader(self, image_root: Path) -> Callable[[str, int | None], Any]:
        return lambda image_path, longest: self.open_film(image_root, image_path)

    def open_film(self, image_root: Path, image_path: str) -> Any:
        self.opened.append(image_path)
        if self.broken is not None:
            self.broken(image_path)
        if image_path.startswith("bad/"):
            raise ItemError("decode", "not an image")
        if image_path.startswith("gone/") and image_path not in self.there:
            raise ItemError("locate", f"no image file at {image_root / image_path}")
        seed = hashlib.sha256(image_path.encode()).digest()
        return SimpleNamespace(pixels=np.frombuffer(seed, np.uint8).reshape(4, 8), size=(8, 4), notes=())

    def is_there(self, image_root: Path, image_path: str) -> bool:
        return image_path in self.there

    def weights(self) -> dict[str, Any]:
        return {"model": "fake", "weights_sha256": self.weights_digest}

    def resolved(self) -> tuple[str, int]:
        return "fp32", self.settings.batch_size or 16

    def explainer(self) -> FakeExplainer:
        self.loads += 1
        return self.fake


class FakeStage:
    """Writes the map as text; ``on_make`` may raise for a heat map."""

    name = "attn_map"
    longest = None
    columns = {"map_max": float, "constant": bool, "whole_film": bool, "peak_x": float}

    def __init__(self, on_make: Callable[[str], None] | None = None) -> None:
        self._on_make = on_make

    def expected_files(self, heat_map: Any) -> tuple[str, ...]:
        return (f"{heat_map.output}.png", f"raw/{heat_map.output}.npy")

    def open_image(self, film: Any, placed: Placed, grid: PatchGrid) -> Any:
        return film

    def image_statistics(self, view: Any) -> dict[str, Any]:
        return {"geometry": json.dumps({"size": view.size}), "whole_film": False}

    def make(self, view: Any, heat_map: Any, explanation: Explanation) -> StageResult:
        if self._on_make:
            self._on_make(heat_map.question)
        text = f"{view.pixels.tolist()} {explanation.map.tolist()} {heat_map.question}"
        overlay, raw = self.expected_files(heat_map)
        files = (
            OutputFile(overlay, text.encode("utf-8", "replace")),
            OutputFile(raw, explanation.map.tobytes()),
        )
        statistics = {"map_max": float(explanation.map.max()), "constant": False, "peak_x": float("nan")}
        return StageResult(files, statistics, ("from the stage",))

    def write_index(self, folder: Path, made: Any) -> list[Path]:
        return [write_manifest(folder, made)]


def go(settings: Settings, *, explainer: FakeExplainer | None = None, stage: FakeStage | None = None) -> FakeParts:
    """Run with the fakes; the exit code is in ``.code`` of the parts that come back."""
    parts = FakeParts(settings, explainer)
    parts.code = run(settings, stage or FakeStage(), parts)  # type: ignore[attr-defined]
    return parts


def pictures(results: Path) -> dict[str, bytes]:
    """What a run promises to be the same every time: pictures, raw maps, manifest, details, failures."""
    keep = {}
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results).as_posix()
        if path.is_file() and not name.startswith("shards/") and name != "run.json":
            keep[name] = path.read_bytes()
    return keep


def record(results: Path) -> dict[str, Any]:
    """run.json."""
    return json.loads((results / "run.json").read_text(encoding="utf-8"))


def leftovers(folder: Path) -> list[str]:
    """Temporary files and locks that should not be there any more."""
    return [name for _, _, names in os.walk(folder) for name in names if "tmp" in name or name == "lock"]
