"""How forwards are run: batches of a fixed size, memory, half precision, hooks and leaks."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
import torch
from torch import nn

from heatlens.cam import batches
from heatlens.cam.batches import BatchRows, for_each_batch
from heatlens.cam.engine import CamEngine
from heatlens.cam.halves import HalfWeights
from heatlens.cam.precision import autocast
from heatlens.errors import SetupError
from heatlens.registry import METHODS
from tests.cam.support import noise_images
from tests.cam.zoo import TRANSFORMERS, ZOO, build, open_clip_vit, registers_vit, targets_of

OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried"),
    MemoryError(),
]


@pytest.fixture
def quick_release(monkeypatch):
    """A collection of all garbage takes a second here, where a thousand tests have left theirs."""
    monkeypatch.setattr(batches, "release_memory", lambda: None)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "driver", "cublas", "cpu", "python"])
def test_batches_are_halved_and_nothing_is_lost_or_done_twice(error, quick_release):
    batch, done = BatchRows(8), []

    def run(start, stop):
        if stop - start > 3:
            raise error
        done.extend(range(start, stop))

    for_each_batch(21, batch, run)
    assert done == list(range(21))
    assert (batch.started_with, batch.rows) == (8, 2)


def test_a_single_row_that_does_not_fit_is_an_error_of_the_environment(quick_release):
    def run(_start, _stop):
        raise MemoryError

    with pytest.raises(SetupError, match="BATCH_SIZE=1"):
        for_each_batch(3, BatchRows(4), run)


def test_other_errors_pass_through():
    def run(_start, _stop):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        for_each_batch(3, BatchRows(4), run)


class Hungry:
    """A forward that runs out of memory above a number of rows."""

    def __init__(self, forward, limit):
        self.forward, self.limit, self.refused = forward, limit, 0

    def __call__(self, images):
        if len(images) > self.limit:
            self.refused += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.forward(images)


@pytest.mark.parametrize("method", ["gScoreCAM", "ScoreCAM", "RISE"])
def test_out_of_memory_in_the_middle_changes_nothing_but_the_record(method, monkeypatch, quick_release):
    model = build("open_clip", torch.float64)
    images, targets = noise_images(2, model), [targets_of(model, 2)] * 2
    plain = CamEngine(model, method=method, top_k=20, masks=30, batch_size=16)
    expected = plain.explain_full(images, targets)
    hungry = Hungry(model.forward, limit=4)
    monkeypatch.setattr(model, "forward", hungry)
    engine = CamEngine(model, method=method, top_k=20, masks=30, batch_size=16)
    found = engine.explain_full(images, targets)
    assert hungry.refused == 2  # 16 -> 8 -> 4, then never again
    assert engine.halved_rows == 4
    assert engine.masked_forwards == plain.masked_forwards
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.maps, other.maps, atol=1e-8, rtol=1e-8)
        assert all("out of memory: made with 4 rows per forward, BATCH_SIZE=16" in mine[-1] for mine in one.warnings)
    assert plain.halved_rows is None


def test_ablation_survives_out_of_memory(monkeypatch, quick_release):
    model = open_clip_vit(torch.float64)
    image, targets = noise_images(1, model), [targets_of(model, 2)]
    (expected,) = CamEngine(model, method="AblationCAM", batch_size=16).explain(image, targets)
    block = model.model.visual.transformer.resblocks[-1].mlp
    hungry = Hungry(block.forward, limit=4)
    monkeypatch.setattr(block, "forward", hungry)
    rows = set()
    model.model.visual.conv1.register_forward_hook(lambda _m, inputs, _o: rows.add(len(inputs[0])))
    (found,) = CamEngine(model, method="AblationCAM", batch_size=16).explain(image, targets)
    assert hungry.refused == 2
    assert rows == {1}  # the tail alone, also after running out of memory
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def test_release_memory_is_called_before_the_next_try(monkeypatch):
    released = []
    monkeypatch.setattr(batches, "release_memory", lambda: released.append(True))

    def run(start, stop):
        if stop - start > 1:
            raise MemoryError

    for_each_batch(2, BatchRows(2), run)
    assert released == [True]


@pytest.fixture
def plain_attention():
    """nn.MultiheadAttention's fast path ignores autocast on a CPU."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_weights_are_autocasts_own_casts_bit_for_bit(name, precision, plain_attention):
    model = build(name)
    images = noise_images(4, model)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    halves = HalfWeights(model, precision)
    with torch.inference_mode(), autocast(precision, "cpu"):
        expected = model.forward(images)
        with halves:
            found = model.forward(images)
            kinds = {one.dtype for one in model.model.parameters()}
    assert torch.equal(found, expected)
    assert len(kinds) == 2  # matrices in half, norms and embeddings not
    for key, value in model.model.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])


