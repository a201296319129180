"""Building a CLIP model from its files. Weights are loaded strictly, or not at all: never a random model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

import heatlens.models.timm_phantom  # noqa: F401 - importing registers the demo's trunk with timm
from heatlens.errors import ModelError, one_line
from heatlens.models.clip import ClipAdapter
from heatlens.models.sources import CONFIG_FILE, ModelSource, locate_model

_TEXT_CONFIGS = Path(__file__).parent / "text_configs"


def load_clip(model: str, *, revision: str | None = None, device: str = "cpu", target_layer: str = "") -> ClipAdapter:
    """The adapter of what MODEL names (see :func:`heatlens.models.sources.locate_model`), on ``device``.

    Works offline when the files are there. Raises ModelError for a missing, partial, damaged or ill-fitting
    checkpoint and for a target layer that does not exist.
    """
    source = locate_model(model, revision)
    if source.model_type:
        from heatlens.models.transformers_clip import load_transformers_clip  # it imports this module

        return load_transformers_clip(source, device=device, target_layer=target_layer)
    network = _build(source)
    _load_weights(network, source)
    return ClipAdapter(
        network.to(device),
        _tokenizer(source),
        name=model,
        preprocess=dict(open_clip.get_model_preprocess_cfg(network)),
        target_layer=target_layer,
        identity=source.identity(),
    )


def _build(source: ModelSource) -> nn.Module:
    """The architecture with its initial weights, which :func:`_load_weights` replaces one and all."""
    name = source.architecture or f"local-dir:{source.folder}"
    options: dict[str, Any] = {}
    if source.folder is not None:
        options["text_cfg"] = _offline_text_config(source)
    elif source.pretrained_tag:
        tag = open_clip.get_pretrained_cfg(source.architecture, source.pretrained_tag)
        options["force_quick_gelu"] = bool(tag.get("quick_gelu", False))
        options["force_preprocess_cfg"] = {key: tag[key] for key in ("mean", "std", "interpolation") if key in tag}
    try:
        with quiet():
            return open_clip.create_model(
                name, load_weights=False, pretrained_image=False, pretrained_text=False, **options
            )
    except Exception as error:  # open_clip, timm and transformers raise whatever they like on a bad config
        where = f"{source.folder / CONFIG_FILE}" if source.folder else source.architecture
        raise ModelError(f"MODEL={source.model}: cannot build the architecture of {where}: {one_line(error)}") from None


def _offline_text_config(source: ModelSource) -> dict[str, Any]:
    """The text tower's config with ``hf_model_name`` pointed at a folder that holds the tower's config.json.

    open_clip would ask the hub for it. Looked for in the model folder, in a sub-folder of the tower's name,
    then among the few that this package knows; otherwise the hub's cache has to have it.
    """
    text: dict[str, Any] = copy.deepcopy(source.config["model_cfg"]["text_cfg"])
    hub_name = text.get("hf_model_name")
    if hub_name:
        assert source.folder is not None
        last = str(hub_name).rsplit("/", 1)[-1]
        folders = (source.folder, source.folder / last, _TEXT_CONFIGS / last)
        found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
        text["hf_model_name"] = str(found or hub_name)
        text["hf_model_pretrained"] = False
    return text


def _load_weights(network: nn.Module, source: ModelSource) -> None:
    path = source.checkpoint
    try:
        with quiet():
            keys = open_clip.load_checkpoint(network, str(path), strict=False, weights_only=True)
    except Exception as error:  # truncated zip, unpickling refused, sizes that differ...
        raise ModelError(f"MODEL={source.model}: {path} is damaged or does not fit: {one_line(error)[:400]}") from None
    refuse_misfit(network, source, list(keys.missing_keys), list(keys.unexpected_keys))


def refuse_misfit(network: nn.Module, source: ModelSource, missing: list[str], unexpected: list[str]) -> None:
    """ModelError when weights are ``missing`` or ``unexpected``, or those loaded hold NaN or infinity."""
    path = source.checkpoint
    if missing or unexpected:
        raise ModelError(
            f"MODEL={source.model}: {path} does not fit the architecture: {len(missing)} weights are missing"
            f"{_examples(missing)} and {len(unexpected)} are unknown{_examples(unexpected)}"
        )
    if damaged := [name for name, weight in network.named_parameters() if not bool(torch.isfinite(weight).all())]:
        raise ModelError(f"MODEL={source.model}: {path} holds NaN or infinity in {', '.join(damaged[:3])}")


def _examples(keys: list[str]) -> str:
    return f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""


def _tokenizer(source: ModelSource) -> Any:
    name = source.architecture or f"local-dir:{source.folder}"
    try:
        with quiet():
            tokenizer = open_clip.get_tokenizer(name)
        first, second = tokenizer(["left lung", "right heart"])
    except Exception as error:  # broken JSON, the hub out of reach
        raise ModelError(f"MODEL={source.model}: its tokenizer cannot be loaded: {one_line(error)[:400]}") from None
    # Without a vocabulary, transformers makes an empty tokenizer silently: every prompt then gives one map.
    if torch.equal(first, second):
        raise ModelError(
            f"MODEL={source.model}: its tokenizer knows no words (are vocab.txt or tokenizer.json in "
            f"{source.folder or 'the cache'}?)"
        )
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Silence libraries' log lines while a model is built ("initialized randomly" before the weights come)."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
