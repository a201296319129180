"""The adapter for CLIP models of open_clip: images and prompts in, normalised embeddings and a patch grid out."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatlens.cam.targets import TextSimilarity
from heatlens.models.network import NetworkAdapter

_TEXT_CACHE = 4096  # distinct prompts kept; a GEMeX run has a few thousand


class ClipAdapter(NetworkAdapter):
    """An open_clip model as the engine sees it. ``tokenizer`` maps a list of strings to token ids (N, context).

    The output is the normalised image embedding (B, D); a target is the similarity to a prompt.
    ``options`` are those of :class:`heatlens.models.network.NetworkAdapter`.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Any], **options: Any) -> None:
        self._tokenizer = tokenizer
        super().__init__(model, **options)
        self._encode_cached = lru_cache(maxsize=_TEXT_CACHE)(self._encode_text)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> normalised embeddings (B, D), in the model's own dtype."""
        return F.normalize(self.image_features(images).to(self.dtype), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Images -> embeddings (B, D), not normalised."""
        return self.model.encode_image(images)  # type: ignore[operator]

    def text_features(self, prompts: list[str]) -> Tensor:
        """Prompts -> embeddings (N, D), not normalised."""
        return self.model.encode_text(self._tokenizer(prompts).to(self.device))  # type: ignore[operator]

    def target(self, prompt: str) -> TextSimilarity:
        """The image-text logit of ``prompt``; its text is encoded once and kept."""
        return TextSimilarity(self.encode_text(prompt), self.logit_scale, self.logit_bias, prompt)

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale): about 85 for BiomedCLIP."""
        return float(self.model.logit_scale.exp())  # type: ignore[operator]

    @property
    def logit_bias(self) -> float:
        """SigLIP-type models add a bias; 0 otherwise."""
        bias = getattr(self.model, "logit_bias", None)
        return 0.0 if bias is None else float(bias)

    def encode_text(self, prompt: str) -> Tensor:
        """The normalised text embedding (D,), computed once per prompt and state of the weights."""
        return self._encode_cached(prompt, sum(one._version for one in self.model.parameters()))

    def _encode_text(self, prompt: str, _weights: int) -> Tensor:
        # Not under a caller's inference mode: such a tensor could never take part in a gradient.
        with torch.inference_mode(False), torch.no_grad():
            return F.normalize(self.text_features([prompt]).to(self.dtype), dim=-1)[0]

    def truncates(self, prompt: str) -> bool:
        """Is ``prompt`` longer than the text tower reads? The rest has no effect on the map."""
        context = getattr(self._tokenizer, "context_length", None)
        if context is None:
            return False
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is not None:  # a Hugging Face tokenizer, with its own special tokens
            return len(inner(prompt, truncation=False)["input_ids"]) > context
        encode = getattr(self._tokenizer, "encode", None)
        return encode is not None and len(encode(prompt)) + 2 > context
