"""Where a model's files are: the bundled demo, a local folder, the hub's cache, or open_clip's own list.

Nothing here builds a model; a run can name its weights (and their digest) without loading them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from heatlens.errors import ModelError, one_line
from heatlens.files import digest_file, digest_text
from heatlens.registry import nearest_hint

DEMO = "demo"
HUB_PREFIX = "hf-hub:"
LOCAL_PREFIX = "local-dir:"
CONFIG_FILE = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"

# BiomedCLIP's checkpoint was replaced once; a hub name without MODEL_REVISION means the revision below.
PINNED_REVISIONS = {
    "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224": "9f341de24bfb00180f1b847274256e9b65a3a32e",
}

# In open_clip's own order of preference.
CHECKPOINT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)

# The model_type of transformers models that are known, each with the sets of files that make a tokenizer.
TRANSFORMERS_TYPES = {
    "clip": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "siglip": (("tokenizer.json",), ("spiece.model",)),
}
_SHARD_INDEX = "model.safetensors.index.json"
_TRANSFORMERS_CHECKPOINTS = ("model.safetensors", _SHARD_INDEX, "pytorch_model.bin")

_HUB_PATTERNS = [
    "open_clip_config.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.txt",  # vocab.txt, merges.txt
    "vocab.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    _SHARD_INDEX,
    "model-*-of-*.safetensors",
]


@dataclass(frozen=True)
class ModelSource:
    """A model's files: its ``checkpoint``, and a ``folder`` with its config or a built-in ``architecture``.

    ``model_type`` is that of a transformers model, empty for open_clip; ``preprocessor`` its image processor's
    settings, empty without the file. ``shards`` are the parts that a checkpoint in pieces (an index) names.
    """

    model: str
    checkpoint: Path
    folder: Path | None = None
    architecture: str = ""
    revision: str = ""
    pretrained_tag: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    model_type: str = ""
    preprocessor: dict[str, Any] = field(default_factory=dict)
    shards: tuple[Path, ...] = ()

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files that hold the weights: the checkpoint, or its shards."""
        return self.shards or (self.checkpoint,)

    def identity(self) -> dict[str, Any]:
        """Model, revision, file name, size and SHA-256 of the weights: what a paper should cite.

        The SHA-256 of a checkpoint in shards is that of its shards' names and digests.
        """
        digests = [_digest(path.resolve()) for path in self.weights]
        named = [text for path, digest in zip(self.weights, digests, strict=True) for text in (path.name, digest)]
        config = {**self.config, "preprocessor_config": self.preprocessor} if self.preprocessor else self.config
        return {
            "model": self.model,
            "revision": self.revision,
            "weights_file": self.checkpoint.name,
            "weights_bytes": sum(path.stat().st_size for path in self.weights),
            "weights_sha256": digest_text(*named) if self.shards else digests[0],
            "config_sha256": digest_text(json.dumps(config, sort_keys=True)) if config else "",
        }


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)  # a large model has dozens of shards
def _digest_of(path: Path, _size: int, _mtime: int) -> str:
    return digest_file(path)


def weights_identity(model: str, revision: str | None = None) -> dict[str, Any]:
    """:meth:`ModelSource.identity` of what MODEL and MODEL_REVISION name, without building the model."""
    return locate_model(model, revision).identity()


def locate_model(model: str, revision: str | None = None) -> ModelSource:
    """The files of ``demo``, a folder (``local-dir:`` may stand before it), ``hf-hub:ORG/NAME`` or
    ``ARCHITECTURE/TAG-or-checkpoint`` of open_clip.

    Raises ModelError that names what is missing and where it was looked for.
    """
    if model == DEMO:
        return _folder_source(model, Path(__file__).parent.parent / "phantom" / "weights", "")
    if model.startswith(HUB_PREFIX):
        return _hub_source(model, revision)
    path = Path(model.removeprefix(LOCAL_PREFIX)).expanduser()
    if model.startswith(LOCAL_PREFIX) or path.is_dir():
        return _folder_source(model, path, revision or "")
    return _builtin_source(model)


def _folder_source(model: str, folder: Path, revision: str) -> ModelSource:
    if not folder.is_dir():
        raise ModelError(f"MODEL={model}: the folder {folder} does not exist")
    if not (folder / CONFIG_FILE).is_file() and (folder / TRANSFORMERS_CONFIG).is_file():
        return _transformers_source(model, folder, revision)
    config = _read_config(model, folder / CONFIG_FILE)
    checkpoint = _checkpoint(model, folder, CHECKPOINT_NAMES)
    return ModelSource(model, checkpoint, folder, revision=revision, config=config)


def _checkpoint(model: str, folder: Path, names: tuple[str, ...]) -> Path:
    checkpoint = next((folder / name for name in names if (folder / name).is_file()), None)
    if checkpoint is None:
        raise ModelError(
            f"MODEL={model}: no weights in {folder} (looked for {', '.join(names)}); "
            "a model without its weights is never run"
        )
    return checkpoint


