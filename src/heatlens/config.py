"""How a run's settings come together: flags over the environment over the .conf over the defaults.

The keys themselves are in :mod:`heatlens.settings`. Wrong keys and values are reported together, each
with its origin and what is allowed.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from heatlens.conf_file import ConfFile, read_conf
from heatlens.config_help import KeyParser, nearest_key, parser_for, reference_for, shown
from heatlens.errors import ConfigError
from heatlens.keys import absolute
from heatlens.registry import DEMO_FOLDERS, find
from heatlens.settings import KEYS, Settings

__all__ = [
    "KEYS",
    "Settings",
    "build_parser",
    "check_paths",
    "load_settings",
    "parse_arguments",
    "reference_markdown",
    "repository_root",
    "settings_of",
    "split_stage",
]

STAGE_FOLDERS = {"attn_map": "Attention_Map", "bbox": "Bounding_Box"}


# Keys, with commas, that docker/run_stage.sh has put into a container's environment in its own right: the user's value,
# paths made absolute.
RESOLVED = "HEATLENS_RESOLVED"


@dataclass(frozen=True)
class _Given:
    """A key's text and where it comes from. ``rank``: 0 default, 1 .conf, 2 environment, 3 flag."""

    text: str
    rank: int
    origin: str
    place: str
    base: Path


def load_settings(conf: Path | None, flags: Mapping[str, str], environ: Mapping[str, str], stage: str) -> Settings:
    """The settings of a run of ``stage``: ``flags`` (KEY -> text) over ``environ`` over ``conf``.

    Raises ConfigError that lists every wrong key and value with its origin and what is allowed.
    """
    stage = find("stage", stage).name
    here = Path.cwd()
    conf = _conf_path(conf, here) if conf else None
    root = repository_root(conf) if conf else here
    file = read_conf(conf, environ, KEYS, root) if conf else None
    flags = {name.lstrip("-").replace("-", "_").upper(): text for name, text in flags.items()}
    given = _gather(flags, environ, file, root, here)
    problems = [_unknown(name, "flag") for name in flags if name not in KEYS]
    if file:
        problems += [_unknown(name, file.place(name)) for name in file.values if name not in KEYS]
    values = _read_values(given, problems)
    announcements = list(file.notes) if file else []
    announcements += [] if problems else _apply_blind(values, given, problems)
    _cross_check(values, given, problems)
    if problems:
        raise ConfigError(_report(problems))
    _fill_paths(values, conf, root, stage)
    announcements = _overrides(given, file) + announcements
    origins = {name: item.origin for name, item in given.items()}
    try:
        return Settings(
            **values, config=conf, root=root, stage=stage, origins=origins, announcements=tuple(announcements)
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}") from None


def _report(problems: list[str]) -> str:
    return "\n".join([f"{len(problems)} settings are wrong:", *problems] if len(problems) > 1 else problems)


def _conf_path(conf: Path, here: Path) -> Path:
    """Absolute, its folder's links resolved (a stage's configs/ is a link), the file's own link kept."""
    path = absolute(str(conf), here)
    return path.parent.resolve() / path.name


def repository_root(conf: Path) -> Path:
    """The folder with the nearest ``configs`` folder above ``conf``; without one, the .conf's own folder."""
    for folder in conf.parents:
        if folder.name == "configs":
            return folder.parent
    return conf.parent


def _gather(
    flags: Mapping[str, str], environ: Mapping[str, str], file: ConfFile | None, root: Path, here: Path
) -> dict[str, _Given]:
    given = {}
    resolved = environ.get(RESOLVED, "").split(",")
    for name, key in KEYS.items():
        if name in flags:
            given[name] = _Given(flags[name], 3, "flag", f"flag {key.flag}", here)
        elif name in environ:
            origin = "launcher" if name in resolved else "environment"
            given[name] = _Given(environ[name], 2, origin, origin, here)
        elif file and name in file.values:
            given[name] = _Given(file.values[name], 1, str(file.path), file.place(name), root)
        else:
            given[name] = _Given(key.default, 0, "default", "default", root)
    return given


def _unknown(name: str, place: str) -> str:
    hint = nearest_key(name, KEYS)
    helper = "" if place == "flag" else "; helper variables are written in lower case"
    guess = f", did you mean {hint}?" if hint else ""
    return f"{name} ({place}): unknown key{guess}{helper}; `heatlens config --reference` lists all keys"


def _read_values(given: Mapping[str, _Given], problems: list[str]) -> dict[str, Any]:
    values = {}
    for name, item in given.items():
        try:
            values[name.lower()] = KEYS[name].kind.read(item.text, item.base)
        except ValueError as error:
            problems.append(f"{name}={shown(item.text)} ({item.place}): {error}")
    return values


