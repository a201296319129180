"""Reading a .conf: bash sources it once in a child shell and hands the variables back as data.

Nothing is evaluated twice: the child writes names and values with NUL bytes between them to a file
descriptor of its own, so a value may hold line breaks, quotes and ``$()``, and whatever the .conf prints
cannot be taken for a value. On a machine without bash a small reader takes plain ``KEY=value`` lines and
refuses everything else.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from heatlens.errors import ConfigError

TIME_LIMIT_S = 60
NAME = re.compile(r"[A-Z][A-Z0-9_]*")

# Variables that bash itself sets or changes while a file is read. They are never settings.
SHELL_OWN = frozenset(
    """
    COLUMNS COPROC DIRSTACK EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME GROUPS HISTCMD IFS LINENO LINES
    MAILCHECK MAPFILE OLDPWD OPTARG OPTERR OPTIND PIPESTATUS PPID PS1 PS2 PS3 PS4 PWD RANDOM REPLY SECONDS
    SHELLOPTS SHLVL SRANDOM UID
    """.split()  # noqa: SIM905 - thirty words in three lines
)
# These would run code before the .conf, or switch the child shell's rules.
SHELL_SWITCHES = frozenset({"BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "POSIXLY_CORRECT", "CDPATH"})

# $1 the .conf, $2 the descriptor for the answer. `builtin` keeps functions of the .conf out of the way.
SCRIPT = r"""
readonly heatlens_answer=$2
heatlens_dump() {
    builtin local heatlens_name
    for heatlens_name in $(builtin compgen -A variable); do
        if [[ $heatlens_name == [A-Za-z]* && -n ${!heatlens_name+set} ]]; then
            builtin printf '%s\0%s\0%s\0' "$1" "$heatlens_name" "${!heatlens_name}" >&"$heatlens_answer"
        fi
    done
}
heatlens_dump before
set -eEu
heatlens_failed() { builtin printf 'failed\0%s\0%s\0%s\0' "$@" >&"$heatlens_answer"; }
trap 'heatlens_failed "${BASH_SOURCE[0]-}" "$LINENO" "$BASH_COMMAND"' ERR
source "$1"
trap - ERR EXIT
set +eEux
IFS=$' \t\n'
heatlens_dump after
for heatlens_name in $(builtin compgen -A arrayvar); do
    builtin printf 'array\0%s\0' "$heatlens_name" >&"$heatlens_answer"
