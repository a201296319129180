"""The pictures of a report. matplotlib is imported only here, and only when something is drawn.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which people with any colour vision can tell apart;
baselines differ in their shape as well.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heatlens.evaluate.curve_sums import KINDS, ORDERS
from heatlens.evaluate.markup import RATES, plain
from heatlens.evaluate.metrics import METRICS
from heatlens.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#767676", "#222222"
MARKS = {"centre": ("D", ORANGE), "random": ("x", GREY), "body": ("^", GREEN)}
LABELS = {"centre": "centre of the film", "random": "random", "body": "anywhere in the body"}
PICTURES = ("metrics.png", "by_finding.png", "by_target_size.png", "curves.png")
MOST_NAMES = 25
MOST_DOTS = 20_000
DPI = 120
WIDTH = 8.0  # inches: 960 pixels
SIZES = (0.005, 0.02, 0.1)
"""shares of the film at which the classes of target size end"""

TICKS = (*(digit * 10.0**power for power in range(-5, 0) for digit in (1, 2, 5)), 1.0)

_STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
    "figure.constrained_layout.hspace": 0.06,
    "text.parse_math": False,  # a finding's name is no formula
}

Record = Mapping[str, Any]


class PlotsMissing(Exception):
    """matplotlib is not here; the text says how to get it."""


@contextmanager
def figure(height: float, **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of WIDTH x ``height`` inches and its axes, without any display or global state."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotsMissing(
            "no plots: matplotlib is not installed (pip install 'heatlens[evaluate]'); everything else is complete"
        ) from None
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font has not
        made = Figure(figsize=(WIDTH, height), dpi=DPI)
        FigureCanvasAgg(made)
        yield made, made.subplots(**grid)


def save(made: Figure, path: Path) -> None:
    """As PNG, all at once, with no time in it."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", metadata={"Software": None})
    atomic_write(path, buffer.getvalue())


def draw_plots(rows: pd.DataFrame, record: Record, folder: Path) -> list[str]:
    """Draw what there is to draw; the files' names. PlotsMissing without matplotlib."""
    names = ["metrics.png"]
    draw_distributions(rows, record, folder / "metrics.png")
    if len(record["groups"].get("finding", {})) > 1:
        draw_findings(record, folder / "by_finding.png")
        names.append("by_finding.png")
    if len(rows) > 1:
        draw_target_sizes(rows, record, folder / "by_target_size.png")
        names.append("by_target_size.png")
    if record.get("curves"):
        draw_curves(record["curves"], folder / "curves.png")
        names.append("curves.png")
    for name in PICTURES:  # those of an earlier report say nothing of this one
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    return names


def draw_findings(record: Record, path: Path) -> None:
    """Pointing and box IoU per finding with intervals, and the baselines as marks."""
    groups = list(record["groups"]["finding"].items())[:MOST_NAMES]
    groups.sort(key=lambda item: item[1]["metrics"]["pointing_8"]["mean"] or 0)
    everything = ("all", record["groups"]["all"]["all"])
    rows = [*groups, everything]
    with figure(1.7 + 0.36 * len(rows), ncols=2, sharey=True) as (made, axes):
        for axis, key in zip(axes, ("pointing_8", "box_iou"), strict=True):
            for place, (_, group) in enumerate(rows):
                _dot(axis, place, group["metrics"][key], _scale(key))
                for name, (marker, colour) in MARKS.items():
                    mean = group["baselines"].get(name, {}).get(key, {}).get("mean")
                    if mean is not None:
                        axis.plot(
                            _scale(key) * mean,
                            place,
                            marker,
                            color=colour,
                            markersize=8,
                            markerfacecolor="none",
                            zorder=4,
                        )
            axis.set(title=METRICS[key].label, xlabel=_unit(key), xlim=(-0.02 * _scale(key), 1.02 * _scale(key)))
            axis.axhline(len(groups) - 0.5, color=GREY, linewidth=0.8)
        axes[0].set_yticks(range(len(rows)), [f"{_short(name)} ({group['n']:,})" for name, group in rows])
        axes[0].set_ylim(-0.6, len(rows) - 0.4)
        if (all_names := len(record["groups"]["finding"])) > len(groups):
            made.suptitle(
                f"The {len(groups)} of {all_names} findings with most heat maps", x=0.01, ha="left", fontsize=11
            )
        for axis in axes:
            axis.grid(visible=False, axis="y")
        made.legend(handles=_legend(everything[1]), loc="outside lower center", ncols=4)
        save(made, path)


def _dot(axis: Axes, place: float, figures: Record, scale: float) -> None:
    """Mean with its interval, lying."""
    mean, low, high = (figures[name] for name in ("mean", "mean_low", "mean_high"))
    if mean is None:
        return
    if low is not None:
        axis.plot([scale * low, scale * high], [place, place], color=BLUE, linewidth=2.2, solid_capstyle="butt")
    axis.plot(scale * mean, place, "o", color=BLUE, markersize=7, zorder=3)


