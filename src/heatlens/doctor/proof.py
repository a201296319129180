"""``heatlens doctor --model``: are these the weights that they should be, and do they look where they are asked?

Two films of the phantom and two prompts go through the run's own method. That refutes wrong weights, layers and
tokenizers; that a map points at the right place it cannot show (docs/sanity.md).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from heatlens.doctor.data import without_network
from heatlens.doctor.findings import OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    from torch import Tensor

    from heatlens.config import Settings
    from heatlens.models.clip import ClipAdapter
    from heatlens.models.sources import ModelSource

BIOMEDCLIP_NAME = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
BIOMEDCLIP_TEXT = "BiomedNLP-BiomedBERT-base-uncased-abstract"
BIOMEDCLIP_SCALE = (80.0, 90.0)  # exp(logit_scale) of the published checkpoint is near 85
UNTRAINED_SCALE = 1 / 0.07  # what every CLIP starts from
SEEDS = (500_001, 500_002)  # of the films: nothing was trained on them
FILM_SIDE = 448  # pixels
PROMPTS = ("left lung", "heart")
WORDS = ("left lung", "right lung", "heart", "effusion", "pneumothorax", "tube", "pacemaker")


def prove(settings: Settings) -> Iterator[Finding]:
    """Find, check and load MODEL, then look at what it makes."""
    from heatlens.batch.explainer import load_model
    from heatlens.models.sources import locate_model

    with without_network():
        source = locate_model(settings.model, settings.model_revision or None)
        yield from files(source)
        begin = time.monotonic()
        model = load_model(settings)
    seconds = time.monotonic() - begin
    yield Finding(
        "loading", OK, f"{settings.model} on {model.device} in {seconds:.1f} s; every weight is there and finite"
    )
    yield logit_scale(model.logit_scale, source)
    yield words(model)
    yield from looks(model, settings)


def files(source: ModelSource) -> Iterator[Finding]:
    """The weights' digest, against SHA256SUMS or the name that the hub's cache gives a file."""
    from heatlens.cluster.model_folder import SUMS, faults, read_sums

    digest = source.identity()["weights_sha256"]
    if source.folder is not None and (source.folder / SUMS).is_file():
        found = faults(source.folder)
        for fault in found:
            yield Finding("weights", PROBLEM, fault, f"`heatlens fetch-model OWNER/NAME --to {source.folder}` again")
        if not found:
            yield Finding("weights", OK, f"{len(read_sums(source.folder))} files as in {SUMS}; SHA-256 {digest}")
        return
    name = source.checkpoint.resolve().name
    if not source.shards and re.fullmatch("[0-9a-f]{64}", name):
        if name == digest:
            yield Finding("weights", OK, f"as the hub named them; SHA-256 {digest}")
        else:
            yield Finding(
                "weights",
                PROBLEM,
                f"{source.checkpoint} has SHA-256 {digest}; the hub's is {name}",
                "remove the file and fetch it again",
            )
        return
    yield Finding("weights", OK, f"SHA-256 {digest} (no {SUMS} to compare with)")


def logit_scale(scale: float, source: ModelSource) -> Finding:
    """exp(logit_scale). BiomedCLIP's checkpoint was replaced once, and random weights have the value of a beginning."""
    text = f"exp of it is {scale:.1f}"
    low, high = BIOMEDCLIP_SCALE
    if not math.isfinite(scale) or scale <= 0:
        return Finding("logit scale", PROBLEM, f"{text}: no scale at all", "the weights are damaged")
    if abs(scale - UNTRAINED_SCALE) < 0.05:
        return Finding(
            "logit scale",
            PROBLEM,
            f"{text}, which is what an untrained CLIP starts from",
            "these are not the weights of a trained model: fetch them again",
        )
    kin = kinship(source)
    if kin and not low <= scale <= high:
        state = PROBLEM if kin == "BiomedCLIP" else WARNING
        return Finding(
            "logit scale", state, f"{text}; BiomedCLIP's is 85", "`heatlens fetch-model` gets the pinned weights"
        )
    return Finding("logit scale", OK, text + (", BiomedCLIP's" if kin else ""))


def kinship(source: ModelSource) -> str:
    """``BiomedCLIP`` by name, ``its architecture`` (perhaps trained further), or empty for another model."""
    from heatlens.cluster.model_folder import read_source

    fetched = read_source(source.folder) if source.folder is not None else None
    if source.model.endswith(BIOMEDCLIP_NAME) or (fetched is not None and fetched.repository == BIOMEDCLIP_NAME):
        return "BiomedCLIP"
    model: Any = source.config.get("model_cfg")
    text: Any = model.get("text_cfg") if isinstance(model, dict) else None
    name = str(text.get("hf_model_name")) if isinstance(text, dict) else ""
    return "its architecture" if name.endswith(BIOMEDCLIP_TEXT) else ""


