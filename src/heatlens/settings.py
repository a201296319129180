"""The table of configuration keys: every key once, as the typed model :class:`Settings`.

One attribute per key: its kind (type and allowed range), default as text, help, group, and ``fixed`` when
finished work depends on it: of every stage, or of the one that it names (``unless`` another key is true).
:mod:`heatlens.config` fills it; :data:`KEYS` is the same table by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from heatlens.keys import (
    EVERY_STAGE,
    Amount,
    Choice,
    FilePath,
    Key,
    Kind,
    ModelName,
    Number,
    Registered,
    Template,
    Text,
    Truth,
    Whole,
)
from heatlens.registry import DEMO_FOLDERS

PROMPT_FIELDS = ("question", "region", "answer", "choices", "type")
WORDS = r"[^,\s][^,]*(,[^,]*)*"
DEMO_PATHS = ", ".join(f"{name}: .demo/{folder}" for name, folder in DEMO_FOLDERS.items())
BIOMEDCLIP = "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"

Regions = Literal["split", "joint"]
Preprocess = Literal["letterbox", "crop", "squash"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Background = Literal["map", "film"]
OutputFormat = Literal["png", "jpg"]
ContainerRuntime = Literal["none", "docker", "podman", "apptainer"]

SPLITS = Text("words such as train, validate, test; several with commas", WORDS, empty="all")
VIEWS = Text("words such as PA, AP; several with commas", WORDS, empty="all")
TYPES = Text(
    "open_ended, closed_ended, single_choice, multi_choice, contents such as location; several with commas",
    WORDS,
    empty="all",
)
REVISION = Text("a commit, tag or branch", r"[\w./-]+", empty="the pinned one")
LAYER = Text("a module path such as visual.trunk.blocks[-1].norm1", empty="the model's own")
DEVICE = Text("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:[0-9]+)?")
THRESHOLD = Text(
    "otsu; a share of the map's maximum between 0 and 1, such as 0.65; or a percentile such as p95",
    r"(?i:otsu)|0?\.[0-9]*[1-9][0-9]*|[pP][0-9]{1,2}(\.[0-9]+)?",
)
UMASK = Text("three or four octal digits", "[0-7]{3,4}")


def _key(group: str, kind: Kind, default: str, text: str, *, fixed: bool | str = False, unless: str = "") -> Any:
    """A field that is a key. ``fixed``: finished work made with another value cannot be continued; of one stage only,
    if it is that stage's name, because the others do not read the key. ``unless``: a key that, while it is true, makes
    this one mean nothing."""
    whose = fixed if isinstance(fixed, str) else EVERY_STAGE if fixed else ""
    extra: Any = {"kind": kind, "text": default, "group": group, "fixed": whose, "unless": unless}
    return Field(default=kind.read(default, Path()), description=text, json_schema_extra=extra)


# fmt: off
class Settings(BaseModel):
    """The settings of one run: immutable, every value typed and in its range, every path absolute or None."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    # What is asked
    dataset: str = _key("data", Registered("dataset"), "gemex", "how the data set is read", fixed=True)
    dataset_path: Path | None = _key("data", FilePath(DEMO_PATHS), "",
        "the data set: a file, a folder or a glob (files sorted by name)")
    image_root: Path | None = _key("data", FilePath("the data set's own"), "",
        "folder under which each image_path is looked up, with and without files/")
    split: str = _key("data", SPLITS, "",
        "only rows of these splits (the table's own column, or MIMIC-CXR's split table in IMAGE_ROOT)")
    view: str = _key("data", VIEWS, "",
        "only films of these views (the table's own column, or MIMIC-CXR's metadata table in IMAGE_ROOT)")
    question_types: str = _key("data", TYPES, "", "only questions of these types and about these contents")
    sample: float | None = _key("data", Amount(empty="all"), "",
        "only this many rows, or this share of them, drawn at random with SEED")
    seed: int = _key("data", Whole(0, 2**32 - 1), "0", "seed of SAMPLE, and of RISE's masks")
    stop_after: int | None = _key("data", Whole(1, empty="all"), "",
        "only the first N selected rows of the run, counted before sharding")

    # The text
    prompt_template: str = _key("prompt", Template(PROMPT_FIELDS), "{question} {region}",
        "the text whose place is looked for; {region}, {answer} and {choices} hand annotated knowledge on",
        fixed=True)
    regions: Regions = _key("prompt", Choice(Regions), "split",
        "a row with several regions: one heat map each (split) or one for all (joint)", fixed=True)
    blind: bool = _key("prompt", Truth(), "false",
        "true: no annotated knowledge, i.e. PROMPT_TEMPLATE={question} and REGIONS=joint")

    # Who looks
    model: str = _key("model", ModelName(), BIOMEDCLIP,
        "the model; demo is the small one of this program. Its weights' digest counts, not its name")
    model_revision: str = _key("model", REVISION, "",
        "revision of an hf-hub: model; BiomedCLIP's is pinned in heatlens/models/sources.py")
    target_layer: str = _key("model", LAYER, "", "the layer whose activations make the map", fixed=True)
    preprocess: Preprocess = _key("model", Choice(Preprocess), "letterbox",
        "how a film gets into the model's frame; letterbox cuts nothing off", fixed=True)
    device: str = _key("model", DEVICE, "auto", "where the model runs; auto: a GPU if there is one")
    precision: Precision = _key("model", Choice(Precision), "auto",
        "of the masked forwards; the reference pass is always fp32", fixed=True)
    batch_size: int | None = _key("model", Whole(1, 65536, empty="by device"), "",
        "rows of every forward; fewer need less memory", fixed=True)

    compile: bool = _key("model", Truth(), "false",
        "true: masked forwards go through torch.compile (minutes to start; needs a C++ compiler on a CPU)", fixed=True)

    # Where it looks
    cam_version: str = _key("map", Registered("method"), "gScoreCAM", "the CAM method", fixed=True)
    topk: int = _key("map", Whole(1, 1_000_000), "300",
        "gScoreCAM: number of channels that are masked and scored", fixed=True)
    rise_masks: int = _key("map", Whole(1, 1_000_000), "4000",
        "RISE: number of random masks, drawn from SEED", fixed=True)
    allow_zero_gradient: bool = _key("map", Truth(), "false",
        "accept a TARGET_LAYER whose patch gradient is zero by construction")
    enable_body_mask: bool = _key("map", Truth(), "true",
        "no heat outside the body (text, markers, air)", fixed=True)
    skip_crf: bool = _key("map", Truth(), "true",
        "false: move the map's borders to the film's edges with a dense CRF", fixed=True)
    crf_gaussian_sxy: float = _key("map", Number(1, 1000), "3",
        "CRF: how far a pixel pulls its neighbours along, whatever they look like, in pixels at CRF_SIZE",
        fixed=True, unless="SKIP_CRF")
    crf_gaussian_compat: float = _key("map", Number(0, 100), "3",
        "CRF: strength of that pull", fixed=True, unless="SKIP_CRF")
    crf_bilateral_sxy: float = _key("map", Number(1, 1000), "60",
        "CRF: how far a pixel pulls those along that look like it, in pixels at CRF_SIZE",
        fixed=True, unless="SKIP_CRF")
    crf_bilateral_srgb: float = _key("map", Number(1, 255), "5",
        "CRF: by how many grey levels of 255 alike pixels may differ", fixed=True, unless="SKIP_CRF")
    crf_bilateral_compat: float = _key("map", Number(0, 100), "5",
        "CRF: strength of that pull", fixed=True, unless="SKIP_CRF")
    crf_tau: float = _key("map", Number(0.01, 100), "1.05",
        "CRF: the map's own say is divided by this: less trusts the map more", fixed=True, unless="SKIP_CRF")
    crf_eps: float = _key("map", Number(1e-12, 0.1), "1e-08",
        "CRF: added before logarithms; bounds what the hottest and coldest pixels say",
        fixed=True, unless="SKIP_CRF")
    crf_steps: int = _key("map", Whole(1, 100), "5", "CRF: mean-field steps", fixed=True, unless="SKIP_CRF")
    crf_size: int = _key("map", Whole(16, 2048), "448",
        "CRF: longest side in pixels that it is computed at, never more than the overlay's",
        fixed=True, unless="SKIP_CRF")
    save_raw_cam: bool = _key("map", Truth(), "false",
        "also write raw/: the patch-grid map (.npy, float32) and the final map (16-bit grey PNG)", fixed=True)

    # The picture
    alpha: float = _key("picture", Number(0, 1), "0.5",
        "blending: 0 = film only, 1 = heat map only", fixed="attn_map")
    colormap: str = _key("picture", Registered("colormap"), "jet", "colours of the heat map", fixed="attn_map")
    background: Background = _key("picture", Choice(Background), "map",
        "outside the body: the coldest colour (map) or the bare film (film)", fixed="attn_map")
    output_size: int | None = _key("picture", Whole(16, 65536, empty="the film's own size"), "1024",
        "longest side in pixels; a film is never enlarged", fixed=True)
    output_format: OutputFormat = _key("picture", Choice(OutputFormat), "png",
        "format of the overlays", fixed=True)

    # The run
    results_dir: Path = _key("run", FilePath("STAGE/results/ + the .conf's path under configs/"), "",
        "where everything is written")
    overwrite: bool = _key("run", Truth(), "false", "move an existing results folder aside and start afresh")
    retry_failed: bool = _key("run", Truth(), "false", "try again what failures.csv lists")
    max_failure_rate: float = _key("run", Number(0, 1), "0.05",
        "share of failures above which the exit code is 3")
    num_workers: int | None = _key("run", Whole(0, 256, empty="by the CPUs there are"), "",
        "processes that decode films ahead, and as many threads that draw and write; 0: no process, one thread")
    num_shards: int = _key("run", Whole(1, 100_000), "1", "parts that the run is split into (whole images)")
    shard_index: int = _key("run", Whole(0, 99_999), "0", "the part that this process does, below NUM_SHARDS")
    umask: str = _key("run", UMASK, "077", "file rights taken away; 027 lets the group read")
    container_runtime: ContainerRuntime = _key("run", Choice(ContainerRuntime), "none",
        "what the submit scripts start the stage in; none: nothing. A command typed by hand runs where it is typed")
    container_image: str = _key("run", Text("an image's name; apptainer: a .sif file", empty="the site's"), "",
        "the image of CONTAINER_RUNTIME, such as heatlens:latest; empty: that of slurm/site.conf")

    # Boxes: accepted everywhere, because stages share their .conf files
    box_threshold: str = _key("boxes", THRESHOLD, "0.65",
        "heat above which a pixel belongs to a box; the percentile is that of the pixels inside body and view",
        fixed="bbox")
    max_boxes: int = _key("boxes", Whole(1, 1000), "3",
        "boxes per heat map at most: those of the regions with the most heat", fixed="bbox")
    min_area: float = _key("boxes", Number(0, 1), "0.001",
        "smallest region that gets a box, as a share of the picture", fixed="bbox")
    box_padding: float = _key("boxes", Number(0, 1), "0",
        "margin added on each side of a box, as a share of its width or height, as far as the image goes", fixed="bbox")

    # Not keys
    config: Path | None = None
    """the .conf"""
    root: Path = Path()
    """the repository root that the .conf belongs to; without a .conf the current folder"""
    stage: str = ""
    origins: dict[str, str] = {}
    """KEY -> flag, environment, the .conf's path, or default"""
    announcements: tuple[str, ...] = ()
    """lines that a run says once at its start"""

    @model_validator(mode="after")
    def _in_range(self) -> Settings:
        for key in KEYS.values():
            if not key.kind.accepts(getattr(self, key.name.lower())):
                raise ValueError(f"{key.name}: allowed: {key.allowed}")
        return self

    def fixed_for(self, stage: str) -> dict[str, Any]:
        """KEY -> value of what work finished by ``stage`` depends on, without keys that another one switches off."""
        return {
            name: getattr(self, name.lower())
            for name, key in KEYS.items()
            if key.fixed_for(stage) and not (key.unless and getattr(self, key.unless.lower()))
        }
# fmt: on


def _table() -> dict[str, Key]:
    table = {}
    for name, field in Settings.model_fields.items():
        extra: Any = field.json_schema_extra
        if extra:
            key = Key(
                name=name.upper(),
                kind=extra["kind"],
                default=extra["text"],
                help=field.description or "",
                group=extra["group"],
                fixed=extra["fixed"],
                unless=extra["unless"],
            )
            table[key.name] = key
    return table


KEYS: Mapping[str, Key] = _table()
