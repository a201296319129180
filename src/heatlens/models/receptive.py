"""Stride and offset of a convnet's feature map in the input frame, measured.

The network runs once, up to the layer, on *positions* instead of an image: every value says where its receptive
field is centred, in pixels of the frame. A window (convolution, pooling) averages the positions it covers,
whatever lies in the padding continuing the line of positions; what works on single values (norms, activations,
biases) keeps them; branches that meet are averaged; reshaping, slicing and joining move them like any other value.
So the layer's cells say themselves where they are, at the frame's own size: padding that depends on the size
(TensorFlow's SAME) needs no rule. This is the arithmetic of Araujo, Norris and Sim, "Computing Receptive Fields of
Convolutional Neural Networks", Distill 2019, carried out by the network's own forward.

Nothing of the network is changed for it: operations are answered for the tensor that passes through (PyTorch's
``__torch_dispatch__``), weights are never read, and the forward stops at the layer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heatlens.cam.capture import first_tensor
from heatlens.cam.protocols import PatchGrid

_log = logging.getLogger(__name__)

_TOLERANCE = 1.0  # pixels of the frame by which a cell may lie off the regular grid


class _Unmeasurable(Exception):
    """Why the grid could not be measured, in words."""


class _LayerReached(Exception):
    """Ends the forward at the target layer."""


def measure_grid(
    forward: Callable[[Tensor], object],
    network: nn.Module,
    layer: nn.Module,
    frame: tuple[int, int],
    cells: tuple[int, int],
) -> PatchGrid:
    """Where the ``cells`` (rows, cols) of ``layer``'s feature map lie in ``frame`` (width, height).

    ``forward`` maps images (B, 3, height, width) to anything, through ``network``, which owns ``layer``;
    ``layer`` gives (B, C, rows, cols). With branches of several centres (a pooled shortcut, say) a cell lies at
    their mean. An axis of one cell gets the frame's length as stride.

    Where this cannot be measured the map is spread evenly over the frame, as ordinary resizing would, and a
    warning is logged.
    """
    try:
        positions = _layer_positions(forward, network, layer, frame)
        if tuple(positions.shape[1:]) != tuple(cells):
            raise _Unmeasurable(f"its positions are {tuple(positions.shape[1:])}, its cells {tuple(cells)}")
        lines = [_regular(positions[axis].movedim(axis, 0), (frame[1], frame[0])[axis]) for axis in (0, 1)]
    except Exception as error:  # the network is foreign code: whatever it raises, there is a grid to fall back on
        _log.warning(
            "cannot measure where the cells of %s lie (%s); its map is spread evenly over the frame",
            type(layer).__name__,
            str(error) or type(error).__name__,
        )
        return PatchGrid(*cells, stride=(frame[1] / cells[0], frame[0] / cells[1]))
    (stride_y, offset_y), (stride_x, offset_x) = lines
    return PatchGrid(*cells, stride=(stride_y, stride_x), offset=(offset_y, offset_x))


def _regular(positions: Tensor, length: int) -> tuple[float, float]:
    """Stride and offset of one axis from its positions (cells along the axis, cells across it)."""
    if not positions.isfinite().all():
        raise _Unmeasurable("an operation on the way to it has no known geometry")
    count = len(positions)
    index = torch.arange(count, device=positions.device, dtype=positions.dtype) - (count - 1) / 2
    middle = positions.mean()
    usual = length / count
    stride = float((index * positions.mean(1)).sum() / (index**2).sum()) if count > 1 else usual
    if not 0 < stride < 2 * usual:
        raise _Unmeasurable(f"a stride of {stride:.2f} px does not fit {count} cells in {length} px")
    if (positions - (middle + stride * index)[:, None]).abs().max() > _TOLERANCE:
        raise _Unmeasurable("its cells do not lie on a regular grid")
    return round(stride, 6), round(float(middle) - stride * count / 2, 6) + 0.0  # not -0.0


def _layer_positions(
    forward: Callable[[Tensor], object], network: nn.Module, layer: nn.Module, frame: tuple[int, int]
) -> Tensor:
    """The layer's positions (2, rows, cols): y and x of every cell."""
    reached: list[object] = []

    def stop(_module: nn.Module, _inputs: object, output: object) -> None:
        reached.append(output)
        raise _LayerReached

    images = _frame_positions(frame, next(network.parameters(), torch.zeros(())))
    handle = layer.register_forward_hook(stop)
    try:
        with torch.no_grad(), _evaluating(network):
            forward(images)
    except _LayerReached:
        pass
    finally:
        handle.remove()
    output = first_tensor(reached[0]) if reached else None
    if not isinstance(output, _Positions):
        raise _Unmeasurable("the forward did not reach it with what was put in")
    return _compact(output.places).nanmean(1).expand(-1, *output.shape[2:])


