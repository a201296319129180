"""``heatlens fetch-model``: fill a folder with a model's files, so that MODEL=FOLDER loads without internet.

Only what loading needs is fetched. Files come into a hidden folder inside FOLDER, are checked there against the
digests that the hub states, and are then renamed one by one, the config last; SHA256SUMS closes a complete folder.
Nothing here reads weights: they are bytes with a digest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heatlens.cluster.hub import RemoteFile, Repository, download, look_up, offline_text
from heatlens.cluster.model_folder import SUMS, Source, faults, read_source, read_sums, write_sums
from heatlens.config_help import KeyParser
from heatlens.errors import EXIT_ENVIRONMENT, EXIT_OK, ConfigError, ModelError, SetupError, one_line
from heatlens.files import digest_file
from heatlens.models import sources
from heatlens.models.sources import CHECKPOINT_NAMES, CONFIG_FILE, HUB_PREFIX, PINNED_REVISIONS, TRANSFORMERS_CONFIG
from heatlens.settings import BIOMEDCLIP

STAGING = ".heatlens-fetch"
USAGE = """\
usage: heatlens fetch-model [MODEL] --to FOLDER [--revision REVISION] [--verify]

Fill FOLDER with the files of a model of the hub, on a machine with internet. MODEL=FOLDER then loads anywhere
without. Run again, it goes on where it stopped, or checks what is there.

  MODEL                OWNER/NAME or hf-hub:OWNER/NAME (default: BiomedCLIP)
  --to FOLDER          a new or an empty folder, or one that this command has filled
  --revision REVISION  a commit, tag or branch (default: BiomedCLIP's pinned commit; others: main)
  --verify             no network: check an existing FOLDER against its SHA256SUMS

HF_TOKEN is for models that ask for an account, HF_ENDPOINT for a mirror of the hub.

Exit codes: 0 all files are there and right, 2 wrong arguments, 4 anything else."""

_SHARD_INDEX = "model.safetensors.index.json"
_TRANSFORMERS_WEIGHTS = ("model.safetensors", _SHARD_INDEX, "pytorch_model.bin")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_HARMLESS = frozenset({".gitkeep", ".DS_Store", "lost+found", STAGING})


@dataclass(frozen=True)
class Options:
    """``revision`` empty: the pinned one, or main."""

    name: str
    folder: Path
    revision: str
    verify: bool


def main(argv: list[str]) -> int:
    """``heatlens fetch-model ...``; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return EXIT_OK
    options = read_options(argv)
    if options.verify:
        return verify(options.folder)
    print(fetch(options.name, options.revision or PINNED_REVISIONS.get(options.name, "main"), options.folder))
    print(f"Set MODEL={options.folder}; `heatlens doctor --model {options.folder}` loads and proves it.")
    return EXIT_OK


def read_options(argv: list[str]) -> Options:
    """The command line. ConfigError for what cannot be fetched."""
    parser = KeyParser(prog="heatlens fetch-model", add_help=False, allow_abbrev=False)
    parser.add_argument("model", nargs="?", default=BIOMEDCLIP)
    parser.add_argument("--to", default="")
    parser.add_argument("--revision", default="")
    parser.add_argument("--verify", action="store_true")
    found = parser.parse_args(argv)
    if not found.to:
        raise ConfigError("--to is missing: name the folder to fill or to check")
    name = found.model.removeprefix(HUB_PREFIX)
    if found.model == sources.DEMO:
        raise ConfigError("MODEL=demo comes with the program: there is nothing to fetch")
    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"{found.model!r}: write OWNER/NAME, a model of the hub")
    return Options(name, Path(found.to).expanduser().absolute(), found.revision, found.verify)


def verify(folder: Path) -> int:
    """Print whether ``folder`` is as it was fetched; the exit code."""
    if not folder.is_dir():
        raise ConfigError(f"--to={folder}: no such folder")
    found = faults(folder)
    for fault in found:
        print(fault)
    if not found:
        print(_complete(folder, read_sums(folder)))
    return EXIT_ENVIRONMENT if found else EXIT_OK


def fetch(name: str, revision: str, folder: Path) -> str:
    """Make ``folder`` hold what loading ``name`` at ``revision`` needs; a line about it. ModelError, SetupError."""
    source = read_source(folder)
    _check_owner(folder, source, name)
    if source is not None and source.commit == revision and (folder / SUMS).is_file() and not faults(folder):
        return _complete(folder, read_sums(folder))  # a commit never changes: no need to ask
    if _offline():
        raise ModelError(offline_text())
    repository = look_up(name, revision)
    if source is not None and source.commit != repository.commit:
        raise ConfigError(
            f"--to={folder} holds {name} at {source.commit}, and {revision} is {repository.commit} now. Runs may read "
            f"that folder: name another one, or --revision {source.commit}"
        )
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        staging = folder / STAGING
        staging.mkdir(exist_ok=True)
        files = needed_files(repository, staging)
        _bring(files, folder, staging)
        sources.locate_model(f"local-dir:{folder}")  # a folder that no run understands is not called complete
        write_sums(
            folder,
            {local: _sha256(folder / local, file) for local, file in files.items()},
            Source(name, repository.commit, revision),
        )
        shutil.rmtree(staging, ignore_errors=True)
    return _complete(folder, read_sums(folder))


