"""Names people type -> where the code lies. Imports nothing heavy.

One line here and one file elsewhere add a CAM method, a data set reader, a model family, a colour map or a
stage. Look-ups ignore case, hyphens, underscores and blanks, and an unknown name names its nearest neighbour.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from heatlens.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """One registered thing: its public name, ``module:attribute``, one line of help and what it needs."""

    name: str
    target: str
    summary: str
    needs: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import the module and return the attribute."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


def _table(*entries: Entry) -> Mapping[str, Entry]:
    return {entry.name: entry for entry in entries}


METHODS = _table(
    Entry(
        "gScoreCAM",
        "heatlens.cam.methods.gscorecam:GScoreCAM",
        "gradient picks the top-k channels, masked forwards weight them",
        ("gradients", "masked forwards"),
    ),
    Entry(
        "GradCAM", "heatlens.cam.methods.gradcam:GradCAM", "channels weighted by their mean gradient", ("gradients",)
    ),
)

DATASETS = _table(
    Entry("gemex", "heatlens.questions.readers.gemex:GemexReader", "GEMeX JSON lines, the four question types"),
    Entry(
        "gemex_train",
        "heatlens.questions.readers.gemex_train:GemexTrainReader",
        "GEMeX's training JSON (conversations)",
    ),
    Entry("thinkvg", "heatlens.questions.readers.thinkvg:ThinkVGReader", "GEMeX-ThinkVG parquet"),
    Entry(
        "table",
        "heatlens.questions.readers.table:TableReader",
        "CSV, JSON lines or Parquet with image, question and answer",
    ),
    Entry(
        "phantom",
        "heatlens.phantom.reader:PhantomReader",
        "the bundled demo: synthetic chest films, written on first use",
    ),
)

COLORMAPS = _table(
    *(
        Entry(name, f"heatlens.render.colormaps:{name.upper()}", summary)
        for name, summary in (
            ("jet", "blue, cyan, yellow, red: what readers of CAM papers expect"),
            ("turbo", "jet's colours with even steps of lightness"),
            ("inferno", "black, purple, orange, yellow; even, safe in grey print"),
            ("magma", "black, purple, pink, cream; even, safe in grey print"),
            ("plasma", "blue, pink, yellow; even"),
            ("viridis", "purple, green, yellow; even, safe for colour-blind readers"),
            ("cividis", "blue to yellow; made for colour-blind readers"),
            ("hot", "black, red, yellow, white"),
            ("bone", "blue-tinged grey"),
            ("custom_purple_red", "deep purple to red, dark where cold"),
        )
    )
)

STAGES = _table(
    Entry("attn_map", "heatlens.stages.attn_map:AttnMapStage", "overlay PNGs and vqa_manifest.csv"),
)

KINDS: Mapping[str, Mapping[str, Entry]] = {
    "method": METHODS,
    "dataset": DATASETS,
    "colormap": COLORMAPS,
    "stage": STAGES,
}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold().replace("++", "plusplus")


def find(kind: str, name: str) -> Entry:
    """The entry of ``kind`` called ``name``; ConfigError with the nearest name and all names otherwise."""
    table = KINDS[kind]
    spellings = {_plain(known): entry for entry in table.values() for known in (entry.name, *entry.aliases)}
    if entry := spellings.get(_plain(name)):
        return entry
    raise ConfigError(f"unknown {kind} {name!r}; {nearest_hint(name, table)}")


def nearest_hint(name: str, names: Mapping[str, Any] | list[str]) -> str:
    """``did you mean X? Allowed: a, b, c`` for an error text."""
    by_case = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), list(by_case), n=1, cutoff=0.5)
    allowed = f"allowed: {', '.join(names)}"
    return f"did you mean {by_case[close[0]]}? {allowed[0].upper()}{allowed[1:]}" if close else allowed
