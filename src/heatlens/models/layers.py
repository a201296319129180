"""Finding a layer by the path that users write."""

from __future__ import annotations

import difflib
import re

from torch import nn

from heatlens.errors import ModelError

_STEP = re.compile(r"([A-Za-z_]\w*)|\[(-?\d+)\]|(\d+)")


def resolve_layer(model: nn.Module, path: str) -> nn.Module:
    """The module at ``visual.trunk.blocks[-1].norm1`` (``blocks.11.norm1`` works too).

    Raises ModelError naming the part that does not exist and what there is instead.
    """
    module, walked = model, ""
    for step in re.findall(r"[^.\[\]]+|\[-?\d+\]", path):
        module = _child(module, step, walked or "the model")
        walked = f"{walked}{step}" if step.startswith("[") else f"{walked}.{step}".lstrip(".")
    if module is model:
        raise ModelError(f"TARGET_LAYER={path!r} names no layer; an example: visual.trunk.blocks[-1].norm1")
    return module


def _child(module: nn.Module, step: str, walked: str) -> nn.Module:
    children = dict(module.named_children())
    index = step.strip("[]")
    if step.startswith("[") or index.isdigit():
        keys = list(children)
        if index in children:
            return children[index]
        if -len(keys) <= int(index) < len(keys):
            return children[keys[int(index)]]
        raise ModelError(f"TARGET_LAYER: {walked} has {len(keys)} children, no {step}")
    if step in children:
        return children[step]
    close = difflib.get_close_matches(step, children, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ModelError(
        f"TARGET_LAYER: {walked} has no layer {step!r}; {hint}it has: {', '.join(children) or 'no children'}"
    )
