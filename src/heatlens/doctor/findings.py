"""What a check found: a state, a text and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from heatlens.errors import HeatlensError, one_line

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. ``state``: "ok", "warning" (a run may work) or "problem" (it will not, or wrongly)."""

    check: str
    state: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<8} {self.check}: {self.text}"
        return f"{line}\n         What to do: {self.advice}" if self.advice else line


def guarded(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What ``look`` finds; what it raises is a problem of its own, and the next check follows."""
    try:
        yield from look()
    except HeatlensError as error:
        yield Finding(check, PROBLEM, one_line(error))
    except Exception as error:  # a broken installation raises anything; the other checks still help
        yield Finding(
            check, PROBLEM, f"cannot be checked: {one_line(error)}", "HEATLENS_TRACEBACK=1 in a run shows more"
        )
