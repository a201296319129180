"""Train the demo's small CLIP on phantom films: `python -m heatlens.phantom.train --out FOLDER --cache FOLDER`.

What is learnt, and why:

* **pair / contrast** - the image embedding agrees with the captions that are true of the film. Truth comes
  from the findings themselves (`language.Claim`), and every film brings a nearly true caption: the other side,
  another zone, another finding.
* **dense** - the patch tokens, through the same projection as the image embedding, agree with a caption where
  its finding lies. In a trial contrast alone learnt nothing in 2000 steps: findings are small and most of a film
  is the same in all of them.
* **slots** - the layer whose map is read, `blocks[-1].norm1`, keeps one channel for each of the findings told
  apart by place (`batches.SLOTS`, 21 of 192 channels). This shapes the model for maps; a model trained without
  it has no such channels.
* **masked films** - a part of each batch is multiplied by smooth maps, half of them the model's own
  activations, because gScoreCAM judges channels by what the model sees through them. A film whose finding is
  hidden no longer has that finding.
* **blank summaries** - for some of the films (`--blank`) the CLS token enters the last block blank, so that
  the answer has to be read from the patch tokens there. Otherwise earlier blocks settle it, and the gradient
  at the target layer says little about where.

The helper parameters (biases and scales of the losses) are dropped; the weights kept are an exponential moving
average. On one machine the result depends on the arguments alone. Nothing but seeds of the training range is
seen here, except for the progress figures, which use validation seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn import functional as F

from heatlens.files import atomic_write
from heatlens.phantom.batches import SLOTS, Batch, Batcher
from heatlens.phantom.canvas import Array
from heatlens.phantom.corpus import GRID, Placed, load_corpus
from heatlens.phantom.film import SEEDS
from heatlens.phantom.language import prompt_for
from heatlens.phantom.losses import total_loss
from heatlens.phantom.weights_format import CHECKPOINT, MEAN, STD, load_model, write_configuration

MAX_SCALE = math.log(100)


class Trainee(nn.Module):
    """The model and the helper parameters of its losses."""

    def __init__(self, model: nn.Module, blank: float = 0.0) -> None:
        super().__init__()
        self.blank = blank
        self.model = model
        self.bias = nn.Parameter(torch.tensor(-6.0))
        self.dense_scale = nn.Parameter(torch.tensor([math.log(10.0), -3.0]))
        self.layer: Tensor | None = None
        last: Any = model.visual.trunk.blocks[-1]  # type: ignore[union-attr, index]
        last.register_forward_pre_hook(self._blank_summary)
        last.norm1.register_forward_hook(self._keep)

    def _blank_summary(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """In training, some films enter the last block with the batch's mean CLS token instead of theirs."""
        if not self.training or not self.blank:
            return None
        summary, patches = inputs[0].split([1, inputs[0].shape[1] - 1], dim=1)
        blank = summary.mean(0, keepdim=True).detach().expand_as(summary)
        chosen = torch.rand(len(summary), 1, 1) < self.blank
        return (torch.cat([torch.where(chosen, blank, summary), patches], dim=1), *inputs[1:])

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.layer = output

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, 224, 224) -> image embedding (B, D), patch embeddings (B, 196, D), target layer (B,
        196, C)."""
        visual: Any = self.model.visual
        with torch.autocast("cpu", torch.bfloat16):
            tokens = visual.trunk.forward_features(images)
            embedded = visual.head(tokens)
        assert self.layer is not None
        embedded = F.normalize(embedded.float(), dim=-1)
        return embedded[:, 0], embedded[:, 1:], self.layer[:, 1:].float()

    def read(self, ids: Tensor) -> Tensor:
        """Token ids (J, L) -> text embedding (J, D), normalised."""
        with torch.autocast("cpu", torch.bfloat16):
            text = self.model.encode_text(ids)  # type: ignore[operator]
        return F.normalize(text.float(), dim=-1)


def tokens(tokenizer: Any, captions: list[str]) -> Tensor:
    """Token ids without the padding that no caption needs."""
    ids: Tensor = tokenizer(captions)
    return ids[:, : int((ids != 0).sum(1).max())]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 150 steps, then a cosine down to 2 per cent."""
    rise = min(1.0, (step + 1) / 150)
    return peak * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def optimiser(trainee: Trainee, peak: float) -> torch.optim.Optimizer:
    """AdamW; no decay for vectors (norms, biases, positions, scales)."""
    flat = [p for n, p in trainee.named_parameters() if p.ndim < 2 or "embed" in n or "token" in n]
    ids = {id(p) for p in flat}
    full = [p for p in trainee.parameters() if id(p) not in ids]
    groups = [{"params": full, "weight_decay": 0.05}, {"params": flat, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))


