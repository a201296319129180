"""The documents: links lead somewhere, commands exist, the README's notebook lines run."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "Attention_Map/README.md", "Bounding_Box/README.md")),
        *(ROOT / "docs").glob("*.md"),
    ]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_file(), f"{page.name} -> {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} -> {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_and_experiments_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert named <= targets
    for conf in re.findall(r"configs/[\w/]+\.conf", text):
        assert (ROOT / conf).is_file(), conf


def test_the_first_screen_of_the_readme():
    screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    text = "\n".join(screen)
    picture = cv2.imread(str(ROOT / "docs" / "images" / "film-map-overlay.png"))
    assert picture is not None
    assert picture.shape[1] > 800
    for wanted in ("docs/images/film-map-overlay.png", "make local-test STOP_AFTER=5", "make test", "vqa_manifest.csv"):
        assert wanted in text


def test_the_notebook_lines_run(tmp_path, monkeypatch):
    """The README's Python block, with a film where it says film.png."""
    from heatlens.phantom.film import make_film

    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    film = make_film(500_000, long_side=600).pixels
    cv2.imwrite(str(tmp_path / "film.png"), film)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["heat"].shape == film.shape


def test_the_table_of_methods_is_the_registry():
    from heatlens.registry import METHODS

    rows = [
        f"| [`{one.name}`]({one.paper}) | {', '.join(one.needs) or 'one forward'} | {one.summary} |"
        for one in METHODS.values()
    ]
    assert "\n".join(rows) in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
