"""Methods without a library to compare with, each against a second, slow version in float64, written from the paper.

The plain versions walk through timm's modules themselves, one head and one layer at a time, with a full backward.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from heatlens.cam.capture import reference_pass
from heatlens.cam.engine import CamEngine
from heatlens.cam.methods.rise import RandomMasks
from tests.cam.support import noise_images
from tests.cam.zoo import build, targets_of

DOUBLE = torch.float64


def plain_forward(model, image):
    """timm ViT, block by block: attention (L x heads x n x n), per block (q, k, v, o, tokens), all in one graph."""
    trunk = model.model.visual.trunk
    tokens = trunk.patch_embed(image[None].requires_grad_(True))
    tokens = trunk.norm_pre(trunk._pos_embed(tokens))
    layers = []
    for block in trunk.blocks:
        attn = block.attn
        count, heads = tokens.shape[1], attn.num_heads
        q, k, v = attn.qkv(block.norm1(tokens)).reshape(1, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q), attn.k_norm(k)
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
        out = weights @ v
        mixed = attn.proj(attn.norm(out.transpose(1, 2).reshape(1, count, -1)))
        tokens = tokens + block.ls1(mixed)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        layers.append({"q": q, "k": k, "v": v, "weights": weights, "out": out, "tokens": tokens})
    return layers, plain_head(model, tokens)


def plain_head(model, tokens):
    visual = model.model.visual
    pooled = visual.trunk.forward_head(visual.trunk.norm(tokens))
    return F.normalize(visual.head(pooled), dim=-1)


@pytest.fixture(scope="module", params=["timm trunk", "SigLIP"])
def case(request):
    model = build(request.param, DOUBLE)
    return model, noise_images(1, model)[0], targets_of(model, 2)


def engine_map(model, image, targets, method, **options):
    (maps,) = CamEngine(model, method=method, **options).explain(image[None], [targets])
    return maps.double()


def as_grid(model, values):
    layout = model.tokens
    return values[layout.prefix :].reshape(layout.grid.rows, layout.grid.cols)


def pool_attention(model, tokens):
    """The MAP pooler's attention (heads, 1, n) to ``tokens``, its values and the rest of the head as a function."""
    pool = model.model.visual.trunk.attn_pool
    tokens = model.model.visual.trunk.norm(tokens)
    heads, count = pool.num_heads, tokens.shape[1]
    q = pool.q(pool.latent).reshape(1, 1, heads, -1).transpose(1, 2)
    k, v = pool.kv(tokens).reshape(1, count, 2, heads, -1).permute(2, 0, 3, 1, 4)
    q, k = pool.q_norm(q), pool.k_norm(k)
    weights = torch.softmax(q @ k.transpose(2, 3) * pool.scale, dim=-1)

    def finish(out):
        mixed = pool.proj(out.transpose(1, 2).reshape(1, 1, -1))
        mixed = mixed + pool.mlp(pool.norm(mixed))
        trunk, visual = model.model.visual.trunk, model.model.visual
        return F.normalize(visual.head(trunk.head(trunk.fc_norm(mixed[:, 0]))), dim=-1)

    return weights, (q, k, v), finish


def test_the_plain_forward_is_the_models_own(case):
    model, image, _ = case
    layers, output = plain_forward(model, image)
    torch.testing.assert_close(output, model.forward(image[None]), atol=1e-10, rtol=0)
    if model.tokens.prefix == 0:
        weights, (_, _, v), finish = pool_attention(model, layers[-1]["tokens"])
        torch.testing.assert_close(finish(weights @ v), output, atol=1e-10, rtol=0)


def test_rollout(case):
    model, image, targets = case
    layers, _ = plain_forward(model, image)
    count = layers[0]["weights"].shape[-1]
    flow = torch.eye(count, dtype=DOUBLE)
    for layer in layers:
        mean = layer["weights"][0].mean(dim=0)
        flow = (0.5 * mean + 0.5 * torch.eye(count, dtype=DOUBLE)) @ flow
    if model.tokens.prefix:
        row = flow[0]
    else:
        weights, _, _ = pool_attention(model, layers[-1]["tokens"])
        row = weights[0].mean(dim=0)[0] @ flow
    expected = as_grid(model, row).detach()
    for one in engine_map(model, image, targets, "rollout"):
        torch.testing.assert_close(one, expected, atol=1e-7, rtol=1e-6)


