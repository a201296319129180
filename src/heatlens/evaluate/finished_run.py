"""A finished run, as its results folder tells it: run.json and details.parquet. Both are read as files that anybody may
have changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatlens.batch.details import DETAILS
from heatlens.batch.fingerprint import FORMAT_VERSION
from heatlens.batch.run_record import RUN_RECORD, image_root_of
from heatlens.boxes.find import BoxRules
from heatlens.errors import ConfigError, SetupError, one_line
from heatlens.files import digest_file
from heatlens.registry import STAGES

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_BYTES = 64 << 20
"""of run.json; a larger one is none of this program's"""
TEXT_COLUMNS = (
    "image_path", "source_image", "question_id", "question", "question_type", "content_type", "region", "boxes",
    "prompt", "geometry",
)  # fmt: skip
FOUND_BOXES = "found_boxes"
_DESCRIBED = ("DATASET", "SPLIT", "VIEW", "QUESTION_TYPES", "SAMPLE", "SEED", "STOP_AFTER", "PREPROCESS",
              "PROMPT_TEMPLATE", "REGIONS", "TARGET_LAYER", "ENABLE_BODY_MASK", "OUTPUT_SIZE",
              "BOX_THRESHOLD", "MAX_BOXES", "MIN_AREA", "BOX_PADDING")  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """``config``: KEY -> value; ``record``: all of run.json; ``image_root``: where its films lie, None if nowhere."""

    folder: Path
    stage: str
    config: dict[str, Any]
    record: dict[str, Any]
    image_root: Path | None

    @cached_property
    def details(self) -> pd.DataFrame:
        """details.parquet, all of it; for a million heat maps, :meth:`column` and :meth:`rows` are lighter."""
        with _opened(self.folder / DETAILS) as file:
            return file.read().to_pandas()

    @property
    def has_raw_maps(self) -> bool:
        """Did the run keep its maps (SAVE_RAW_CAM)?"""
        return self.config.get("SAVE_RAW_CAM") is True

    @property
    def has_boxes(self) -> bool:
        """Did the run look for boxes?"""
        with _opened(self.folder / DETAILS) as file:
            return FOUND_BOXES in file.schema_arrow.names

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of details.parquet, its repeated values kept once."""
        with _opened(self.folder / DETAILS, once=[name]) as file:
            return _guarded(lambda: file.read(columns=[name]).column(0))

    def rows(self, names: Sequence[str], wanted: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """The rows of these numbers (ascending), only these columns, a row group at a time."""
        with _opened(self.folder / DETAILS) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                inside = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, end)] - start
                if len(inside):
                    yield from _guarded(lambda: _taken(file, group, names, inside))  # noqa: B023 (called at once)
                start = end

    def box_rules(self) -> BoxRules:
        """The run's BOX_THRESHOLD, MAX_BOXES, MIN_AREA and BOX_PADDING."""
        from heatlens.config import KEYS

        values: dict[str, Any] = {}
        for name in ("BOX_THRESHOLD", "MAX_BOXES", "MIN_AREA", "BOX_PADDING"):
            default = KEYS[name].kind.read(KEYS[name].default, self.folder)
            value = self.config.get(name, default)
            try:
                values[name] = KEYS[name].kind.read(str(value), self.folder)
            except ValueError as error:
                raise ConfigError(f"{self.folder / RUN_RECORD}: {name}={value!r}: {error}") from None
        return BoxRules(values["BOX_THRESHOLD"], values["MAX_BOXES"], values["MIN_AREA"], values["BOX_PADDING"])

    def describe(self) -> dict[str, Any]:
        """Method, model, preprocessing, counts: plain data for the record."""
        config, weights, engine = self.config, _dict(self.record.get("weights")), _dict(self.record.get("engine"))
        refined = {key: value for key, value in config.items() if key.startswith("CRF")}
        return {
            "results": str(self.folder),
            "stage": self.stage,
            "method": engine.get("method") or config.get("CAM_VERSION"),
            "top_k": engine.get("top_k"),
            "target_layer": engine.get("target_layer") or config.get("TARGET_LAYER"),
            "precision": engine.get("precision"),
            "model": weights.get("model") or config.get("MODEL"),
            "weights_sha256": weights.get("weights_sha256"),
            "crf": None if config.get("SKIP_CRF", True) else refined,
            **{key.lower(): config[key] for key in _DESCRIBED if key in config and key != "TARGET_LAYER"},
            "counts": _dict(self.record.get("counts")),
            "failures": _dict(self.record.get("counts")).get("failed"),
            "status": self.record.get("status"),
            "version": _dict(self.record.get("versions")).get("heatlens"),
            "plan_digest": self.record.get("plan_digest"),
        }