done
builtin printf 'end\0' >&"$heatlens_answer"
exit 0
"""
RECORD_FIELDS = {"before": 2, "after": 2, "failed": 3, "array": 1, "end": 0}


@dataclass(frozen=True)
class ConfFile:
    """What a .conf sets: upper-case variables with their values, and the line of each where it is plain."""

    path: Path
    values: dict[str, str]
    lines: dict[str, int]
    notes: tuple[str, ...] = ()

    def place(self, key: str) -> str:
        """``file:line`` of a key, or the file alone."""
        return f"{self.path}:{self.lines[key]}" if key in self.lines else str(self.path)


def read_conf(path: Path, environ: Mapping[str, str], keys: Collection[str], folder: Path) -> ConfFile:
    """Read ``path``. ``keys`` are hidden from the child's environment, ``folder`` is where it runs.

    Raises ConfigError with file and line for anything that goes wrong in the file.
    """
    text = _read_text(path)
    bash = shutil.which("bash", path=environ.get("PATH", os.defpath))
    values, notes = _source(bash, path, environ, keys, folder) if bash else (read_plain(path, text), ())
    upper = {name: value for name, value in values.items() if NAME.fullmatch(name)}
    lower = [name for name in values if name not in upper and name.upper() in set(keys).difference(upper)]
    notes += tuple(f"{path}: {name} is a helper variable; the key is {name.upper()}" for name in lower)
    return ConfFile(path, upper, _lines_of(text, upper), notes)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"no such .conf file: {path}") from None
    except OSError as error:
        raise ConfigError(f"the .conf file {path} cannot be read: {error.strerror}") from None
    if b"\0" in data:
        raise ConfigError(f"{path} is not a text file (it holds NUL bytes)")
    if data.startswith(b"\xef\xbb\xbf"):
        raise ConfigError(f"{path}:1: the file starts with a byte order mark; save it as UTF-8 without BOM")
    if b"\r\n" in data:
        line = data[: data.index(b"\r\n")].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: the line ends in CR LF (Windows); save the file with LF line ends")
    return data.decode("utf-8", "surrogateescape")


def _lines_of(text: str, names: Collection[str]) -> dict[str, int]:
    """Line number of the last plain assignment of each name."""
    assignment = re.compile(r"\s*(?:export\s+|readonly\s+|declare\s+(?:-\w+\s+)*)?([A-Z][A-Z0-9_]*)=")
    found = {}
    for number, line in enumerate(text.split("\n"), start=1):
        match = assignment.match(line)
        if match and match[1] in names:
            found[match[1]] = number
    return found


def _source(
    bash: str, path: Path, environ: Mapping[str, str], keys: Collection[str], folder: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    hidden = SHELL_SWITCHES.union(keys)
    child = {
        name: value
        for name, value in environ.items()
        if name not in hidden and not name.startswith("BASH_FUNC_")  # exported functions
    }
    # Files, not pipes: a process that the .conf leaves behind cannot keep the reader waiting.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as noise:
        arguments = [os.path.abspath(path), str(answer.fileno())]  # noqa: PTH100 - keeps links
        command = [bash, "--noprofile", "--norc", "-c", SCRIPT, "heatlens", *arguments]
        try:
            code = subprocess.run(
                command, env=child, cwd=folder, stdin=subprocess.DEVNULL, stdout=noise, stderr=noise,
                pass_fds=(answer.fileno(),), timeout=TIME_LIMIT_S, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{path}: bash read it for more than {TIME_LIMIT_S} s; does it wait?") from None
        answer.seek(0)
        noise.seek(0)
        records = _records(answer.read())
        said = [line for line in os.fsdecode(noise.read()).split("\n") if line.strip()]
    if not any(record[0] == "end" for record in records):
        raise ConfigError(_failure(path, code, records, said))
    _refuse_arrays(path, records, keys)
    before = {record[1]: record[2] for record in records if record[0] == "before"}
    after = {record[1]: record[2] for record in records if record[0] == "after"}
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    changed = {name: value for name, value in changed.items() if not _of_the_shell(name)}
    return changed, tuple(f"{path} says: {line}" for line in said[:5])


def _of_the_shell(name: str) -> bool:
    return name in SHELL_OWN or name.startswith(("BASH", "COMP_", "heatlens_"))


def _records(data: bytes) -> list[list[str]]:
    fields = [os.fsdecode(field) for field in data.split(b"\0")]
    records, at = [], 0
    while at < len(fields) and fields[at] in RECORD_FIELDS:
        end = at + 1 + RECORD_FIELDS[fields[at]]
        records.append(fields[at:end])
        at = end
    return records


def _refuse_arrays(path: Path, records: list[list[str]], keys: Collection[str]) -> None:
    for record in records:
        if record[0] == "array" and record[1] in keys:
            raise ConfigError(f"{path}: {record[1]} is a bash array; write one value, quoted if it has blanks")


def _failure(path: Path, code: int, records: list[list[str]], said: list[str]) -> str:
    """Why the file could not be read: bash's own message with its line, else the command that failed."""
    shell_message = re.compile(r"(.+?): \S+ (\d+): (.*)")  # "FILE: line 3: text", in any language
    failed = [record for record in records if record[0] == "failed"]
    own = [match for line in said if (match := shell_message.fullmatch(line))]
    if failed and failed[-1][1]:
        _, file, line, command = failed[-1]
        reason = f"`{command}` failed with exit code {code}"
        details = [text for text in said[-1:] if not text.startswith(f"{file}: ")]
        details += [match[3] for match in own[-1:] if match[1] == file and match[2] == line]
        hint = "; write KEY=value without blanks around the =" if re.match(r"\w+ += ?", command) else ""
        return f"{file}:{line}: {reason}{': ' + details[0] if details else ''}{hint}"
    if own:
        return f"{own[-1][1]}:{own[-1][2]}: {own[-1][3]}"
    message = f": {said[-1]}" if said else ""
    return f"{path}: the file ends the shell with exit code {code}; a .conf only sets variables{message}"


def read_plain(path: Path, text: str) -> dict[str, str]:
    """``KEY=value`` lines without a shell: quotes and comments, no expansion. Refuses what it cannot read."""
    bare = r"(?:~(?=/|$|\s))?[\w./:@%+,=-]*"
    line_form = re.compile(
        rf"""\s*(?:export\s+)?([A-Za-z_]\w*)=('[^']*'|"[^"$`\\]*"|{bare})(?:\s+\#.*|\s*)""", re.ASCII
    )
    values = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = line_form.fullmatch(line)
        if not match:
            raise ConfigError(
                f"{path}:{number}: without bash on this machine only plain KEY=value lines can be read "
                f"(quotes and comments, no $ and no commands): {line.strip()}"
            )
        values[match[1]] = _unquoted(match[2])
    return values


def _unquoted(word: str) -> str:
    if word[:1] in ("'", '"'):
        return word[1:-1]
    return os.path.expanduser(word) if word.startswith("~") else word  # noqa: PTH111 - text, not a path yet
