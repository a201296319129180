"""Data set, images and weights: are they where the settings say?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from heatlens.doctor.findings import OK, PROBLEM, WARNING, Finding
from heatlens.errors import ConfigError, ItemError

if TYPE_CHECKING:
    from heatlens.batch.parts import Parts
    from heatlens.config import Settings

ROWS = 2000  # of the data set, from its beginning
SAMPLE = 8  # images of them that are opened


def dataset(settings: Settings) -> Iterator[Finding]:
    """DATASET_PATH and IMAGE_ROOT, the first rows, and a few of their images, found and decoded."""
    from heatlens.batch.parts import Parts
    from heatlens.config import check_paths
    from heatlens.phantom.dataset import MARKER
    from heatlens.registry import DEMO_FOLDERS

    if settings.dataset_path is None:
        yield Finding("data set", OK, "none named; --config FILE.conf has it checked")
        return
    if settings.dataset in DEMO_FOLDERS and not (settings.dataset_path / MARKER).exists():
        yield Finding("data set", OK, f"the demo's: the first run writes it to {settings.dataset_path}")
        return
    try:
        check_paths(settings)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("data set", PROBLEM, line, "is the path right, and mounted on this machine?")
        return
    parts = Parts(settings)
    reader = parts.reader()
    rows = list(islice(reader.rows(), ROWS))
    bad = [row for row in rows if row.error]
    text = f"{settings.dataset_path}: {len(rows) - len(bad)} of the first {len(rows)} rows can be used"
    if bad:
        state = PROBLEM if len(bad) == len(rows) else WARNING
        yield Finding("data set", state, f"{text}; {bad[0].source}: {bad[0].error}", "does DATASET fit this file?")
    else:
        yield Finding("data set", OK if rows else PROBLEM, text)
    yield from _images(parts, parts.image_root(reader), [row.image_path for row in rows if not row.error])


def _images(parts: Parts, root: Path, paths: list[str]) -> Iterator[Finding]:
    different = list(dict.fromkeys(paths))
    sample = different[:: max(1, len(different) // SAMPLE)][:SAMPLE]
    if not sample:
        return
    read, faults = parts.film_reader(root), []
    for path in sample:
        try:
            film = read(path, None)
        except ItemError as error:
            faults.append(f"{path}: {error.reason}")
    text = f"{len(sample) - len(faults)} of {len(sample)} sampled images under {root} can be opened"
    if not faults:
        yield Finding("images", OK, f"{text}; the last has {film.size[0]} x {film.size[1]} pixels")
    else:
        state = PROBLEM if len(faults) == len(sample) else WARNING
        advice = "`heatlens plan --missing all` looks for all of them"
        advice = advice if state == WARNING else "is IMAGE_ROOT right, and mounted on this machine?"
        yield Finding("images", state, f"{text}; {faults[0]}", advice)


def weights(settings: Settings) -> Iterator[Finding]:
    """Are MODEL's files here? Nothing is fetched, and nothing loaded."""
    from heatlens.models.sources import locate_model

    name, _, tag = settings.model.partition("/")
    if _is_tag(settings.model):
        yield Finding(
            "model",
            WARNING,
            f"MODEL={settings.model}: whether {tag} of {name} is here was not looked at",
            "--model loads it (and open_clip may fetch it)",
        )
        return
    with without_network():
        source = locate_model(settings.model, settings.model_revision or None)
    size = sum(path.stat().st_size for path in source.weights)
    yield Finding("model", OK, f"{source.checkpoint} is here, {size / 1e6:.0f} MB; --model loads and proves it")


def _is_tag(model: str) -> bool:
    """An architecture and tag of open_clip, which fetches by itself."""
    from heatlens.models.sources import DEMO, HUB_PREFIX, LOCAL_PREFIX

    if model == DEMO or model.startswith((HUB_PREFIX, LOCAL_PREFIX)) or Path(model).expanduser().is_dir():
        return False
    return "/" in model and not Path(model.partition("/")[2]).is_file() and not Path(model).is_absolute()


def network(settings: Settings) -> Iterator[Finding]:
    """HF_HUB_OFFLINE: on a node without network a library that looks for updates waits for minutes."""
    from heatlens.models.sources import HUB_PREFIX

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        yield Finding("network", OK, "HF_HUB_OFFLINE is set: no library asks the hub")
    elif settings.model.startswith(HUB_PREFIX):
        yield Finding(
            "network",
            WARNING,
            f"HF_HUB_OFFLINE is not set, and MODEL={settings.model} is the hub's",
            "HF_HUB_OFFLINE=1 on nodes without internet (containers of this program have it)",
        )
    else:
        yield Finding("network", OK, f"MODEL={settings.model} needs none")


@contextmanager
def without_network() -> Iterator[None]:
    """The hub's files are looked for on disk only."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
