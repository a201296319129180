"""CLIP and SigLIP of the transformers library: building them from a folder, and their adapter.

transformers initialises weights that a checkpoint lacks without stopping, so the network is built from its config
and filled here, strictly. Code from a model's repository is never run.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from heatlens.errors import ModelError, one_line
from heatlens.models.clip import ClipAdapter
from heatlens.models.loading import quiet, refuse_misfit
from heatlens.models.sources import TRANSFORMERS_CONFIG, ModelSource

# Fixed buffers that checkpoints of older releases carry; today's modules count the positions themselves.
_OLD_BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")

# Two prompts of as many letters: a tokenizer without a vocabulary gives both the same ids.
_PROBES = ["left lung", "dark bone"]


class TransformersClipAdapter(ClipAdapter):
    """A ``CLIPModel`` or ``SiglipModel`` as the engine sees it. ``tokenizer`` is one of transformers.

    CLIP prompts are as long as they are; SigLIP was trained on lower case padded to the whole context, with the
    padding attended to. A prompt longer than the context is cut.
    """

    _tokenizer: Any

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        self.config = model.config
        self._is_siglip = self.config.model_type == "siglip"
        self.context_length = min(
            int(self.config.text_config.max_position_embeddings),
            int(tokenizer.model_max_length),
        )
        super().__init__(model, tokenizer, **options)

    def image_features(self, images: Tensor) -> Tensor:
        """Images -> embeddings (B, D), not normalised."""
        return _embedding(self.model.get_image_features(pixel_values=images, return_dict=True))  # type: ignore[operator]

    def text_features(self, prompts: list[str]) -> Tensor:
        """Prompts -> embeddings (N, D), not normalised."""
        return _embedding(self.model.get_text_features(**self.text_inputs(prompts), return_dict=True))  # type: ignore[operator]

    def text_inputs(self, prompts: list[str]) -> dict[str, Tensor]:
        """What the text tower is given: ``input_ids`` (N, tokens) and, for CLIP, ``attention_mask``."""
        batch = self._tokenizer(
            [self._text(prompt) for prompt in prompts],
            padding="max_length" if self._is_siglip else "longest",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        words = int(self.config.text_config.vocab_size)
        if (largest := int(batch["input_ids"].max())) >= words:
            raise ModelError(
                f"MODEL={self.name}: the tokenizer gives id {largest}, the text tower knows {words} tokens"
            )
        names = ("input_ids",) if self._is_siglip else ("input_ids", "attention_mask")
        return {name: batch[name].to(self.device) for name in names}

    def truncates(self, prompt: str) -> bool:
        """Is ``prompt`` longer than the text tower reads? The rest has no effect on the map."""
        with quiet():  # it warns of what is asked here
            return len(self._tokenizer(self._text(prompt), truncation=False)["input_ids"]) > self.context_length

    def _text(self, prompt: str) -> str:
        return prompt.lower() if self._is_siglip else prompt


def _embedding(output: Any) -> Tensor:
    """A feature method's result: a tensor until transformers 4, an output with ``pooler_output`` since 5."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[no-any-return]


def load_transformers_clip(source: ModelSource, *, device: str = "cpu", target_layer: str = "") -> ClipAdapter:
    """The adapter of a source with a ``model_type``. ModelError as :func:`heatlens.models.loading.load_clip`."""
    network = _build(source)
    _refuse_unusable(source, network.config.vision_config)
    _load_weights(network, source)
    adapter = TransformersClipAdapter(
        network.to(device),
        _tokenizer(source),
        name=source.model,
        preprocess=preprocess_numbers(source, network.config.vision_config),
        target_layer=target_layer,
        identity=source.identity(),
    )
    _refuse_deaf(adapter)
    return adapter


def _build(source: ModelSource) -> Any:
    """The architecture in float32 with initial weights, which :func:`_load_weights` replaces one and all.

    Attention is torch's ``scaled_dot_product_attention`` whatever the config asks for: methods that read attention
    maps rely on it.
    """
    from transformers import AutoModel, CLIPConfig, SiglipConfig

    classes: dict[str, Any] = {"clip": CLIPConfig, "siglip": SiglipConfig}
    assert source.folder is not None
    try:
        with quiet():
            config = classes[source.model_type].from_dict(copy.deepcopy(source.config))  # it edits what it is given
            return AutoModel.from_config(config, attn_implementation="sdpa", trust_remote_code=False).float()
    except Exception as error:  # whatever the library's checks raise on a bad config
        where = source.folder / TRANSFORMERS_CONFIG
        raise ModelError(f"MODEL={source.model}: cannot build the architecture of {where}: {one_line(error)}") from None


def _refuse_unusable(source: ModelSource, vision_config: Any) -> None:
    if vision_config.num_channels != 3:
        raise ModelError(f"MODEL={source.model}: its images have {vision_config.num_channels} channels; 3 are needed")
    if not getattr(vision_config, "vision_use_head", True):
        raise ModelError(
            f"MODEL={source.model}: without its attention head (vision_use_head) it has no image embedding"
        )