def _legend(group: Record) -> list[Any]:
    from matplotlib.lines import Line2D

    own = Line2D([], [], color=BLUE, marker="o", linewidth=2.2, label="maps, 95% interval")
    return [own] + [
        Line2D([], [], color=colour, marker=marker, linestyle="", markerfacecolor="none", label=LABELS[name])
        for name, (marker, colour) in MARKS.items()
        if group["baselines"].get(name, {}).get("pointing_8", {}).get("mean") is not None
    ]


def _short(name: str) -> str:
    """A name as a label: at most 28 characters, and to be seen that it is cut."""
    line = plain(name)
    return line if len(line) <= 28 else f"{line[:25].rstrip()}..."


def _scale(key: str) -> float:
    return 100.0 if key in RATES else 1.0


def _unit(key: str) -> str:
    return (
        "% of heat maps" if key.startswith("pointing") else "% of all heat" if key == "energy" else METRICS[key].label
    )


def draw_distributions(rows: pd.DataFrame, record: Record, path: Path) -> None:
    """How the numbers spread over the heat maps, and the means of maps and baselines."""
    keys = ("iou", "box_iou", "energy", "cnr")
    with figure(5.6, nrows=2, ncols=2) as (made, axes):
        for axis, key in zip(axes.flat, keys, strict=True):
            values = _scale(key) * rows[key].dropna().to_numpy(dtype=float)
            edges = _edges(key, values)
            shares = np.full(len(values), 100 / max(len(values), 1))
            axis.hist(values, bins=edges, weights=shares, color=BLUE, edgecolor="white", linewidth=0.5)
            _mean_lines(axis, record["groups"]["all"]["all"], key)
            axis.set(title=METRICS[key].label, xlabel=_unit(key), ylabel="% of heat maps")
            axis.grid(visible=False, axis="x")
        made.legend(handles=_line_legend(record["groups"]["all"]["all"]), loc="outside lower center", ncols=4)
        save(made, path)


def _edges(key: str, values: np.ndarray) -> np.ndarray:
    if key != "cnr":
        return np.linspace(0, _scale(key), 21)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    step = 0.25 if high - low < 6 else (high - low) / 24
    return np.arange(np.floor(low / step), np.ceil(high / step) + 2) * step


_LINES: dict[str, Any] = {"maps": (BLACK, "-"), "centre": (ORANGE, "--"), "random": (GREY, ":"), "body": (GREEN, "-.")}


def _mean_lines(axis: Axes, group: Record, key: str) -> None:
    means = {"maps": group["metrics"][key]["mean"]}
    means |= {name: figures.get(key, {}).get("mean") for name, figures in group["baselines"].items()}
    for name, mean in means.items():
        if mean is not None and name in _LINES:
            colour, style = _LINES[name]
            axis.axvline(_scale(key) * mean, color=colour, linestyle=style, linewidth=1.8)


def _line_legend(group: Record) -> list[Any]:
    from matplotlib.lines import Line2D

    known = [
        name
        for name in _LINES
        if name == "maps" or group["baselines"].get(name, {}).get("iou", {}).get("mean") is not None
    ]
    return [
        Line2D([], [], color=_LINES[name][0], linestyle=_LINES[name][1], linewidth=1.8,
               label="mean of the maps" if name == "maps" else LABELS[name])
        for name in known
    ]  # fmt: skip


