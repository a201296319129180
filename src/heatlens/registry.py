"""Names people type -> where the code lies. Imports nothing heavy.

One line here and one file elsewhere add a CAM method, a data set reader, a model family, a colour map or a
stage. Look-ups ignore case, hyphens, underscores and blanks, and an unknown name names its nearest neighbour.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from heatlens.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """One registered thing: its public name, ``module:attribute`` and one line of help."""

    name: str
    target: str
    summary: str
    aliases: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import the module and return the attribute."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class BridgeEntry(Entry):
    """A method of the grad-cam package; whether it exists is known when it is loaded."""

    def load(self) -> Any:
        return partial(super().load(), self.name)


def _table(*entries: Entry) -> Mapping[str, Entry]:
    return {entry.name: entry for entry in entries}


METHODS = _table(
    Entry(
        "gScoreCAM",
        "heatlens.cam.methods.gscorecam:GScoreCAM",
        "gradients choose the top-k channels, masked forwards weigh them",
        aliases=("g-score-cam", "gradient ScoreCAM"),
    ),
    Entry("ScoreCAM", "heatlens.cam.methods.scorecam:ScoreCAM", "masked forwards weigh every channel"),
    Entry(
        "GradCAM",
        "heatlens.cam.methods.gradcam:GradCAM",
        "channels weighted by their mean gradient",
        aliases=("vanilla GradCAM",),
    ),
    Entry(
        "GradCAM++",
        "heatlens.cam.methods.gradcam_plusplus:GradCAMPlusPlus",
        "Grad-CAM with a weight for every cell",
        aliases=("GradCAMpp",),
    ),
    Entry("HiResCAM", "heatlens.cam.methods.hirescam:HiResCAM", "gradient times activation, cell by cell"),
    Entry("XGradCAM", "heatlens.cam.methods.xgradcam:XGradCAM", "Grad-CAM with weights that add up to the score"),
    Entry("LayerCAM", "heatlens.cam.methods.layercam:LayerCAM", "positive gradient times activation, cell by cell"),
    Entry("EigenCAM", "heatlens.cam.methods.eigencam:EigenCAM", "first principal component; ignores the prompt"),
    Entry(
        "EigenGradCAM",
        "heatlens.cam.methods.eigengradcam:EigenGradCAM",
        "first principal component of gradient times activation",
    ),
    Entry("AblationCAM", "heatlens.cam.methods.ablationcam:AblationCAM", "what the score loses without a channel"),
    Entry("RISE", "heatlens.cam.methods.rise:RISE", "random masks weighted by the score of what they leave"),
    Entry("LeGrad", "heatlens.cam.methods.legrad:LeGrad", "positive gradients of every layer's attention"),
    Entry(
        "Grad-ECLIP",
        "heatlens.cam.methods.grad_eclip:GradECLIP",
        "gradient at the last attention times value times nearness",
    ),
    Entry(
        "rollout",
        "heatlens.cam.methods.rollout:AttentionRollout",
        "attention multiplied through all layers; ignores the prompt",
        aliases=("attention rollout",),
    ),
    Entry(
        "Chefer",
        "heatlens.cam.methods.chefer:CheferRelevance",
        "attention times its positive gradient, through all layers",
        aliases=("Chefer relevance", "transformer attribution"),
    ),
)

# CAM_VERSION=grad-cam:FinerCAM and the like: methods of the grad-cam package, where it is installed.
GRAD_CAM_PREFIX = "grad-cam:"
_BRIDGE = "heatlens.cam.methods.grad_cam_bridge:GradCamBridge"

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


def plain_name(name: str) -> str:
    """What two spellings of a name have in common."""
    return re.sub(r"[\s_-]", "", name).casefold().replace("++", "plusplus")


def find(kind: str, name: str) -> Entry:
    """The entry of ``kind`` called ``name``; ConfigError with the nearest name and all names otherwise."""
    table = KINDS[kind]
    if kind == "method" and name.casefold().startswith(GRAD_CAM_PREFIX):
        return BridgeEntry(GRAD_CAM_PREFIX + name[len(GRAD_CAM_PREFIX) :].strip(), _BRIDGE, "of the grad-cam package")
    spellings = {plain_name(known): entry for entry in table.values() for known in (entry.name, *entry.aliases)}
    if entry := spellings.get(plain_name(name)):
        return entry
    raise ConfigError(f"unknown {kind} {name!r}; {nearest_hint(name, table)}")


def nearest_hint(name: str, names: Mapping[str, Any] | list[str]) -> str:
    """``did you mean X? Allowed: a, b, c`` for an error text."""
    by_case = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), list(by_case), n=1, cutoff=0.5)
    allowed = f"allowed: {', '.join(names)}"
    return f"did you mean {by_case[close[0]]}? {allowed[0].upper()}{allowed[1:]}" if close else allowed
