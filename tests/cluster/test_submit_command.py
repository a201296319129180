"""``heatlens submit``: settings are checked here, the sbatch lines are the shell's, words pass unchanged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from heatlens.cli import COMMANDS, main
from heatlens.cluster import submit
from heatlens.cluster.submit import Words, read_words
from heatlens.errors import ConfigError
from tests.cluster.submit_stubs import Checkout, make_checkout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    made = make_checkout(tmp_path, "a check $(touch gone)")
    monkeypatch.chdir(made.here)
    for name, value in made.environ(PATH=f"{made.bin}:{os.environ['PATH']}").items():
        monkeypatch.setenv(name, value)
    return made


def test_the_same_jobs_as_the_shell(checkout: Checkout, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--shards", "2", "--prompt-template", "it's {question}\n$(touch gone)", "--stop-after", ""]
    options = ["--", "--comment=a 'b'", "-", ""]
    assert main(["submit", str(checkout.conf), *words, *options]) == 0
    seen = capfd.readouterr()
    calls = checkout.calls()
    done = checkout.run("submit.sh", "attn_map", checkout.conf, *words, *options, PATH=os.environ["PATH"])
    assert (done.stdout, done.stderr) == (seen.out, seen.err)
    assert [call.argv for call in checkout.calls()] == [call.argv for call in calls]
    assert len(calls) == 2
    assert words[3] in calls[0].argv


def test_parsable_and_dry_run(checkout: Checkout, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(checkout.conf), "--parsable", "--shards=2"]) == 0
    assert capfd.readouterr().out == "1002\n"
    checkout.calls()
    assert main(["submit", "--config", str(checkout.conf), "--dry-run"]) == 0
    assert "sbatch --parsable" in capfd.readouterr().out
    assert checkout.calls() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stop-aftr", "5"], "did you mean --stop-after?"),
        (["--alpha", "2"], "ALPHA=2 (flag --alpha): allowed: 0 to 1"),
        (["other.conf"], "'other.conf' stands alone"),
        (["--stage", "no_such"], "no_such"),
    ],
)
def test_wrong_settings_are_found_before_anything_is_queued(
    checkout: Checkout, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["submit", str(checkout.conf), *words]) == 2
    assert said in capfd.readouterr().err
    assert (checkout.calls(), checkout.checked()) == ([], None)


@pytest.mark.parametrize("code", [2, 4])
def test_exit_codes_of_the_script_pass(checkout: Checkout, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setenv("CHECK_EXIT", str(code))
    assert main(["submit", str(checkout.conf)]) == code


def test_the_environment_that_has_a_say_is_announced(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STOP_AFTER", "7")
    assert main(["submit", str(checkout.conf), "--parsable"]) == 0
    out, err = capfd.readouterr()
    assert out == "1001\n"
    assert "STOP_AFTER" in err


def test_a_conf_outside_any_checkout_goes_to_the_programs_own(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "OWN_CHECKOUT", checkout.root)
    (checkout.here / "mine.conf").write_text("DATASET=phantom\nMODEL=demo\n")
    assert main(["submit", "mine.conf"]) == 0
    (call,) = checkout.calls()
    assert call.argv[-1] == str(checkout.here / "mine.conf")
    assert call.folder == checkout.stage
    assert main(["submit", "configs/demo/exp.conf"]) == 0  # found in the program's own checkout
    assert checkout.calls()[0].argv[-1] == str(checkout.conf)
    monkeypatch.setattr(submit, "OWN_CHECKOUT", tmp_path)
    assert main(["submit", "mine.conf"]) == 4


def test_a_missing_conf_names_the_places(checkout: Checkout, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "no such.conf"]) == 2
    said = capfd.readouterr().err
    assert f"  {checkout.here}/no such.conf\n" in said
    assert f"  {submit.OWN_CHECKOUT}/Attention_Map/no such.conf\n" in said


def test_the_words_in_their_parts() -> None:
    assert read_words([]) == Words("attn_map", submit.DEFAULT_CONF, [], [], [])
    argv = ["a.conf", "--shards=2", "--alpha", "1", "--at-once", "3", "--stage", "bbox", "--", "--config", "x", "--"]
    assert read_words(argv) == Words(
        "bbox", "a.conf", ["--shards=2", "--at-once", "3"], ["--alpha", "1"], ["--", "--config", "x", "--"]
    )
    with pytest.raises(ConfigError):
        main_without_guard = submit.main
        main_without_guard(["no such.conf", "--shards"])


def test_help_names_what_the_command_list_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--shards", "--at-once", "--dry-run", "--parsable", "--stage", "sbatch options"):
        assert option in text
    assert COMMANDS["submit"].load() is submit.main
