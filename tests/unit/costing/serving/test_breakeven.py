"""From which traffic on tuning pays, against counting through all traffics up to ten million a day."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from orchestrate.costing.ownership import break_even
from orchestrate.costing.ways import ServingUnit

MOST = 10**7
MILLION = 10**6
CHUNK = 2**17


def counted(training: Fraction, saved: Fraction, units: list[tuple[Fraction, int]]) -> int | None:
    """The answer by brute force: the cost of every traffic up to `MOST`, in whole millionths of a dollar,
    from the top down to the first that is dearer than prompting. `None` when that is `MOST` itself."""
    base, more = int(training * MILLION), int(saved * MILLION)
    for top in range(MOST, 0, -CHUNK):
        requests = np.arange(max(top - CHUNK, 0) + 1, top + 1, dtype=np.int64)
        cost = np.full(len(requests), base, dtype=np.int64)
        if units:
            each = [int(usd * MILLION) * -(-requests // carried) for usd, carried in units]
            cost += np.minimum.reduce(each)
        dearer = np.flatnonzero(cost > requests * more)
        if dearer.size:
            last = int(requests[dearer[-1]])
            return None if last == MOST else last + 1
    return 1


def dearer(requests: int, training: Fraction, saved: Fraction, units: list[tuple[Fraction, int]]) -> bool:
    return training + min(usd * -(-requests // carried) for usd, carried in units) > saved * requests


def asked(training: str, saved: str, *units: tuple[str, int]) -> int | None:
    return break_even(
        Decimal(training),
        Decimal(saved),
        [ServingUnit(usd=Decimal(usd), carried=carried) for usd, carried in units],
    )


CASES: list[tuple[str, str, list[tuple[str, int]]]] = [
    ("10", "0.03", []),  # by the token
    ("10", "0.03", [("4007.70", 355_555)]),  # one replica is enough
    ("10", "0.0137", [("4007.70", 355_555)]),
    ("20000", "0.0137", [("4007.70", 400_000)]),  # the training is the larger part
    ("10", "0.0137", [("4007.70", 310_000)]),  # a full replica saves 6% of what it costs: many of them
    ("10", "0.0137", [("4007.70", 290_000)]),  # costs more than it saves: never
    ("10", "0.02", [("584", 31_840), ("868.70", 205_373)]),  # the small one pays before the large one
    ("10", "0.0186", [("584", 31_840), ("868.70", 205_373), ("1452.70", 340_000)]),
    ("1", "0.0195", [("584", 31_840), ("868.70", 47_361)]),
    ("3000", "0.05", [("100", 3000), ("900", 100_000)]),
    ("0", "1", [("0.5", 1)]),
    ("0", "0.05", [("584", 20_000)]),
]


@pytest.mark.parametrize(("training", "saved", "units"), CASES)
def test_by_counting_through_every_traffic(training: str, saved: str, units: list[tuple[str, int]]) -> None:
    expected = counted(Fraction(training), Fraction(saved), [(Fraction(u), c) for u, c in units])
    assert asked(training, saved, *units) == expected


@pytest.mark.slow
def test_drawn_prices_by_counting_through_every_traffic() -> None:
    draw = random.Random(13)
    found = 0
    for _ in range(10):
        training, saved = f"{draw.uniform(0, 3000):.2f}", f"{draw.uniform(0.002, 0.05):.6f}"
        units: list[tuple[str, int]] = []
        for _ in range(draw.randint(1, 3)):
            carried = draw.randint(5_000, 400_000)
            # around what a full one saves, where it takes many of them or none pays
            usd = Decimal(saved) * carried * Decimal(f"{draw.uniform(0.3, 1.05):.4f}")
            units.append((f"{usd:.2f}", carried))
        exact = Fraction(training), Fraction(saved), [(Fraction(u), c) for u, c in units]
        answer = asked(training, saved, *units)
        if answer is not None and answer <= MOST:
            found += 1
            assert answer == counted(*exact), (training, saved, units)
        elif answer is None:
            assert all(Fraction(u) >= Fraction(saved) * c for u, c in units), (training, saved, units)
        else:  # farther than is counted: it is so at the traffic before, and at no start of a unit after it
            assert dearer(answer - 1, *exact), (training, saved, units)
            starts = {n * c + 1 for _, c in units for n in range(answer // c, answer // c + 200)}
            assert not any(dearer(at, *exact) for at in starts if at >= answer), (training, saved, units)
    assert found >= 4


def test_the_answer_that_was_false_for_want_of_replicas() -> None:
    # $5,000 of a replica that carries 100,000 a day, $0.0009 saved a request, 30.4 days: a full one saves
    # $2,737. One replica alone would pay at 182,648 a day, for which it takes two; those at 365,297 ...
    saved = Decimal("0.0009") * 365 / 12
    assert break_even(Decimal(1), saved, [ServingUnit(usd=Decimal(5000), carried=100_000)]) is None
    # At $0.002 a full one saves $6,083: two replicas, 100,001 requests, save $6,083 and cost $10,001.
    # n full ones and a request pay for n + 1 from n = 5,001 / 1,083 = 4.6, so five, on: with five, $25,001
    # are 410,975.3 requests.
    saved = Decimal("0.002") * 365 / 12
    assert break_even(Decimal(1), saved, [ServingUnit(usd=Decimal(5000), carried=100_000)]) == 410_976


def test_a_machine_without_a_second_one() -> None:
    one = [ServingUnit(usd=Decimal(400), carried=10_000)]
    assert break_even(Decimal(100), Decimal("0.06"), one, single=True) == 8334
    assert break_even(Decimal(100), Decimal("0.04"), one, single=True) is None  # 12,500: more than it carries


def test_no_saving_no_break_even() -> None:
    assert break_even(Decimal(1), Decimal(0)) is None
    assert break_even(Decimal(0), Decimal(-1), [ServingUnit(usd=Decimal(1), carried=1)]) is None
    assert break_even(Decimal(0), Decimal(1)) == 0
