"""The house rules that a machine can check: imports point downwards, files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "heatlens"
BASE = {
    "registry", "config", "config_help", "conf_file", "keys", "settings", "guard", "errors", "files", "__init__",
}  # fmt: skip
FLOORS = [
    {"cli"},
    {"doctor"},
    {"stages", "evaluate", "export", "report", "notebook", "phantom", "cluster"},
    {"batch"},
    {"models", "questions", "images", "refine", "boxes", "render"},
    {"cam"},
    BASE,
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports when it runs; annotations under TYPE_CHECKING do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("heatlens.")} & set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards_and_rooms_of_a_floor_are_strangers(path):
    here = room(path)
    for other in imported_rooms(path) - {here}:
        same_floor = FLOOR[other] == FLOOR[here] and here not in BASE
        assert FLOOR[other] >= FLOOR[here], f"{here} imports {other}, which lies above it"
        assert not same_floor, f"{here} and {other} are on one floor"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_under_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} <= set(FLOOR)
