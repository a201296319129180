"""The report of an evaluation: report.md for people, report.json with every number, per_map.csv, plots/.

Everything is made from :attr:`heatlens.evaluate.measure.Evaluation.record` (its layout stands there).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.errors import ConfigError, SetupError, one_line
from heatlens.evaluate.groups import NOT_NAMED
from heatlens.evaluate.markup import (
    NONE,
    code,
    columns,
    counted,
    escaped,
    escaped_long,
    mean_cell,
    number,
    one_line_of,
    plain,
    table,
)
from heatlens.evaluate.metrics import METRICS
from heatlens.files import atomic_file, atomic_write

if TYPE_CHECKING:
    import pandas as pd

    from heatlens.evaluate.measure import Evaluation

BASELINES = {
    "centre": "always the middle of the film",
    "random": "noise on the model's patch grid (pointing: a random pixel of the film)",
    "body": "the whole body, found in the film (pointing: a random pixel of the body)",
}
GROUPINGS = {"finding": "finding", "region": "region", "question_type": "question type", "target_size": "target size"}
GROUP_METRICS = ("pointing", "pointing_8", "iou", "box_iou", "energy", "cnr")
WITH_MEDIAN = ("iou", "box_iou")
"""what the tables by group show; report.json has all"""
RANKED_BY = "pointing_8"
FEWEST = 5
"""heat maps that a finding needs to be called best or worst"""
FEWEST_PATIENTS = 10
"""for an interval to say something: that of 5 holds the true mean in as few as 39% of cases (docs/evaluation.md)"""
NOT_TOLD = ("counts", "plan_digest")
"""of the run: in report.json only"""
SHOWN = 40
"""names per table; report.json has all"""
ROW_COLUMNS = (
    "output", "source_image", "row", "question_id", "region", "question_type", "patient",
    "finding", "target_share", "target_size", "threshold", "constant",
)  # fmt: skip

NOT_SHOWN = """\
* That a map points at its target does not mean that the model *knows* the finding, and a map that misses does not mean
  that the answer was wrong: it says where the score is sensitive, nothing more. No figure here is about diagnosis.
* The targets are somebody's boxes or masks. Boxes around thin or scattered findings hold a lot that is not finding, and
  annotators differ: no map can reach an IoU of 1 against them, nor should it be expected to.
* Large targets are easy to hit. Read a figure with its baselines, and by target size; a figure that the centre of the
  film reaches as well is no success of the map.
* Intervals are about the patients of this data set: other hospitals, devices and questions are not in them. Many
  groups are looked at here, so one of twenty differences at the edge of its interval is expected by chance alone.
  With few patients they are too narrow, and one such as [100.0 to 100.0] only says that no patient differed: of 20
  hits out of 20 the true rate may well be 85%.
