"""The layers of an image tower: which can be a target layer, and which weights lie how deep.

Both questions are answered by one forward of the model as it is, with hooks on its modules, so they need to
know nothing of the architecture but where its blocks (or a convnet's stages) are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from heatlens.cam.capture import first_tensor, with_first
from heatlens.cam.targets import RandomDirection, random_image
from heatlens.models.layers import resolve_layer
from heatlens.models.network import NetworkAdapter


@dataclass(frozen=True)
class LayerGradient:
    """One layer: its name as in TARGET_LAYER and how many of its channels have a gradient at any patch."""

    name: str
    channels: int
    with_gradient: int
    chosen: bool
    """is it the model's target layer?"""

    @property
    def share(self) -> float:
        """Channels with gradient, 0..1."""
        return self.with_gradient / self.channels

    @property
    def usable(self) -> bool:
        """Can a method that ranks or weighs channels by gradients work here?"""
        return self.with_gradient > 0


@dataclass(frozen=True)
class DepthStage:
    """Weights of neighbouring layers, for instance of two blocks."""

    name: str
    parameters: tuple[nn.Parameter, ...]


def layer_gradients(model: NetworkAdapter) -> list[LayerGradient]:
    """Every layer whose output is a patch grid, in forward order, with the share of channels that get gradient.

    Of a transformer: the blocks, their parts (norms, attention, MLP) and norms outside them, without the prefix
    tokens (CLS, registers). Of a convnet: the stages beside the default target layer. One forward of a random
    image and one backward of a random direction of the output: the gradient is structural, so any image will do.
    """
    names = _names(model)
    wanted = [module for module in _candidates(model) if module in names]
    image = random_image(model).requires_grad_(True)  # the weights are frozen: the graph has to start here
    with torch.enable_grad(), torch.autocast(image.device.type, enabled=False), _outputs(wanted) as outputs:
        score = RandomDirection()(model.forward(image)).sum()
    found = {module: output for module, output in outputs.items() if _is_grid(model, output) and output.requires_grad}
    gradients = torch.autograd.grad(score, list(found.values()), allow_unused=True)
    rows = []
    for (module, output), gradient in zip(found.items(), gradients, strict=True):
        grid = model.to_grid(torch.zeros_like(output) if gradient is None else gradient)
        alive = ((grid != 0) & grid.isfinite()).flatten(2).any(dim=2)[0]
        rows.append(LayerGradient(names[module], alive.numel(), int(alive.sum()), module is model.target_layer))
    return rows


def depth_stages(model: NetworkAdapter, limit: int = 6) -> list[DepthStage]:
    """The image tower's weights in at most ``limit`` (at least 3) stages, from the output to the input.

    First what lies behind the last block (final norm, projection), then groups of blocks (or a convnet's
    stages), last the embedding. Which weights a layer's output depends on is read off the autograd graph of one
    forward: weights of the text side are in none, and names do not matter.
    """
    blocks = _blocks(model)
    image = random_image(model)
    with torch.enable_grad(), _parameters_watched(model.model), _outputs(blocks) as outputs:
        whole = model.forward(image)
        order = [module for module in outputs if module in set(blocks)]
        used = {module: _parameters_behind(output) for module, output in outputs.items()}
        everything = _parameters_behind(whole)
    names = _names(model)
    stages: list[DepthStage] = []
    known: set[nn.Parameter] = set()
    for number, group in enumerate(_groups(order, limit - 2)):
        name = names[group[0]] if len(group) == 1 else f"{names[group[0]]} to {names[group[-1]]}"
        needed = used[group[-1]] - known
        if number == 0:
            own = {parameter for module in group for parameter in module.parameters()}
            stages.append(_stage(model, "input embedding", needed - own))
            needed &= own
        stages.append(_stage(model, name, needed))
        known |= used[group[-1]]
    stages.append(_stage(model, "head", everything - known))
    return [stage for stage in reversed(stages) if stage.parameters]


