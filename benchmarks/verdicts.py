"""How often a verdict is wrong, by simulation, when the truth lies exactly on the margin: kept or shipped at
the level that docs/evaluation.md promises, 2.5%.

python benchmarks/verdicts.py [--draws 2000]
"""

from __future__ import annotations

import argparse

import numpy as np

from orchestrate.evaluation.scoring import paired
from orchestrate.evaluation.statistics import paired_interval
from orchestrate.evaluation.verdict import Demand, verdicts
from orchestrate.types import MetricUsed

METRIC = MetricUsed(name="exact_match", kind="right-or-wrong")
BORDERS = ((60, 0.10), (60, 0.05), (120, 0.05), (200, 0.02), (1000, 0.02))
GAINS = (0.0, 0.005, 0.02, 0.05, 0.1)
CONTENDERS = (1, 2, 5, 10)


def kept_at_the_margin(n: int, margin: float, gains: float, draws: int) -> float:
    """Share of probes called "kept" whose model is exactly `margin` worse and gains this share of rows."""
    rng = np.random.default_rng(n)
    found = rng.multinomial(n, [gains, gains + margin, 1 - 2 * gains - margin], size=draws)
    pairs, times = np.unique(found[:, :2], axis=0, return_counts=True)
    kept = [paired_interval(g, lost, n).low > -margin for g, lost in pairs.tolist()]
    return float(times[kept].sum()) / draws


def any_ships_at_the_margin(n: int, margin: float, contenders: int, draws: int, gains: float = 0.05) -> float:
    """Share of evaluations with a SHIP although each contender is exactly at the margin."""
    rng = np.random.default_rng(contenders)
    chances = [gains, gains - margin, 1 - 2 * gains + margin]
    wrong = 0
    for _ in range(draws):
        names = [f"c{i}" for i in range(contenders)]
        apart = []
        for name, (gained, lost, same) in zip(
            names, rng.multinomial(n, chances, size=contenders), strict=True
        ):
            values = [(1.0, 0.0)] * int(gained) + [(0.0, 1.0)] * int(lost) + [(1.0, 1.0)] * int(same)
            apart.append(paired(METRIC, values, [str(i) for i in range(n)], name, "base", alone=True))
        told = verdicts(METRIC, [], apart, Demand(margin=margin), names)
        wrong += any(one.decision == "ship" for one in told)
    return wrong / draws


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    print("kept although exactly at the margin, by the share of rows that the model gains")
    for n, margin in BORDERS:
        shares = "  ".join(f"{kept_at_the_margin(n, margin, g, 50 * draws):6.1%}" for g in GAINS)
        print(f"  {n:5,} rows, {100 * margin:g} points: {shares}")
    print("any SHIP although every contender is exactly at --margin -0.02, 200 rows")
    for contenders in CONTENDERS:
        print(f"  {contenders:2} contenders: {any_ships_at_the_margin(200, -0.02, contenders, draws):.1%}")


if __name__ == "__main__":
    main()