def test_chefer(case):
    model, image, targets = case
    found = engine_map(model, image, targets, "Chefer")
    for target, one in zip(targets, found, strict=True):
        layers, output = plain_forward(model, image)
        last = None
        if model.tokens.prefix == 0:
            last, (_, _, v), finish = pool_attention(model, layers[-1]["tokens"])
            output = finish(last @ v)
        maps = [layer["weights"] for layer in layers] + ([] if last is None else [last])
        slopes = torch.autograd.grad(target(output)[0], maps)
        relevance = torch.eye(maps[0].shape[-1], dtype=DOUBLE)
        for slope, own in list(zip(slopes, maps, strict=True))[: len(layers)]:
            relevance = relevance + (slope * own)[0].clamp(min=0).mean(dim=0) @ relevance
        row = relevance[0] if last is None else ((slopes[-1] * last)[0].clamp(min=0).mean(dim=0) @ relevance)[0]
        torch.testing.assert_close(one, as_grid(model, row).detach(), atol=1e-7, rtol=1e-6)


def test_legrad(case):
    model, image, targets = case
    found = engine_map(model, image, targets, "LeGrad")
    for target, one in zip(targets, found, strict=True):
        layers, _ = plain_forward(model, image)
        total = torch.zeros(layers[0]["weights"].shape[-1], dtype=DOUBLE)
        for layer in layers:
            if model.tokens.prefix:
                watched, output = layer["weights"], plain_head(model, layer["tokens"])
            else:
                watched, (_, _, v), finish = pool_attention(model, layer["tokens"])
                output = finish(watched @ v)
            (slope,) = torch.autograd.grad(target(output)[0], watched, retain_graph=True)
            total += slope[0].clamp(min=0).mean(dim=(0, 1)) / len(layers)
        torch.testing.assert_close(one, as_grid(model, total), atol=1e-7, rtol=1e-6)


def test_grad_eclip(case):
    model, image, targets = case
    found = engine_map(model, image, targets, "Grad-ECLIP")
    for target, one in zip(targets, found, strict=True):
        layers, output = plain_forward(model, image)
        q, k, v, out = (layers[-1][name] for name in ("q", "k", "v", "out"))
        if model.tokens.prefix == 0:
            weights, (q, k, v), finish = pool_attention(model, layers[-1]["tokens"])
            out = weights @ v
            output = finish(out)
        (slope,) = torch.autograd.grad(target(output)[0], out)
        q, k, v, slope = (part[0].transpose(0, 1).flatten(1).detach() for part in (q, k, v, slope))
        nearness = torch.stack([F.cosine_similarity(q[0], key, dim=0) for key in k[model.tokens.prefix :]])
        nearness = (nearness - nearness.min()) / (nearness.max() - nearness.min())
        values = v[model.tokens.prefix :]
        cells = torch.stack([near * (slope[0] * value).sum() for near, value in zip(nearness, values, strict=True)])
        expected = cells.clamp(min=0).reshape(model.grid.rows, model.grid.cols)
        torch.testing.assert_close(one, expected, atol=1e-7, rtol=1e-6)


def test_ablation_on_tokens_with_a_forward_of_the_whole_model_per_channel():
    model = build("timm trunk", DOUBLE)
    image, targets = noise_images(1, model)[0], targets_of(model, 1)
    (found,) = engine_map(model, image, targets, "AblationCAM")
    kept = []
    handle = model.target_layer.register_forward_hook(lambda _m, _i, out: kept.append(out.detach()))
    score = float(targets[0](model.forward(image[None]))[0])
    handle.remove()
    total = torch.zeros(model.grid.rows, model.grid.cols, dtype=DOUBLE)
    for channel in range(kept[0].shape[2]):
        changed = kept[0].clone()
        changed[:, 1:, channel] = 0
        handle = model.target_layer.register_forward_hook(lambda _m, _i, _o, changed=changed: changed)
        drop = score - float(targets[0](model.forward(image[None]))[0])
        handle.remove()
        total += drop / abs(score) * kept[0][0, 1:, channel].reshape(model.grid.rows, model.grid.cols)
    torch.testing.assert_close(found, total.clamp(min=0), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", ["timm trunk", "convnet"])
def test_scorecam_one_channel_at_a_time(name):
    model = build(name, DOUBLE)
    image, targets = noise_images(1, model)[0], targets_of(model, 1)
    (found,) = engine_map(model, image, targets, "ScoreCAM", batch_size=8)
    kept = []
    handle = model.target_layer.register_forward_hook(lambda _m, _i, out: kept.append(model.to_grid(out)[0]))
    model.forward(image[None])
    handle.remove()
    scores = []
    for plane in kept[0]:
        big = F.interpolate(plane[None, None], size=image.shape[1:], mode="bilinear", align_corners=True)[0, 0]
        mask = (big - big.min()) / (big.max() - big.min() + 1e-6)
        scores.append(float(targets[0](model.forward((image * mask)[None]))[0]))
    weights = torch.softmax(torch.tensor(scores, dtype=DOUBLE), dim=0)
    expected = torch.einsum("c,chw->hw", weights, kept[0]).clamp(min=0)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)