def _stage(model: NetworkAdapter, name: str, members: set[nn.Parameter]) -> DepthStage:
    """In the model's own order, so that random numbers are drawn in the same order every time."""
    return DepthStage(name, tuple(parameter for parameter in model.model.parameters() if parameter in members))


def _groups(modules: Sequence[nn.Module], count: int) -> list[list[nn.Module]]:
    """At most ``count`` groups of neighbours; the smaller ones lie near the output."""
    parts = np.array_split(np.arange(len(modules)), max(1, min(count, len(modules))))
    return [[modules[place] for place in part] for part in parts if len(part)]


def _parameters_behind(output: Tensor) -> set[nn.Parameter]:
    """The parameters that ``output`` was computed from: the leaves of its autograd graph."""
    found: set[nn.Parameter] = set()
    seen: set[object] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            found.add(leaf)
        waiting += [following for following, _ in node.next_functions]
    return found


@contextmanager
def _parameters_watched(network: nn.Module) -> Iterator[None]:
    before = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        network.requires_grad_(True)
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)


@contextmanager
def _outputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collects the modules' outputs of a forward, in the order in which they are finished."""
    outputs: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _inputs: object, output: object) -> object:
        if not isinstance(output, Tensor | tuple):
            return None
        outputs[module] = first_tensor(output)
        # What follows works on a copy: an in-place operation would move the noted tensor behind itself.
        return with_first(output, outputs[module].clone())

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(note).remove)
        yield outputs


def _candidates(model: NetworkAdapter) -> list[nn.Module]:
    """The modules that are worth a line of the table, if their output is a patch grid."""
    blocks = _blocks(model)
    inside = {module for block in blocks for module in block.modules()}
    chosen = [*blocks, model.target_layer]
    if model.tokens is not None:
        chosen += [part for block in blocks for part in block.children() if _has_weights(part)]
        chosen += [
            module
            for module in model.model.modules()
            if module not in inside and next(module.parameters(recurse=False), None) is not None
        ]
        around = {module for module in model.model.modules() if blocks[0] in set(module.modules()) - {module}}
        chosen = [module for module in chosen if module not in around]
    return list(dict.fromkeys(chosen))


def _blocks(model: NetworkAdapter) -> list[nn.Module]:
    """A transformer's blocks; a convnet's stages: its default target layer and what lies beside and before it."""
    if model.tokens is not None and model.tokens.blocks:
        return list(model.tokens.blocks)
    default = model.default_layer_name
    layer = resolve_layer(model.model, default) if default else model.target_layer
    beside = list(_parent(model, layer).children())
    return [child for child in beside[: beside.index(layer) + 1] if _has_weights(child)] or [layer]


def _parent(model: NetworkAdapter, layer: nn.Module) -> nn.Module:
    return next(module for module in model.model.modules() if layer in set(module.children()))


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_grid(model: NetworkAdapter, output: Tensor) -> bool:
    if output.ndim == 4:
        return model.tokens is None and output.shape[2] * output.shape[3] > 1
    tokens = model.tokens
    if output.ndim != 3 or tokens is None:
        return False
    return int(output.shape[1]) == tokens.prefix + tokens.grid.rows * tokens.grid.cols


def _names(model: NetworkAdapter) -> dict[nn.Module, str]:
    """Module -> path as users write it: ``visual.trunk.blocks[3].norm1``, the last block as ``blocks[-1]``."""
    names = {
        module: re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", f".{name}")[1:]
        for name, module in model.model.named_modules()
        if name
    }
    last = list(_parent(model, _blocks(model)[-1]).children())[-1]
    long = names[last]
    short = re.sub(r"\[\d+\]$", "[-1]", long)
    return {
        module: short + name[len(long) :] if name == long or name.startswith((f"{long}.", f"{long}[")) else name
        for module, name in names.items()
    }
