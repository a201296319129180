"""A small data set of phantom films in GEMeX's own format, so that the demo runs through the ordinary GEMeX
reader.

    folder/
        open_ended_question.jsonl    questions, in the four files of the original
        closed_ended_question.jsonl
        single_choice_question.jsonl
        multi_choice_question.jsonl
        files/p10/p1.../s5.../<id>.jpg   grey JPEG, quality 95, long side 1024 to 1400 pixels, both orientations
        masks/p10/.../<id>_1.png     exact mask of the film's first finding: 0 or 255, same size as the film
        truth.jsonl                  one row per film: its findings with boxes in film pixels and prompts
        complete.json                written last: the arguments that made the folder

The films are synthetic: nobody's data, no licence to sign.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from heatlens.errors import DataSetError
from heatlens.phantom.film import PhantomFilm, make_film
from heatlens.phantom.findings import COUNTS, NAMES
from heatlens.phantom.language import prompt_for
from heatlens.phantom.questions import KINDS, rows_about

FORMAT = 1
"""raised whenever the same arguments would give other bytes"""
MARKER = "complete.json"
TRUTH = "truth.jsonl"
SHARED = frozenset({MARKER, TRUTH, "files", "masks"})
"""what every folder of phantom films holds, beside its questions"""
_OURS = SHARED | {f"{kind}_question.jsonl" for kind in KINDS}


def ensure_dataset(folder: Path, *, films: int = 16, seed: int = 2_000_000) -> Path:
    """The data set of these arguments in `folder`: at once when it is complete, else written (again). Returns
    the folder.

    A folder with anything else in it is never touched: that raises DataSetError.
    """
    folder = Path(folder)
    if read_marker(folder) != {"format": FORMAT, "films": films, "seed": seed}:
        write_dataset(folder, films=films, seed=seed)
    return folder


def write_dataset(folder: Path, *, films: int = 16, seed: int = 2_000_000) -> None:
    """Write the data set beside its place and move it there when it is complete."""
    write_whole(folder, _OURS, lambda work: _write(work, films, seed))


def read_marker(folder: Path) -> dict[str, Any] | None:
    """The arguments that made a complete folder; None where there is none."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def write_whole(folder: Path, ours: Collection[str], fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder of films beside its place and move it there when it is complete.

    `ours`: the names that such a folder may hold. One with anything else in it is never touched: DataSetError.
    """
    folder = Path(folder).absolute()
    foreign = sorted({p.name for p in folder.iterdir()} - set(ours)) if folder.is_dir() else []
    if foreign or (folder.exists() and not folder.is_dir()):
        what = f"it holds {foreign[0]!r}" if foreign else "it is a file"
        raise DataSetError(
            f"phantom data set: {folder} is not a phantom folder ({what}); name an empty or a new folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(work)
        work.chmod(0o755 & ~_umask())
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    except OSError:
        if not (folder / MARKER).exists():  # another process may have put the same data set there first
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(folder: Path, films: int, seed: int) -> None:
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    truth = []
    for number in range(films):
        film = demo_film(seed, number)
        truth.append(save_film(film, folder))
        path = truth[-1]["image_path"]
        for row in rows_about(film, np.random.default_rng([film.seed, 11])):
            fields = {
                **row.fields, "image_path": path, "ori_report": _report(film),
                "q_id": len(rows[row.kind]), "row_id": f"row_{number}",
            }  # fmt: skip
            rows[row.kind].append(fields)
    for kind, content in rows.items():
        save_lines(folder / f"{kind}_question.jsonl", content)
    save_lines(folder / TRUTH, truth)
    write_marker(folder, {"format": FORMAT, "films": films, "seed": seed})


def write_marker(folder: Path, arguments: dict[str, Any]) -> None:
    """The last file of a folder: the arguments that made it."""
    (folder / MARKER).write_text(json.dumps(arguments) + "\n", encoding="utf-8")


def demo_film(seed: int, number: int) -> PhantomFilm:
    """Film `number` of a data set. Its first finding goes through all names in turn, so that eight films show
    each at least once."""
    rng = np.random.default_rng([seed + number, 10])
    more = int(rng.choice(3, p=np.array(COUNTS[1:]) / sum(COUNTS[1:])))
    others = [str(n) for n in rng.permutation([n for n in NAMES if n != NAMES[number % len(NAMES)]])[:more]]
    return make_film(
        seed + number, long_side=int(rng.integers(1024, 1401)), names=[NAMES[number % len(NAMES)], *others]
    )


def image_path(seed: int) -> str:
    """A path as MIMIC-CXR's, made from the seed: p10/p1.../s5.../<id>.jpg."""
    digest = hashlib.sha256(f"phantom film {seed}".encode()).hexdigest()
    patient, study = int(digest[:8], 16) % 1_000_000, int(digest[8:16], 16) % 10_000_000
    name = "-".join(digest[i : i + 8] for i in range(16, 56, 8))
    return f"p10/p10{patient:06d}/s5{study:07d}/{name}.jpg"


def save_film(film: PhantomFilm, folder: Path) -> dict[str, Any]:
    """Write a film and the masks of its findings into a data set's folder; returns its row of truth.jsonl."""
    path = image_path(film.seed)
    _save_jpeg(film, folder / "files" / path)
    return _truth(film, path, folder / "masks")


def _save_jpeg(film: PhantomFilm, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(film.pixels).save(buffer, "JPEG", quality=95)
    path.write_bytes(buffer.getvalue())


def _truth(film: PhantomFilm, path: str, masks: Path) -> dict[str, Any]:
    found = []
    for number, finding in enumerate(film.findings, 1):
        name = f"{path.removesuffix('.jpg')}_{number}.png"
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(finding.mask.astype(np.uint8) * 255).save(masks / name)
        found.append({
            "name": finding.name, "side": finding.side, "zone": finding.zone, "region": finding.region,
            "box": list(finding.box), "mask": f"masks/{name}", "prompt": prompt_for(finding),
        })  # fmt: skip
    height, width = film.pixels.shape
    return {"image_path": path, "seed": film.seed, "width": width, "height": height, "findings": found}


def _report(film: PhantomFilm) -> str:
    if not film.findings:
        return "FINDINGS: Synthetic film. No abnormality. IMPRESSION: Normal."
    listed = "; ".join(prompt_for(f) for f in film.findings)
    return f"FINDINGS: Synthetic film. {listed}. IMPRESSION: See findings."


def save_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines; like the original, without a newline at the end of the last row."""
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