def _frame_positions(frame: tuple[int, int], like: Tensor) -> _Positions:
    """The frame's pixel centres as images (2, 3, height, width): y in the first, x in the second."""
    (width, height), device = frame, like.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5)[:, None].expand(height, width)
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5)[None, :].expand(height, width)
    return _Positions(torch.stack([y, x])[:, None].expand(2, 3, height, width), like.dtype)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, then as it was. Set directly: a model's own ``train`` may do more."""
    before = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


class _Positions(Tensor):
    """A feature map to the network, of the network's dtype; its ``places``, of the same shape, are positions.

    Positions are float64 pixels of the frame; NaN means: no position. The first half of the batch holds y, the
    second x. Operations that keep positions share them, so nothing is ever written into ``places``.
    """

    places: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, places: Tensor, dtype: torch.dtype) -> _Positions:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, places.shape, dtype=dtype, device=places.device
        )

    def __init__(self, places: Tensor, dtype: torch.dtype) -> None:  # noqa: ARG002
        self.places = places

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, _types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        schema = function._schema
        arguments = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs or {})
        name = schema.name.removeprefix("aten::")
        if name in _FACTORIES:
            return function(*_unwrap(args), **_unwrap(kwargs or {}))
        if name.endswith("_") and not name.endswith("__"):
            return _replace(function, name, arguments)
        seen = next(value.dtype for value in _tensors(arguments) if isinstance(value, _Positions))
        dtype = arguments.get("dtype") or seen if name == "_to_copy" else seen
        answer = _wrap(_answer(function, name, arguments), dtype)
        several = len(schema.returns) > 1 and isinstance(answer, Tensor)  # a norm's statistics, a pool's indices
        return (answer,) * len(schema.returns) if several else answer


def _replace(function: Any, name: str, arguments: Mapping[str, Any]) -> Tensor:
    """An operation in place, on whole maps only: a map written piece by piece is more than is followed here."""
    target = arguments["self"]
    if not isinstance(target, _Positions) or (torch.Tag.pointwise not in function.tags and name[:-1] not in _KEEPING):
        raise _Unmeasurable(f"on the way to it {name} writes into a map")
    target.places = _answer(function, name[:-1], arguments)
    return target


def _answer(function: Any, name: str, arguments: Mapping[str, Any]) -> Any:
    """The positions after an operation: by its name, by its kind, or NaN where neither is known."""
    if name in _RULES:
        return _RULES[name](arguments)
    if torch.Tag.pointwise in function.tags:
        return _meet([value for value in arguments.values() if isinstance(value, Tensor)])
    if name in _KEEPING or any(norm in name for norm in _NORMS):
        return next(iter(arguments.values())).places
    plain = _unwrap(arguments)
    if name in ("view", "_unsafe_view", "_reshape_alias"):
        return plain["self"].reshape(plain["size"])
    if name.startswith("_scaled_dot_product"):
        return _lost(plain["value"][..., :1, :].expand(*plain["query"].shape[:-1], -1))
    moved = function(**plain)
    return moved if function.is_view or name in _MOVING else _lost(moved)