def test_half_weights_come_back_after_an_error():
    model = build("open_clip")
    with pytest.raises(RuntimeError, match="boom"), HalfWeights(model, "bf16"):
        raise RuntimeError("boom")
    assert {one.dtype for one in model.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory")], ids=["ctrl-c", "memory"])
def test_half_weights_that_cannot_all_be_made_change_nothing(error, monkeypatch):
    model = open_clip_vit()
    made = []
    original = torch.Tensor.to

    def to(self, *args, **kwargs):
        made.append(self)
        if len(made) == 4:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    with pytest.raises(type(error)), HalfWeights(model, "bf16"):
        pass
    assert {one.dtype for one in model.model.parameters()} == {torch.float32}


def test_without_room_for_half_weights_autocast_casts_by_itself(monkeypatch):
    model = build("open_clip")
    image, targets = noise_images(1, model), [targets_of(model, 1)]
    (expected,) = CamEngine(model, top_k=8, precision="bf16").explain(image, targets)

    def no_room(self):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(HalfWeights, "__enter__", no_room)
    (found,) = CamEngine(model, top_k=8, precision="bf16").explain(image, targets)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_weights_that_change_between_calls_are_seen():
    """An engine is kept while its model trains: half-precision copies must not outlive a call."""
    model = registers_vit()
    image, targets = noise_images(1, model), [targets_of(model, 1)]
    engine = CamEngine(model, top_k=20, precision="bf16")
    engine.explain(image, targets)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    (kept,) = engine.explain(image, targets)
    (fresh,) = CamEngine(model, top_k=20, precision="bf16").explain(image, targets)
    assert torch.equal(kept, fresh)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("gScoreCAM", "ScoreCAM", "RISE")])
def test_methods_without_masked_forwards_do_not_notice_the_precision(method):
    model = build("open_clip")
    image, targets = noise_images(1, model), [targets_of(model, 2)]
    exact, rough = (
        CamEngine(model, method=method, precision=precision).explain(image, targets)[0]
        for precision in ("fp32", "bf16")
    )
    assert torch.equal(exact, rough)


