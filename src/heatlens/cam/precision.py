"""Precision and batch size: resolved once per run, because both are part of its fingerprint."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from heatlens.errors import ConfigError
from heatlens.registry import nearest_hint

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# Constants per device type, not tuned at run time: a forward of a fixed size gives the same bits whatever
# shares its batch. Small on a CPU, where more rows only leave the caches and a signal is obeyed within seconds.
BATCH_SIZES = {"cpu": 8, "mps": 32, "cuda": 128}
# Images per reference pass: nothing is gained by more than one on a CPU.
REFERENCE_ROWS = {"cuda": 8}


def resolve_batch_size(batch_size: int | None, device: str) -> int:
    """Rows of every masked forward on ``device`` (``cpu``, ``cuda:0``...): the given number or the constant."""
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"BATCH_SIZE={batch_size}: at least 1 row")
    return batch_size or BATCH_SIZES.get(device.split(":")[0], BATCH_SIZES["cpu"])


def reference_rows(device: str) -> int:
    """Images per reference pass on ``device``."""
    return REFERENCE_ROWS.get(device.split(":")[0], 1)


def resolve_precision(precision: str, device: str) -> str:
    """``auto`` -> bf16 where the device computes in it, else fp32 (CPU) or fp16 (GPU); others unchanged."""
    if precision not in PRECISIONS:
        raise ConfigError(f"PRECISION={precision}: {nearest_hint(precision, list(PRECISIONS))}")
    if precision != "auto":
        return precision
    kind = device.split(":")[0]
    if kind == "cuda":
        return _cuda_precision(device)
    return "bf16" if kind == "cpu" and _cpu_computes_bf16() else "fp32"


def half_dtype(precision: str) -> torch.dtype | None:
    """bf16, fp16 -> torch's dtype; None for fp32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def _cuda_precision(device: str) -> str:
    import torch

    major, _ = torch.cuda.get_device_capability(device)
    return "bf16" if major >= 8 else "fp16"


def _cpu_computes_bf16() -> bool:
    """True where bf16 matrix products run in hardware; emulated bf16 is slower than fp32."""
    import torch

    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(probe()) for name in probes if (probe := getattr(torch.cpu, name, None)))


def autocast(precision: str, device_type: str) -> AbstractContextManager[object]:
    """The autocast context of a masked forward; nothing for fp32."""
    import torch

    dtype = half_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(device_type, dtype=dtype)
