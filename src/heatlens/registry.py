"""Names people type -> where the code lies. Imports nothing heavy.

One line here and one file elsewhere add a CAM method, a data set reader, a model family, a colour map, a stage
or a format of annotations. Look-ups ignore case, hyphens, underscores and blanks, and an unknown name names its
nearest neighbour.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from heatlens.errors import ConfigError

EntryT = TypeVar("EntryT", bound="Entry")


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
class MethodEntry(Entry):
    """A CAM method: besides, what it ``needs`` of a model, its ``paper``, ``formula`` and ``shapes``.

    A are the target layer's activations, g = dS/dA their gradients, S the score of the text, c a channel, ij a cell,
    T the texts, L the layers, n the tokens.
    """

    needs: tuple[str, ...] = ()
    paper: str = ""
    formula: str = ""
    shapes: str = ""


@dataclass(frozen=True)
class BridgeEntry(MethodEntry):
    """A method of the grad-cam package; whether it exists is known when it is loaded."""

    def load(self) -> Any:
        return partial(super().load(), self.name)


@dataclass(frozen=True)
class DatasetEntry(Entry):
    """A data set reader: besides, of a data set that is written on first use, its ``demo`` folder: below .demo/ of the
    repository, where DATASET_PATH names no other."""

    demo: str = ""


@dataclass(frozen=True)
class StageEntry(Entry):
    """A stage: besides, the file name of its own ``index`` of all heat maps in the results folder."""

    index: str = ""


def _table(*entries: EntryT) -> Mapping[str, EntryT]:
    return {entry.name: entry for entry in entries}


METHODS = _table(
    MethodEntry(
        "gScoreCAM",
        "heatlens.cam.methods.gscorecam:GScoreCAM",
        "gradients choose the top-k channels, masked forwards weigh them",
        needs=("gradients", "masked forwards"),
        paper="https://github.com/anguyen8/gScoreCAM",
        formula="ReLU(sum_c w_c A_c), w = softmax_c S(image * minmax(upsample(A_c))), c: k largest mean_ij(dS/dA_c)",
        shapes="A (C,h,w), g (T,C,h,w) -> maps (T,h,w)",
        aliases=("g-score-cam", "gradient ScoreCAM"),
    ),
    MethodEntry(
        "ScoreCAM",
        "heatlens.cam.methods.scorecam:ScoreCAM",
        "masked forwards weigh every channel",
        needs=("masked forwards",),
        paper="https://arxiv.org/abs/1910.01279",
        formula="ReLU(sum_c w_c A_c), w = softmax_c S(image * minmax(upsample(A_c)))",
        shapes="A (C,h,w) -> maps (T,h,w)",
    ),
    MethodEntry(
        "GradCAM",
        "heatlens.cam.methods.gradcam:GradCAM",
        "channels weighted by their mean gradient",
        needs=("gradients",),
        paper="https://arxiv.org/abs/1610.02391",
        formula="ReLU(sum_c mean_ij(dS/dA_c) A_c)",
        shapes="A (C,h,w), g (T,C,h,w) -> maps (T,h,w)",
        aliases=("vanilla GradCAM",),
    ),
    MethodEntry(
        "GradCAM++",
        "heatlens.cam.methods.gradcam_plusplus:GradCAMPlusPlus",
        "Grad-CAM with a weight for every cell",
        needs=("gradients",),
        paper="https://arxiv.org/abs/1710.11063",
        formula="ReLU(sum_c w_c A_c), w_c = sum_ij a_c ReLU(g_c), a_c = g_c^2 / (2 g_c^2 + g_c^3 sum_ij A_c), g=dS/dA",
        shapes="A (C,h,w), g (T,C,h,w) -> maps (T,h,w)",
        aliases=("GradCAMpp",),
    ),
    MethodEntry(
        "HiResCAM",
        "heatlens.cam.methods.hirescam:HiResCAM",
        "gradient times activation, cell by cell",
        needs=("gradients",),
        paper="https://arxiv.org/abs/2011.08891",
        formula="ReLU(sum_c dS/dA_c * A_c)",
        shapes="A (C,h,w), g (T,C,h,w) -> maps (T,h,w)",
    ),
    MethodEntry(
        "XGradCAM",
        "heatlens.cam.methods.xgradcam:XGradCAM",
        "Grad-CAM with weights that add up to the score",
        needs=("gradients",),
        paper="https://arxiv.org/abs/2008.02312",
        formula="ReLU(sum_c w_c A_c), w_c = sum_ij(dS/dA_c * A_c) / sum_ij A_c",
        shapes="A (C,h,w), g (T,C,h,w) -> maps (T,h,w)",
    ),
    MethodEntry(
        "LayerCAM",
        "heatlens.cam.methods.layercam:LayerCAM",
        "positive gradient times activation, cell by cell",
        needs=("gradients",),
        paper="https://doi.org/10.1109/TIP.2021.3089943",
        formula="ReLU(sum_c ReLU(dS/dA_c) * A_c)",
        shapes="A (C,h,w), g (T,C,h,w) -> maps (T,h,w)",
    ),
    MethodEntry(
        "EigenCAM",
        "heatlens.cam.methods.eigencam:EigenCAM",
        "first principal component; ignores the prompt",
        paper="https://arxiv.org/abs/2008.00299",
        formula="ReLU(first principal component of A over the cells)",
        shapes="A (C,h,w) -> maps (T,h,w)",
    ),
    MethodEntry(
        "EigenGradCAM",
        "heatlens.cam.methods.eigengradcam:EigenGradCAM",
        "first principal component of gradient times activation",
        needs=("gradients",),
        paper="https://github.com/jacobgil/pytorch-grad-cam",
        formula="ReLU(first principal component of dS/dA * A over the cells)",
        shapes="A (C,h,w), g (T,C,h,w) -> maps (T,h,w)",
    ),
    MethodEntry(
        "AblationCAM",
        "heatlens.cam.methods.ablationcam:AblationCAM",
        "what the score loses without a channel",
        needs=("tail forwards",),
        paper="https://doi.org/10.1109/WACV45572.2020.9093360",
        formula="ReLU(sum_c w_c A_c), w_c = (S - S_c) / |S|, S_c: score without channel c",
        shapes="A (C,h,w) -> maps (T,h,w)",
    ),
    MethodEntry(
        "RISE",
        "heatlens.cam.methods.rise:RISE",
        "random masks weighted by the score of what they leave",
        needs=("masked forwards",),
        paper="https://arxiv.org/abs/1806.07421",
        formula="ReLU(sum_n (S(image * M_n) - mean S) M_n / (N p))",
        shapes="image (3,H,W) -> maps (T,H,W)",
    ),
    MethodEntry(
        "LeGrad",
        "heatlens.cam.methods.legrad:LeGrad",
        "positive gradients of every layer's attention",
        needs=("gradients", "attention maps"),
        paper="https://arxiv.org/abs/2404.03214",
        formula="mean_l mean_heads,queries ReLU(dS_l/dA_l), columns of the patches",
        shapes="attention (L,heads,n,n) and its gradients -> maps (T,h,w)",
    ),
    MethodEntry(
        "Grad-ECLIP",
        "heatlens.cam.methods.grad_eclip:GradECLIP",
        "gradient at the last attention times value times nearness",
        needs=("gradients", "attention maps"),
        paper="https://arxiv.org/abs/2502.18816",
        formula="ReLU(sum_i sum_c dS/do_ic * minmax_j cos(q_i, k_j) * v_jc), last attention",
        shapes="q, k, v (heads,n,d) and the output's gradients -> maps (T,h,w)",
    ),
    MethodEntry(
        "rollout",
        "heatlens.cam.methods.rollout:AttentionRollout",
        "attention multiplied through all layers; ignores the prompt",
        needs=("attention maps",),
        paper="https://arxiv.org/abs/2005.00928",
        formula="row CLS of A_L ... A_1, A_l = (mean_heads softmax(QK^T/sqrt d) + I) / 2",
        shapes="attention (L,heads,n,n) -> maps (T,h,w)",
        aliases=("attention rollout",),
    ),
    MethodEntry(
        "Chefer",
        "heatlens.cam.methods.chefer:CheferRelevance",
        "attention times its positive gradient, through all layers",
        needs=("gradients", "attention maps"),
        paper="https://arxiv.org/abs/2103.15679",
        formula="row CLS of R, R <- R + mean_heads ReLU(dS/dA_l * A_l) R for l = 1..L, starting from R = I",
        shapes="attention (L,heads,n,n) and its gradients -> maps (T,h,w)",
        aliases=("Chefer relevance", "transformer attribution"),
    ),
)

# CAM_VERSION=grad-cam:FinerCAM and the like: methods of the grad-cam package, where it is installed.
GRAD_CAM_PREFIX = "grad-cam:"
_BRIDGE = "heatlens.cam.methods.grad_cam_bridge:GradCamBridge"

DATASETS = _table(
    DatasetEntry("gemex", "heatlens.questions.readers.gemex:GemexReader", "GEMeX JSON lines, the four question types"),
    DatasetEntry(
        "gemex_train",
        "heatlens.questions.readers.gemex_train:GemexTrainReader",
        "GEMeX's training JSON (conversations)",
    ),
    DatasetEntry("thinkvg", "heatlens.questions.readers.thinkvg:ThinkVGReader", "GEMeX-ThinkVG parquet"),
    DatasetEntry(
        "table",
        "heatlens.questions.readers.table:TableReader",
        "CSV, JSON lines or Parquet with image, question and answer",
    ),
    DatasetEntry(
        "phantom",
        "heatlens.phantom.reader:PhantomReader",
        "the bundled demo: synthetic chest films, written on first use",
        demo="phantom",
    ),
    DatasetEntry(
        "phantom_findings",
        "heatlens.phantom.findings_reader:FindingsReader",
        "held-out synthetic films, one question per finding: what `evaluate` is tried on",
        demo="held_out",
    ),
)
# slurm/settings.sh has them, too.
DEMO_FOLDERS = {entry.name: entry.demo for entry in DATASETS.values() if entry.demo}

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
    StageEntry(
        "attn_map",
        "heatlens.stages.attn_map:AttnMapStage",
        "overlay PNGs and vqa_manifest.csv",
        index="vqa_manifest.csv",
    ),
    StageEntry(
        "bbox",
        "heatlens.stages.bbox:BoxStage",
        "boxes as JSON lines and box overlays",
        index="boxes.jsonl",
    ),
)

TRUTHS = _table(
    Entry("own", "heatlens.evaluate.truth.own:OwnBoxes", "the boxes of the run's own data set"),
    Entry("phantom", "heatlens.evaluate.truth.phantom:open_phantom", "truth.jsonl and masks of a phantom folder"),
    Entry("ms-cxr", "heatlens.evaluate.truth.ms_cxr:open_ms_cxr", "MS-CXR: phrases with boxes (CSV)"),
    Entry(
        "chestx-det10",
        "heatlens.evaluate.truth.chestx_det10:open_chestx_det10",
        "ChestX-Det10: findings with boxes (JSON)",
    ),
    Entry(
        "chexlocalize",
        "heatlens.evaluate.truth.chexlocalize:open_chexlocalize",
        "CheXlocalize: findings with masks (JSON, COCO's run lengths)",
    ),
    Entry("table", "heatlens.evaluate.truth.table:open_table", "CSV, JSON lines or Parquet with image and box or mask"),
)

KINDS: Mapping[str, Mapping[str, Entry]] = {
    "method": METHODS,
    "dataset": DATASETS,
    "colormap": COLORMAPS,
    "stage": STAGES,
    "truth": TRUTHS,
}


def plain_name(name: str) -> str:
    """What two spellings of a name have in common."""
    return re.sub(r"[\s_-]", "", name).casefold().replace("++", "plusplus")


def find(kind: str, name: str) -> Entry:
    """The entry of ``kind`` called ``name``; ConfigError with the nearest name and all names otherwise."""
    table = KINDS[kind]
    package, colon, rest = name.partition(":")
    if kind == "method" and colon and plain_name(package) in ("gradcam", "pytorchgradcam"):
        return BridgeEntry(GRAD_CAM_PREFIX + rest.strip(), _BRIDGE, "a method of the grad-cam package")
    spellings = {plain_name(known): entry for entry in table.values() for known in (entry.name, *entry.aliases)}
    if entry := spellings.get(plain_name(name)):
        return entry
    bridge = f", {GRAD_CAM_PREFIX}NAME" if kind == "method" else ""
    raise ConfigError(f"unknown {kind} {name!r}; {nearest_hint(name, table)}{bridge}")


def nearest_hint(name: str, names: Mapping[str, Any] | list[str]) -> str:
    """``did you mean X? Allowed: a, b, c`` for an error text."""
    by_case = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), list(by_case), n=1, cutoff=0.5)
    allowed = f"allowed: {', '.join(names)}"
    return f"did you mean {by_case[close[0]]}? {allowed[0].upper()}{allowed[1:]}" if close else allowed
