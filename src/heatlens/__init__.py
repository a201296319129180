"""heatlens: run an image through a vision model once, then ask "where?" as often as there are questions.

``CAMWrapper`` and ``reshape_transform`` are the two names that notebooks use; they are loaded on first use,
so that ``import heatlens`` stays free of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["CAMWrapper", "__version__", "reshape_transform"]

if TYPE_CHECKING:
    from heatlens.cam.grid import reshape_transform
    from heatlens.notebook import CAMWrapper

_LAZY = {"CAMWrapper": "heatlens.notebook", "reshape_transform": "heatlens.cam.grid"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'heatlens' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
