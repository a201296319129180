"""Does this build of torch run on the GPUs that are here?"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heatlens.doctor.findings import OK, PROBLEM, WARNING, Finding
from heatlens.errors import one_line

if TYPE_CHECKING:
    from heatlens.config import Settings

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
INDEX = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class Device:
    """A GPU: name, compute capability, memory in bytes, and why a small computation failed on it ("" if it ran)."""

    name: str
    capability: tuple[int, int]
    memory: int
    fault: str = ""


@dataclass(frozen=True)
class Torch:
    """A build of torch and what it sees. ``cuda`` is empty for a CPU build; ``fault``: why CUDA does not start."""

    version: str
    cuda: str
    architectures: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    fault: str = ""


def gpu(settings: Settings) -> Iterator[Finding]:
    """See :func:`judge`."""
    yield from judge(look(), settings.device, driver=driver_here(), visible=os.environ.get("CUDA_VISIBLE_DEVICES"))


def driver_here() -> bool:
    """Is there an NVIDIA driver, whatever torch can do with it?"""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def look() -> Torch:
    """Ask torch."""
    import torch

    build = torch.version.cuda or (f"ROCm {torch.version.hip}" if getattr(torch.version, "hip", None) else "")
    if not build:
        return Torch(torch.__version__, "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of is asked for below
        try:
            torch.cuda.init()
            devices = tuple(_device(torch, index) for index in range(torch.cuda.device_count()))
        except Exception as error:  # RuntimeError, AssertionError: driver too old, no driver, no device
            return Torch(torch.__version__, build, tuple(torch.cuda.get_arch_list()), fault=one_line(error)[:300])
    return Torch(torch.__version__, build, tuple(torch.cuda.get_arch_list()), devices)


def _device(torch: object, index: int) -> Device:
    about = torch.cuda.get_device_properties(index)  # type: ignore[attr-defined]
    fault = ""
    try:
        one = torch.ones((8, 8), device=f"cuda:{index}")  # type: ignore[attr-defined]
        if float((one @ one).sum()) != 512.0:
            fault = "a product of two small matrices is wrong"
    except Exception as error:  # no kernel image, out of memory, another process has the card for itself
        fault = one_line(error)[:300]
    return Device(about.name, (about.major, about.minor), about.total_memory, fault)


def judge(torch: Torch, wanted: str, *, driver: bool, visible: str | None) -> Iterator[Finding]:
    """A missing GPU is a problem only where one is asked for. ``wanted``: DEVICE; ``visible``: CUDA_VISIBLE_DEVICES."""
    bad = PROBLEM if wanted.startswith("cuda") else WARNING
    if wanted == "cpu":
        yield Finding("GPU", OK, f"DEVICE=cpu asks for none (torch {torch.version})")
    elif not torch.cuda:
        text = f"torch {torch.version} is a build for CPUs"
        if driver or bad == PROBLEM:
            yield Finding(
                "GPU",
                bad,
                f"{text}, and a GPU is {'here' if driver else 'asked for'}",
                f"install a CUDA build of torch ({INDEX}), or set DEVICE=cpu",
            )
        else:
            yield Finding("GPU", OK, f"none here; {text}")
    elif torch.fault or not torch.devices:
        yield _nothing_seen(torch, bad, driver=driver, visible=visible)
    else:
        yield from (_judge_device(torch, one, index, wanted) for index, one in enumerate(torch.devices))
        number = int(wanted.partition(":")[2] or 0)
        if number >= len(torch.devices):
            yield Finding(
                "GPU", PROBLEM, f"DEVICE={wanted}: the last of {len(torch.devices)} is cuda:{len(torch.devices) - 1}"
            )


def _nothing_seen(torch: Torch, bad: str, *, driver: bool, visible: str | None) -> Finding:
    text = f"torch {torch.version} (CUDA {torch.cuda}) sees none"
    if visible is not None and visible.strip() in ("", "-1"):
        return Finding(
            "GPU",
            bad,
            f"{text}: CUDA_VISIBLE_DEVICES={visible!r} hides all",
            "unset it, or ask Slurm for a GPU (--gres=gpu:1)",
        )
    if "too old" in torch.fault:
        return Finding(
            "GPU",
            bad,
            f"{text}: {torch.fault}",
            "a newer driver, or a torch built for an older CUDA (the driver's is what nvidia-smi prints)",
        )
    if driver:
        return Finding(
            "GPU",
            bad,
            f"{text}, though a driver is here: {torch.fault or 'no device'}",
            "in a job: was a GPU asked for? in a container: --gpus, --nv? on the machine: does nvidia-smi work?",
        )
    if bad == PROBLEM:
        return Finding("GPU", bad, f"{text}: no NVIDIA driver here", "DEVICE=auto takes the CPU where there is no GPU")
    return Finding("GPU", OK, f"none here: DEVICE=auto takes the CPU (torch {torch.version})")


def _judge_device(torch: Torch, device: Device, index: int, wanted: str) -> Finding:
    what = f"cuda:{index} {device.name}, {device.memory / 2**30:.0f} GiB, {'.'.join(map(str, device.capability))}"
    used = (wanted in ("auto", "cuda") and index == 0) or wanted == f"cuda:{index}"
    bad = PROBLEM if used else WARNING
    if not torch.cuda.startswith("ROCm") and not built_for(device.capability, torch.architectures):
        return Finding(
            "GPU",
            bad,
            f"{what}: torch {torch.version} is built for {', '.join(torch.architectures)}",
            f"install a torch whose list has this card's generation ({INDEX})",
        )
    if device.fault:
        return Finding("GPU", bad, f"{what}: {device.fault}", "does another process use it? (nvidia-smi)")
    return Finding("GPU", OK, f"{what}; torch {torch.version} (CUDA {torch.cuda}) is built for it")


def built_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Has a build code for this compute capability?

    Code for sm_XY runs on X.Y and later of the same X; with an ``a`` on X.Y only; PTX (compute_XY) is translated
    for everything later.
    """
    for text in architectures:
        if found := _ARCHITECTURE.fullmatch(text):
            kind, built = found[1], (int(found[2]), int(found[3]))
            if built == capability:
                return True
            if found[4] != "a" and built <= capability and (kind == "compute" or built[0] == capability[0]):
                return True
    return False
