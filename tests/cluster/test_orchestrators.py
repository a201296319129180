"""docs/examples: what they call and name is what there is; the Snakefile runs where Snakemake is installed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from heatlens import errors
from heatlens.batch.run_record import RUN_RECORD
from heatlens.batch.tables import MANIFEST
from heatlens.config import parse_arguments
from tests.cluster.submit_stubs import ROOT, write_program

EXAMPLES = ROOT / "docs" / "examples"
SNAKEFILE, NEXTFLOW = EXAMPLES / "Snakefile", EXAMPLES / "main.nf"
PAGE = ROOT / "docs" / "orchestrators.md"

# Stopped twice with exit code 75 and a picture each, done at the third call.
STAGE = r"""#!/usr/bin/env bash
[[ $2 == --results-dir ]] || exit 2
mkdir -p "$3/files"
printf '%s\0' "$@" >"$CALLED"
count=$(ls "$3/files" | wc -l)
: >"$3/files/$count.png"
printf 'image_path,question,answer\n' >"$3/vqa_manifest.csv"
((count == 2)) || exit 75
"""


def stage_commands(path: Path) -> list[list[str]]:
    """The words of every line that calls a stage's script, without the quotes around a Snakemake string."""
    lines = re.findall(r"^\s*\"?(bash \S*submit_\w+\.sh.*?)\"?$", path.read_text(), flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("path", [SNAKEFILE, NEXTFLOW], ids=lambda path: path.name)
def test_the_stage_is_called_with_flags_that_it_has(path: Path) -> None:
    ((_, script, conf, *flags),) = stage_commands(path)
    inside = script.replace("${params.repository}/", "")
    assert (ROOT / inside).is_file()
    assert re.fullmatch(r"\{input:q\}|\$\{conf\}", conf)
    assert set(parse_arguments("attn_map", ["--config", conf, *flags])[1]) == {"RESULTS_DIR"}


@pytest.mark.parametrize("path", [SNAKEFILE, NEXTFLOW], ids=lambda path: path.name)
def test_files_that_the_examples_name_exist_or_are_written(path: Path) -> None:
    text = path.read_text()
    for conf in re.findall(r"configs/[\w/]+\.conf", text):
        assert (ROOT / conf).is_file()
    assert set(re.findall(r"\w+\.csv", text)) == {MANIFEST}
    (default,) = set(re.findall(r"Attention_Map/results/[\w/]+", text))
    assert default == "Attention_Map/results/" + re.findall(r"configs/(demo/\w+)\.conf", text)[0]


def rules(text: str) -> dict[str, dict[str, str]]:
    """Rule -> its parts (input, output, shell, ...) as text."""
    found = {}
    for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", text, flags=re.MULTILINE):
        parts = re.findall(r"^    (\w+):(.*(?:\n        .*)*)", body, flags=re.MULTILINE)
        found[name] = {part: " ".join(value.split()) for part, value in parts}
    return found


def test_the_snakefile_declares_the_manifest_alone() -> None:
    parts = rules(SNAKEFILE.read_text())
    assert parts["heat_maps"]["output"] == "MANIFEST,"
    assert parts["vqa"]["input"] == "MANIFEST,"
    assert parts["heat_maps"]["retries"].startswith("3")
    code = re.sub(r"#.*", "", SNAKEFILE.read_text())
    assert not re.search(r"\b(directory|temp|touch|glob_wildcards)\(", code)


def test_the_snakefile_runs_and_keeps_pictures_over_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snakemake = shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("Snakemake is not installed")
    write_program(tmp_path / "Attention_Map" / "submit_heatmap_gen.sh", STAGE)
    (tmp_path / "it's a.conf").touch()
    monkeypatch.setenv("CALLED", str(tmp_path / "called"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["--cores", "1", "--quiet", "all", "--config", "conf=it's a.conf", "results=the results"]
    done = subprocess.run(
        [snakemake, "-s", str(SNAKEFILE), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text().split("\0")[:-1] == ["it's a.conf", "--results-dir", "the results"]
    assert len(list((tmp_path / "the results" / "files").iterdir())) == 3
    assert (tmp_path / "the results-answers.txt").read_text().split() == ["1"]


def test_main_nf_is_whole() -> None:
    """Brackets close, every process is called once with as many arguments as it has inputs, outputs are used."""
    text = NEXTFLOW.read_text()
    code = re.sub(r"(?m)^\s*//.*$", "", text)
    assert code.count('"""') % 2 == 0
    for left, right in ("{}", "()"):
        assert code.count(left) == code.count(right)
    processes = dict(re.findall(r"(?ms)^process (\w+) \{\n(.*?)^\}", code))
    workflow = re.findall(r"(?ms)^workflow \{\n(.*?)^\}", code)[0]
    for name, body in processes.items():
        inputs = re.findall(r"^\s+(?:val|path) ", body.partition("input:")[2].partition("output:")[0], re.MULTILINE)
        (call,) = re.findall(rf"^\s+{name}\((.*)\)$", workflow, re.MULTILINE)
        assert len(inputs) == len(call.split(", "))
        (output,) = re.findall(r"output:\s+path '([^']+)'", body)
        assert output in body.partition('"""')[2]
    assert set(re.findall(r"(\w+)\.out", workflow)) <= set(processes)
    named = set(re.findall(r"params\.(\w+)", code))
    assert named == set(re.findall(r"^params\.(\w+) =", code, re.MULTILINE))
    assert f"task.exitStatus == {errors.EXIT_STOPPED} ? 'retry'" in code


def test_the_page_has_the_exit_codes_and_names_of_the_program() -> None:
    text = PAGE.read_text()
    rows = re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)
    codes = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    assert sorted(map(int, rows)) == sorted(codes)
    assert f"`{MANIFEST}`" in text
    assert f"`{RUN_RECORD}`" in text
    for script in re.findall(r"bash (\S+\.sh)", text):
        assert (ROOT / script).is_file()
