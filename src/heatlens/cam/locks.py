"""One explanation at a time per model: hooks and swapped weights are seen by every forward of it."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_GUARD = threading.Lock()


def model_lock(model: nn.Module) -> threading.RLock:
    """The lock of ``model``: held by whoever has hooks in it or its weights in another precision."""
    with _GUARD:
        return _LOCKS.setdefault(model, threading.RLock())