def _bring(files: Mapping[str, RemoteFile], folder: Path, staging: Path) -> None:
    missing = {local: file for local, file in files.items() if not file.fits(folder / local)}
    for local in missing:  # a damaged file must not look complete while its successor is on the way
        (folder / local).unlink(missing_ok=True)
    _check_space(missing.values(), folder, staging)
    arrived = {}
    by_size = sorted(missing.items(), key=lambda item: item[1].size)
    for number, (local, file) in enumerate(by_size, 1):
        print(f"{number} of {len(missing)}: {local}, {_size(file.size)}", flush=True)
        arrived[local] = download(file, staging)
    # The configs last: without them a folder is no model, whatever else it holds.
    for local in sorted(arrived, key=lambda local: local in (CONFIG_FILE, TRANSFORMERS_CONFIG)):
        target = folder / local
        target.parent.mkdir(exist_ok=True)
        arrived[local].replace(target)


def needed_files(repository: Repository, staging: Path) -> dict[str, RemoteFile]:
    """Path in the folder -> file of the hub: config, the weights once, tokenizer. ModelError when it is no model."""
    files = repository.files
    if CONFIG_FILE in files:
        wanted = [CONFIG_FILE, _first(repository, CHECKPOINT_NAMES), *_there(files, _TOKENIZER_FILES)]
        return {**{name: files[name] for name in wanted}, **_text_tower(repository, staging)}
    if TRANSFORMERS_CONFIG not in files:
        raise ModelError(f"{repository.name} holds neither {CONFIG_FILE} nor {TRANSFORMERS_CONFIG}: no CLIP model")
    model_type = _read(files[TRANSFORMERS_CONFIG], staging).get("model_type")
    if model_type not in sources.TRANSFORMERS_TYPES:
        known = " and ".join(sources.TRANSFORMERS_TYPES)
        raise ModelError(
            f"{repository.name} has no {CONFIG_FILE}, and model_type {model_type!r} in {TRANSFORMERS_CONFIG}; of the "
            f"transformers library's models {known} work"
        )
    weights = _first(repository, _TRANSFORMERS_WEIGHTS)
    wanted = [TRANSFORMERS_CONFIG, weights, *_there(files, (*_TOKENIZER_FILES, *_IMAGE_PROCESSORS))]
    wanted += _shards(repository, staging) if weights == _SHARD_INDEX else []
    return {name: files[name] for name in wanted}


def _first(repository: Repository, names: tuple[str, ...]) -> str:
    """The weights that loading takes: safetensors where there are several."""
    found = next((name for name in names if name in repository.files), None)
    if found is None:
        raise ModelError(f"{repository.name} at {repository.commit} has no weights ({', '.join(names)})")
    return found


def _there(files: Mapping[str, RemoteFile], names: tuple[str, ...]) -> Iterator[str]:
    return (name for name in names if name in files)


def _shards(repository: Repository, staging: Path) -> list[str]:
    weight_map = _read(repository.files[_SHARD_INDEX], staging).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    if not names or not all(name in repository.files and "/" not in name for name in names):
        raise ModelError(f"{repository.name}: its {_SHARD_INDEX} does not name files of the repository")
    return names


def _text_tower(repository: Repository, staging: Path) -> dict[str, RemoteFile]:
    """The config of a text tower that open_clip takes from another repository, unless this program has it."""
    model = _read(repository.files[CONFIG_FILE], staging).get("model_cfg")
    text = model.get("text_cfg") if isinstance(model, dict) else None
    name = str(text.get("hf_model_name") or "") if isinstance(text, dict) else ""
    if not name:
        return {}
    if TRANSFORMERS_CONFIG in repository.files:
        return {TRANSFORMERS_CONFIG: repository.files[TRANSFORMERS_CONFIG]}
    last = name.rsplit("/", 1)[-1]
    if (Path(sources.__file__).parent / "text_configs" / last / TRANSFORMERS_CONFIG).is_file():
        return {}
    tower = look_up(name, "main")
    if TRANSFORMERS_CONFIG not in tower.files:
        raise ModelError(f"{repository.name}: its text tower {name} has no {TRANSFORMERS_CONFIG} on the hub")
    return {f"{last}/{TRANSFORMERS_CONFIG}": tower.files[TRANSFORMERS_CONFIG]}


def _read(file: RemoteFile, staging: Path) -> dict[str, Any]:
    path = download(file, staging)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file.path} of {file.repository} is no JSON: {one_line(error)}") from None
    return content if isinstance(content, dict) else {}


def _sha256(path: Path, file: RemoteFile) -> str:
    return file.digest if len(file.digest) == 64 else digest_file(path)


def _check_owner(folder: Path, source: Source | None, name: str) -> None:
    """Never write among other files: a second model's weights in a folder might be the ones that are loaded."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to={folder} is a file; name a folder")
    if source is not None and source.repository != name:
        raise ConfigError(f"--to={folder} holds {source.repository}; name another folder for {name}")
    if source is None and folder.is_dir() and not (folder / STAGING).is_dir():
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in _HARMLESS)
        if strangers:
            raise ConfigError(
                f"--to={folder} is not empty and was not filled by this command ({', '.join(strangers[:3])}...); "
                "name a new or an empty folder"
            )


def _check_space(files: Iterable[RemoteFile], folder: Path, staging: Path) -> None:
    needed = sum(file.size for file in files)
    needed -= sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SetupError(f"--to={folder}: {_size(needed)} are still needed and {_size(free)} are free")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """An OSError of writing ``folder`` in words. (What the hub's client raises is words already.)"""
    try:
        yield
    except OSError as error:
        raise SetupError(f"--to={folder} cannot be written: {one_line(error)}") from None


def _offline() -> bool:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in {"1", "true", "yes", "on"} for name in names)


def _complete(folder: Path, sums: Mapping[str, str]) -> str:
    size = sum((folder / name).stat().st_size for name in sums)
    source = read_source(folder)
    what = f"{source.repository} at {source.commit}" if source else "a model"
    return f"{folder} holds {what}: {len(sums)} files, {_size(size)}, every SHA-256 as in {SUMS}"


def _size(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
