"""heatlens fetch-model against a small stand-in of the hub: complete or not there, never something in between."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from heatlens.cluster import fetch as fetching
from heatlens.cluster.fetch import STAGING, fetch, main, verify
from heatlens.cluster.model_folder import SOURCE, SUMS, faults
from heatlens.errors import ConfigError, ModelError, SetupError
from tests.cluster.hub_standin import COMMIT, Hub, running

NAME = "people/demo-clip"
WEIGHTS = "open_clip_model.safetensors"
DEMO = Path(fetching.sources.__file__).parent.parent / "phantom" / "weights"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The demo model as a repository, with files that nobody needs."""
    content = {path.name: path.read_bytes() for path in DEMO.iterdir()}
    content |= {"README.md": b"# demo", "open_clip_pytorch_model.bin": b"the same weights again", "film.svg": b"<svg/>"}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # the client waits before it tries again
    with running(Hub({NAME: content})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def content_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


NEEDED = {"config.json", "open_clip_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "vocab.txt"}


def test_a_fetched_folder_has_the_needed_files_and_loads_without_network(hub, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "models" / "demo"
    assert main([NAME, "--to", str(folder)]) == 0
    assert content_of(folder) == NEEDED | {SUMS, SOURCE}
    assert "6 files" in capsys.readouterr().out
    assert json.loads((folder / SOURCE).read_text()) == {"repository": NAME, "commit": COMMIT, "revision": "main"}
    shutil.move(folder, tmp_path / "moved")

    def refuse(*_):
        raise AssertionError("loading reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    from heatlens.models.loading import load_clip

    adapter, demo = load_clip(str(tmp_path / "moved")), load_clip("demo")
    assert adapter.identity()["weights_sha256"] == demo.identity()["weights_sha256"]
    assert adapter.target("nodule").text.equal(demo.target("nodule").text)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils only")
def test_sha256sum_reads_the_sums(hub, tmp_path):
    fetch(NAME, "main", tmp_path / "m")
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path / "m", check=True, capture_output=True)


def test_the_demo_by_its_safetensors_and_without_them_by_the_other_file(hub, tmp_path):
    files = hub.repositories[NAME]
    files["open_clip_pytorch_model.bin"] = b"not looked into" * 10_000
    del files[WEIGHTS]
    fetch(NAME, "main", tmp_path / "m")
    assert content_of(tmp_path / "m") == NEEDED - {WEIGHTS} | {"open_clip_pytorch_model.bin", SUMS, SOURCE}


def test_a_second_call_checks_and_fetches_nothing(hub, tmp_path, capsys):
    fetch(NAME, "main", tmp_path / "m")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").iterdir() if path.name in NEEDED}
    hub.requests.clear()
    fetch(NAME, "main", tmp_path / "m")
    assert [path for _, path, _ in hub.requests if "api" not in path and "config.json" not in path] == []
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "m").iterdir() if path.name in NEEDED}


def test_a_second_call_for_a_commit_needs_no_network(hub, tmp_path, monkeypatch):
    fetch(NAME, COMMIT, tmp_path / "m")
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert COMMIT in fetch(NAME, COMMIT, tmp_path / "m")
    assert not hub.requests


def test_a_damaged_file_is_fetched_again_and_verify_names_it_before(hub, tmp_path, capsys):
    folder = tmp_path / "m"
    fetch(NAME, "main", folder)
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x00" if stream.read(1) != b"\x00" else b"\x01")
    assert main(["--to", str(folder), "--verify"]) == 4
    assert WEIGHTS in capsys.readouterr().out
    hub.wrong[WEIGHTS] = b"!" * len(hub.repositories[NAME][WEIGHTS])
    with pytest.raises(ModelError, match="another content"):
        fetch(NAME, "main", folder)
    assert not (folder / WEIGHTS).exists()  # never left looking complete
    hub.wrong.clear()
    fetch(NAME, "main", folder)
    assert main(["--to", str(folder), "--verify"]) == 0


def test_verify_needs_no_network_and_sees_what_is_missing_or_would_come_first(hub, tmp_path, monkeypatch):
    folder = tmp_path / "m"
    hub.repositories[NAME]["open_clip_pytorch_model.bin"] = hub.repositories[NAME].pop(WEIGHTS)
    fetch(NAME, "main", folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    assert faults(folder) == []
    (folder / WEIGHTS).write_bytes(b"other weights")
    assert "does not list it" in faults(folder)[0]
    (folder / WEIGHTS).unlink()
    (folder / "vocab.txt").unlink()
    assert faults(folder) == [f"{folder / 'vocab.txt'}: not there"]
    (folder / SUMS).unlink()
    with pytest.raises(ModelError, match="fetch-model"):
        verify(folder)
    with pytest.raises(ConfigError, match="no such folder"):
        verify(folder / "elsewhere")
    assert not hub.requests


@pytest.mark.parametrize("line", ["", "abc  vocab.txt", f"{'0' * 64}  ../../secret", f"{'0' * 64}  /etc/passwd"])
def test_sums_that_make_no_sense_are_refused(tmp_path, line):
    (tmp_path / SUMS).write_text(f"{line}\n")
    with pytest.raises(ModelError, match=SUMS):
        faults(tmp_path)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, tmp_path):
    hub.cut[WEIGHTS] = [2_000_000, 1_000_000]
    fetch(NAME, "main", tmp_path / "m")
    first, second, third = hub.starts(f"{NAME}/{WEIGHTS}")
    assert first == 0 < second < third
    assert faults(tmp_path / "m") == []


def test_a_killed_fetch_is_no_model_and_goes_on_where_it_was(hub, tmp_path):
    folder = tmp_path / "m"
    hub.stall[WEIGHTS] = 3_000_000
    code = (
        "import sys, huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 1 << 16\n"
        "from heatlens.cluster.fetch import main; sys.exit(main(sys.argv[1:]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, NAME, "--to", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert hub.stalled.wait(60)
        part = next(iter(_parts(folder)), None)
        while child.poll() is None and (part is None or part.stat().st_size < 2_000_000):
            part = next(iter(_parts(folder)), None)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (folder / SUMS).exists()
    assert not (folder / "open_clip_config.json").exists()
    hub.go_on.set()
    fetch(NAME, "main", folder)
    assert hub.starts(f"{NAME}/{WEIGHTS}")[-1] >= 2_000_000
    assert faults(folder) == []
    assert not (folder / STAGING).exists()


def _parts(folder: Path) -> list[Path]:
    return list(folder.glob(f"{STAGING}/*/{WEIGHTS}.part"))


def test_a_part_that_is_wrong_or_too_long_does_no_harm(hub, tmp_path):
    folder = tmp_path / "m"
    for length in (1000, 20_000_000):
        shutil.rmtree(folder, ignore_errors=True)
        part = folder / STAGING / f"{NAME.replace('/', '--')}-{COMMIT}" / f"{WEIGHTS}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"\x07" * length)
        if length == 1000:
            with pytest.raises(ModelError, match="another content"):
                fetch(NAME, "main", folder)
            assert not part.exists()
        fetch(NAME, "main", folder)
        assert faults(folder) == []


@pytest.mark.parametrize("path", [WEIGHTS, "vocab.txt"])
def test_a_wrong_digest_leaves_nothing_that_looks_complete(hub, tmp_path, path):
    right = hub.repositories[NAME][path]
    hub.wrong[path] = bytes([right[0] ^ 1]) + right[1:]
    with pytest.raises(ModelError, match=f"{path}.*another content"):
        fetch(NAME, "main", tmp_path / "m")
    assert [name for name in content_of(tmp_path / "m") if not name.startswith(STAGING)] == []
    assert not [name for name in content_of(tmp_path / "m") if name.endswith((f"/{path}", f"/{path}.part"))]
    hub.wrong.clear()
    fetch(NAME, "main", tmp_path / "m")
    assert faults(tmp_path / "m") == []


def test_a_short_file_is_an_error(hub, tmp_path):
    hub.wrong[WEIGHTS] = hub.repositories[NAME][WEIGHTS][:-100]
    with pytest.raises(ModelError, match=WEIGHTS):
        fetch(NAME, "main", tmp_path / "m")
    assert not (tmp_path / "m" / SUMS).exists()


def test_a_repository_without_weights_config_or_tokenizer_is_an_error(hub, tmp_path):
    files = hub.repositories[NAME]
    hub.gone.add("vocab.txt")
    with pytest.raises(ModelError, match=r"has listed vocab\.txt"):
        fetch(NAME, "main", tmp_path / "a")
    hub.gone.clear()
    hub.repositories[NAME] = {name: data for name, data in files.items() if "model" not in name}
    with pytest.raises(ModelError, match="has no weights"):
        fetch(NAME, "main", tmp_path / "b")
    hub.repositories[NAME] = {"README.md": b"#"}
    with pytest.raises(ModelError, match="no CLIP model"):
        fetch(NAME, "main", tmp_path / "c")
    hub.repositories[NAME] = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"1"}
    with pytest.raises(ModelError, match="'bert'"):
        fetch(NAME, "main", tmp_path / "d")


def test_a_gated_model_says_what_to_do_and_a_token_opens_it(hub, tmp_path, monkeypatch):
    hub.gated.add(NAME)
    hub.token = "let-me-in"
    with pytest.raises(ModelError, match=r"accept its terms.*HF_TOKEN"):
        fetch(NAME, "main", tmp_path / "m")
    monkeypatch.setenv("HF_TOKEN", "let-me-in")
    fetch(NAME, "main", tmp_path / "m")
    assert faults(tmp_path / "m") == []


def test_unknown_revision_and_repository(hub, tmp_path):
    with pytest.raises(ModelError, match="no revision 'v9'"):
        fetch(NAME, "v9", tmp_path / "m")
    with pytest.raises(ModelError, match="has no model people/other, or it is private"):
        fetch("people/other", "main", tmp_path / "m")
    with pytest.raises(ConfigError, match="no repository"):
        fetch("people/-- --", "main", tmp_path / "m")


def test_no_network_and_offline(hub, tmp_path, monkeypatch):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{one.getsockname()[1]}")
    with pytest.raises(ModelError, match=r"cannot be reached.*needs a machine with internet"):
        fetch(NAME, "main", tmp_path / "m")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        fetch(NAME, "main", tmp_path / "m")


def test_a_full_disk_before_and_during(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fetching.shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
        with pytest.raises(SetupError, match=r"MB are still needed and 1\.0 MB are free"):
            fetch(NAME, "main", tmp_path / "m")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(SetupError, match="disk is full"):
            fetch(NAME, "main", tmp_path / "m")
    fetch(NAME, "main", tmp_path / "m")
    assert faults(tmp_path / "m") == []


def test_other_peoples_folders_are_left_alone(hub, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        fetch(NAME, "main", tmp_path / "m")
    assert content_of(tmp_path / "m") == {"thesis.tex"}
    with pytest.raises(ConfigError, match="is a file"):
        fetch(NAME, "main", tmp_path / "m" / "thesis.tex")


def test_another_model_or_a_moved_branch_needs_another_folder(hub, tmp_path):
    folder = tmp_path / "m"
    fetch(NAME, "main", folder)
    with pytest.raises(ConfigError, match=f"holds {NAME}"):
        fetch("people/other", "main", folder)
    hub.commit = "f" * 40
    hub.revisions.add(hub.commit)
    with pytest.raises(ConfigError, match=f"holds {NAME} at {COMMIT}.*--revision {COMMIT}"):
        fetch(NAME, "main", folder)
    assert faults(folder) == []


def test_the_text_towers_config_comes_along_when_the_program_lacks_it(hub, tmp_path):
    files = hub.repositories[NAME]
    config = json.loads(files["open_clip_config.json"])
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "people/some-bert"
    files["open_clip_config.json"] = json.dumps(config).encode()
    own = files.pop("config.json")
    hub.repositories["people/some-bert"] = {"config.json": own, "model.safetensors": b"large"}
    fetch(NAME, "main", tmp_path / "m")
    assert content_of(tmp_path / "m") == NEEDED - {"config.json"} | {"some-bert/config.json", SUMS, SOURCE}
    from heatlens.models.loading import load_clip

    assert load_clip(str(tmp_path / "m")).frame == (224, 224)


def test_biomedclips_tower_is_known_and_its_revision_pinned(hub, tmp_path):
    from tests.biomedclip import CONFIG

    name = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
    pinned = fetching.PINNED_REVISIONS[name]
    files = hub.repositories[NAME]
    del files["config.json"]
    hub.repositories[name] = {**files, "open_clip_config.json": json.dumps(CONFIG).encode()}
    hub.commit = pinned
    hub.revisions = {pinned}
    assert main(["--to", str(tmp_path / "m")]) == 0
    assert content_of(tmp_path / "m") == NEEDED - {"config.json"} | {SUMS, SOURCE}
    assert json.loads((tmp_path / "m" / SOURCE).read_text())["commit"] == pinned


def test_a_transformers_model_in_shards(hub, tmp_path):
    config = {"model_type": "clip", "text_config": {}, "vision_config": {}}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": b"1" * 200_000,
        "model-00002-of-00002.safetensors": b"2" * 200_000,
        "tokenizer.json": b"{}",
        "preprocessor_config.json": b"{}",
    }
    hub.repositories[NAME] = {**files, "pytorch_model.bin": b"again", "README.md": b"#"}
    fetch(NAME, "main", tmp_path / "m")
    assert content_of(tmp_path / "m") == set(files) | {SUMS, SOURCE}
    hub.repositories[NAME]["model.safetensors.index.json"] = b'{"weight_map": {"a": "../../x"}}'
    with pytest.raises(ModelError, match="does not name files"):
        fetch(NAME, "main", tmp_path / "n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--to is missing"),
        (["demo", "--to", "x"], "comes with the program"),
        (["biomedclip", "--to", "x"], "OWNER/NAME"),
        (["a/b/c", "--to", "x"], "OWNER/NAME"),
        (["--to", "x", "--revison", "y"], "revison"),
    ],
)
def test_wrong_arguments(argv, message):
    with pytest.raises(ConfigError, match=message):
        main(argv)


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "--verify" in capsys.readouterr().out