def step_losses(trainee: Trainee, batch: Batch, tokenizer: Any) -> tuple[Tensor, dict[str, float], Tensor]:
    """Forward and losses of one batch; also the target layer, detached."""
    image, patches, layer = trainee.look(batch.images)
    text = trainee.read(tokens(tokenizer, batch.captions))
    scale = trainee.model.logit_scale.exp()  # type: ignore[operator, union-attr]
    loss, parts = total_loss(batch, image, text, patches, layer, scale, trainee.bias, trainee.dense_scale)
    return loss, parts, layer.detach()


def average(mean: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights towards the model's."""
    decay = min(0.998, (step + 1) / (step + 50))
    with torch.no_grad():
        for kept, new in zip(mean.parameters(), model.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)


def save(model: nn.Module, folder: Path, *, half: bool = False) -> None:
    """Write the checkpoint atomically, fp32 or fp16."""
    state = {k: v.detach().to(torch.float16 if half and v.is_floating_point() else v.dtype).contiguous().clone()
             for k, v in model.state_dict().items()}  # fmt: skip
    atomic_write(folder / CHECKPOINT, serialise(state, metadata={"format": "pt"}))


@torch.no_grad()
def progress(trainee: Trainee, tokenizer: Any, cache: Path) -> str:
    """Cheap figures on 120 validation films: how often the best patch lies on the finding (dense map, slot
    channel), and how often the right prompt beats that of every finding the film does not have."""
    corpus = load_corpus(cache, SEEDS["validation"].start, 500, 1)
    batcher = Batcher(corpus, MEAN, STD, 1)
    images = torch.cat([batcher.images(np.arange(i, i + 40), [None] * 40) for i in (0, 40, 80)])
    image, patches, layer = (
        torch.cat(parts) for parts in zip(*(trainee.look(b) for b in images.split(40)), strict=True)
    )
    text = trainee.read(tokens(tokenizer, [_prompt(slot) for slot in SLOTS]))
    hits: dict[str, list[tuple[bool, bool, bool]]] = {}
    for row in range(len(images)):
        present = [SLOTS.index((f.name, f.side, f.zone)) for f in corpus.findings[row]]
        score = image[row] @ text.T
        absent = torch.ones(len(SLOTS), dtype=torch.bool)
        absent[present] = False
        for slot, cover in zip(present, corpus.cover[row].reshape(-1, GRID * GRID), strict=True):
            dense = int((patches[row] @ text[slot]).argmax())
            hits.setdefault(SLOTS[slot][0], []).append(
                (
                    bool(cover[dense] > 0),
                    bool(cover[int(layer[row, :, slot].argmax())] > 0),
                    bool(score[slot] > score[absent].max()),
                )
            )
    lines = [f"{name[:12]} {'/'.join(f'{100 * v:.0f}' for v in np.mean(h, 0))}" for name, h in sorted(hits.items())]
    every = np.mean([h for group in hits.values() for h in group], 0)
    return "dense/slot/top1 " + "/".join(f"{100 * v:.0f}" for v in every) + " | " + ", ".join(lines)


def _prompt(slot: tuple[str, str, str]) -> str:
    return prompt_for(Placed(*slot, region=""))


def train(options: argparse.Namespace) -> None:
    """Run the training and leave a complete model folder in options.out.

    Several processes with one thread each share a step (each with its own batch, gradients averaged): on a
    busy machine they lose far less time waiting for one another than the threads of one process do.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    load_corpus(options.cache, SEEDS["training"].start, options.films, options.workers)
    load_corpus(options.cache, SEEDS["validation"].start, 500, options.workers)
    write_configuration(options.out)
    (options.out / CHECKPOINT).unlink(missing_ok=True)
    films = time.monotonic() - began
    if options.processes == 1:
        run(0, options, films)
    else:
        meeting = options.out / ".processes"
        meeting.unlink(missing_ok=True)
        torch.multiprocessing.spawn(run, (options, films, meeting), nprocs=options.processes)
        meeting.unlink(missing_ok=True)


def share_gradients(trainee: nn.Module, processes: int) -> None:
    """Average the gradients over the processes."""
    parameters = [p for p in trainee.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, (flat / processes).split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def run(rank: int, options: argparse.Namespace, films: float, meeting: Path | None = None) -> None:
    """The training loop of one process; the first one logs and saves."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    if meeting is not None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting.absolute()}", rank=rank, world_size=options.processes
        )
    corpus = load_corpus(options.cache, SEEDS["training"].start, options.films, 1)
    model, tokenizer = load_model(options.out, trained=False)
    if options.init:
        model.load_state_dict(load_file(options.init / CHECKPOINT))
    mean_model = deepcopy(model)
    trainee, watcher = Trainee(model, options.blank).train(), Trainee(mean_model).eval()
    batcher = Batcher(corpus, MEAN, STD, options.seed * 100 + rank)
    optim = optimiser(trainee, options.rate)
    channels: Array | None = None
    history: list[dict[str, float]] = []
    clock = time.monotonic()
    for step in range(options.steps):
        batch = batcher.draw(options.plain, options.masked, channels)
        parts, layer = step_once(trainee, batch, tokenizer, optim, options, step)
        some = layer[torch.randint(options.plain, (min(4, options.plain),))]
        channels = some.transpose(1, 2).reshape(-1, GRID, GRID).numpy()  # masks for the next batch
        if rank > 0:
            continue
        average(mean_model, model, step)
        last = step + 1 == options.steps
        if (step + 1) % options.log_every == 0 or last:
            history.append({"step": step + 1, **parts})
            words = " ".join(f"{k} {v:.3f}" for k, v in parts.items())
            print(f"step {step + 1} min {(time.monotonic() - clock) / 60:.1f} {words}", flush=True)
        if (step + 1) % options.save_every == 0 or last:
            save(mean_model, options.out, half=last)
            print("      ", progress(watcher, tokenizer, options.cache), flush=True)
    if rank == 0:
        record(options, history, (time.monotonic() - clock) / 60, films / 60)