def draw_target_sizes(rows: pd.DataFrame, record: Record, path: Path) -> None:
    """Size of the target against pointing (hit rate per class) and IoU (each heat map)."""
    share = rows["target_share"].to_numpy(dtype=float)
    low, high = max(share.min(), 1e-5) / 1.5, min(share.max() * 1.5, 1.0)
    edges = [low, *(edge for edge in SIZES if low < edge < high), high]
    groups = record["groups"].get("target_size", {})
    with figure(4.0, ncols=2, sharex=True) as (made, axes):
        ordered = [group for group in groups.values() if group["n"]]
        spans = _spans(share, edges)
        for (left, right), group in zip(spans, ordered, strict=False):
            middle = np.sqrt(left * right)
            figures = group["metrics"]["pointing_8"]
            if figures["mean_low"] is not None:
                axes[0].plot([middle] * 2, [100 * figures["mean_low"], 100 * figures["mean_high"]], color=BLUE, lw=2.2)
            axes[0].plot(middle, 100 * figures["mean"], "o", color=BLUE, markersize=7, zorder=3)
            axes[0].annotate(f"n={group['n']:,}", (middle, 105), ha="center", fontsize=10, color=BLACK)
            for name, (marker, colour) in MARKS.items():
                mean = group["baselines"].get(name, {}).get("pointing_8", {}).get("mean")
                if mean is not None:
                    axes[0].plot(
                        middle, 100 * mean, marker, color=colour, markersize=8, markerfacecolor="none", zorder=4
                    )
        axes[0].set(title=METRICS["pointing_8"].label, ylabel="% of heat maps", ylim=(-3, 112))
        step = -(-len(rows) // MOST_DOTS)
        title = METRICS["iou"].label + (f" (every {step}th heat map)" if step > 1 else "")
        dots = rows["iou"].to_numpy()[::step]
        axes[1].plot(share[::step], dots, "o", color=BLUE, alpha=_alpha(len(dots)), markersize=4, markeredgewidth=0)
        axes[1].set(title=title, ylabel="IoU", ylim=(-0.03, 1.03))
        for axis in axes:
            axis.set(xscale="log", xlabel="target, share of the film", xlim=(low, high))
            axis.set_xticks([tick for tick in TICKS if low <= tick <= high], minor=False)
            axis.set_xticks([], minor=True)
            axis.xaxis.set_major_formatter(_percent)
            axis.grid(visible=False, axis="x")
            for edge in edges[1:-1]:
                axis.axvline(edge, color=GREY, linewidth=0.8, linestyle=":")
        made.legend(handles=_legend(record["groups"]["all"]["all"]), loc="outside lower center", ncols=4)
        save(made, path)


def _spans(share: np.ndarray, edges: Sequence[float]) -> list[tuple[float, float]]:
    """The classes (their edges) that a target falls into, from small to large."""
    pairs = list(zip([0.0, *SIZES], [*SIZES, 1.0], strict=True))
    low, high = edges[0], edges[-1]
    last = pairs[-1]
    used = [one for one in pairs if ((share >= one[0]) & ((share < one[1]) | (one == last))).any()]
    return [(max(left, low), min(right, high)) for left, right in used]


def _percent(value: float, _place: int) -> str:
    return f"{100 * value:.3g}%"


def _alpha(count: int) -> float:
    return float(np.clip(60 / max(count, 1) ** 0.5 / 10, 0.05, 0.7))


_ORDER_LINES = {"map": (BLUE, "-"), "random": (GREY, ":"), "centre": (ORANGE, "--")}


def draw_curves(curves: Record, path: Path) -> None:
    """Mean score while pixels are deleted or put back, hottest first, with the interval of the map's order."""
    steps = np.linspace(0, 100, curves["steps"] + 1)
    titles = {"deletion": "Deletion: a steep fall is good", "insertion": "Insertion: a steep rise is good"}
    with figure(4.0, ncols=2, sharey=True) as (made, axes):
        for axis, kind in zip(axes, KINDS, strict=True):
            for order in ORDERS:
                curve, (colour, style) = curves["curve"][kind][order], _ORDER_LINES[order]
                area = curves["auc"][kind][order]["mean"]
                label = f"{'the map' if order == 'map' else order} (area {area:.3f})"
                axis.plot(steps, curve["mean"], color=colour, linestyle=style, linewidth=2, label=label)
                if order == "map" and curve["low"] is not None:
                    axis.fill_between(steps, curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
            verb = "deleted" if kind == "deletion" else "put back"
            axis.set(title=titles[kind], xlabel=f"% of the film's pixels {verb}", xlim=(0, 100))
            axis.legend(loc="best", fontsize=10)
        axes[0].set_ylabel("image-text cosine similarity")
        save(made, path)


def draw_differences(groups: Record, names: tuple[str, str], path: Path) -> None:
    """A forest plot of paired differences, B minus A: every metric over all heat maps, and pointing by finding."""
    metrics = groups["all"]["all"]["metrics"]
    all_rows = [(METRICS[key].label, figures) for key, figures in metrics.items() if figures["mean"] is not None]
    findings = [
        (f"{_short(name)} ({part['n']:,})", part["metrics"]["pointing_8"])
        for name, part in list(groups.get("finding", {}).items())[:MOST_NAMES]
    ]
    with figure(2.0 + 0.34 * max(len(all_rows), len(findings)), ncols=2 if findings else 1) as (made, axes):
        panels = axes if findings else [axes]
        _forest(panels[0], all_rows, 1.0, "All heat maps", "B minus A (0.1: 10 pp)")
        if findings:
            _forest(panels[1], findings, 100.0, "By finding", "pointing, 8 px: B minus A, pp")
        made.suptitle(f"A: {plain(names[0])[:90]}\nB: {plain(names[1])[:90]}", fontsize=10, x=0.01, ha="left")
        save(made, path)


def _forest(axis: Axes, rows: Sequence[tuple[str, Record]], scale: float, title: str, unit: str) -> None:
    for place, (_, figures) in enumerate(reversed(rows)):
        _dot(axis, place, figures, scale)
    axis.axvline(0, color=BLACK, linewidth=1)
    axis.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
    axis.set(title=title, xlabel=unit, ylim=(-0.6, len(rows) - 0.4))
    axis.grid(visible=False, axis="y")
