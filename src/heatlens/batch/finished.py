"""What is finished: the key and state of every heat map in any ledger, in about 17 bytes each.

Within one ledger a later line about a heat map replaces an earlier one. Between ledgers (the number of shards
may change between calls) ``ok`` beats ``failed``, then the newer one counts. A heat map that is ``ok`` in one
ledger and failed later in another was made, lost its files and could not be made again: it is ``ok`` as long
as its files are there, and else that failure is what became of it.

Keys are digests; 16 of their bytes tell them apart. The arrays are ordered by key; ``positions`` below are
places in them, ``ordinals`` are places in reading order (ledgers by name, lines as they come).
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatlens.batch.ledger import ledger_paths, read_lines
from heatlens.cam.protocols import HALVED_PREFIX

OK, FAILED, MISSING, STATE = 1, 2, 3, 3
"""States, the two lowest bits of a code (STATE masks them). Missing: failed because there was no image file."""
CONSTANT, HALVED, TRUNCATED, WHOLE_FILM, FAILED_LATER = 4, 8, 16, 32, 64
"""Remarks about an ``ok`` heat map, further bits of a code."""

KEPT, FALLBACK = 1, 2
"""What becomes of a record in the ledgers: it counts, or it counts when the files of the ``ok`` one are gone."""

_NAMES = ("", "ok", "failed", "missing")
_HEX_DIGITS, _HEX_KEPT, _KEY_BYTES = 64, 32, 16
_TABLE_BITS = 16


class FinishedKeys:
    """The state of every heat map that some ledger knows, and the run's clocks."""

    def __init__(
        self,
        high: NDArray[np.uint64],
        low: NDArray[np.uint64],
        codes: NDArray[np.uint8],
        *,
        clocks: dict[str, float] | None = None,
        peak_rss_mib: float = 0.0,
        unreadable_lines: int = 0,
    ) -> None:
        self.codes = codes
        self.clocks = clocks or {}
        self.peak_rss_mib = peak_rss_mib
        self.unreadable_lines = unreadable_lines
        self._high, self._low = high, low
        # Views give Python numbers, quicker one by one than an array's scalars. The table narrows a search
        # to the keys that begin with the same two bytes.
        self._view, self._low_view, self._code_view = high.data, low.data, codes.data
        starts = np.arange((1 << _TABLE_BITS) + 1, dtype=np.uint64) << np.uint64(64 - _TABLE_BITS)
        starts[-1] = np.iinfo(np.uint64).max
        self._table = array("q", np.searchsorted(high, starts).tolist())
        self._table[-1] = len(high)

    @classmethod
    def read(cls, results: Path) -> FinishedKeys:
        """Read every ledger of a results folder."""
        return read_keys(results)[0]

    def __len__(self) -> int:
        return len(self.codes)

    def status(self, key: str) -> str:
        """ "ok", "failed", "missing" (no image file was found), or "" when no ledger has it."""
        data = _packed_one(key)
        high, low = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:], "big")
        slot = high >> (64 - _TABLE_BITS)
        stop = self._table[slot + 1]
        place = bisect_left(self._view, high, self._table[slot], stop)
        while place < stop and self._view[place] == high:
            if self._low_view[place] == low:
                return _NAMES[self._code_view[place] & STATE]
            place += 1
        return ""

    def positions(self, keys: bytes) -> NDArray[np.int64]:
        """The place of each of several packed keys in :attr:`codes`, -1 where no ledger has it."""
        high, low = halves(keys)
        place = np.searchsorted(self._high, high)
        found = np.full(len(high), -1, np.int64)
        open_ = np.flatnonzero(place < len(self))
        while len(open_):
            at = place[open_]
            same = self._high[at] == high[open_]
            fits = same & (self._low[at] == low[open_])
            found[open_[fits]] = at[fits]
            # Two keys with the same first half: look at the next.
            open_ = open_[same & ~fits]
            place[open_] += 1
            open_ = open_[place[open_] < len(self)]
        return found

    def count(self, state: int, remark: int = 0) -> int:
        """Heat maps in ``state`` (OK, FAILED or MISSING) with all bits of ``remark``."""
        mask = STATE | remark
        return int(np.count_nonzero((self.codes & mask) == (state | remark)))


def packed(keys: Sequence[str]) -> bytes:
    """The first 16 bytes of every key, one after the other. A key that is no SHA-256 in hex is digested first."""
    try:
        data = bytes.fromhex("".join([key[:_HEX_KEPT] for key in keys]))
        if len(data) == _KEY_BYTES * len(keys) and all(len(key) == _HEX_DIGITS for key in keys):
            return data
    except ValueError:
        pass
    return b"".join(map(_packed_one, keys))


def _packed_one(key: str) -> bytes:
    if len(key) == _HEX_DIGITS:
        with suppress(ValueError):
            data = bytes.fromhex(key[:_HEX_KEPT])
            if len(data) == _KEY_BYTES:  # fromhex passes over blanks
                return data
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


