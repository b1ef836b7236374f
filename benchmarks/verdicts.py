"""How often a verdict is wrong, by simulation, when the truth lies exactly on the margin: kept or shipped at
the level that docs/evaluation.md promises, 2.5%. And how often f1_macro tells equal models apart.

python benchmarks/verdicts.py [--draws 2000]
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from orchestrate.evaluation import Answer, Item
from orchestrate.evaluation.metrics.labels import F1, LabelSet
from orchestrate.evaluation.scoring import MetricColumn, paired
from orchestrate.evaluation.statistics import mcnemar, paired_interval, wilson
from orchestrate.evaluation.verdict import Demand, rows_to_decide, verdicts
from orchestrate.types import Measure, Message, MetricUsed

METRIC = MetricUsed(name="exact_match", kind="right-or-wrong")
BORDERS = ((60, 0.10), (60, 0.05), (120, 0.05), (200, 0.02), (1000, 0.02))
GAINS = (0.0, 0.005, 0.02, 0.05, 0.1)
CONTENDERS = (1, 2, 5, 10)
TARGETS = (0.5, 0.8, 0.9, 0.95)
TARGET_ROWS = (*range(5, 61, 2), 100, 200, 500)
_NEGLIGIBLE = 1e-7
TOLD = ((4, 4, 0), (10, 4, 1), (50, 6, 3), (100, 16, 8), (200, 14, 4))
LABELS = ("a", "b", "c")


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


def wrong_at_the_target(n: int, target: float) -> tuple[float, float]:
    """Shares of evaluations that ship, and that do not ship, although the model is exactly at the target:
    added up over all outcomes, not drawn."""
    ship = stop = 0.0
    for right in range(n + 1):
        chance = math.exp(
            math.lgamma(n + 1)
            - math.lgamma(right + 1)
            - math.lgamma(n - right + 1)
            + right * math.log(target)
            + (n - right) * math.log1p(-target)
        )
        if chance < _NEGLIGIBLE:
            continue
        measure = Measure(contender="m", metric=METRIC.name, score=wilson(right, n))
        [told] = verdicts(METRIC, [measure], [], Demand(target=target), ["m"])
        ship += chance * (told.decision == "ship")
        stop += chance * (told.decision == "do not ship")
    return ship, stop


def decided_at_the_rows_told(n: int, gained: int, lost: int, draws: int) -> tuple[int, float]:
    """The rows that a verdict says would decide, and the share of evaluations of so many that do, where the
    measured shares are the true ones."""
    rows = rows_to_decide(paired_interval(gained, lost, n), 0.0)
    assert rows is not None
    rng = np.random.default_rng(n)
    chances = [gained / n, lost / n, 1 - (gained + lost) / n]
    pairs, times = np.unique(rng.multinomial(rows, chances, size=draws)[:, :2], axis=0, return_counts=True)
    decided = [mcnemar(g, worse) <= 0.05 for g, worse in pairs.tolist()]
    return rows, float(times[decided].sum()) / draws


def f1_alarms(n: int, draws: int) -> float:
    """Share of comparisons of two equally good models, by f1_macro over labels of 90, 7 and 3%, that show a
    difference."""
    rng = np.random.default_rng(n)
    alarms = 0
    for _ in range(draws):
        expected = rng.choice(3, n, p=(0.9, 0.07, 0.03))
        rows = [
            Item(id=str(i), prompt=(Message(role="user", content=str(i)),), expected=LABELS[label])
            for i, label in enumerate(expected)
        ]
        labels = LabelSet.of(rows)
        metric = F1(MetricUsed(name="f1_macro", kind="graded"), labels, "macro")
        columns = []
        for _ in range(2):
            right = rng.random(n) < 0.8
            said = np.where(right, expected, rng.integers(0, 3, n))
            columns.append(MetricColumn.of(rows, [(Answer(text=LABELS[label]),) for label in said], metric))
        alarms += columns[0].difference(columns[1], range(n), "one", "other").shown
    return alarms / draws


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
    print("ship, and do not ship, although exactly at --target; the worst over the numbers of rows")
    for target in TARGETS:
        shares = [wrong_at_the_target(n, target) for n in TARGET_ROWS]
        print(f"  {target:.0%}: {max(s for s, _ in shares):.1%}  {max(s for _, s in shares):.1%}")
    print("decided at the rows that a verdict names, should what was measured hold")
    for n, gained, lost in TOLD:
        rows, share = decided_at_the_rows_told(n, gained, lost, 10 * draws)
        print(f"  {gained} gained and {lost} lost of {n}: {rows:,} rows, {share:.0%}")
    print("false alarms of f1_macro at 5%, labels of 90, 7 and 3%")
    for n in (30, 100, 300):
        print(f"  {n:5,} rows: {f1_alarms(n, draws // 5):.1%}")


if __name__ == "__main__":
    main()