* Where prompts name the region or the finding, annotated knowledge has gone into the maps."""

Record = Mapping[str, Any]


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write all files into ``folder`` and return their paths, report.md first. Plots are left out, with a note in the
    report, where matplotlib is missing."""
    from heatlens.evaluate.plots import PlotsMissing, draw_plots

    record = evaluation.record
    pictures: Sequence[str] = ()
    missing = ""
    with writing_into(folder):
        # First, because it tells whose folder this is (heatlens.evaluate.place).
        atomic_write(folder / "report.json", json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False) + "\n")
        try:
            pictures = draw_plots(evaluation.rows, record, folder / "plots")
        except PlotsMissing as error:
            missing = str(error)
        write_rows(evaluation.rows, folder / "per_map.csv")
        atomic_write(folder / "report.md", report_text(record, pictures, missing))
    return [
        folder / name for name in ("report.md", "report.json", "per_map.csv", *(f"plots/{one}" for one in pictures))
    ]


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """A folder that cannot be written to is an error for people."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--output={folder}: not a folder ({one_line(error)})") from None
    except OSError as error:
        raise SetupError(f"cannot write the report into {folder}: {one_line(error)}") from None


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """One line per heat map: its ids, then every number and every baseline's.

    Questions and prompts, which may be sentences of a radiologist's report, stay in details.parquet (its
    ``image_path`` is this ``output``).
    """
    known = [name for name in ROW_COLUMNS if name in rows]
    numbers = [name for name in map(str, rows.columns) if name.rpartition(":")[2] in METRICS]
    with atomic_file(path) as stream:
        rows[[*known, *numbers]].to_csv(stream, index=False, float_format="%.6g", lineterminator="\n")


def report_text(record: Record, pictures: Sequence[str] = (), missing: str = "") -> str:
    """report.md. ``pictures``: names in plots/; ``missing``: why there are none."""
    sections = [
        ["# Do the heat maps point at their targets?", "", *_lead(record)],
        ["## What was evaluated", "", *_what(record)],
        ["## All heat maps", "", *_all_table(record), "", *_picture("metrics.png", pictures)],
        *([[f"> {escaped_long(missing)}"]] if missing else []),
        *(_group_section(record, grouping, pictures) for grouping in GROUPINGS if record["groups"].get(grouping)),
        *(
            [["## Does the score follow the map?", "", *_curves(record["curves"], pictures)]]
            if record.get("curves")
            else []
        ),
        *([["## Sanity checks", "", *_sanity(record["sanity"])]] if record.get("sanity") else []),
        ["## What the figures are", "", *_definitions(record)],
        ["## What these figures do not show", "", NOT_SHOWN],
        *([["## The command", "", f"    {one_line_of(record['command'])}"]] if record.get("command") else []),
    ]
    return "\n\n".join("\n".join(lines).strip("\n") for lines in sections) + "\n"


def _lead(record: Record) -> Iterator[str]:
    """The first sentences: what somebody should know who reads nothing else."""
    everything = record["groups"]["all"]["all"]
    figures, (name, best) = everything["metrics"][RANKED_BY], best_baseline(everything, RANKED_BY)
    against = f" Of the baselines the best is **{name}** with {number(RANKED_BY, best)}." if name else ""
    yield (
        f"Of {counted(record['evaluated'], 'heat map')} of {counted(record['patients'], 'patient')}, "
        f"**{mean_cell(RANKED_BY, figures)}** have their maximum on the target or at most "
        f"{record['tolerance_px_of_224']} px (of 224) away from it.{against}"
        + (" Of so few patients, an interval is too narrow." if record["patients"] < FEWEST_PATIENTS else "")
    )
    yield from ["", *best_and_worst(record)]


def best_and_worst(record: Record) -> list[str]:
    """Sentences on the findings, computed from the figures."""
    findings = record["groups"].get("finding", {})
    found = {name: group for name, group in findings.items() if group["n"] >= FEWEST and name != NOT_NAMED}
    rated = sorted(found.items(), key=lambda item: -(item[1]["metrics"][RANKED_BY]["mean"] or 0))
    if len(rated) < 2:
        return []
    baselines = [(name, group, *best_baseline(group, RANKED_BY)) for name, group in rated]
    behind = [
        (name, baseline, best)
        for name, group, baseline, best in baselines
        if best is not None and (group["metrics"][RANKED_BY]["mean"] or 0) <= best
    ]
    sentence = (
        f"Best: {_rated(*rated[0])}. Worst: {_rated(*rated[-1])}. "
        f"(Findings with at least {FEWEST} heat maps, by pointing within {record['tolerance_px_of_224']} px.)"
    )
    unclear = [
        (name, baseline, best)
        for name, group, baseline, best in baselines
        if best is not None and (name, baseline, best) not in behind and not _above(group, best)
    ]
    lines = [sentence, ""]
    if behind:
        lines += [f"**No better than a baseline that has not seen the question:** {_with_baselines(behind)}.", ""]
    if unclear:
        lines += [f"Above every baseline, but with an interval that reaches one: {_with_baselines(unclear)}.", ""]
    if not behind and not unclear:
        lines += ["Every one of these findings is pointed at more often than by any baseline, at either end of its "
                  "interval.", ""]  # fmt: skip
    return lines[:-1]


def _above(group: Record, best: float) -> bool:
    low = group["metrics"][RANKED_BY]["mean_low"]
    return low is not None and low > best


def _with_baselines(findings: Sequence[tuple[str, str, float]]) -> str:
    return "; ".join(f"{escaped(name)} ({baseline}: {number(RANKED_BY, value)})" for name, baseline, value in findings)


def _rated(name: str, group: Record) -> str:
    return f"{escaped(name)}, {mean_cell(RANKED_BY, group['metrics'][RANKED_BY])} of {group['n']:,}"


def best_baseline(group: Record, key: str) -> tuple[str, float | None]:
    """The baseline with the largest mean, and that mean; ("", None) without any."""
    means = {name: figures[key]["mean"] for name, figures in group["baselines"].items() if key in figures}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known:
        return "", None
    name = max(known, key=lambda one: known[one])
    return name, known[name]


def _what(record: Record) -> Iterator[str]:
    yield f"* Heat maps: {record['heat_maps']:,} made by the run, **{record['evaluated']:,} evaluated**"
    examples = record.get("left_out_examples", {})
    for reason, count in record["left_out"].items():
        shown = "; ".join(escaped_long(one) for one in examples.get(reason, ()))
        yield f"  * left out: {count:,}, {escaped(reason)}{f' (such as {shown})' if shown else ''}"
    if not record["left_out"]:
        yield "  * none left out; a constant map counts as a miss"
    yield f"* Patients: {record['patients']:,}. {_bootstrap(record['bootstrap'])}"
    yield f"* Targets: {_pairs(record['truth'])}"
    yield (
        f"* Threshold of IoU, Dice and boxes: {code(record['threshold_rule'])}; boxes {escaped(record['boxes'])}; "
        f"tolerance of the second pointing figure: {record['tolerance_px_of_224']} px of a film scaled to 224"
    )
    yield f"* Run: {_pairs({name: value for name, value in record['run'].items() if name not in NOT_TOLD})}"
    yield from (f"* Note: {escaped_long(note)}" for note in record["notes"])


def _bootstrap(how: Record) -> str:
    return (
        f"Intervals: {how['level']:.0%} {escaped(how['method'])} bootstrap, {how['resamples']:,} resamples of whole "
        f"{escaped(how['unit'])}s, seed {how['seed']}"
    )


def _pairs(values: Record) -> str:
    """``name value`` of all that is set, nested ones in brackets."""
    parts = []
    for name, value in values.items():
        if value in (None, "", {}, []):
            continue
        word = escaped(str(name).replace("_", " "))
        if isinstance(value, Mapping):
            parts.append(f"{word} ({_pairs(value)})")
        else:
            parts.append(f"{word} {code(plain(value))}")
    return ", ".join(parts)


def _all_table(record: Record) -> list[str]:
    everything = record["groups"]["all"]["all"]
    present = [name for name in BASELINES if name in everything["baselines"]]
    rows = []
    for key, metric in METRICS.items():
        figures = everything["metrics"][key]
        cells = [mean_cell(key, everything["baselines"][name][key]) for name in present]
        median = NONE if key.startswith("pointing") else number(key, figures["median"])
        rows.append([metric.label, f"**{mean_cell(key, figures)}**", median, *cells])
    named = [f"*{name}*: {BASELINES[name]}" for name in present]
    return [
        *table(["metric", "mean [95%]", "median", *present], rows),
        "",
        f"More is better in every row. Baselines, which know nothing of the question: {'; '.join(named)}.",
    ]


def _group_section(record: Record, grouping: str, pictures: Sequence[str]) -> list[str]:
    groups = record["groups"][grouping]
    rows = []
    for name, group in list(groups.items())[:SHOWN]:
        cells = [_against(group, key) for key in GROUP_METRICS]
        rows.append([escaped(name), f"{group['n']:,}", f"{group['patients']:,}", *cells])
    more = len(groups) - len(rows)
    title = GROUPINGS[grouping]
    picture = {"finding": "by_finding.png", "target_size": "by_target_size.png"}.get(grouping, "")
    labels = [METRICS[key].label for key in GROUP_METRICS]
    return [
        f"## By {title}",
        "",
        *table([title, "heat maps", "patients", *labels], rows),
        "",
        "In each cell: mean [95%], the median of overlaps, and below it the best baseline's mean. "
        "Intervals of fewer than ten patients are too narrow."
        + (f" {more:,} more in report.json." if more > 0 else ""),
        "",
        *_picture(picture, pictures),
    ]


def _against(group: Record, key: str) -> str:
    name, best = best_baseline(group, key)
    figures = mean_cell(key, group["metrics"][key])
    if key in WITH_MEDIAN:
        figures += f"<br>median {number(key, group['metrics'][key]['median'])}"
    return f"{figures}<br>{name} {number(key, best)}" if name else figures


def _picture(name: str, pictures: Sequence[str]) -> list[str]:
    return [f"![{name.partition('.')[0].replace('_', ' ')}](plots/{name})"] if name in pictures else []


def _curves(curves: Record, pictures: Sequence[str]) -> list[str]:
    from heatlens.evaluate.curve_sums import KINDS, ORDERS

    def figure(one: Record, *, sign: bool = False) -> str:
        return mean_cell("auc", {"mean": one["mean"], "mean_low": one["low"], "mean_high": one["high"]}, sign=sign)

    better = {"deletion": "deletion (less is better)", "insertion": "insertion (more is better)"}
    rows = []
    for kind in KINDS:
        raw, share = (curves[name][kind] for name in ("auc", "auc_normalised"))
        rows.append([f"{better[kind]}, cosine", *(figure(raw[order]) for order in ORDERS), NONE, NONE])
        wins = [figure(curves["difference"][kind][order], sign=True) for order in ORDERS[1:]]
        rows.append([f"{better[kind]}, 0 to 1", *(figure(share[order]) for order in ORDERS), *wins])
    left = sum(curves["left_out"].values())
    usable = ", ".join(f"{kind} {curves['normalised_cases'][kind]}" for kind in KINDS)
    check = curves["largest_difference_from_the_runs_scores"]
    return [
        f"{counted(curves['cases'], 'heat map')} of {counted(curves['patients'], 'patient')}, drawn by seed "
        f"{curves['seed']}{f'; {left:,} more could not be read' if left else ''}. The film's pixels are ordered by "
        f"the map, hottest first, and in {curves['steps']} steps deleted (to the mean colour) or put back into a "
        f"blurred film (kernel {curves['blur']['kernel_px']} px, sigma {curves['blur']['sigma_px']:g} px of a frame of "
        f"{curves['blur']['frame'][0]}); the score is the model's own image-text cosine similarity.",
        "",
        *table(["area under the curve", *ORDERS, "map - random", "map - centre"], rows),
        "",
        f"On the scale 0 to 1 the emptied (blurred) film is 0 and the whole film 1, for the heat maps where the "
        f"whole film scores at least {curves['range_needed']:g} higher ({usable} of {curves['cases']}). Whole film "
        f"{figure(curves['ends']['whole'])}, emptied {figure(curves['ends']['emptied'])}, blurred "
        f"{figure(curves['ends']['blurred'])}. The scaled logit is {curves['logit']['scale']:g} times the cosine"
        + (f" plus {curves['logit']['bias']:g}" if curves["logit"]["bias"] else "")
        + ("." if check is None else f"; the whole film's is at most {check:g} from what the run recorded."),
        "",
        *_picture("curves.png", pictures),
    ]


def _sanity(sanity: Record) -> list[str]:
    lines = ["Do the maps depend on the prompt and on what the model has learnt? (docs/sanity.md)", ""]
    checks = [("layers", sanity["layers"])]
    checks += [(f"{one['method']}, {name}", one[name]) for one in sanity["methods"] for name in ("prompts", "weights")]
    for name, found in checks:
        verdict = found["verdict"]
        lines.append(f"* {escaped(name)}: **{escaped(verdict['state'])}**, {escaped_long(verdict['text'])}")
    return lines


def _definitions(record: Record) -> Iterator[str]:
    for metric in METRICS.values():
        yield f"* **{metric.label}**: {metric.definition}. {metric.source}"
    yield (
        f"* Threshold in this report: {code(record['threshold_rule'])}. A constant map is a miss with all numbers 0. A "
        "target smaller than a pixel of the map covers the pixel that its middle lies in"
    )


def summary_lines(record: Record) -> list[str]:
    """The table on the terminal: metrics of all heat maps beside their baselines, then the findings."""
    everything = record["groups"]["all"]["all"]
    present = [name for name in BASELINES if name in everything["baselines"]]
    rows = [
        [metric.label, mean_cell(key, everything["metrics"][key]),
         *(number(key, everything["baselines"][name][key]["mean"]) for name in present)]
        for key, metric in METRICS.items()
    ]  # fmt: skip
    left = sum(record["left_out"].values())
    lines = [
        f"{counted(record['evaluated'], 'heat map')} of {counted(record['patients'], 'patient')}"
        f"{f', {left:,} left out' if left else ''}; threshold {record['threshold_rule']}; 95% intervals by patient",
        "",
        *columns(["", "mean [95%]", *present], rows),
    ]
    findings = record["groups"].get("finding", {})
    if findings:
        keys = ("pointing_8", "iou", "box_iou")
        by_name = [
            [plain(name)[:32], f"{group['n']:,}",
             *(cell for key in keys for cell in (mean_cell(key, group["metrics"][key]), _best_text(group, key)))]
            for name, group in list(findings.items())[:12]
        ]  # fmt: skip
        head = ["finding", "maps", *(cell for key in keys for cell in (METRICS[key].label, "baseline"))]
        lines += ["", *columns(head, by_name)]
        lines += [f"and {len(findings) - 12:,} more: report.md"] if len(findings) > 12 else []
    return lines


def _best_text(group: Record, key: str) -> str:
    name, best = best_baseline(group, key)
    return f"{name} {number(key, best)}" if name else NONE
