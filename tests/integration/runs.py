"""Running the real stage script, and reading what it left."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "Attention_Map" / "scripts" / "generate_heatmaps.py"
DEMO = ROOT / "configs" / "demo" / "exp_00_phantom.conf"


def run_stage(*flags: str, config: Path | None = DEMO, cwd: Path = ROOT, script: Path = SCRIPT, **environment: str):
    """The stage as a user starts it; nothing but PATH-like variables come from this process."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "OMP_NUM_THREADS", "TMPDIR") if key in os.environ}
    command = [sys.executable, str(script), *(["--config", str(config)] if config else []), *flags]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**kept, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


@dataclass
class Results:
    """The files of a results folder."""

    folder: Path

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    @property
    def manifest(self) -> list[dict[str, str]]:
        return self.table("vqa_manifest.csv")

    @property
    def failures(self) -> list[dict[str, str]]:
        return self.table("failures.csv")

    @property
    def details(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "details.parquet")

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    def tree(self) -> dict[str, bytes]:
        """Everything that a second run must not change: relative path -> content."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and "shards" not in path.parts and path.name != "run.json"
        }


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path