def read_run(folder: Path, image_root: Path | None = None) -> FinishedRun:
    """The finished run in ``folder``. ``image_root``: where the films lie now, if they were moved.

    ConfigError when there is no finished run, or none that can be measured; SetupError when it cannot be read.
    """
    record = _record(folder)
    stage, config = record.get("stage"), _config(folder, record)
    if stage not in STAGES:
        raise ConfigError(
            f"{folder} was made by the stage {str(stage)[:40]!r}; heat maps to measure are made by {', '.join(STAGES)}"
        )
    version = _dict(record.get("fingerprint")).get("FORMAT_VERSION")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ConfigError(
            f"{folder / RUN_RECORD} is of format {str(version)[:20]}; this program knows formats 1 to {FORMAT_VERSION} "
            "(a newer program made it?)"
        )
    if record.get("status") not in ("complete", "failed"):
        raise ConfigError(
            f"the run in {folder} is not finished (status {str(record.get('status'))[:20]!r}): run its command again; "
            f"`heatlens status {folder}` says how far it is"
        )
    _check_details(folder, record)
    if image_root is not None and not image_root.is_dir():
        raise ConfigError(f"--image-root={image_root} is not a folder")
    root = image_root or image_root_of(config)
    return FinishedRun(folder, str(stage), config, record, root if root and root.is_dir() else None)


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RUN_RECORD
    if not path.is_file():
        if (folder / "shards").is_dir():
            raise ConfigError(f"the run in {folder} is not finished: `heatlens status {folder}` says how to go on")
        what = "is not there" if not folder.exists() else "holds no finished run (no run.json)"
        raise ConfigError(f"{folder} {what}; name the RESULTS_DIR of a run")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SetupError(f"{path} has more than {MOST_BYTES >> 20} MiB: not the record of a run")
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {one_line(error)}") from None
    except (ValueError, RecursionError):
        raise SetupError(f"{path} is not JSON: the record of the run is damaged; run its command again") from None
    if not isinstance(record, dict):
        raise SetupError(f"{path} is not the record of a run")
    return record


def _config(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    config = record.get("config")
    if not isinstance(config, dict) or not all(isinstance(one, dict) and "value" in one for one in config.values()):
        raise ConfigError(f"{folder / RUN_RECORD} is of an unknown format: no settings (config) in it")
    return {key: one["value"] for key, one in config.items()}


def _check_details(folder: Path, record: Mapping[str, Any]) -> None:
    path = folder / DETAILS
    if not path.is_file():
        raise ConfigError(f"{path} is missing: the run's tables were not written; `heatlens merge` writes them")
    with _opened(path) as file:
        _check_columns(path, file)
    recorded = _dict(record.get("files")).get(DETAILS)
    if recorded and digest_file(path) != recorded:
        raise SetupError(
            f"{path} is not the one that run.json speaks of: the run is going on, or the file was changed. When no "
            "process works on it any more, the run's own command (or `heatlens merge`) mends this"
        )


def _check_columns(path: Path, file: pq.ParquetFile) -> None:
    import pyarrow as pa

    schema = file.schema_arrow
    for name in (*TEXT_COLUMNS, "row"):
        wanted = "whole numbers" if name == "row" else "text"
        index = schema.get_field_index(name)
        if index < 0:
            raise ConfigError(f"{path} has no column {name}: not the details of a run of this program")
        fits = pa.types.is_integer if name == "row" else pa.types.is_string
        if not fits(schema.field(index).type):
            raise ConfigError(f"{path}: the column {name} holds {schema.field(index).type}, not {wanted}")


def _opened(path: Path, once: Sequence[str] = ()) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, read_dictionary=list(once))
    except (pa.ArrowException, OSError) as error:
        raise SetupError(f"{path} cannot be read: {one_line(error)[:200]}; `heatlens merge` writes it again") from None


def _guarded(read: Any) -> Any:
    """What ``read`` gives; damage behind a sound head shows only here."""
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise SetupError(
            f"{DETAILS} cannot be read: {one_line(error)[:200]}; `heatlens merge` writes it again"
        ) from None


def _taken(file: pq.ParquetFile, group: int, names: Sequence[str], wanted: NDArray[np.int64]) -> list[dict[str, Any]]:
    table = file.read_row_group(group, columns=list(names))
    return (table if len(wanted) == table.num_rows else table.take(wanted)).to_pylist()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def film_size(geometry: str) -> tuple[int, int] | None:
    """The film's (width, height), as a row's ``geometry`` has it; None if it does not."""
    try:
        width, height = json.loads(geometry)["source"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = all(type(side) is int and 0 < side < 1 << 20 for side in (width, height))
    return (width, height) if sound else None


def found_boxes(text: str) -> tuple[tuple[int, int, int, int], ...] | None:
    """The boxes of a row's ``found_boxes``, best first; None for a text that is not such a list."""
    try:
        boxes = [tuple(one["xyxy"]) for one in json.loads(text)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = all(len(box) == 4 and all(type(edge) is int and abs(edge) < 1 << 20 for edge in box) for box in boxes)
    return tuple(boxes) if sound else None


def recomputed(run: FinishedRun) -> FinishedRun:
    """The same run once more into ``report/recomputed`` of its folder, with SAVE_RAW_CAM=true; what is there is kept.

    SetupError when weights, data or anything else that decides the maps is not what it was; else the error carries
    the exit code that the run ended with.
    """
    from heatlens.evaluate.recompute import recompute

    return read_run(recompute(run), run.image_root)
