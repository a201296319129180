"""What people read about the keys never differs from the table, and reading it costs no heavy import."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from heatlens.config import KEYS, build_parser, load_settings, parse_arguments, reference_markdown
from heatlens.config_help import key_table, resolved_lines
from heatlens.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "torchvision",
    "cv2",
    "pandas",
    "pyarrow",
    "transformers",
    "open_clip",
    "numpy",
    "PIL",
    "skimage",
)


def test_the_documentation_is_the_table() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == reference_markdown(), "run: heatlens config --reference > docs/configuration.md"


def test_the_stages_short_table_is_the_same() -> None:
    text = (ROOT / "Attention_Map" / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- keys: ([A-Z_ ]+) -->\n(.*?)<!-- end of keys -->\n", text, re.DOTALL)
    assert block
    assert block[2] == key_table(KEYS[name] for name in block[1].split())


def test_every_key_is_documented_once() -> None:
    names = re.findall(r"^\| `([A-Z_]+)` \|", reference_markdown(), re.MULTILINE)
    assert sorted(names) == sorted(KEYS)


def test_help_lists_every_key_with_default_range_and_help() -> None:
    text = " ".join(build_parser("attn_map").format_help().split())
    for key in KEYS.values():
        words = f"{key.help}. Default: {key.default or 'empty'}. Allowed: {key.allowed}"
        assert f"{key.flag} " in text
        # argparse breaks lines at hyphens, too
        assert words.replace(" ", "").replace("-", "") in text.replace(" ", "").replace("-", "")


def test_flags_are_the_keys_in_kebab_case() -> None:
    conf, flags = parse_arguments("attn_map", ["--config", "a b.conf", "--stop-after", "", "--alpha=0.3"])
    assert (conf, flags) == (Path("a b.conf"), {"STOP_AFTER": "", "ALPHA": "0.3"})
    assert parse_arguments("attn_map", []) == (None, {})
    switches = parse_arguments("attn_map", ["--retry-failed", "--save-raw-cam", "false", "--overwrite"])[1]
    assert switches == {"RETRY_FAILED": "true", "SAVE_RAW_CAM": "false", "OVERWRITE": "true"}
    every = [word for key in KEYS.values() for word in (key.flag, key.default)]
    assert parse_arguments("attn_map", every) == (None, {key.name: key.default for key in KEYS.values()})


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--stopafter", "5"], "unknown flag --stopafter; did you mean --stop-after?"),
        (["--STOP_AFTER=5"], "unknown flag --STOP_AFTER=5; did you mean --stop-after?"),
        (["--alph", "1"], "did you mean --alpha?"),
        (["exp.conf"], "'exp.conf' stands alone; give the .conf with --config"),
        (["STOP_AFTER=5"], "settings look like --key value"),
        (["--alpha"], "argument --alpha: expected one argument"),
    ],
)
def test_wrong_flags(argv: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        parse_arguments("attn_map", argv)


def test_resolved_settings_read_back_as_a_conf(tmp_path: Path) -> None:
    flags = {
        "PROMPT_TEMPLATE": 'it\'s\n"{question}" $(id)',
        "ALPHA": "0.125",
        "STOP_AFTER": "5",
        "SAMPLE": "1234567",
    }
    settings = load_settings(None, flags, {}, "attn_map")
    conf = tmp_path / "again.conf"
    conf.write_text("\n".join(resolved_lines(settings, KEYS)))
    again = load_settings(conf, {}, {"PATH": "/usr/bin:/bin"}, "attn_map")
    assert {name: getattr(again, name.lower()) for name in KEYS} == {
        name: getattr(settings, name.lower()) for name in KEYS
    }


@pytest.mark.parametrize(
    "code",
    [
        "import heatlens.config, heatlens.registry, heatlens.files, heatlens.keys, heatlens.conf_file",
        "import heatlens.cli; heatlens.cli.main(['--help'])",
        "import heatlens.cli; heatlens.cli.main(['config', '--reference'])",
        "import heatlens.cli; heatlens.cli.main(['list', 'methods'])",
        "import heatlens.stages.main, contextlib\nwith contextlib.suppress(SystemExit):\n"
        "    heatlens.stages.main.main('attn_map', ['--help'])",
    ],
)
def test_no_heavy_import(code: str) -> None:
    probe = f"{code}\nimport sys\nprint('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.splitlines()[-1] == "LOADED []"