def test_rise_one_mask_at_a_time():
    model = build("convnet", DOUBLE)
    image, targets = noise_images(1, model)[0], targets_of(model, 2)
    found = engine_map(model, image, targets, "RISE", masks=30, seed=7, batch_size=8)
    made = RandomMasks(30, 7, (64, 64), torch.device("cpu"))
    for target, one in zip(targets, found, strict=True):
        masks = [made(torch.tensor([number]))[0, 0].double() for number in range(30)]
        scores = [float(target(model.forward((image * mask)[None]))[0]) for mask in masks]
        mean = sum(scores) / 30
        total = sum((score - mean) * mask for score, mask in zip(scores, masks, strict=True))
        torch.testing.assert_close(one, (total / (30 * 0.5)).clamp(min=0), atol=1e-7, rtol=1e-6)


def test_rise_masks_are_the_papers():
    """Half of the cells kept on average, values in 0..1, no two alike, the same for the same seed."""
    made = RandomMasks(200, 0, (224, 200), torch.device("cpu"))
    masks = made(torch.arange(200))
    assert masks.shape == (200, 1, 224, 200)
    assert masks.min() >= 0 and masks.max() <= 1
    assert float(masks.mean()) == pytest.approx(0.5, abs=0.03)
    assert len({one.numpy().tobytes() for one in masks}) == 200
    assert torch.equal(made(torch.tensor([17]))[0], masks[17])
    # A mask is the enlarged grid of zeros and ones, cut out at its shift: 32 x 29 pixels a cell here.
    grid = made._coarse[17][None, None]
    whole = F.interpolate(grid, size=(8 * 32, 8 * 29), mode="bilinear", align_corners=False)[0, 0]
    top, left = int(made._rows[17, 0]), int(made._cols[17, 0])
    assert 0 <= top < 32 and 0 <= left < 29
    assert torch.equal(masks[17, 0], whole[top : top + 224, left : left + 200])


def test_rise_finds_the_place_that_the_score_depends_on(monkeypatch):
    """A forward that is the brightness of one corner: the map's maximum must lie there."""
    model = build("convnet", DOUBLE)
    monkeypatch.setattr(model, "forward", lambda images: images[:, :, :16, 48:].mean(dim=(1, 2, 3))[:, None])
    engine = CamEngine(model, method="RISE", masks=300, batch_size=50)
    (maps,) = engine.explain(torch.ones((1, 3, 64, 64), dtype=DOUBLE), [[lambda output: output[:, 0]]])
    row, col = divmod(int(maps[0].argmax()), 64)
    assert row < 20 and col >= 44


@pytest.mark.parametrize("name", ["timm trunk", "convnet"])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_gradcam_plusplus_is_equation_19_however_small_the_gradients(name, scale):
    """Cell by cell, without an epsilon. Scaling a score leaves ``g^2 / (2 g^2 + g^3 sum A)`` near 1/2, not near 0."""
    model = build(name, DOUBLE)
    image, target = noise_images(1, model), targets_of(model, 1)[0]
    (maps,) = CamEngine(model, method="GradCAM++").explain(image, [[lambda output: scale * target(output)]])
    (reference,) = reference_pass(model, image, [[target]], gradients=True)
    total = torch.zeros_like(reference.activations[0])
    for plane, slopes in zip(reference.activations, scale * reference.gradients[0], strict=True):
        weight = 0.0
        for g in slopes.flatten().tolist():
            if g > 0:
                weight += g * g**2 / (2 * g**2 + g**3 * float(plane.sum()))
        total += weight * plane
    torch.testing.assert_close(maps[0].double(), total.clamp(min=0), atol=1e-7 * float(total.max()), rtol=1e-6)
