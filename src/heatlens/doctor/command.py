"""The command line of ``heatlens doctor``: which checks run, and how they are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from heatlens.config import settings_of
from heatlens.config_help import KeyParser
from heatlens.doctor.findings import PROBLEM, WARNING, Finding, guarded
from heatlens.errors import EXIT_ENVIRONMENT, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from heatlens.config import Settings

USAGE = """\
usage: heatlens doctor [--config FILE.conf] [--key value ...] [--model [NAME]] [--json]

Is everything here that a run needs? One line per check: ok, warning or problem, with what to do. Nothing is left
behind and nothing is fetched.

  --model          load MODEL of the settings and prove it: files and digests, logit scale, gradient at the target
                   layer, and that words, prompts and films make a difference (on a GPU seconds, on a CPU minutes)
  --model NAME     the same for another model
  --json           print one JSON object

Every key of `heatlens run STAGE --help` works as a flag, in the environment and in the .conf.

Exit codes: 0 no problem (warnings do not count), 2 wrong settings, 4 a problem."""

Check = tuple[str, "Callable[[Settings], Iterable[Finding]]"]


@dataclass(frozen=True)
class Options:
    """What is not a key. ``prove``: load the model."""

    prove: bool
    as_json: bool


def main(argv: list[str]) -> int:
    """``heatlens doctor ...``; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return EXIT_OK
    options, rest = read_options(argv)
    settings = settings_of(rest)
    found = []
    for finding in examine(settings, prove=options.prove):
        found.append(finding)
        if not options.as_json:
            print(finding, flush=True)
    if options.as_json:
        print(json.dumps(summary(found), indent=1))
    else:
        print(f"\n{counted(found)}")
    return EXIT_ENVIRONMENT if _count(found, PROBLEM) else EXIT_OK


def read_options(argv: list[str]) -> tuple[Options, list[str]]:
    """The command's own options, and the arguments that are settings (``--model NAME`` among them)."""
    parser = KeyParser(prog="heatlens doctor", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", nargs="?", const="", default=None)
    parser.add_argument("--json", action="store_true")
    found, rest = parser.parse_known_args(argv)
    if found.model and found.model.endswith(".conf"):
        raise ConfigError(f"--model {found.model}: give the .conf with --config, before or after --model")
    return Options(found.model is not None, found.json), [*rest, *(["--model", found.model] if found.model else [])]


def examine(settings: Settings, *, prove: bool) -> Iterator[Finding]:
    """All findings, as they are made. ``prove``: load the model, too."""
    for name, check in _checks(prove):
        yield from guarded(name, partial(check, settings))


def _checks(prove: bool) -> list[Check]:
    """Imported here: a wrong setting must not wait for anything."""
    from heatlens.doctor import data, gpu, machine, proof, storage

    return [
        ("Python", machine.packages),
        ("OpenCV", machine.opencv),
        ("dense CRF", machine.dense_crf),
        ("processor", machine.processor),
        ("memory", machine.memory),
        ("bash", machine.bash),
        ("container", machine.containers),
        ("Slurm", machine.slurm),
        ("GPU", gpu.gpu),
        ("results folder", storage.results),
        ("file rights", storage.rights),
        ("data set", data.dataset),
        ("network", data.network),
        ("model", proof.prove if prove else data.weights),
    ]


def summary(found: list[Finding]) -> dict[str, object]:
    """What --json prints."""
    return {"passed": not _count(found, PROBLEM), "checks": [asdict(finding) for finding in found]}


def counted(found: list[Finding]) -> str:
    """The last line: how many problems and warnings there are."""
    problems, warnings = _count(found, PROBLEM), _count(found, WARNING)
    return f"{_number(problems, 'problem')}, {_number(warnings, 'warning')}"


def _count(found: list[Finding], state: str) -> int:
    return sum(finding.state == state for finding in found)


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
