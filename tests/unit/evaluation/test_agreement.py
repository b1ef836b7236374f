"""Agreement: against the package `krippendorff`, published examples and plain loops."""

from __future__ import annotations

import math
import random
from itertools import product

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrate.evaluation.statistics import Level, alpha, kappa, spearman

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example C: four observers, twelve units.
PUBLISHED = [
    [1, 1, 1],
    [2, 2, 3, 2],
    [3, 3, 3, 3],
    [3, 3, 3, 3],
    [2, 2, 2, 2],
    [1, 2, 3, 4],
    [4, 4, 4, 4],
    [1, 1, 2, 1],
    [2, 2, 2, 2],
    [5, 5, 5],
    [1, 1],
    [3],
]


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_the_published_example(level: Level, expected: float) -> None:
    found = alpha([list(map(float, unit)) for unit in PUBLISHED], level)
    assert found is not None and found.value == pytest.approx(expected, abs=0.0006)
    assert found.n == 11 and found.low < found.value < found.high


units = st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=4), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(units=units, level=st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_is_that_of_the_package(units: list[list[int]], level: Level) -> None:
    found = alpha([list(map(float, unit)) for unit in units], level)
    if len({value for unit in units if len(unit) > 1 for value in unit}) < 2:
        assert found is None
        return
    data = np.full((4, len(units)), np.nan)
    for column, unit in enumerate(units):
        data[: len(unit), column] = unit
    assert found is not None
    assert found.value == pytest.approx(krippendorff.alpha(data, level_of_measurement=level), abs=1e-9)


def test_words_are_values_too() -> None:
    found = alpha([["a", "a"], ["b", "b"], ["tie", "a"]])
    same = alpha([[1, 1], [2, 2], [3, 1]])
    assert found is not None and same is not None and found.value == same.value


def test_kappa_is_the_published_one() -> None:
    """Cohen (1968), as in most textbooks: 50 grants, two readers, 20 both yes, 15 both no, kappa 0.4."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = kappa(pairs)
    assert found is not None and found.value == pytest.approx(0.4) and found.n == 50
    assert 0.1 < found.low < 0.3 and 0.5 < found.high < 0.7  # 0.4 +- 1.96 * 0.129


def test_weighted_kappa_is_a_plain_loops() -> None:
    draw = random.Random(3)
    pairs = [(draw.randint(1, 5), draw.randint(1, 5)) for _ in range(40)]
    observed = sum((a - b) ** 2 for a, b in pairs) / 40
    expected = sum((a - b) ** 2 for (a, _), (_, b) in product(pairs, pairs)) / 1600
    found = kappa(pairs, squared=True)
    assert found is not None and found.value == pytest.approx(1 - observed / expected)
    assert kappa([(1, 1), (1, 1)]) is None and kappa([]) is None


def test_pairs_of_one_item_are_drawn_together() -> None:
    draw = random.Random(5)
    pairs = [(value, value if draw.random() < 0.8 else 1 - value) for value in [0, 1] * 20]
    alone = kappa(pairs)
    tripled = kappa(
        [pair for pair in pairs for _ in range(3)], groups=[i for i in range(40) for _ in range(3)]
    )
    assert alone is not None and tripled is not None
    assert (tripled.low, tripled.high) == pytest.approx((alone.low, alone.high), abs=0.06)


def test_ranks_of_one_prompt_are_drawn_together() -> None:
    """The same 40 pairs three times show no more than once, and clusters of one show what pairs do."""
    draw = random.Random(5)
    pairs = [(float(i), i + draw.gauss(0, 20)) for i in range(40)]
    alone = spearman(pairs)
    tripled = spearman(
        [pair for pair in pairs for _ in range(3)], groups=[i for i in range(40) for _ in range(3)]
    )
    assert alone is not None and tripled is not None and tripled.n == 120
    assert (tripled.low, tripled.high) == pytest.approx((alone.low, alone.high), abs=0.08)
    assert spearman(pairs, groups=range(40)) == alone


def test_spearman_with_ties() -> None:
    """Against the definition: Pearson's correlation of mean ranks, by numpy."""
    first = [1.0, 2, 2, 4, 5, 5, 5, 8]
    second = [2.0, 1, 4, 4, 6, 5, 9, 7]
    ranks = [
        [sum(o < v for o in side) + (sum(o == v for o in side) + 1) / 2 for v in side]
        for side in (first, second)
    ]
    found = spearman(list(zip(first, second, strict=True)))
    assert found is not None and found.value == pytest.approx(float(np.corrcoef(ranks)[0, 1]))
    assert -1 < found.low < found.value < found.high < 1
    assert spearman([(1, 1), (2, 2), (3, 3)]) is None and spearman([(1, 2)] * 9) is None
    turned = spearman([(i, -i) for i in range(10)])
    assert turned is not None and turned.value == pytest.approx(-1) and math.isfinite(turned.low)
