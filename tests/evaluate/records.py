"""Small hand-made records, as `evaluate_cases` and `compare_runs` give them."""

from __future__ import annotations

from typing import Any

METRIC_KEYS = ("pointing", "pointing_8", "cnr", "iou", "dice", "miou", "energy", "box_iou", "any_box_iou")


def summary(mean: float, *, n: int = 12, half: float | None = 0.05) -> dict[str, Any]:
    """A metric's figures; `half` None: no intervals."""
    low, high = (None, None) if half is None else (round(mean - half, 4), round(mean + half, 4))
    return {
        "n": n,
        "mean": mean,
        "mean_low": low,
        "mean_high": high,
        "median": mean,
        "median_low": low,
        "median_high": high,
    }


def nothing() -> dict[str, Any]:
    """A metric that no heat map has."""
    return {"n": 0, **dict.fromkeys(("mean", "mean_low", "mean_high", "median", "median_low", "median_high"))}


def group(level: float, *, n: int = 12, patients: int = 5, films: bool = True) -> dict[str, Any]:
    """A group's figures; `films` False: the films could not be read, so there is no body baseline."""
    half = 0.05 if patients > 1 else None

    def at(share: float) -> dict[str, Any]:
        return {key: summary(round(level * share, 4), n=n, half=half) for key in METRIC_KEYS}

    body = at(0.5) if films else {key: nothing() for key in METRIC_KEYS}
    return {
        "n": n,
        "patients": patients,
        "metrics": at(1.0),
        "baselines": {"centre": at(0.6), "random": at(0.2), "body": body},
    }


def example_record() -> dict[str, Any]:
    """A record of twelve heat maps of five patients."""
    return {
        "heat_maps": 15,
        "evaluated": 12,
        "left_out": {"no annotation for it": 2, "the raw map is missing": 1},
        "left_out_examples": {"the raw map is missing": ["raw/files/p10/p10000001/s1/a_idx1.png: no such file"]},
        "patients": 5,
        "threshold_rule": "otsu",
        "boxes": "found by evaluation",
        "tolerance_px_of_224": 8,
        "miou_thresholds": [0.1, 0.2, 0.3, 0.4, 0.5],
        "bootstrap": {"method": "percentile", "unit": "patient", "resamples": 2000, "level": 0.95, "seed": 0},
        "run": {"method": "gScoreCAM", "model": "phantom"},
        "truth": {"format": "phantom", "path": "/data/phantom", "matched": {"prompt": 12}},
        "notes": ["3 films could not be read: the body baseline leaves them out"],
        "groups": {
            "all": {"all": group(0.5)},
            "finding": {
                "Pleural Effusion": group(0.6, n=7, patients=4),
                "Nodule": group(0.3, n=4, patients=3),
                "(not named)": group(0.2, n=1, patients=1, films=False),
            },
            "region": {"left lung": group(0.4, n=6, patients=4), "right lung": group(0.5, n=6, patients=4)},
            "question_type": {"open": group(0.5)},
            "target_size": {"< 0.5%": group(0.2, n=3, patients=2), "2-10%": group(0.6, n=9, patients=5)},
        },
    }


def example_comparison() -> dict[str, Any]:
    """What `compare_runs` gives: differences b - a of ten heat maps that both runs have."""

    def part(n: int, patients: int) -> dict[str, Any]:
        figures = {**summary(0.1, n=n), "a_mean": 0.4, "b_mean": 0.5, "b_better": n - 2, "a_better": 1, "equal": 1}
        return {"n": n, "patients": patients, "metrics": {key: dict(figures) for key in METRIC_KEYS}}

    return {
        "a": {"method": "gScoreCAM", "model": "phantom"},
        "b": {"method": "GradCAM", "model": "phantom"},
        "matched": 10,
        "only_in_a": 2,
        "only_in_b": 1,
        "patients": 5,
        "threshold_rule": {"a": "otsu", "b": "otsu"},
        "bootstrap": {"method": "percentile, paired", "unit": "patient", "resamples": 2000, "level": 0.95, "seed": 0},
        "notes": [],
        "groups": {
            "all": {"all": part(10, 5)},
            "finding": {"Pleural Effusion": part(6, 4), "Nodule": part(4, 3)},
        },
    }
