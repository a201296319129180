"""Markdown of numbers and of texts that nobody vouches for: findings and questions come from data."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONGEST = 100
"""characters of a foreign text that are shown"""
RATES = ("pointing", "pointing_8", "energy")
"""metrics that are shares: written in percent"""
NONE = "–"

_SPECIAL = re.compile(r"([\\`*_{}\[\]|~#$!])")


def one_line_of(text: object) -> str:
    """Printable characters on one line."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())


def plain(text: object) -> str:
    """One line, cut at LONGEST."""
    line = one_line_of(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def escaped(text: object) -> str:
    """A foreign text for a Markdown table or paragraph: it is shown as it is, and does nothing."""
    return _SPECIAL.sub(r"\\\1", html.escape(plain(text), quote=False))


def escaped_long(text: str) -> str:
    """A sentence of this program that may hold foreign names; only its words are cut."""
    return " ".join(escaped(word) for word in text.split())


def code(text: object) -> str:
    """A path or a command as code, whatever back ticks are in it."""
    line = one_line_of(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    inner = f" {line} " if "`" in line else line
    return f"{fence}{inner}{fence}".replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column flush left, the others right. Cells must be Markdown already."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The same for a terminal: columns side by side, two blanks between them."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    first, *others = widths
    return ["  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]).rstrip() for line in lines]


def number(key: str, value: float | None, *, sign: bool = False) -> str:
    """A metric's value: shares in percent, others with three decimals. ``sign``: a difference, shares in percentage
    points (pp)."""
    if value is None:
        return NONE
    rate, plus = key in RATES, "+" if sign else ""
    shown = round(100 * value, 1) if rate else round(value, 3)
    text = f"{shown or 0.0:{plus if shown else ''}.{1 if rate else 3}f}"
    return text.replace("-", "\N{MINUS SIGN}") + ((" pp" if sign else "%") if rate else "")


def interval(key: str, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """``low to high`` in brackets, without the unit, which stands at the mean; or nothing."""
    if low is None or high is None:
        return ""
    ends = (number(key, end, sign=sign).removesuffix("%").removesuffix(" pp") for end in (low, high))
    return f"[{' to '.join(ends)}]"


def mean_cell(key: str, figures: Mapping[str, Any], *, sign: bool = False) -> str:
    """Mean and 95% interval of one metric; ``figures`` as in a record."""
    ends = interval(key, figures["mean_low"], figures["mean_high"], sign=sign)
    return f"{number(key, figures['mean'], sign=sign)} {ends}".strip()


def counted(many: int, one: str, several: str = "") -> str:
    """``1 film``, ``2 films``."""
    return f"{many:,} {one if many == 1 else several or one + 's'}"