def _meet(tensors: Sequence[Tensor]) -> Tensor:
    """Branches that meet (a sum, a product, a choice): the mean of those that know where they are.

    A gate, one number for a whole map (squeeze-and-excitation), has no say in where the map's cells are: what spans
    less than half of what another branch spans is left out.
    """
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    fields = [tensor.places for tensor in tensors if isinstance(tensor, _Positions)]
    if len(fields) > 1:
        spans = torch.stack([_span(field) for field in fields])
        wide = (spans >= spans.amax(0) / 2).all(1)
        fields = [_compact(field) for field, counts in zip(fields, wide, strict=True) if counts or not wide.any()]
    return (sum(fields[1:], start=fields[0]) / len(fields) if len(fields) > 1 else fields[0]).expand(shape)


def _span(field: Tensor) -> Tensor:
    """From the least to the greatest position, (y, x); 0 where there are none."""
    field = _compact(field)
    halves = field.reshape(2, -1) if field.numel() % 2 == 0 else field.reshape(1, -1).expand(2, -1)
    return (halves.amax(1) - halves.amin(1)).nan_to_num(0.0)


def _convolution(arguments: Mapping[str, Any]) -> Tensor:
    """Every output channel averages the window over all input channels."""
    values, kernel = arguments["input"].places, arguments["weight"].shape[2:]
    stride, padding, dilation = (_per_axis(arguments[key], len(kernel)) for key in ("stride", "padding", "dilation"))
    result = _compact(values, but_last=len(kernel)).nanmean(1, keepdim=True)
    for axis, size in enumerate(kernel):
        dim, span = axis - len(kernel), dilation[axis] * (size - 1) + 1
        length = result.shape[dim]
        if arguments["transposed"]:
            extra = _per_axis(arguments["output_padding"], len(kernel))[axis]
            index = torch.arange((length - 1) * stride[axis] - 2 * padding[axis] + span + extra)
            result = _resample(result, dim, (index + padding[axis] - (span - 1) / 2) / stride[axis])
        else:
            result = _extend(result, dim, padding[axis], padding[axis])
            result = result.unfold(dim, span, stride[axis])[..., :: dilation[axis]].mean(-1)
    outwards, inwards = arguments["weight"].shape[:2]
    channels = inwards * arguments["groups"] if arguments["transposed"] else outwards
    return result.expand(-1, channels, *(-1 for _ in kernel))


def _pool(arguments: Mapping[str, Any]) -> Tensor:
    """Mean or maximum of a window: either way it is centred where the window is."""
    values = arguments["self"].places
    kernel = _per_axis(arguments["kernel_size"], 2)
    stride = _per_axis(arguments.get("stride") or kernel, 2)
    padding, dilation = (
        _per_axis(arguments.get(key, default), 2) for key, default in (("padding", 0), ("dilation", 1))
    )
    result = _compact(values, but_last=2)
    for axis, size in enumerate(kernel):
        dim, span, length = axis - 2, dilation[axis] * (size - 1) + 1, values.shape[axis - 2]
        steps = (length + 2 * padding[axis] - span) / stride[axis]
        last = math.ceil(steps) if arguments.get("ceil_mode", False) else math.floor(steps)
        if last * stride[axis] >= length + padding[axis]:
            last -= 1  # a window that would start beyond the map
        result = _extend(result, dim, padding[axis], last * stride[axis] + span - length - padding[axis])
        result = result.unfold(dim, span, stride[axis])[..., :: dilation[axis]].mean(-1)
    return result.expand(*values.shape[:-2], -1, -1)


def _pad(arguments: Mapping[str, Any]) -> Tensor:
    """Padding of its own (SAME, reflected): the positions go on beyond the border."""
    values = arguments["self"].places
    pad = arguments["pad"] if "pad" in arguments else arguments["padding"]
    padded = len(pad) // 2
    result = _compact(values, but_last=padded)
    for axis in range(padded):
        result = _extend(result, -1 - axis, pad[2 * axis], pad[2 * axis + 1])
    return result.expand(*values.shape[:-padded], *(-1 for _ in range(padded)))