def _load_weights(network: nn.Module, source: ModelSource) -> None:
    known = network.state_dict()
    try:
        weights = _read_weights(source)
        for name in _OLD_BUFFERS:
            if name not in known:
                weights.pop(name, None)
        keys = network.load_state_dict(weights, strict=False)
    except Exception as error:  # truncated file, unpickling refused, sizes that differ...
        raise ModelError(
            f"MODEL={source.model}: {source.checkpoint} is damaged or does not fit: {one_line(error)[:400]}"
        ) from None
    refuse_misfit(network, source, list(keys.missing_keys), list(keys.unexpected_keys))


def _read_weights(source: ModelSource) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in source.weights:
        if path.suffix == ".safetensors":
            weights.update(load_file(path))
        else:
            weights.update(torch.load(path, map_location="cpu", weights_only=True))
    return weights


def _tokenizer(source: ModelSource) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    assert source.folder is not None
    # SigLIP's own class reads spiece.model and nothing else; without it tokenizer.json says all there is to say.
    plain = source.model_type == "siglip" and not (source.folder / "spiece.model").is_file()
    loader: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
    try:
        with quiet():
            tokenizer = loader.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # broken JSON, an unknown class
        if isinstance(error, ImportError) and not plain and source.model_type == "siglip":
            hint = "SigLIP's spiece.model needs two packages more: `pip install sentencepiece protobuf`"
            raise ModelError(f"MODEL={source.model}: {hint}") from None
        raise ModelError(f"MODEL={source.model}: its tokenizer cannot be loaded: {one_line(error)[:400]}") from None
    if tokenizer.pad_token is None:
        raise ModelError(
            f"MODEL={source.model}: its tokenizer has no padding token (is tokenizer_config.json in {source.folder}?)"
        )
    return tokenizer


def _refuse_deaf(adapter: TransformersClipAdapter) -> None:
    """ModelError when two different prompts become one: every prompt would then give the same map."""
    ids = adapter.text_inputs(_PROBES)["input_ids"]
    if torch.equal(ids[0], ids[1]):
        raise ModelError(
            f"MODEL={adapter.name}: its tokenizer knows no words (are its vocabulary files what they should be?)"
        )
    first, second = (adapter.encode_text(prompt) for prompt in _PROBES)
    if torch.equal(first, second):
        raise ModelError(
            f"MODEL={adapter.name}: its text tower gives different prompts the same embedding (does the tokenizer "
            f"end a prompt with the token that {TRANSFORMERS_CONFIG} calls eos_token_id?)"
        )


def preprocess_numbers(source: ModelSource, vision_config: Any) -> dict[str, Any]:
    """``size`` (height, width) of the frame and ``mean`` and ``std`` of pixels in 0..1.

    The size is the model's ``image_size``; a preprocessor file that asks for another is an error. Mean and std
    are those of the file, else the library's defaults for the family.
    """
    from transformers.image_utils import (
        IMAGENET_STANDARD_MEAN,
        IMAGENET_STANDARD_STD,
        OPENAI_CLIP_MEAN,
        OPENAI_CLIP_STD,
    )

    defaults = {
        "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        "siglip": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    }
    settings = source.preprocessor
    try:
        size = _pair(vision_config.image_size)
        stated = _stated_size(settings)
        mean, std = (
            _three(settings.get(key) or default)
            for key, default in zip(("image_mean", "image_std"), defaults[source.model_type], strict=True)
        )
        if settings.get("do_normalize") is False:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        scale = 255 * float(settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 255.0
        if min(std) <= 0 or scale <= 0:
            raise ValueError("image_std and rescale_factor must be above 0")
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"MODEL={source.model}: its preprocessing cannot be read: {one_line(error)}") from None
    if stated is not None and stated != size:
        raise ModelError(
            f"MODEL={source.model}: the preprocessor makes images of {stated[0]} x {stated[1]} pixels, "
            f"the model of {TRANSFORMERS_CONFIG} reads {size[0]} x {size[1]}"
        )
    # Pixels come in 0..1 here; a factor other than 1/255 is folded into the two numbers.
    return {"size": size, "mean": tuple(m / scale for m in mean), "std": tuple(s / scale for s in std)}


def _stated_size(settings: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) that a preprocessor file asks for: the crop where there is one, else the resize."""
    cropped = settings.get("crop_size") is not None and settings.get("do_center_crop", True)
    stated = settings.get("crop_size" if cropped else "size")
    return None if stated is None else _pair(stated)


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) from 224, [224, 224], {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, dict):
        size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int | float) else size
    return int(height), int(width)


def _three(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"image_mean and image_std have three numbers each, not {values!r}")
    return numbers
