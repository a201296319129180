"""A .conf is sourced by bash once, and what it sets arrives as data, whatever it holds."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heatlens.conf_file import read_conf, read_plain
from heatlens.errors import ConfigError

KEYS = ("ALPHA", "MODEL", "PROMPT_TEMPLATE")
ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/home/someone"}

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")


def write(folder: Path, text: str | bytes, name: str = "exp.conf") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def values_of(folder: Path, text: str, environ: dict[str, str] | None = None) -> dict[str, str]:
    return read_conf(write(folder, text), {**ENVIRON, **(environ or {})}, KEYS, folder).values


def error_of(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read_conf(write(folder, text), ENVIRON, KEYS, folder)
    return str(caught.value)


HOSTILE = [
    "",
    " ",
    "a  b\t c ",
    "'; touch /tmp/heatlens-was-here; '",
    '"$(touch /tmp/heatlens-was-here)"',
    "`id`",
    "${HOME}",
    "line one\nALPHA=0.9\nline three\n",
    "after",
    "*",
    "~/x",
    "ünïcödé – 数 😀",
    "back\\slash\\n",
    "end",
    "!history",
]


@needs_bash
@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_arrive_unchanged(tmp_path: Path, value: str) -> None:
    assert values_of(tmp_path, f"PROMPT_TEMPLATE={shlex.quote(value)}\n") == {"PROMPT_TEMPLATE": value}
    assert not Path("/tmp/heatlens-was-here").exists()


@needs_bash
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_characters="\0\r", exclude_categories=("Cs",))), min_size=1, max_size=3))
def test_any_values_survive_sourcing(tmp_path: Path, values: list[str]) -> None:
    names = KEYS[: len(values)]
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in zip(names, values, strict=True))
    assert values_of(tmp_path, text) == dict(zip(names, values, strict=True))


@needs_bash
def test_shell_features_that_people_use(tmp_path: Path) -> None:
    text = 'data=${DATA:-/data}\nMODEL="$data/m"\nexport ALPHA=0.2 # why\nPROMPT_TEMPLATE="$HOME"\n'
    assert values_of(tmp_path, text) == {
        "MODEL": "/data/m",
        "ALPHA": "0.2",
        "PROMPT_TEMPLATE": "/home/someone",
    }
    assert values_of(tmp_path, text, {"DATA": "/big disk"})["MODEL"] == "/big disk/m"


@needs_bash
def test_the_callers_keys_are_hidden_from_the_file(tmp_path: Path) -> None:
    assert values_of(tmp_path, "ALPHA=${ALPHA:-0.3}\n", {"ALPHA": "0.9"}) == {"ALPHA": "0.3"}
    assert "unbound" in error_of(tmp_path, "MODEL=$ALPHA\n")


@needs_bash
def test_only_what_the_file_sets_is_handed_on(tmp_path: Path) -> None:
    caller = {"DATA": "/d", "COLUMNS": "80", "RANDOM_NAME": "x"}
    text = "ALPHA=1\nIFS=:\nfor i in 1 2; do :; done\n[[ abc =~ b ]]\nsleep 0\n: $RANDOM $SECONDS\ncd /\n"
    assert values_of(tmp_path, text, caller) == {"ALPHA": "1"}
    assert values_of(tmp_path, "DATA=/other\nHELPER=1\n", caller) == {"DATA": "/other", "HELPER": "1"}


@needs_bash
def test_noise_is_reported_and_never_parsed(tmp_path: Path) -> None:
    text = "printf 'end\\0after\\0ALPHA\\0 9\\0'\necho 'to stderr' >&2\nALPHA=0.1\necho hello\n"
    read = read_conf(write(tmp_path, text), ENVIRON, KEYS, tmp_path)
    assert read.values == {"ALPHA": "0.1"}
    assert any(note.endswith("says: hello") for note in read.notes)


@needs_bash
def test_functions_of_the_file_and_of_the_caller_change_nothing(tmp_path: Path) -> None:
    text = "printf() { echo no; }\ncompgen() { :; }\nALPHA=1\n"
    caller = {
        "BASH_FUNC_source%%": "() { echo hijacked; }",
        "BASH_ENV": str(write(tmp_path, "exit 3\n", "env")),
    }
    assert values_of(tmp_path, text, caller) == {"ALPHA": "1"}


@needs_bash
def test_lines_are_known_where_they_are_plain(tmp_path: Path) -> None:
    read = read_conf(write(tmp_path, "# c\nALPHA=1\n\nALPHA=2\n: ${MODEL:=demo}\n"), ENVIRON, KEYS, tmp_path)
    assert read.place("ALPHA") == f"{tmp_path}/exp.conf:4"
    assert read.place("MODEL") == f"{tmp_path}/exp.conf"


@needs_bash
def test_a_lower_case_key_is_noticed(tmp_path: Path) -> None:
    notes = read_conf(write(tmp_path, "alpha=0.7\n"), ENVIRON, KEYS, tmp_path).notes
    assert notes == (f"{tmp_path}/exp.conf: alpha is a helper variable; the key is ALPHA",)
    assert read_conf(write(tmp_path, "alpha=0.7\nALPHA=$alpha\n"), ENVIRON, KEYS, tmp_path).notes == ()


@needs_bash
@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("ALPHA=1\nif then\n", 2, "syntax error near unexpected token `then'"),
        ("ALPHA=1\n\nMODEL=$nope\n", 3, "nope: unbound variable"),
        ("ALPHA=1\nfalse\n", 2, "`false` failed with exit code 1"),
        ("MODEL=$(cat /nowhere)\n", 1, "cat: /nowhere: No such file or directory"),
        ("ALPHA=1\nALPHA = 2\n", 2, "without blanks around the ="),
        ("\nf() { false; }\nf\n", 2, "`false` failed"),
        ("MODEL=${where:?set it}\n", 1, "where: set it"),
        ("ALPHA=1\r\n", 1, "CR LF"),
        (b"\xef\xbb\xbfALPHA=1\n", 1, "byte order mark"),
    ],
)
def test_errors_name_file_line_and_reason(tmp_path: Path, text: str | bytes, line: int, reason: str) -> None:
    message = error_of(tmp_path, text)
    assert message.startswith(f"{tmp_path}/exp.conf:{line}: ")
    assert reason in message
    assert "\n" not in message


@needs_bash
def test_errors_without_a_line(tmp_path: Path) -> None:
    assert "ends the shell with exit code 0" in error_of(tmp_path, "ALPHA=1\nexit 0\n")
    assert "ALPHA is a bash array" in error_of(tmp_path, "ALPHA=(1 2)\n")
    assert "NUL" in error_of(tmp_path, b"ALPHA=\x001\n")
    with pytest.raises(ConfigError, match=r"no such \.conf file: .*none\.conf"):
        read_conf(tmp_path / "none.conf", ENVIRON, KEYS, tmp_path)


@needs_bash
def test_an_error_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path, "MODEL=demo\nfalse\n", "base.conf")
    assert error_of(tmp_path, f"source '{tmp_path}/base.conf'\n").startswith(f"{tmp_path}/base.conf:2: ")


def test_without_bash_plain_lines_are_read_and_the_rest_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "# c\nALPHA=0.5 # why\nexport MODEL='a $b'\nPROMPT_TEMPLATE=\"{question} #1\"\n\n")
    no_bash = {"PATH": str(tmp_path)}
    assert read_conf(path, no_bash, KEYS, tmp_path).values == {
        "ALPHA": "0.5",
        "MODEL": "a $b",
        "PROMPT_TEMPLATE": "{question} #1",
    }
    for line in (
        "ALPHA=$x",
        'ALPHA="$(id)"',
        "ALPHA=`id`",
        "if true; then",
        "ALPHA=a b",
        "ALPHA='x",
        "ALPHA=a;id",
    ):
        with pytest.raises(ConfigError, match=r"exp.conf:2: without bash"):
            read_conf(write(tmp_path, f"MODEL=demo\n{line}\n"), no_bash, KEYS, tmp_path)


@needs_bash
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("aA0=_ '\"$#/~.\\`;&|*{}[]()!<>,:%+-", max_size=12))
def test_what_the_small_reader_reads_is_what_bash_reads(tmp_path: Path, value: str) -> None:
    text = f"ALPHA={value}\n"
    try:
        plain = read_plain(tmp_path / "exp.conf", text)
    except ConfigError:
        return
    home = str(Path.home())
    assert values_of(tmp_path, text, {"HOME": home}) == plain
