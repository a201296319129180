"""What the tests with a real Slurm and a real Docker share: a checkout of their own, films, and nothing left behind.

``make cluster-test`` brings everything up, runs them and takes everything down. By hand, with both up:

    HEATLENS_CLUSTER_TEST=1 SLURM_CONF=STATE/etc/slurm.conf HEATLENS_TEST_IMAGE=heatlens:latest \\
        python -m pytest tests/cluster/real

HEATLENS_TEST_USER names an ordinary user in the group docker; without it the tests of such a user are skipped.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.real.slurm import Slurm, containers, processes, run
from tests.cluster.real.stage import LONG_COPIES, Runs, copy_films

ROOT = Path(__file__).resolve().parents[3]
WANTED = os.environ.get("HEATLENS_CLUSTER_TEST") == "1"
CHECKOUT = ("Attention_Map", "Bounding_Box", "configs", "docker", "slurm", "src")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "results", "logs", "site.conf")
SITE = """\
# The tests' own site: a node with few real cores and little memory.
SBATCH_OPTIONS=(--cpus-per-task=1 --mem=3G --time=10:00)
CONTAINER_RUNTIME=docker
CONTAINER_IMAGE={image}
STOP_GRACE=8
CONTAINER_OPTIONS=(${{TEST_CONTAINER_OPTION:+"$TEST_CONTAINER_OPTION"}})
"""
collect_ignore_glob = [] if WANTED else ["test_*.py"]


@pytest.fixture(scope="session")
def area() -> Iterator[Path]:
    """A folder that every user can read, with a blank in its name."""
    folder = Path(tempfile.mkdtemp(prefix="heatlens real cluster "))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    assert not folder.exists(), f"could not be deleted: {folder}"


@pytest.fixture(scope="session")
def image() -> str:
    """The image to run: HEATLENS_TEST_IMAGE."""
    name = os.environ.get("HEATLENS_TEST_IMAGE", "heatlens:latest")
    assert run("docker", "image", "inspect", name).returncode == 0, f"there is no image {name}: make docker-build"
    return name


@pytest.fixture(scope="session")
def checkout(area: Path, image: str) -> Path:
    """A copy of the program with a slurm/site.conf, as it lies on a cluster's shared disk."""
    root = area / "checkout"
    for name in CHECKOUT:
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=IGNORED)
    for stage in CHECKOUT[:2]:
        for name in ("logs", "results"):
            (root / stage / name).mkdir()
    (root / "slurm" / "site.conf").write_text(SITE.format(image=image))
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0))
    return root


@pytest.fixture(scope="session")
def films(area: Path) -> Path:
    """The demo's films and questions, outside the checkout and read by everybody."""
    folder = area / "films"
    code = f"from pathlib import Path; from heatlens.phantom.dataset import *; ensure_dataset(Path({str(folder)!r}))"
    done = run(sys.executable, "-c", code, environ={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == 0, done.stderr
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def long_films(area: Path, films: Path) -> Path:
    """The same films many times under other names: hours of work, for runs that are stopped."""
    return copy_films(films, area / "long films", LONG_COPIES)


@pytest.fixture(scope="session")
def runs(area: Path, checkout: Path, films: Path) -> Runs:
    (area / "results").mkdir()
    return Runs(area, checkout, films)


@pytest.fixture(scope="session")
def ordinary_user() -> str:
    name = os.environ.get("HEATLENS_TEST_USER")
    if not name:
        pytest.skip("HEATLENS_TEST_USER names no user")
    return name


@pytest.fixture
def slurm(area: Path, request: pytest.FixtureRequest) -> Iterator[Slurm]:
    """Slurm for one test. Afterwards no job, no process and no container of the test may be there."""
    folder = area / "output" / request.node.name.translate(str.maketrans("[]/", "---"))
    folder.mkdir(parents=True)
    folder.chmod(0o1777)  # jobs of other users write here, too
    folder.parent.chmod(0o755)
    kept = {name: os.environ[name] for name in ("PATH", "SLURM_CONF", "CONTAINERS_CONF", "LANG") if name in os.environ}
    view = Slurm({**kept, "HOME": "/", "OMP_NUM_THREADS": "1"}, area, folder)
    view.earlier = view.all_numbers()
    yield view
    view.adopt_all()
    alive = view.queue()
    view.cancel_all()
    left = leftovers(view)
    assert not alive, f"jobs were still there: {alive}"
    assert not left, "\n".join(["left behind:", *left, view.report()])


def leftovers(view: Slurm) -> list[str]:
    """Containers and processes of the test's jobs; a moment is given to what is just going."""
    numbers = view.numbers()
    found: list[str] = []

    def gone() -> bool:
        found[:] = containers(numbers) + [f"{number}: {line}" for number, line in processes(numbers).items()]
        if shutil.which("podman"):
            found.extend(containers(numbers, "podman"))
        return not found

    try:
        view.until(gone, 5, "everything is gone")
    except AssertionError:
        for line in containers(numbers):
            run("docker", "rm", "-f", line.split("\t")[0])
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """A test that fails prints what Slurm and the jobs wrote."""
    report = yield
    if report.failed and call.when == "call":
        view = getattr(item, "funcargs", {}).get("slurm")
        if isinstance(view, Slurm):
            view.adopt_all()
            report.sections.append(("Slurm and its jobs", view.report()))
    return report
