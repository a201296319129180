"""The adapter for image classifiers: logits out, one target per class."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import nn

from heatlens.cam.targets import ClassLogit
from heatlens.errors import ModelError
from heatlens.models.network import NetworkAdapter


class ClassifierAdapter(NetworkAdapter):
    """A convnet or vision transformer whose output is (B, classes) logits. ``labels`` name the classes."""

    def __init__(self, model: nn.Module, *, labels: Sequence[str] = (), **options: Any) -> None:
        super().__init__(model, **options)
        self.labels = tuple(labels)

    def target(self, label: str | int) -> ClassLogit:
        """The logit of a class, by its number or name (case is ignored)."""
        if not isinstance(label, str):
            return ClassLogit(self._checked(operator.index(label)))
        names = [known.casefold() for known in self.labels]
        if label.casefold() not in names:
            known = ", ".join(self.labels) or "no names"
            raise ModelError(f"model {self.name} has no class {label!r}; it has: {known}")
        index = names.index(label.casefold())
        return ClassLogit(self._checked(index), self.labels[index])

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.output_size:
            raise ModelError(f"model {self.name} has classes 0 to {self.output_size - 1}, not {index}")
        return index
