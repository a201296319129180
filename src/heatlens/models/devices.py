"""DEVICE: from what the user wrote to a torch device name."""

from __future__ import annotations

from heatlens.errors import SetupError


def resolve_device(name: str) -> str:
    """``auto`` -> ``cuda`` where a GPU answers, else ``cpu``; ``cpu``, ``cuda`` or ``cuda:N`` are checked.

    Raises SetupError when a GPU is asked for and none is there: a silent fall-back to the CPU would turn a
    night into a month.
    """
    import torch

    if name == "cpu":
        return "cpu"
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if not available:
        raise SetupError(f"DEVICE={name}: no CUDA device answers here; use DEVICE=cpu or DEVICE=auto")
    index = torch.device(name).index
    if index is not None and index >= torch.cuda.device_count():
        raise SetupError(f"DEVICE={name}: this machine has {torch.cuda.device_count()} CUDA device(s), from cuda:0")
    return name