def halves(data: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Packed keys as two arrays of numbers, first and second half."""
    pairs = np.frombuffer(data, ">u8").reshape(-1, 2)
    return pairs[:, 0].astype(np.uint64), pairs[:, 1].astype(np.uint64)


def read_keys(results: Path) -> tuple[FinishedKeys, dict[Path, NDArray[np.uint8]]]:
    """Every ledger's keys, and what becomes of each of its records: KEPT, FALLBACK or 0, in line order."""
    found = _Found()
    starts = []
    paths = ledger_paths(results)
    for path in paths:
        starts.append(len(found.codes))
        for content in read_lines(path):
            found.add(content)
    order, fate, codes = _settle(found, starts)
    high, low = _taken(found.high, order), _taken(found.low, order)
    keys = FinishedKeys(
        high, low, codes[order], clocks=found.clocks, peak_rss_mib=found.peak_rss_mib, unreadable_lines=found.damaged
    )
    return keys, dict(zip(paths, np.split(fate, starts[1:]), strict=False))


@dataclass
class _Found:
    """Records in reading order, as columns: 21 bytes each."""

    high: array[int] = field(default_factory=lambda: array("Q"))
    low: array[int] = field(default_factory=lambda: array("Q"))
    times: array[int] = field(default_factory=lambda: array("I"))
    codes: bytearray = field(default_factory=bytearray)
    clocks: dict[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0
    damaged: int = 0

    def add(self, content: Mapping[str, Any] | None) -> None:
        """One line of a ledger."""
        if content is None:
            self.damaged += 1
            return
        entries = content["heat_maps"]
        high, low = halves(packed([entry["key"] for entry in entries]))
        self.high.frombytes(high.tobytes())
        self.low.frombytes(low.tobytes())
        self.codes += bytes(_codes(entries, content.get("image_statistics") or {}))
        self.times.extend([min(max(content.get("at", 0), 0), 0xFFFFFFFF)] * len(entries))
        for clock, seconds in content.get("seconds", {}).items():
            self.clocks[clock] = self.clocks.get(clock, 0.0) + seconds
        self.peak_rss_mib = max(self.peak_rss_mib, content.get("peak_rss_mib", 0.0))


def _codes(entries: Iterable[Mapping[str, Any]], shared: Mapping[str, Any]) -> list[int]:
    """State and remarks of each heat map of one line."""
    usual = OK | (CONSTANT if shared.get("constant") else 0) | (WHOLE_FILM if shared.get("whole_film") else 0)
    codes = []
    for entry in entries:
        if entry["status"] != "ok":
            codes.append(MISSING if entry["stage"] == "locate" else FAILED)
            continue
        code, statistics = usual, entry.get("statistics", {})
        for name, bit in (("constant", CONSTANT), ("whole_film", WHOLE_FILM)):
            if name in statistics:
                code = code | bit if statistics[name] else code & ~bit
        if entry.get("prompt_truncated"):
            code |= TRUNCATED
        if any(text.startswith(HALVED_PREFIX) for text in entry.get("warnings", ())):
            code |= HALVED
        codes.append(code)
    return codes


def _taken(column: array[int], order: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A column in key order; the one in reading order is given back."""
    taken = np.frombuffer(column, np.uint64)[order] if len(column) else np.empty(0, np.uint64)
    del column[:]
    return taken


def _settle(found: _Found, starts: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.uint8]]:
    """(ordinals of the records that count, in key order; every record's fate; every record's code)."""
    codes = np.frombuffer(bytes(found.codes), np.uint8).copy()
    fate = np.full(len(codes), KEPT, np.uint8)
    if not len(codes):
        return np.empty(0, np.int32), fate, codes
    high, low = np.frombuffer(found.high, np.uint64), np.frombuffer(found.low, np.uint64)
    # Stable: equal keys stay in reading order.
    order = np.lexsort((low, high)).astype(np.int32)
    same = np.empty(len(order) - 1, bool)
    for start in range(0, len(same), 1 << 16):  # in parts, because the memory of a whole column is worth saving
        part = order[start : start + (1 << 16) + 1]
        same[start : start + (1 << 16)] = (high[part[1:]] == high[part[:-1]]) & (low[part[1:]] == low[part[:-1]])
    if not same.any():
        return order, fate, codes
    several = np.flatnonzero(np.append(same, False) | np.append(False, same))
    group = np.cumsum(~np.append(False, same))[several]
    _judge(order[several], group, codes, np.frombuffer(found.times, np.uint32), np.asarray(starts), fate)
    return order[fate[order] == KEPT], fate, codes


def _judge(
    ordinals: NDArray[np.int32],
    group: NDArray[np.int64],
    codes: NDArray[np.uint8],
    times: NDArray[np.uint32],
    starts: NDArray[np.int64],
    fate: NDArray[np.uint8],
) -> None:
    """Decide between records with the same key (``group``), in place in ``fate`` and ``codes``.

    ``ordinals`` come by key and within one key in reading order.
    """
    fate[ordinals] = 0
    ledger = np.searchsorted(starts, ordinals, side="right")
    replaced = np.append((group[1:] == group[:-1]) & (ledger[1:] == ledger[:-1]), False)
    ordinals, group = ordinals[~replaced], group[~replaced]
    made = (codes[ordinals] & STATE) == OK
    order = np.lexsort((ordinals, times[ordinals], made, group))
    ordinals, group, made = ordinals[order], group[order], made[order]
    last = np.append(group[1:] != group[:-1], True)
    best = ordinals[last]
    fate[best] = KEPT
    # The newest failure of a key stands right before its first "ok".
    before = np.flatnonzero((group[1:] == group[:-1]) & made[1:] & ~made[:-1])
    failure = ordinals[before]
    rival = best[np.searchsorted(group[last], group[before])]
    later = times[failure] > times[rival]
    fate[failure[later]] = FALLBACK
    codes[rival[later]] |= FAILED_LATER
