"""What the ledgers say, in few bytes: the same as reading every line and deciding by the written rules."""

from __future__ import annotations

import json
import threading
import tracemalloc
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from heatlens.batch.finished import (
    CONSTANT,
    FAILED,
    FAILED_LATER,
    FALLBACK,
    HALVED,
    KEPT,
    MISSING,
    OK,
    STATE,
    TRUNCATED,
    WHOLE_FILM,
    FinishedKeys,
    packed,
    read_keys,
)
from heatlens.batch.ledger import HeatMapRecord, ImageRecord, LedgerWriter, ledger_paths, read_ledger
from tests.batch.plans import write_ledger

# The second and third share their first half, the fourth is no digest, the fifth has blanks that fromhex passes over.
KEYS = ["ab" * 32, "cd" * 8 + "00" * 24, "cd" * 8 + "01" * 24, "plain", "ab " * 21 + "a", "ff" * 32]
CASES = {
    "ok": {"status": "ok", "output": "a.png", "score": 1.0},
    "failed": {"status": "failed", "stage": "explain", "reason": "no"},
    "missing": {"status": "failed", "stage": "locate", "reason": "gone"},
}
GARBAGE = [b"\0" * 40, b"{}", b"[1]", b"7", b'{"image": "a"', b'{"image": 3, "heat_maps": []}', b"[" * 5000,
           b"\xff\xfe", b'{"image": "a", "heat_maps": [{"key": 1, "status": "ok", "output": "", "score": 1}]}',
           b'{"image": "a", "heat_maps": [{"key": "a", "status": "failed", "stage": "explain"}]}']  # fmt: skip

Line = tuple[list[tuple[str, str]], int]


@st.composite
def ledgers(draw) -> list[list[Line | bytes]]:
    entry = st.tuples(st.sampled_from(KEYS), st.sampled_from(sorted(CASES)))
    line = st.tuples(st.lists(entry, max_size=3), st.integers(0, 3))
    return draw(st.lists(st.lists(st.one_of(line, st.sampled_from(GARBAGE)), max_size=6), max_size=4))


def store(results: Path, content: list[list[Line | bytes]], tail: bytes = b"") -> None:
    for number, lines in enumerate(content):
        path = results / "shards" / f"{number:04d}-of-0004" / "ledger.jsonl"
        path.parent.mkdir(parents=True)
        data = b""
        for line in lines:
            if not isinstance(line, bytes):
                entries = [{"key": key, **CASES[case]} for key, case in line[0]]
                line = json.dumps({"image": "a", "heat_maps": entries, "at": line[1]}).encode()
            data += line + b"\n"
        path.write_bytes(data + tail)


def expected(content: list[list[Line | bytes]]) -> dict[str, tuple[str, bool]]:
    """Key -> (status, failed later elsewhere), by the rules, one record after the other."""
    known: dict[str, list[tuple[str, int]]] = {}
    for lines in content:
        own = {key: (case, line[1]) for line in lines if not isinstance(line, bytes) for key, case in line[0]}
        for key, one in own.items():
            known.setdefault(key, []).append(one)
    found = {}
    for key, several in known.items():
        best = several[0]
        for one in several[1:]:
            if (one[0] == "ok", one[1]) >= (best[0] == "ok", best[1]):
                best = one
        later = best[0] == "ok" and any(case != "ok" and at > best[1] for case, at in several)
        found[key] = (best[0], later)
    return found


@given(ledgers(), st.sampled_from([b"", b'{"image": "torn', b'{"image": "a", "heat_maps": []}']))
@example([[([(KEYS[0], "ok")], 1), ([(KEYS[0], "failed")], 1)]], b"")
@example([[([(KEYS[0], "ok")], 1)], [([(KEYS[0], "failed")], 2)], [([(KEYS[0], "missing")], 3)]], b"")
@example([[], [([(KEYS[1], "ok"), (KEYS[2], "failed")], 0)], []], b"")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_as_if_every_line_were_read_and_judged(tmp_path_factory, content, tail):
    results = tmp_path_factory.mktemp("results")
    store(results, content, tail)
    finished, fates = read_keys(results)
    wanted = expected(content)
    assert {key: finished.status(key) for key in KEYS} == {key: wanted.get(key, ("", 0))[0] for key in KEYS}
    assert len(finished) == len(wanted)
    assert finished.unreadable_lines == sum(isinstance(line, bytes) for lines in content for line in lines)
    places = finished.positions(packed(KEYS)).tolist()
    for key, place in zip(KEYS, places, strict=True):
        assert (place >= 0) == (key in wanted)
        if key in wanted:
            assert bool(finished.codes[place] & FAILED_LATER) == wanted[key][1]
    total = sum(list(fate).count(KEPT) for fate in fates.values())
    assert total == len(wanted)
    assert sum(list(fate).count(FALLBACK) for fate in fates.values()) == sum(later for _, later in wanted.values())


