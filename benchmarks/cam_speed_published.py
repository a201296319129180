"""What cam_speed.py compares with: gScoreCAM as published, and two libraries' ScoreCAM. And what all rows share.

Written from the descriptions of the methods. Every way here explains one question at a time; it times a sample of
its own work and scales it up to a whole map.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatlens.cam.capture import Reference, reference_pass
from heatlens.cam.precision import autocast
from heatlens.cam.targets import TextSimilarity
from heatlens.models.clip import ClipAdapter

Result = TypeVar("Result")


def timed(step: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds of one call, with a GPU's queue empty before and after, and what it returned."""
    _wait(device)
    start = time.perf_counter()
    result = step()
    _wait(device)
    return time.perf_counter() - start, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_growth(step: Callable[[], Result], device: torch.device) -> tuple[float | None, Result]:
    """Megabytes (1e6) that ``step`` adds at its peak; None where the system does not tell.

    CPU: the kernel's own high-water mark of the resident size, reset before, after freed memory went back.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = step()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6, result
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
    except (OSError, AttributeError):
        return None, step()
    result = step()
    return (_resident("VmHWM") - before) / 1e6, result


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


def encode(model: ClipAdapter, prompt: str) -> TextSimilarity:
    """The target of ``prompt``, its text encoded anew: the adapter's own ``target`` would remember it."""
    with torch.no_grad():
        text = F.normalize(model.text_features([prompt]), dim=-1)[0]
    return TextSimilarity(text, model.logit_scale, model.logit_bias, prompt)


@dataclass
class Work:
    """What all ways explain: ``images`` (I, 3, H, W) normalised, the same ``questions`` for each, ``k`` channels."""

    model: ClipAdapter
    images: Tensor
    questions: Sequence[str]
    k: int
    targets: list[TextSimilarity] = field(init=False)
    references: list[Reference] = field(init=False)
    unions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.targets = [self.model.target(question) for question in self.questions]
        self.references = [
            reference_pass(self.model, image[None], [self.targets], gradients=True)[0] for image in self.images
        ]
        self.channels = len(self.references[0].activations)
        self.k = min(self.k, self.channels)
        self.unions = [self.union(number, self.k) for number in range(len(self.images))]

    @property
    def mean_union(self) -> float:
        return statistics.fmean(self.unions)

    def union(self, number: int, k: int) -> int:
        """How many channels are among the k best of at least one question of image ``number``."""
        gradients = self.references[number].gradients
        assert gradients is not None
        return len(torch.unique(torch.cat([best_channels(one, k) for one in gradients])))

    def image(self, turn: int) -> Tensor:
        return self.images[turn % len(self.images)]

    def target(self, turn: int) -> TextSimilarity:
        return self.targets[turn % len(self.targets)]


def best_channels(gradients: Tensor, k: int) -> Tensor:
    """(C, h, w) -> the k channels of largest signed mean, best first, lower index first on ties."""
    return torch.sort(gradients.mean(dim=(1, 2)), descending=True, stable=True).indices[:k]


class Way:
    """One row of the table. ``seconds`` of one ``unit`` of work, a map or a forward: one entry per sample."""

    unit = "map"

    def __init__(self, label: str, precision: str, batch: int, k: int) -> None:
        self.label, self.precision, self.batch, self.k = label, precision, batch, k
        self.seconds: list[float] = []

    def sample(self, turn: int) -> None:
        """Appends to ``seconds``; ``turn`` chooses image and question."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drops what was sampled so far."""
        self.seconds.clear()


class LayerHooks:
    """Copies of everything that passes the target layer, and of its gradient, on the CPU until :meth:`remove`."""

    def __init__(self, layer: nn.Module) -> None:
        self.activations: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._handle = layer.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.activations.append(output.detach().cpu())
        if output.requires_grad:
            output.register_hook(lambda gradient: self.gradients.append(gradient.detach().cpu()))

    def remove(self) -> None:
        self._handle.remove()