def step_once(
    trainee: Trainee,
    batch: Batch,
    tokenizer: Any,
    optim: torch.optim.Optimizer,
    options: argparse.Namespace,
    step: int,
) -> tuple[dict[str, float], Tensor]:
    """One step of the optimiser. Returns the losses and the target layer's patch tokens (B, 196, C)."""
    for group in optim.param_groups:
        group["lr"] = learning_rate(step, options.steps, options.rate)
    loss, parts, layer = step_losses(trainee, batch, tokenizer)
    optim.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if options.processes > 1:
        share_gradients(trainee, options.processes)
    nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
    optim.step()
    scale: Tensor = trainee.model.logit_scale  # type: ignore[assignment]
    with torch.no_grad():
        scale.clamp_(0, MAX_SCALE)
    return {"loss": float(loss.detach()), **parts, "scale": float(scale.detach().exp())}, layer


def record(options: argparse.Namespace, history: list[dict[str, float]], minutes: float, films: float) -> None:
    """training.json beside the weights: how they came about."""
    import open_clip
    import timm

    content = {
        "arguments": {k: v for k, v in vars(options).items() if not isinstance(v, Path)},
        "earlier_run": earlier_run(options.init),
        "training_seeds": [SEEDS["training"].start, SEEDS["training"].start + options.films - 1],
        "minutes": {"steps": round(minutes, 1), "films": round(films, 1)},
        "losses": history[:: max(1, len(history) // 40)] + history[-1:],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
                     "open_clip": open_clip.__version__, "numpy": np.__version__},
        "sha256": hashlib.sha256((options.out / CHECKPOINT).read_bytes()).hexdigest(),
    }  # fmt: skip
    (options.out / "training.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def earlier_run(folder: Path | None) -> Any:
    """The record of the run that was continued; None for a run from scratch."""
    if folder is None:
        return None
    path = folder / "training.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else "not recorded"


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the demo's small CLIP on phantom films.")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--cache", type=Path, required=True, help="folder for generated films")
    parser.add_argument("--init", type=Path, help="model folder to continue from")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--films", type=int, default=12000)
    parser.add_argument("--plain", type=int, default=10, help="unmasked films in a batch of one process")
    parser.add_argument("--masked", type=int, default=6, help="masked films in a batch of one process")
    parser.add_argument("--blank", type=float, default=0.3, help="chance that a film's CLS token is blanked")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--workers", type=int, default=2, help="processes that generate films")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=500)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