def _apply_blind(values: dict[str, Any], given: dict[str, _Given], problems: list[str]) -> list[str]:
    """BLIND=true sets PROMPT_TEMPLATE and REGIONS; one that differs and is set as strongly is a conflict."""
    if not values["blind"]:
        return []
    announcements = []
    blind = given["BLIND"]
    for name, wanted in (("PROMPT_TEMPLATE", "{question}"), ("REGIONS", "joint")):
        other = given[name]
        if other.rank and values[name.lower()] != wanted:
            found = f"{name}={shown(other.text)} ({other.place})"
            clash = f"BLIND=true ({blind.place}) means {name}={wanted}, but {found}"
            if other.rank >= blind.rank:
                problems.append(f"{clash}; leave one of the two out")
                continue
            announcements.append(f"{clash} is overridden")
        values[name.lower()] = wanted
        given[name] = blind
    return announcements


def _cross_check(values: Mapping[str, Any], given: Mapping[str, _Given], problems: list[str]) -> None:
    shards, index = values.get("num_shards"), values.get("shard_index")
    if shards is not None and index is not None and index >= shards:
        place = given["SHARD_INDEX"].place
        problems.append(f"SHARD_INDEX={index} ({place}): allowed: 0 to {shards - 1}, as NUM_SHARDS={shards}")


def _fill_paths(values: dict[str, Any], conf: Path | None, root: Path, stage: str) -> None:
    """The defaults that depend on where the .conf lies."""
    if values["dataset_path"] is None and values["dataset"] in DEMO_FOLDERS:
        values["dataset_path"] = root / ".demo" / DEMO_FOLDERS[values["dataset"]]
    if values["results_dir"] is None:
        values["results_dir"] = root / STAGE_FOLDERS.get(stage, stage) / "results" / _experiment(conf, root)


def _experiment(conf: Path | None, root: Path) -> Path:
    if conf is None:
        return Path("command_line")
    configs = root / "configs"
    inside = conf.relative_to(configs) if conf.is_relative_to(configs) else Path(conf.name)
    return inside.with_suffix("")


def _overrides(given: Mapping[str, _Given], file: ConfFile | None) -> list[str]:
    """One line for each environment variable that has a say: such a variable may be there by accident."""
    lines = []
    for name, item in given.items():
        if item.origin == "environment":
            old = file.values.get(name) if file else None
            if file is None or old is None:
                lines.append(f"{name}={shown(item.text)} comes from the environment")
            elif old != item.text:
                lines.append(f"{name}={shown(item.text)} from the environment overrides {shown(old)} of {file.path}")
    return lines


def check_paths(settings: Settings) -> None:
    """Whether the data set and the images are there; for the runner, before any model is loaded.

    Raises ConfigError that names each missing path and the key that holds it.
    """
    problems = []
    path, root = settings.dataset_path, settings.image_root
    if path is None:
        problems.append("DATASET_PATH is not set: give the data set's file, folder or glob")
    elif settings.dataset not in DEMO_FOLDERS and not _exists(path):
        problems.append(f"DATASET_PATH={path} ({settings.origins.get('DATASET_PATH')}): no such file or folder")
    if root is not None and not root.is_dir():
        problems.append(f"IMAGE_ROOT={root} ({settings.origins.get('IMAGE_ROOT')}): no such folder")
    if problems:
        raise ConfigError(_report(problems))


def _exists(path: Path) -> bool:
    """Whether the path is there, or a glob fits anything (a name with [brackets] is both)."""
    return path.exists() or any(glob.iglob(str(path), recursive=True))  # noqa: PTH207 - the pattern is absolute


def build_parser(stage: str) -> KeyParser:
    """The command line of a stage: ``--config FILE.conf`` and one flag per key; ``--help`` lists them all."""
    return parser_for(stage, KEYS)


def settings_of(argv: list[str]) -> Settings:
    """The settings that a command about any stage is called with: ``[CONF] [--stage STAGE] [--key value ...]``.

    Raises ConfigError as :func:`load_settings`.
    """
    stage, argv = split_stage(argv)
    return load_settings(*parse_arguments(stage, argv), os.environ, stage)


def split_stage(argv: list[str]) -> tuple[str, list[str]]:
    """For commands about any stage: the stage that ``--stage`` names (attn_map without), and what
    :func:`parse_arguments` takes; a .conf may stand at the head without ``--config``."""
    stage = "attn_map"
    if "--stage" in argv:
        at = argv.index("--stage")
        stage = next(iter(argv[at + 1 : at + 2]), "")
        argv = argv[:at] + argv[at + 2 :]
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    return stage, argv


def parse_arguments(stage: str, argv: list[str]) -> tuple[Path | None, dict[str, str]]:
    """What :func:`load_settings` takes, from a stage's arguments. ConfigError for a wrong flag."""
    return build_parser(stage).split(argv)


def reference_markdown() -> str:
    """The whole of docs/configuration.md."""
    return reference_for(KEYS)