def _read_config(model: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(
            f"MODEL={model}: {path} is missing; an open_clip model folder holds it "
            f"(and a folder of the transformers library {TRANSFORMERS_CONFIG})"
        )
    config = _read_json(model, path)
    model_config = config.get("model_cfg")
    if not isinstance(model_config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(model_config):
        raise ModelError(f"MODEL={model}: {path} has no model_cfg with embed_dim, vision_cfg and text_cfg")
    return config


def _read_json(model: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"MODEL={model}: {path} cannot be read: {one_line(error)}") from None
    return content if isinstance(content, dict) else {}


def _transformers_source(model: str, folder: Path, revision: str) -> ModelSource:
    """A folder as transformers' ``save_pretrained`` writes it, without open_clip's config."""
    path = folder / TRANSFORMERS_CONFIG
    config = _read_json(model, path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in TRANSFORMERS_TYPES:
        raise ModelError(
            f"MODEL={model}: {folder / CONFIG_FILE} is missing and {path} has model_type {model_type!r}; "
            f"of the transformers library's models {' and '.join(TRANSFORMERS_TYPES)} work"
        )
    checkpoint = _checkpoint(model, folder, _TRANSFORMERS_CHECKPOINTS)
    choices = TRANSFORMERS_TYPES[model_type]
    if not any(all((folder / name).is_file() for name in files) for files in choices):
        wanted = " or ".join(" with ".join(files) for files in choices)
        raise ModelError(f"MODEL={model}: no tokenizer in {folder} (looked for {wanted})")
    return ModelSource(
        model,
        checkpoint,
        folder,
        revision=revision,
        config=config,
        model_type=model_type,
        preprocessor=_read_preprocessor(model, folder),
        shards=_shards(model, checkpoint) if checkpoint.name == _SHARD_INDEX else (),
    )


def _read_preprocessor(model: str, folder: Path) -> dict[str, Any]:
    """The image processor's settings: a file of their own or, since transformers 5, a part of the processor's."""
    if (path := folder / "preprocessor_config.json").is_file():
        return _read_json(model, path)
    if (path := folder / "processor_config.json").is_file():
        settings = _read_json(model, path).get("image_processor")
        return settings if isinstance(settings, dict) else {}
    return {}


def _shards(model: str, index: Path) -> tuple[Path, ...]:
    weight_map = _read_json(model, index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ModelError(f"MODEL={model}: {index} has no weight_map that names the files beside it")
    shards = tuple(index.parent / name for name in sorted(names))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ModelError(f"MODEL={model}: {index} names weights that are not in the folder: {', '.join(missing[:3])}")
    return shards


def _hub_source(model: str, revision: str | None) -> ModelSource:
    name = model.removeprefix(HUB_PREFIX)
    wanted = revision or PINNED_REVISIONS.get(name) or "main"
    try:
        return _folder_source(model, _snapshot(name, wanted, offline=True), wanted)
    except (ModelError, FileNotFoundError) as error:
        missing = one_line(error)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        raise ModelError(_not_cached(model, wanted, missing))
    try:
        folder = _snapshot(name, wanted, offline=False)
    except Exception as error:  # the hub client raises dozens of types: network, auth, missing repository
        raise ModelError(f"{_not_cached(model, wanted, missing)} The hub answered: {one_line(error)[:300]}") from None
    return _folder_source(model, folder, wanted)


def _not_cached(model: str, revision: str, missing: str) -> str:
    cache = os.environ.get("HF_HOME") or "~/.cache/huggingface (HF_HOME is not set)"
    return (
        f"MODEL={model}: revision {revision} is not complete in the hub cache {cache}: {missing}. On a machine with "
        f"internet run `heatlens fetch-model {model} --revision {revision} --to FOLDER` and set MODEL to that folder, "
        f"or fill the cache: `hf download {model.removeprefix(HUB_PREFIX)} --revision {revision}`."
    )


def _snapshot(name: str, revision: str, *, offline: bool) -> Path:
    """The folder of one revision in the hub cache; downloads only what loading needs unless ``offline``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=offline,
                allow_patterns=[*_HUB_PATTERNS, *CHECKPOINT_NAMES],
            )
        )
    except LocalEntryNotFoundError:
        raise FileNotFoundError("no such snapshot") from None


def _builtin_source(model: str) -> ModelSource:
    """``ARCHITECTURE/TAG`` or ``ARCHITECTURE/path/to/checkpoint`` with an architecture of open_clip's list."""
    import open_clip

    architecture, _, weights = model.partition("/")
    if architecture not in open_clip.list_models():
        raise ModelError(
            f"MODEL={model}: neither a folder, nor hf-hub:ORG/NAME, nor an open_clip architecture; "
            f"{nearest_hint(architecture, open_clip.list_models())[:600]}"
        )
    if Path(weights).is_file():
        return ModelSource(model, Path(weights), architecture=architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        raise ModelError(
            f"MODEL={model}: write {architecture}/TAG or {architecture}/CHECKPOINT-FILE; "
            f"{nearest_hint(weights, tags) if tags else 'this architecture has no published tag'}"
        )
    try:
        checkpoint = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(architecture, weights)))
    except Exception as error:  # as above: whatever the download raises
        raise ModelError(
            f"MODEL={model}: its weights are not cached and could not be fetched: {one_line(error)[:300]}"
        ) from None
    return ModelSource(model, checkpoint, architecture=architecture, pretrained_tag=weights)