def _upsample(arguments: Mapping[str, Any]) -> Tensor:
    """Enlarged maps, whatever the interpolation, without its flattening at the border."""
    result = arguments["self"].places
    for axis, size in enumerate(arguments["output_size"]):
        dim = axis - len(arguments["output_size"])
        length = result.shape[dim]
        if length == 1:
            return _lost(result.expand(*result.shape[:2], *arguments["output_size"]))
        if arguments.get("align_corners", False):
            index = torch.linspace(0, length - 1, size)
        else:
            index = (torch.arange(size) + 0.5) * length / size - 0.5
        result = _resample(result, dim, index)
    return result


def _reduce(arguments: Mapping[str, Any]) -> Tensor:
    """Sums, means, maxima, norms over some axes: the mean position."""
    values, dim = arguments["self"].places, arguments.get("dim")
    every = tuple(range(values.ndim))
    return values.nanmean(every if dim is None or dim == [] else dim, keepdim=arguments.get("keepdim", False))


def _multiply(arguments: Mapping[str, Any]) -> Tensor:
    """Matrix products: weights mix channels, positions stay. Of two maps (attention) nothing is known."""
    left = arguments["mat1"] if "mat1" in arguments else arguments["self"]
    right = arguments["mat2"]
    if not isinstance(right, _Positions):
        return _compact(left.places).nanmean(-1, keepdim=True).expand(*left.shape[:-1], right.shape[-1])
    if not isinstance(left, _Positions):
        mixed = _compact(right.places).nanmean(-2, keepdim=True)
        return mixed.expand(*right.shape[:-2], left.shape[-2], right.shape[-1])
    return right.places.new_full((*left.shape[:-1], right.shape[-1]), math.nan)


def _extend(values: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Positions continued beyond both ends of an axis, in equal steps; a negative number cuts off."""
    return values if before == after == 0 else _resample(values, dim, torch.arange(-before, values.shape[dim] + after))


def _resample(values: Tensor, dim: int, index: Tensor) -> Tensor:
    """Values at fractional places along an axis: linear between its cells, and beyond them in equal steps."""
    length = values.shape[dim]
    index = index.to(values.dtype).to(values.device)
    low = index.floor().clamp(0, max(length - 2, 0)).long()
    start, end = values.index_select(dim, low), values.index_select(dim, (low + 1).clamp(max=length - 1))
    share = (index - low).view(-1, *(1 for _ in range(values.ndim - 1 - dim % values.ndim)))
    return start + share * (end - start)


def _compact(values: Tensor, but_last: int = 0) -> Tensor:
    """Axes along which one number is repeated, as channels mostly are, cut down to one; not the last ones."""
    steps = values.stride()[: values.ndim - but_last]
    return values[tuple(slice(0, 1) if step == 0 else slice(None) for step in steps)]


def _per_axis(numbers: int | Sequence[int], count: int) -> list[int]:
    several = [numbers] if isinstance(numbers, int) else list(numbers)
    return several * count if len(several) == 1 else several


def _lost(result: Any) -> Any:
    """No position, in the shape of what the operation gave; indices and the like are left as they are."""
    if isinstance(result, (list, tuple)):
        return type(result)(_lost(part) for part in result)
    floating = isinstance(result, Tensor) and result.is_floating_point()
    return torch.full_like(result, math.nan) if floating else result


def _unwrap(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _unwrap(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap(part) for part in value)
    return value.places if isinstance(value, _Positions) else value


def _wrap(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_wrap(part, dtype) for part in value)
    return _Positions(value, dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors among an operation's arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


# Names of PyTorch's operations (aten). What is not here, and neither pointwise, norm nor view, has no known geometry.
_RULES: dict[str, Callable[[Mapping[str, Any]], Tensor]] = {
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d"), _pool),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d"), _upsample),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"), _upsample),
    **dict.fromkeys(("mean", "sum", "amax", "max", "linalg_vector_norm", "var", "std"), _reduce),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _multiply),
}
_NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm")
_KEEPING = {"_to_copy", "hardswish", "_prelu_kernel", "native_dropout", "rrelu_with_noise", "lift_fresh"}
_MOVING = {
    "cat", "stack", "roll", "flip", "index", "index_select", "gather", "repeat", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "_adaptive_avg_pool2d",
}  # fmt: skip
_FACTORIES = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "empty_like", "full_like"}
