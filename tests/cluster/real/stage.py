"""Runs of the heat-map stage for the tests: what they are asked for, what they wrote, what they should have written."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tests.cluster.real.slurm import Slurm, run

CONF = "configs/demo/exp_00_phantom.conf"
LONG_COPIES = 25

# A few seconds, most of them the start; some seconds of work, image after image; an hour (with long films).
QUICK = {"CAM_VERSION": "GradCAM", "STOP_AFTER": "8"}
WORK = {"CAM_VERSION": "GradCAM", "STOP_AFTER": ""}
ENDLESS = {"CAM_VERSION": "gScoreCAM", "STOP_AFTER": ""}


@dataclass
class Runs:
    """The checkout under test and where its runs write."""

    area: Path
    checkout: Path
    films: Path
    _references: dict[str, Path] = field(default_factory=dict)

    @property
    def script(self) -> Path:
        return self.checkout / "Attention_Map" / "submit_heatmap_gen.sh"

    def keys(self, results: str, settings: dict[str, str], runtime: str = "docker") -> dict[str, str]:
        """The environment of a run that writes to the folder ``results`` of the test area."""
        own = {"CONTAINER_RUNTIME": runtime}
        if runtime == "none":
            own["HEATLENS_PYTHON"] = sys.executable
        paths = {"DATASET_PATH": str(self.films), "RESULTS_DIR": str(self.results(results))}
        return {"DEVICE": "cpu", "NUM_WORKERS": "1"} | paths | own | settings

    def results(self, name: str) -> Path:
        return self.area / "results" / name

    def reference(self, settings: dict[str, str], runtime: str = "docker") -> dict[str, str]:
        """What a run by hand, without a scheduler and in one piece, writes for these settings: made once."""
        name = "reference " + "-".join([runtime, *settings.values()])
        if name not in self._references:
            front = "docker/run_heatmap_gen.sh" if runtime == "docker" else "Attention_Map/submit_heatmap_gen.sh"
            kept = {key: os.environ[key] for key in ("PATH",)} | {"HOME": "/", "OMP_NUM_THREADS": "1"}
            keys = self.keys(name, settings, runtime)
            done = run("bash", self.checkout / front, CONF, cwd=self.checkout, environ=kept | keys)
            assert done.returncode == 0, f"{front}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            self._references[name] = self.results(name)
        return products(self._references[name])


def products(results: Path) -> dict[str, str]:
    """Everything that must not depend on how a run came to its end: file -> SHA-256; the details as their values."""
    found = {
        str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest()
        for top in ("files", "raw", "vqa_manifest.csv", "failures.csv")
        for path in ([results / top] if (results / top).is_file() else sorted((results / top).rglob("*")))
        if path.is_file()
    }
    details = pd.read_parquet(results / "details.parquet")
    return found | {"details.parquet": hashlib.sha256(details.to_csv(index=False).encode()).hexdigest()}


def record(results: Path) -> dict[str, Any]:
    """run.json"""
    return json.loads((results / "run.json").read_text())


def manifest(results: Path) -> list[dict[str, str]]:
    with (results / "vqa_manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pictures(results: Path) -> int:
    """Overlays that are there now, also in the middle of a run."""
    return sum(1 for _ in (results / "files").rglob("*_idx*.png"))


def first_picture(slurm: Slurm, results: Path) -> None:
    """Wait until the run is in the middle of its work."""
    slurm.until(lambda: pictures(results) > 0, 60, "the first picture")


def finished_images(results: Path) -> int:
    """Images on record in the ledgers."""
    return sum(path.read_text().count("\n") for path in results.glob("shards/*/ledger.jsonl"))


def copy_films(films: Path, folder: Path, copies: int) -> Path:
    """The films ``copies`` times under other patients' names, with their questions."""
    folder.mkdir()
    for number in range(copies):
        shutil.copytree(films / "files" / "p10", folder / "files" / f"p{number + 11}")
    for path in films.glob("*_question.jsonl"):
        text = path.read_text()
        many = [text.replace("p10/", f"p{number + 11}/") for number in range(copies)]
        (folder / path.name).write_text("".join(many))
    return folder