def test_fates_point_at_the_records_that_count(tmp_path):
    store(tmp_path, [
        [([(KEYS[0], "failed"), (KEYS[3], "ok")], 1), b"garbage", ([(KEYS[0], "ok")], 2)],
        [([(KEYS[0], "failed"), (KEYS[0], "failed")], 5)],
    ])  # fmt: skip
    _, fates = read_keys(tmp_path)
    assert [fate.tolist() for fate in fates.values()] == [[0, KEPT, KEPT], [0, FALLBACK]]


def test_remarks_are_counted(tmp_path):
    maps = [
        HeatMapRecord("a", "ok", statistics={"constant": True}, prompt_truncated=True),
        HeatMapRecord("b", "ok", statistics={"whole_film": False}, warnings=("other", "out of memory: halved")),
        HeatMapRecord("c", "failed", stage="explain", reason="constant"),
        HeatMapRecord("d", "failed", stage="locate", reason="gone"),
    ]
    write_ledger(tmp_path, "0000-of-0001", [ImageRecord("i", tuple(maps), {"whole_film": True}, {"read": 1.5}, 7.0)])
    finished = FinishedKeys.read(tmp_path)
    counts = [finished.count(OK, bit) for bit in (0, CONSTANT, TRUNCATED, WHOLE_FILM, HALVED)]
    assert counts == [2, 1, 1, 1, 1]
    assert (finished.count(FAILED), finished.count(MISSING)) == (1, 1)
    assert (finished.clocks, finished.peak_rss_mib) == ({"read": 1.5}, 7.0)
    assert STATE == OK | FAILED | MISSING


def test_nothing_at_all(tmp_path):
    finished = FinishedKeys.read(tmp_path)
    assert (len(finished), finished.status("ab" * 32), finished.positions(packed(KEYS)).tolist()) == (0, "", [-1] * 6)


def test_a_heat_map_costs_few_bytes(tmp_path):
    path = tmp_path / "shards/0000-of-0001/ledger.jsonl"
    path.parent.mkdir(parents=True)
    count = 60_000
    with path.open("w") as stream:
        for start in range(0, count, 10):
            entries = [
                {"key": f"{number * 2654435761 % 2**64:016x}" * 4, **CASES["ok"]} for number in range(start, start + 10)
            ]
            stream.write(json.dumps({"image": "a", "heat_maps": entries}) + "\n")
    FinishedKeys.read(tmp_path / "nowhere")
    tracemalloc.start()
    finished = FinishedKeys.read(tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    fixed = 2**16 * 8 * 4  # the table of first bytes, and what making it takes
    assert len(finished) == count
    assert kept - fixed < 20 * count
    assert peak - fixed < 60 * count


def test_threads_may_share_a_writer(tmp_path):
    path = tmp_path / "shards/0000-of-0001/ledger.jsonl"
    long = "x" * 5000
    with LedgerWriter(path) as writer:

        def write(name: int) -> None:
            for number in range(20):
                writer.append(ImageRecord(f"{name}/{number}/{long}", ()))

        threads = [threading.Thread(target=write, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    images = [record.image for record in read_ledger(path)]
    assert sorted(images) == sorted(f"{name}/{number}/{long}" for name in range(6) for number in range(20))
    assert FinishedKeys.read(tmp_path).unreadable_lines == 0


def test_lines_say_when_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr("heatlens.batch.ledger.time.time", lambda: 1_760_000_000.6)
    write_ledger(tmp_path, "0000-of-0001", [ImageRecord("a", ()), ImageRecord("b", (), at=5)])
    (path,) = ledger_paths(tmp_path)
    assert [record.at for record in read_ledger(path)] == [1_760_000_001, 5]
    assert json.loads(path.read_text().splitlines()[0])["at"] == 1_760_000_001
