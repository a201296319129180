"""The files that the container image is made of: lock, Dockerfile, .dockerignore, and the script that builds."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "docker" / "requirements.txt"
DOCKERFILE = ROOT / "docker" / "Dockerfile.3090"
LINUX = {
    "os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64",
    "implementation_name": "cpython", "platform_python_implementation": "CPython",
}  # fmt: skip
PYTHONS = ("3.11", "3.12")


def locked() -> dict[str, Version]:
    lines = [line.split("#")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines()]
    pins = [line.partition("==") for line in lines if line]
    return {name: Version(version) for name, _, version in pins}


def instructions() -> list[tuple[str, str]]:
    """(word, arguments) of each instruction, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split()[-1]] = []
        list(found.values())[-1].append((word, rest))
    return found


def needs(wanted: Requirement, python: str, extra: str = "") -> bool:
    environment = {**LINUX, "python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    return wanted.marker is None or wanted.marker.evaluate(environment)


# The lock


def test_the_lock_pins_each_package_once_and_names_no_place_to_get_it_from():
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    names = [line.split("==")[0] for line in lines]
    assert names == sorted({canonicalize_name(name) for name in names})
    for line in lines:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][\w.!+-]*( +# via .+)?", line), line
    assert "://" not in LOCK.read_text(encoding="utf-8")


@pytest.mark.skipif(tomllib is None, reason="reading pyproject.toml needs Python 3.11")
def test_every_dependency_is_locked_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = locked()
    extras = [text for name in ("siglip", "evaluate") for text in project["optional-dependencies"][name]]
    for text in [*project["dependencies"], *extras, "pydensecrf2"]:
        wanted = Requirement(text)
        assert pins[canonicalize_name(wanted.name)] in wanted.specifier, text


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_is_complete(python):
    """What the locked packages need is locked, too, as far as the same versions are installed here to be asked."""
    pins = locked()
    asked = 0
    open_ends: list[tuple[str, str]] = [(name, "") for name in pins]
    seen: set[tuple[str, str]] = set()
    while open_ends:
        name, extra = open_ends.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if Version(package.version).public != pins[name].public:
            continue
        asked += 1
        for wanted in map(Requirement, package.requires or []):
            if needs(wanted, python, extra):
                other = canonicalize_name(wanted.name)
                assert other in pins, f"{name} needs {wanted}"
                assert wanted.specifier.contains(pins[other], prereleases=True), f"{name} needs {wanted}"
                open_ends += [(other, one) for one in wanted.extras]
    assert asked > 0


# The Dockerfile


def test_the_base_is_an_argument_with_a_cuda_runtime_as_default():
    (argument,) = stages()[""]
    assert argument[0] == "ARG"
    assert re.fullmatch(r"BASE_IMAGE=nvidia/cuda:[\d.]+-runtime-ubuntu24\.04", argument[1])
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    names = set(stages())
    assert bases[0] == "${BASE_IMAGE}"
    assert set(bases[1:]) <= names


def test_nothing_is_fetched_but_packages():
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert not re.search(r"^#\s*(syntax|escape)\s*=", text, flags=re.MULTILINE), "a syntax line pulls an image"
    assert "://" not in text
    words = {word for word, _ in instructions()}
    assert "ADD" not in words
    for word, rest in instructions():
        if word == "RUN":
            assert not re.search(r"\b(curl|wget|git|fetch-model|hf|huggingface-cli)\b", rest), rest


def test_no_credential_has_a_way_into_the_image():
    """Arguments and variables stay in an image's history; secrets do not."""
    names = {rest.split("=")[0] for word, rest in instructions() if word == "ARG"}
    assert names == {"BASE_IMAGE", "TORCH_INDEX_DIGEST", "HEATLENS_VERSION", "HEATLENS_COMMIT"}
    for word, rest in instructions():
        if word == "ENV":
            assert not re.search(r"PIP_(\w*INDEX|CONFIG|TRUSTED)", rest)
    for mount in re.findall(r"--mount=(\S+)", DOCKERFILE.read_text(encoding="utf-8")):
        assert mount.startswith("type=secret,")


def test_the_final_stage_has_no_compiler_and_takes_its_trees_from_the_builder():
    final = stages()["final"]
    for word, rest in [*stages()["python"], *final]:
        if word == "RUN":
            assert not re.search(r"\b(g\+\+|gcc|build-essential|python3-dev|cython)\b", rest), rest
    copied = [rest for word, rest in final if word == "COPY"]
    assert [rest for rest in copied if "--from=" not in rest] == ["docker/requirements.txt /opt/heatlens/"]
    assert sum("--from=builder" in rest for rest in copied) == 2


def test_heavy_layers_come_before_what_changes_often():
    final = stages()["final"]
    heatlens = next(i for i, (word, rest) in enumerate(final) if word == "COPY" and "/tree/heatlens" in rest)
    installs = [i for i, (word, rest) in enumerate(final) if word == "RUN" and "pip install" in rest]
    changing = [i for i, (word, rest) in enumerate(final) if word in {"ARG", "LABEL"} and "HEATLENS" in rest]
    assert len(installs) == 3
    assert max(installs) < heatlens < min(changing)


def test_it_runs_as_a_number_that_is_not_root_and_without_entrypoint():
    final = stages()["final"]
    users = [rest for word, rest in final if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert "ENTRYPOINT" not in {word for word, _ in instructions()}
    environment = " ".join(rest for word, rest in instructions() if word == "ENV")
    for setting in (
        "PATH=/opt/heatlens/bin:$PATH", "PYTHONDONTWRITEBYTECODE=1", "NVIDIA_VISIBLE_DEVICES=",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility", 'TORCH_CUDA_ARCH_LIST="8.6',
    ):  # fmt: skip
        assert setting in environment
    labels = " ".join(rest for word, rest in final if word == "LABEL")
    assert 'org.opencontainers.image.version="${HEATLENS_VERSION}"' in labels
    assert 'org.opencontainers.image.revision="${HEATLENS_COMMIT}"' in labels


def test_modules_are_compiled_in_the_layer_that_brings_them():
    """The root is read-only at run time: what is not compiled in the image is compiled at each start."""
    for word, rest in instructions():
        if word == "RUN" and "pip install" in rest and ("--no-compile" in rest or "/opt/heatlens/lib" in rest):
            assert "compileall" in rest, rest
    for name in PYTHONS:
        assert name not in DOCKERFILE.read_text(encoding="utf-8"), "the distribution's Python decides"


# .dockerignore


def in_context(path: str) -> bool:
    """Whether a file reaches the build: the last pattern that matches it or a folder above it decides."""
    kept = True
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        inverted = pattern.startswith("!")
        pattern = pattern.removeprefix("!")
        if pattern.startswith("**/"):
            matched = any(fnmatch(part, pattern[3:]) for part in parts)
        else:
            depth = pattern.count("/")
            matched = any(fnmatch(one, pattern) for one in above if one.count("/") == depth)
        if matched:
            kept = inverted
    return kept


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", ".env", ".demo/phantom/a.png", "data/files/p10/film.dcm", "film.png",
        "Attention_Map/results/demo/run.json", "Attention_Map/logs/job-1.out", "Bounding_Box/results/x/boxes.jsonl",
        "slurm/site.conf", "tests/conftest.py", "docs/cluster.md", "models/biomedclip/open_clip_pytorch_model.bin",
        "src/heatlens/__pycache__/cli.cpython-311.pyc", "src/heatlens.egg-info/PKG-INFO", "src/heatlens/.env",
        "docker/pip.conf", "build/lib/heatlens/cli.py",
    ],
)  # fmt: skip
def test_the_context_leaves_out(path):
    assert not in_context(path)


def test_the_context_holds_the_package_and_all_that_the_dockerfile_copies():
    for path in ("src/heatlens/cli.py", "src/heatlens/cam/engine.py", "src/heatlens/py.typed"):
        assert (ROOT / path).is_file()
        assert in_context(path)
    weights = [path for path in (ROOT / "src/heatlens/phantom/weights").iterdir() if path.is_file()]
    assert weights
    assert all(in_context(str(path.relative_to(ROOT))) for path in weights)
    for word, rest in instructions():
        if word == "COPY" and "--from=" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert source == "src" or in_context(source), source


def test_the_files_are_text_without_tabs_and_of_moderate_length():
    for path in (LOCK, DOCKERFILE, ROOT / "docker" / "build.sh", ROOT / ".dockerignore"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 400
        assert not any("\t" in line for line in lines)


def test_the_shell_files_of_the_image_parse():
    files = [ROOT / "docker" / "build.sh", *sorted((ROOT / "tests/cluster/machine").glob("docker-*.sh"))]
    assert len(files) == 4
    for path in files:
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0, path
