"""What finished work depends on, so that nothing of another run is silently reused.

``shards/fingerprint.json`` holds the fingerprint of a results folder from its first call on. A later call
with another one is refused with the keys that differ. In it: the keys that the configuration marks (method,
colours, prompts, sizes...), the SHA-256 of the data set's files, the SHA-256 of the weights, the *resolved*
precision and batch size, the stage and the format version. Not in it: STOP_AFTER, selection,
shards, device, paths.

``shards/engine.json`` holds what only the loaded engine knows (its default layer); it is compared in the same
way as soon as a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.errors import DataSetError, ResumeError, one_line
from heatlens.files import atomic_write

if TYPE_CHECKING:
    from heatlens.config import Settings

# Raised whenever the same settings would give other files.
FORMAT_VERSION = 5

FINGERPRINT = Path("shards/fingerprint.json")
ENGINE = Path("shards/engine.json")

# Given in resolved form, or by the weights' digest, instead of as the user wrote them.
_RESOLVED_KEYS = frozenset({"MODEL", "MODEL_REVISION", "DATASET_PATH", "PRECISION", "BATCH_SIZE"})


def make_fingerprint(
    *,
    stage: str,
    settings: Mapping[str, Any],
    data_digest: str,
    weights: Mapping[str, Any],
    precision: str,
    batch_size: int,
) -> dict[str, Any]:
    """The fingerprint as plain JSON data. ``settings`` are the keys that belong in it, with their values."""
    keys = {key: plain(value) for key, value in sorted(settings.items()) if key not in _RESOLVED_KEYS}
    return {
        "FORMAT_VERSION": FORMAT_VERSION,
        "STAGE": stage,
        **keys,
        "PRECISION": precision,
        "BATCH_SIZE": batch_size,
        "DATASET_PATH (content)": data_digest,
        "MODEL (weights)": weights.get("weights_sha256") or json.dumps(plain(dict(weights)), sort_keys=True),
        "MODEL (config)": weights.get("config_sha256", ""),
    }


def data_digest(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of the data set's files in data-set order; names and places do not count."""
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(f"{path.stat().st_size}:".encode())
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise DataSetError(f"DATASET_PATH: cannot read {path}: {one_line(error)}") from None
    return digest.hexdigest()


def check_or_store(results: Path, name: Path, wanted: Mapping[str, Any]) -> None:
    """Store ``wanted`` when nothing is stored; ResumeError with the keys that differ when another is."""
    path = results / name
    data = plain(dict(wanted))
    if not path.exists():
        atomic_write(path, json.dumps(data, indent=1, sort_keys=True) + "\n")
    # Read back even after writing: with two first tasks at once, the later one is compared with the other.
    stored = _read(path)
    if stored != data:
        raise ResumeError(_refusal(results, stored, data))


def recorded(settings: Settings) -> tuple[str, int]:
    """Precision and batch size as the settings name them or, where they leave it to the device, as they were resolved
    when the run in the results folder began ("auto" and 0 without one)."""
    path = settings.results_dir / FINGERPRINT
    stored = _read(path) if path.exists() else {}
    precision = stored.get("PRECISION", "auto") if settings.precision == "auto" else settings.precision
    return precision, settings.batch_size or stored.get("BATCH_SIZE", 0)


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(
            f"{path} cannot be read ({one_line(error)}), so finished work cannot be recognised; "
            "OVERWRITE=true moves the results folder aside and starts afresh"
        ) from None
    if not isinstance(stored, dict):
        raise ResumeError(f"{path} is not a fingerprint; OVERWRITE=true moves the results folder aside")
    return stored


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """``KEY: old -> new`` for every key that differs."""
    missing = object()
    return [
        f"{key}: {_show(stored.get(key, missing), missing)} -> {_show(wanted.get(key, missing), missing)}"
        for key in [*wanted, *(key for key in stored if key not in wanted)]
        if stored.get(key, missing) != wanted.get(key, missing)
    ]


def _refusal(results: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    lines = "\n  ".join(differences(stored, wanted))
    return (
        f"the results in {results} were made with other settings; what differs (there -> now):\n  {lines}\n"
        "Choose another RESULTS_DIR, or set OVERWRITE=true: it moves the old folder to "
        f"{results.name}.old-<time> and starts afresh"
    )


def _show(value: Any, missing: object) -> str:
    if value is missing:
        return "(not set)"
    text = json.dumps(value, ensure_ascii=False)
    # A digest says nothing to people beyond being another one.
    return f"{text[:13]}..." if len(text) == 66 and " " not in text else text


def plain(value: Any) -> Any:
    """``value`` as JSON data: tuples become lists, paths and other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