def test_an_autocast_of_the_caller_does_not_reach_the_reference_pass():
    model = build("timm trunk")
    image, targets = noise_images(1, model), [targets_of(model, 2)]
    for method in ("GradCAM", "LeGrad", "AblationCAM"):
        engine = CamEngine(model, method=method)
        (expected,) = engine.explain(image, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (found,) = engine.explain(image, targets)
        assert torch.equal(found, expected)


def test_compile_is_used_for_masked_forwards_and_is_part_of_the_settings(monkeypatch):
    model = build("open_clip")
    seen = []

    def compiled(forward):
        return lambda images: seen.append(len(images)) or forward(images)

    monkeypatch.setattr(torch, "compile", compiled)
    image, targets = noise_images(1, model), [targets_of(model, 1)]
    engine = CamEngine(model, top_k=8, batch_size=4, precision="fp32", compile=True)
    assert seen == [4]  # the warm-up
    (found,) = engine.explain(image, targets)
    assert seen == [4, 4, 4]
    assert engine.settings()["compile"] is True
    plain = CamEngine(model, top_k=8, batch_size=4, precision="fp32")
    assert "compile" not in plain.settings()
    assert torch.equal(found, plain.explain(image, targets)[0])


def test_out_of_memory_while_compiling_halves_the_batch(monkeypatch):
    model = build("open_clip")
    monkeypatch.setattr(torch, "compile", lambda forward: Hungry(forward, limit=2))
    engine = CamEngine(model, top_k=4, batch_size=8, precision="fp32", compile=True)
    assert engine.halved_rows == 2


def test_a_model_that_cannot_be_compiled_is_refused_before_any_work(monkeypatch):
    def compiled(_forward):
        def fail(_images):
            raise OSError("no C++ compiler")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(SetupError, match=r"COMPILE=true.*no C\+\+ compiler.*COMPILE=false"):
        CamEngine(build("open_clip"), top_k=8, compile=True)


class Rows:
    """The batch sizes a model sees."""

    def __init__(self, forward):
        self.forward, self.seen = forward, set()

    def __call__(self, images):
        self.seen.add(len(images))
        return self.forward(images)


def test_every_masked_forward_has_the_same_number_of_rows(monkeypatch):
    model = build("open_clip")
    rows = Rows(model.forward)
    monkeypatch.setattr(model, "forward", rows)
    engine = CamEngine(model, top_k=13, batch_size=8, precision="fp32")
    rows.seen.clear()
    engine.explain(noise_images(3, model), [targets_of(model, 2), [], targets_of(model, 1)])
    assert rows.seen == {1, 8}  # one-row reference passes, eight-row masked forwards


def test_masked_images_of_several_sources_fill_the_same_batch():
    model = build("open_clip")
    calls = []
    engine = CamEngine(model, top_k=4, batch_size=8, precision="fp32")
    masked = engine._passes.masked
    forward = masked._forward
    masked._forward = lambda images: calls.append(len(images)) or forward(images)
    engine.explain(noise_images(4, model), [targets_of(model, 1)] * 4)
    assert calls == [8, 8]  # 4 images x 4 channels


def module_hooks(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.model.modules()
    )


class Broken:
    def __call__(self, output):
        raise RuntimeError("boom")


@pytest.mark.parametrize("method", [*METHODS, "grad-cam:GradCAM"])
def test_no_hook_no_graph_no_gradient_mode_stays_after_an_error(method):
    if method.startswith("grad-cam"):
        pytest.importorskip("pytorch_grad_cam")
    model = build("open_clip")
    engine = CamEngine(model, method=method, top_k=4, masks=8, precision="fp32")
    with pytest.raises(Exception, match="boom"):
        engine.explain(noise_images(1, model), [[Broken()]])
    assert module_hooks(model) == 0
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert all(one.grad is None and not one.requires_grad for one in model.model.parameters())


class Tiny(nn.Module):
    """Two convolutions: 2,000 images in seconds."""

    def __init__(self):
        super().__init__()
        self.layer4 = nn.Conv2d(3, 6, 4, stride=4)
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        return self.head(torch.relu(self.layer4(images)).mean(dim=(2, 3)))


def live_tensors():
    gc.collect()
    return sum(1 for one in gc.get_objects() if issubclass(type(one), torch.Tensor))


def test_two_thousand_images_leave_nothing_behind():
    """Tensors alive, Python memory and hooks after 2,000 images are those after the first 100; every tenth fails."""
    from heatlens.models.classifier import ClassifierAdapter
    from tests.cam.zoo import preprocess

    torch.manual_seed(0)
    model = ClassifierAdapter(Tiny(), name="tiny", preprocess=preprocess(16))
    engine = CamEngine(model, top_k=3, batch_size=4, precision="fp32")
    images = noise_images(8, model)
    targets = [model.target(0), model.target(1)]
    counts = []
    tracemalloc.start()
    try:
        for number in range(2000):
            failing = number % 10 == 9
            try:
                engine.explain_full(images[number % 8 : number % 8 + 1], [[Broken()] if failing else targets])
            except RuntimeError as error:
                assert str(error) == "boom"
            if number in (99, 1999):
                counts.append((live_tensors(), module_hooks(model), tracemalloc.get_traced_memory()[0]))
    finally:
        tracemalloc.stop()
    (tensors, hooks, memory), (tensors_after, hooks_after, memory_after) = counts
    assert tensors_after == tensors
    assert hooks_after == hooks == 0
    assert memory_after - memory < 100_000


@pytest.mark.parametrize("method", ["LeGrad", "Chefer", "AblationCAM", "Grad-ECLIP"])
def test_other_passes_leave_no_tensor_behind_either(method):
    model = build("open_clip")
    engine = CamEngine(model, method=method)
    image, targets = noise_images(1, model), [targets_of(model, 2)]
    engine.explain(image, targets)
    before = live_tensors()
    for _ in range(20):
        engine.explain(image, targets)
    assert live_tensors() == before
    assert module_hooks(model) == 0


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_ablation_runs_the_tail_alone_where_it_can(name):
    """The patch embedding sees one row per batch, the head all of them."""
    model = build(name)
    first = next(module for module in model.model.modules() if isinstance(module, nn.Conv2d))
    seen = []
    handle = first.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    CamEngine(model, method="AblationCAM", batch_size=16).explain(noise_images(1, model), [targets_of(model, 1)])
    handle.remove()
    assert set(seen) == {1}


def test_ablation_on_a_model_that_cannot_broadcast():
    """Concatenation of the layer with what was before it: the image runs as many times from the start."""
    from heatlens.models.classifier import ClassifierAdapter
    from tests.cam.zoo import preprocess

    class Concatenates(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.layer4 = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 6, 1)
            self.head = nn.Linear(10, 2)

        def forward(self, images):
            stem = torch.relu(self.stem(images))
            return self.head(torch.cat([stem, torch.relu(self.layer4(stem))], dim=1).mean(dim=(2, 3)))

    torch.manual_seed(1)
    model = ClassifierAdapter(Concatenates().double(), name="concat", preprocess=preprocess(16))
    image, target = noise_images(1, model), model.target(0)
    (maps,) = CamEngine(model, method="AblationCAM", batch_size=4).explain(image, [[target]])
    kept = []
    handle = model.target_layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    score = target(model.forward(image))[0]
    handle.remove()
    total = torch.zeros_like(kept[0][0, 0])
    for channel in range(6):
        changed = kept[0].clone()
        changed[:, channel] = 0
        handle = model.target_layer.register_forward_hook(lambda _m, _i, _o, changed=changed: changed)
        total += (score - target(model.forward(image))[0]) / score.abs() * kept[0][0, channel]
        handle.remove()
    torch.testing.assert_close(maps[0].double(), total.clamp(min=0), atol=1e-6, rtol=1e-6)
