"""``heatlens submit``: checks the settings, then hands the same words to the checkout's ``slurm/submit.sh``.

The sbatch lines are made in one place, the shell script: it works where there is no Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from heatlens.config import STAGE_FOLDERS, load_settings, parse_arguments, repository_root, split_stage
from heatlens.errors import EXIT_OK, ConfigError, SetupError
from heatlens.keys import absolute

SCRIPT = Path("slurm/submit.sh")
DEFAULT_CONF = "configs/gemex/exp_01_vqa.conf"
OWN_CHECKOUT = Path(__file__).resolve().parents[3]

USAGE = f"""\
usage: heatlens submit [CONF] [--stage STAGE] [--shards N [--at-once M]] [--dry-run] [--parsable] [--key value ...]
                       [-- sbatch options]

Send a run to Slurm, after a look at its settings, data and image.

  --stage STAGE     attn_map (default) or bbox
  --shards N        an array of N jobs, each with its part of the images, and a merge job behind them
  --at-once M       at most M of them run at the same time
  --dry-run         check and print the sbatch lines, submit nothing
  --parsable        print nothing but the last job's ID[;CLUSTER]
  sbatch options    beat SBATCH_OPTIONS of slurm/site.conf, which beat the stage's submit script

Every key of `heatlens run STAGE --help` works as a flag, in the environment and in CONF (default: {DEFAULT_CONF}).
It is `bash slurm/submit.sh STAGE CONF ...` of the checkout that CONF belongs to, or else of this program's.

Exit codes: 0 submitted, 2 wrong settings or missing files, 4 no sbatch here, or it refuses."""

_VALUED = ("--shards", "--at-once")
_SWITCHES = ("--dry-run", "--parsable")


@dataclass(frozen=True)
class Words:
    """The command line, taken apart. ``own``: options of the script; ``flags``: settings; ``extra``: from ``--`` on."""

    stage: str
    conf: str
    own: list[str]
    flags: list[str]
    extra: list[str]


def main(argv: list[str]) -> int:
    """``heatlens submit ...``; returns the exit code."""
    head = argv[: argv.index("--")] if "--" in argv else argv
    if "-h" in head or "--help" in head:
        print(USAGE)
        return EXIT_OK
    words = read_words(argv)
    conf = find_conf(words.conf, STAGE_FOLDERS.get(words.stage, words.stage))
    # Here, because a misspelt key would otherwise be told by a job that waited for its GPU.
    _, flags = parse_arguments(words.stage, words.flags)
    for line in load_settings(conf, flags, os.environ, words.stage).announcements:
        print(f"note: {line}", file=sys.stderr)
    command = ["bash", str(find_script(conf)), words.stage, str(conf), *words.own, *words.flags, *words.extra]
    sys.stdout.flush()
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise SetupError("there is no bash on this machine, and so no Slurm either") from None


def read_words(argv: list[str]) -> Words:
    """``argv`` in its parts. ConfigError for a second .conf."""
    at = argv.index("--") if "--" in argv else len(argv)
    stage, rest = split_stage(argv[:at])
    own, flags, conf = [], [], DEFAULT_CONF
    words = iter(rest)
    for word in words:
        if word == "--config":
            conf = next(words, "")
        elif word.startswith("--config="):
            conf = word.partition("=")[2]
        elif word in _VALUED:
            own += [word, *[value for value in [next(words, None)] if value is not None]]
        elif word in _SWITCHES or word.partition("=")[0] in _VALUED:
            own.append(word)
        else:
            flags.append(word)
    return Words(stage, conf, own, flags, argv[at:])


def find_conf(name: str, stage_folder: str) -> Path:
    """The .conf that ``name`` means: from the current folder, or in this program's own checkout."""
    folders = [Path.cwd(), OWN_CHECKOUT / stage_folder, OWN_CHECKOUT]
    tried = list(dict.fromkeys(absolute(name, folder) for folder in folders))
    for path in tried:
        if path.is_file():
            return path.parent.resolve() / path.name
    raise ConfigError("\n  ".join([f"no such .conf file: {name}. Looked for:", *map(str, tried)]))


def find_script(conf: Path) -> Path:
    """``slurm/submit.sh`` of the checkout that ``conf`` lies in, or else of the one that this program runs from."""
    tried = [root / SCRIPT for root in (repository_root(conf), OWN_CHECKOUT)]
    for path in tried:
        if path.is_file():
            return path
    raise SetupError(
        f"no {SCRIPT} in {' or in '.join(str(path.parents[1]) for path in tried)}: "
        "jobs are submitted from a checkout of the repository"
    )