class PublishedLoop:
    """gScoreCAM one question at a time (https://github.com/anguyen8/gScoreCAM and its uses with BiomedCLIP).

    Per question: encode the text; a forward with the whole graph recorded and a backward through all of it, in
    fp32; the ``k`` channels of largest mean gradient; all k masked images at once; masked forwards, ``batch``
    rows at a time; softmax of the k scores; weighted sum. Images (3, H, W) -> maps (h, w) on the CPU.

    ``frugal`` leaves out what the loop does not need: the text is encoded once per question instead of again
    for every chunk, the hooks go before the masked forwards, the masks are built on the model's device instead of
    the CPU. Softmax over the k scores alone, not over zeros for the rest: that inverts maps of negative logits.
    """

    def __init__(self, model: ClipAdapter, *, k: int, batch: int, precision: str, frugal: bool) -> None:
        self.model = model
        self.k = k
        self.batch = batch
        self.precision = precision
        self.frugal = frugal

    def map(self, image: Tensor, prompt: str) -> Tensor:
        """One whole map."""
        target = encode(self.model, prompt)
        activations, channels, hooks = self.rank(image, target)
        try:
            scores = self.score(self.masked_images(image, activations[channels]), target)
        finally:
            hooks.remove()
        return weigh(activations[channels], scores)

    def seconds(self, image: Tensor, prompt: str, chunks: int) -> float:
        """Seconds of one map: all of its steps, but only ``chunks`` chunks of masked forwards, scaled up to k."""
        device = self.model.device
        text, target = timed(lambda: encode(self.model, prompt), device)
        ranking, (activations, channels, hooks) = timed(lambda: self.rank(image, target), device)
        try:
            building, masked = timed(lambda: self.masked_images(image, activations[channels]), device)
            part = masked[: chunks * self.batch]
            scoring, scores = timed(lambda: self.score(part, target), device)
        finally:
            hooks.remove()
        every = scores.repeat(-(-len(channels) // len(part)))[: len(channels)]
        weighing, _ = timed(lambda: weigh(activations[channels], every), device)
        return text + ranking + building + scoring * len(channels) / len(part) + weighing

    def rank(self, image: Tensor, target: TextSimilarity) -> tuple[Tensor, Tensor, LayerHooks]:
        """Activations (C, h, w) and the best k channels, on the CPU; the hooks, still on unless ``frugal``."""
        network = self.model.model
        hooks = LayerHooks(self.model.target_layer)
        network.requires_grad_(True)  # published code freezes nothing: the backward fills every weight's gradient
        try:
            with torch.enable_grad():
                target(self.model.forward(image[None])).sum().backward()
        except BaseException:
            hooks.remove()
            raise
        finally:
            network.zero_grad(set_to_none=True)
            network.requires_grad_(False)
        if self.frugal:
            hooks.remove()
        activations, gradients = (self.model.to_grid(kept[0])[0] for kept in (hooks.activations, hooks.gradients))
        return activations, best_channels(gradients, self.k), hooks

    def masked_images(self, image: Tensor, activations: Tensor) -> Tensor:
        """Activations (k, h, w) -> all k masked images (k, 3, H, W)."""
        device = self.model.device if self.frugal else torch.device("cpu")
        size = (image.shape[1], image.shape[2])
        masks = F.interpolate(activations.to(device)[:, None], size=size, mode="bilinear", align_corners=True)
        low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
        return image.to(device) * ((masks - low) / (high - low + 1e-6))

    def score(self, masked: Tensor, target: TextSimilarity) -> Tensor:
        """Logits (k,) of masked images, chunk by chunk, on the CPU."""
        return torch.cat([self._score_chunk(chunk, target) for chunk in masked.split(self.batch)])

    @torch.no_grad()
    def _score_chunk(self, chunk: Tensor, target: TextSimilarity) -> Tensor:
        current = target if self.frugal else encode(self.model, target.prompt)
        chunk = chunk.to(self.model.device)
        with autocast(self.precision, chunk.device.type):
            output = self.model.forward(chunk)
        return current(output).float().cpu()


def weigh(activations: Tensor, scores: Tensor) -> Tensor:
    """``ReLU(sum_c softmax(scores)_c A_c)``: (k, h, w) and (k,) -> (h, w)."""
    weights = torch.softmax(scores.double(), dim=0).to(activations)
    return (weights[:, None, None] * activations).sum(dim=0).relu()


class Published(Way):
    """The loop's row: ``chunks`` chunks of masked forwards per sample."""

    def __init__(self, label: str, loop: PublishedLoop, work: Work, chunks: int) -> None:
        super().__init__(label, loop.precision, loop.batch, loop.k)
        self._loop, self._work, self._chunks = loop, work, chunks

    def sample(self, turn: int) -> None:
        self.seconds.append(self._loop.seconds(self._work.image(turn), self._work.target(turn).prompt, self._chunks))


class _Tower(nn.Module):
    """The image side as the libraries want it, a module. Keeps the seconds of its first ``watched`` forwards."""

    def __init__(self, model: ClipAdapter, watched: int) -> None:
        super().__init__()
        self.network = model.model
        self.seconds: list[float] = []
        self._model = model
        self._watched = watched

    def forward(self, images: Tensor) -> Tensor:
        if len(self.seconds) == self._watched:
            return self._model.forward(images)
        seconds, output = timed(lambda: self._model.forward(images), self._model.device)
        self.seconds.append(seconds)
        return output


class LibraryScoreCAM(Way):
    """ScoreCAM of ``library`` (``grad-cam``, ``torchcam``): all channels of the layer, in fp32.

    A sample is a call that sees only the first ``chunks * batch`` channels. All of its work but the forwards of the
    unmasked image grows with their number, and is scaled up. ImportError when the library is not there.
    """

    def __init__(self, library: str, work: Work, batch: int, chunks: int) -> None:
        super().__init__(f"{library} ScoreCAM", "fp32", batch, work.channels)
        self._work, self._seen = work, min(chunks * batch, work.channels)
        if library == "grad-cam":
            from pytorch_grad_cam import ScoreCAM

            self._whole_forwards, self._call = 1, self._grad_cam
        else:
            from torchcam.methods import ScoreCAM

            self._whole_forwards, self._call = 2, self._torchcam
        self._class: Any = ScoreCAM

    def sample(self, turn: int) -> None:
        model, images, target = self._work.model, self._work.image(turn)[None], self._work.target(turn)
        tower = _Tower(model, self._whole_forwards)
        seconds, _ = timed(lambda: self._call(tower, images, target), model.device)
        whole = sum(tower.seconds)
        self.seconds.append(whole + (seconds - whole) * self.k / self._seen)

    def _grad_cam(self, tower: nn.Module, images: Tensor, target: TextSimilarity) -> Any:
        quiet = contextlib.redirect_stderr(io.StringIO())  # its progress bar
        layers = [self._work.model.target_layer]
        with quiet, self._class(tower, layers, reshape_transform=self._reshape) as cam:
            cam.batch_size = self.batch
            return cam(images, [target])

    def _torchcam(self, tower: nn.Module, images: Tensor, target: TextSimilarity) -> Any:
        options = {"batch_size": self.batch, "reshape_transform": self._reshape}
        with self._class(tower, self._work.model.target_layer, **options) as cam, torch.no_grad():
            tower(images)
            return cam(targets=target)

    def _reshape(self, tokens: Tensor) -> Tensor:
        return self._work.model.to_grid(tokens)[:, : self._seen]