def words(model: ClipAdapter) -> Finding:
    """Are different words different texts for the model? A tokenizer without its vocabulary makes them one."""
    seen: dict[str, Tensor] = {}
    for word in WORDS:
        text = model.encode_text(word)
        same = next((other for other, known in seen.items() if known.equal(text)), None)
        if same is not None:
            return Finding(
                "tokenizer",
                PROBLEM,
                f"{same!r} and {word!r} are the same text for the model",
                "vocab.txt or tokenizer.json belongs to another model, or is cut off",
            )
        seen[word] = text
    return Finding("tokenizer", OK, f"{len(WORDS)} prompts, {len(WORDS)} different texts")


def looks(model: ClipAdapter, settings: Settings) -> Iterator[Finding]:
    """Gradient at the target layer; maps of two prompts and of two films; time per heat map."""
    from heatlens.batch.explainer import build_engine

    engine = build_engine(model, settings, allow_zero_gradient=True)  # it is a finding here, not a reason to stop
    yield gradient(model, needed=engine.method.needs_live_layer)
    targets = [model.target(prompt) for prompt in PROMPTS]
    maps = []
    for image in films(model, settings.preprocess):
        begin = time.monotonic()
        maps += engine.explain(image[None], [targets])
        seconds = time.monotonic() - begin  # the last film's: the first one warms up
    yield prompts_differ(engine.method.name, maps, uses_target=engine.method.uses_target)
    yield films_differ(engine.method.name, maps)
    yield Finding("speed", OK, f"{engine.method.name}: {seconds / len(targets):.3g} s per heat map on {model.device}")


def gradient(model: ClipAdapter, *, needed: bool) -> Finding:
    """Channels of the target layer whose gradient is not zero at every patch."""
    from heatlens.evaluate.layers import layer_gradients
    from heatlens.evaluate.sanity import layers_verdict

    rows = layer_gradients(model)
    alive = [row.name for row in rows if row.usable]
    verdict = layers_verdict(
        rows, model.target_layer_name, alive[-1] if alive else model.default_layer_name, needed=needed
    )
    chosen = next((row for row in rows if row.chosen), None)
    if verdict.failed:
        return Finding("gradient", PROBLEM, verdict.text, verdict.advice)
    if chosen is None or not chosen.usable:
        return Finding("gradient", OK, verdict.text)
    text = f"{chosen.with_gradient} of {chosen.channels} channels at {model.target_layer_name} have one"
    if chosen.with_gradient < chosen.channels:
        return Finding(
            "gradient",
            PROBLEM if needed else WARNING,
            text,
            "those without never show up in a map: are the weights whole (SHA-256), is TARGET_LAYER right?",
        )
    return Finding("gradient", OK, text)


def films(model: ClipAdapter, preprocess: str) -> Tensor:
    """Two synthetic films in the model's frame, normalised: (2, 3, H, W)."""
    from heatlens.images.geometry import FrameGeometry
    from heatlens.phantom.film import make_film

    frames = []
    for seed in SEEDS:
        pixels = make_film(seed, long_side=FILM_SIDE).pixels
        height, width = pixels.shape
        frames.append(FrameGeometry.fit(preprocess, source=(width, height), frame=model.frame).place(pixels))
    return model.prepare(frames)


def prompts_differ(method: str, maps: list[Tensor], *, uses_target: bool) -> Finding:
    """``maps``: per film (prompts, h, w)."""
    from heatlens.evaluate.sanity import PromptSensitivity, compare_prompts

    found = compare_prompts(method, maps) if uses_target else PromptSensitivity(method, uses_target=False)
    verdict = found.verdict()
    return Finding("prompts", PROBLEM if verdict.failed else OK, verdict.text, verdict.advice)


def films_differ(method: str, maps: list[Tensor]) -> Finding:
    """The same comparison with the roles changed: one prompt, two films."""
    import torch

    from heatlens.evaluate.sanity import SAME_PROMPT, compare_prompts

    # Methods that ignore the prompt give one map for all: then films are all that there is to compare.
    figures = compare_prompts(method, list(torch.stack(maps).unbind(1))).figures()
    likeness = figures["pearson_mean"]
    if likeness is None:
        return Finding(
            "films",
            PROBLEM,
            f"{figures['constant']} of {figures['maps']} maps are constant",
            "see the gradient above; another CAM_VERSION or TARGET_LAYER",
        )
    text = f"maps of two films have a mean Pearson correlation of {likeness:.2f} (limit {SAME_PROMPT})"
    if figures["identical"] or likeness >= SAME_PROMPT:
        return Finding("films", PROBLEM, text, "the model does not look at the picture: are these its weights?")
    return Finding("films", OK, text)
