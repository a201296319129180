"""How often the evaluation's 95% intervals hold the true mean, for few and for many patients.

    python benchmarks/interval_coverage.py

Made-up studies: one heat map per patient, a hit with a known rate, or a uniform number (as an overlap may be).
Printed is the share of studies whose interval of the mean, as ``heatlens evaluate`` gives it, holds the true one.
"""

from __future__ import annotations

import argparse

import numpy as np

from heatlens.evaluate.bootstrap import summarise

PATIENTS = (5, 10, 20, 30, 100)
RATES = (0.5, 0.7, 0.85, 0.9)


def coverage(values: np.ndarray, true: float, seed: int) -> float:
    """``values``: (patients, studies)."""
    found = summarise(values, np.arange(len(values)), seed=seed)
    held = [one.mean_low <= true <= one.mean_high for one in found]  # two patients and more always have an interval
    return sum(held) / len(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"| patients | {' | '.join(f'hits at {100 * rate:.0f}%' for rate in RATES)} | uniform |")
    print("|---" * (len(RATES) + 2) + "|")
    for patients in PATIENTS:
        size = (patients, args.studies)
        shares = [coverage((rng.random(size) < rate).astype(float), rate, patients) for rate in RATES]
        shares.append(coverage(rng.random(size), 0.5, patients))
        print(f"| {patients} | {' | '.join(f'{100 * share:.0f}%' for share in shares)} |")
    print(f"\ninterval_coverage studies={args.studies}")


if __name__ == "__main__":
    main()
