"""Intervals and tests: against scipy and published values, and by simulation against their own promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from benchmarks.verdicts import (
    TOLD,
    any_ships_at_the_margin,
    decided_at_the_rows_told,
    kept_at_the_margin,
    wrong_at_the_target,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from orchestrate.evaluation import statistics

# -- against others ----------------------------------------------------------------------------------------


def test_wilson_against_a_published_value() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    score = statistics.wilson(81, 263)
    assert (round(score.low, 4), round(score.high, 4)) == (0.2553, 0.3662)
    assert statistics.wilson(0, 10).low == 0 and statistics.wilson(0, 10).high > 0
    assert statistics.wilson(10, 10).high == 1 and statistics.wilson(10, 10).low < 1


def test_the_paired_interval_against_a_published_value() -> None:
    # Fagerland, Lydersen and Laake 2014, table 2: airway reactivity, 1 gained and 7 lost of 21; Tango.
    score = statistics.paired_interval(1, 7, 21)
    assert (round(score.low, 2), round(score.high, 2)) == (-0.52, -0.03)
    assert score.value == pytest.approx(-6 / 21)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 40))
def test_the_paired_interval_inverts_the_score_test(gained: int, lost: int, same: int) -> None:
    """Tango's interval from its definition: where the statistic, with the nuisance parameter that maximizes
    the likelihood, equals z. Both are found numerically, without his closed form."""
    n = gained + lost + same
    if n == 0:
        return

    def statistic(difference: float) -> float:
        def unlikely(p_lost: float) -> float:
            p_gained = p_lost + difference
            cells = ((gained, p_gained), (lost, p_lost), (same, 1 - p_gained - p_lost))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        ends = max(0.0, -difference), (1 - difference) / 2
        p_lost = optimize.minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
        variance = (2 * p_lost + difference - difference**2) / n
        return (value - difference) / math.sqrt(max(variance, 1e-12))

    value = (gained - lost) / n
    found = statistics.paired_interval(gained, lost, n)
    for end, z, edge in ((found.low, statistics.Z, -1.0), (found.high, -statistics.Z, 1.0)):
        inner, outer = value - 1e-9 * z, edge + 1e-9 * z
        beyond = (statistic(outer) - z) * z < 0  # the edge itself is not rejected
        expected = edge if beyond else optimize.brentq(lambda d, z=z: statistic(d) - z, inner, outer)
        assert end == pytest.approx(expected, abs=2e-4)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_mid_p_of_the_binomial(gained: int, lost: int) -> None:
    p = statistics.mcnemar(gained, lost)
    assert 0 < p <= 1 and p == statistics.mcnemar(lost, gained)
    if gained + lost:
        half = stats.binom(gained + lost, 0.5)
        few = min(gained, lost)
        assert p == pytest.approx(min(1.0, 2 * (half.cdf(few) - half.pmf(few) / 2)))


def test_mcnemar_by_hand() -> None:
    assert math.isclose(statistics.mcnemar(9, 1), 2 * (1 + 10) / 1024 - 10 / 1024)
    assert statistics.mcnemar(3, 0) == 0.125, "three of three flips are no proof"


@given(st.floats(-30, 30), st.integers(1, 400))
def test_students_tails_are_those_of_scipy(t: float, degrees: int) -> None:
    assert statistics.student_p(t, degrees) == pytest.approx(
        2 * stats.t.sf(abs(t), degrees), rel=1e-6, abs=1e-12
    )
    assert statistics.student_quantile(degrees) == pytest.approx(stats.t.isf(0.025, degrees), rel=1e-6)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_mean_of_single_items_has_students_interval(values: list[float]) -> None:
    score, p = statistics.mean_test(values, None, (0.0, 1.0))
    assert score.low <= score.value <= score.high
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    if error > 1e-9:
        reach = stats.t.isf(0.025, len(values) - 1) * error
        assert score.low == pytest.approx(max(0, score.value - reach), abs=1e-9)
        assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-4, abs=1e-9)
    elif not any(values):
        assert p == 1 and score.high > 0, "what never happened may still happen"


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


# -- by simulation -----------------------------------------------------------------------------------------

DRAWS = 100_000


def flips(n: int, discordant: float, difference: float, seed: int) -> np.ndarray:
    """(gained, lost) of many experiments with n items."""
    up = (discordant + difference) / 2
    chances = [up, discordant - up, 1 - discordant]
    return np.random.default_rng(seed).multinomial(n, chances, size=DRAWS)[:, :2]


@cache
def p_of(gained: int, lost: int) -> float:
    return statistics.mcnemar(gained, lost)


def share(found: np.ndarray, level: float = 0.05) -> float:
    pairs, times = np.unique(found, axis=0, return_counts=True)
    hits = [t for (g, lost), t in zip(pairs.tolist(), times, strict=True) if p_of(g, lost) <= level]
    return float(sum(hits)) / DRAWS


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 100, 200, 500, 1000])
@pytest.mark.parametrize("discordant", [0.05, 0.16, 0.4])
def test_false_alarms_of_mcnemar_stay_at_their_level(n: int, discordant: float) -> None:
    alarms = share(flips(n, discordant, 0.0, n))
    assert alarms <= 0.055
    if n * discordant >= 10:
        assert alarms >= 0.04


@pytest.mark.slow
@pytest.mark.parametrize(("n", "margin"), [(60, 0.1), (60, 0.05), (120, 0.05), (200, 0.02), (1000, 0.02)])
@pytest.mark.parametrize("gains", [0.0, 0.005, 0.05])
def test_what_lies_at_the_margin_is_kept_at_its_level(n: int, margin: float, gains: float) -> None:
    """Where a model only loses rows too, as one that forgets does."""
    assert kept_at_the_margin(n, margin, gains, DRAWS) <= 0.0265


@pytest.mark.slow
@pytest.mark.parametrize("contenders", [1, 10])
def test_a_margin_is_corrected_for_the_number_of_contenders(contenders: int) -> None:
    assert any_ships_at_the_margin(200, -0.02, contenders, 1000) <= 0.04


@pytest.mark.parametrize(("n", "gained", "lost"), TOLD)
def test_as_many_rows_as_a_verdict_names_decide(n: int, gained: int, lost: int) -> None:
    """In four of five tries, about, where what was measured is the truth."""
    rows, share = decided_at_the_rows_told(n, gained, lost, 2000)
    assert rows > n and share > 0.7


@pytest.mark.parametrize(("n", "target"), [(21, 0.5), (11, 0.95), (35, 0.9)])
def test_a_model_at_the_target_is_misjudged_as_seldom_as_promised(n: int, target: float) -> None:
    """Added up. By Wilson's interval 3.9% ship at 21 rows, and 10% do not at 11."""
    assert max(wrong_at_the_target(n, target)) <= 0.025


@pytest.mark.parametrize("contenders", [1, 4])
@pytest.mark.parametrize(("right", "n"), [(8, 10), (0, 30), (30, 30), (19_900, 20_000)])
def test_a_proportion_is_decided_by_the_exact_interval(right: int, n: int, contenders: int) -> None:
    held = statistics.decisive(statistics.wilson(right, n), contenders)
    theirs = stats.binomtest(right, n).proportion_ci(1 - 0.05 / contenders, method="exact")
    assert (held.low, held.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_other_intervals_are_widened_to_the_smaller_level() -> None:
    z = stats.norm.isf(0.025 / 4)
    score = statistics.mean([0.2, 0.4, 0.9, 0.3, 0.5], None, (0.0, 1.0))
    assert statistics.decisive(score, 1) == score
    wide = statistics.decisive(score, 4)
    assert (wide.value - wide.low) / (score.value - score.low) == pytest.approx(z / stats.norm.isf(0.025))


@pytest.mark.slow
def test_the_exact_sums_behind_the_simulation() -> None:
    """Not drawn but added up, at two places."""
    for n, discordant, expected in ((50, 0.05, 0.005), (200, 0.16, 0.046)):
        alarms = 0.0
        for k in range(n + 1):
            seen = stats.binom.pmf(k, n, discordant)
            wrong = sum(stats.binom.pmf(g, k, 0.5) for g in range(k + 1) if p_of(g, k - g) <= 0.05)
            alarms += seen * wrong
        assert alarms == pytest.approx(expected, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 200, 1000])
def test_power_is_what_was_told_beforehand(n: int) -> None:
    for discordant in (0.16, 0.3):
        seen = share(flips(n, discordant, statistics.detectable(n, discordant), n))
        assert 0.72 <= seen <= 0.88
    assert statistics.rows_for(statistics.detectable(n)) == pytest.approx(n, abs=1)


def test_the_told_numbers() -> None:
    assert statistics.detectable(200) == pytest.approx(0.08, abs=0.001)
    assert statistics.rows_for(0.03) == pytest.approx(1400, rel=0.01)


@pytest.mark.parametrize(
    ("n", "discordant", "difference"), [(30, 0.2, 0.1), (200, 0.16, 0.05), (100, 0.3, 0.0)]
)
def test_the_paired_interval_holds_the_truth(n: int, discordant: float, difference: float) -> None:
    inside = [
        (score := statistics.paired_interval(int(g), int(lost), n)).low <= difference <= score.high
        for g, lost in flips(n, discordant, difference, 7)[:2000]
    ]
    assert 0.94 <= np.mean(inside) <= 0.99


def clustered(clusters: int, size: int, runs: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Differences of graded marks without any true difference, those of one user much alike."""
    draw = np.random.default_rng(seed)
    users = draw.normal(0, 0.2, (runs, clusters, 1))
    values = users + draw.normal(0, 0.1, (runs, clusters, size))
    return values.reshape(runs, -1), [i for i in range(clusters) for _ in range(size)]


@pytest.mark.slow
def test_clustered_items_are_not_taken_for_more_than_they_are() -> None:
    values, names = clustered(clusters=25, size=8, runs=600, seed=1)
    honest = np.mean([statistics.mean_test(row, names)[1] <= 0.05 for row in values.tolist()])
    naive = np.mean([statistics.mean_test(row)[1] <= 0.05 for row in values.tolist()])
    assert honest <= 0.07
    assert naive > 0.3, "the same test without clusters is over-confident, or this test could not fail"


@pytest.mark.slow
def test_the_bootstrap_holds_the_truth_of_a_ratio_and_of_a_difference() -> None:
    draw = np.random.default_rng(3)

    def total(sums: list[float]) -> float:
        return sums[0] / sums[1]

    inside = alarms = 0
    for _ in range(150):
        sizes = draw.integers(1, 9, 40)
        mine, theirs = (draw.binomial(sizes, 0.3) for _ in range(2))
        parts = [[float(h), float(s)] for h, s in zip(mine, sizes, strict=True)]
        others = [[float(h), float(s)] for h, s in zip(theirs, sizes, strict=True)]
        score = statistics.ratio(parts, total)
        inside += score.low <= 0.3 <= score.high
        difference, p = statistics.ratio_difference(parts, others, total)
        assert (p <= 0.05) == (not difference.low <= 0 <= difference.high)
        alarms += p <= 0.05
    assert inside >= 135 and alarms <= 15


def test_the_bootstrap_draws_whole_clusters() -> None:
    values, names = clustered(clusters=25, size=8, runs=1, seed=5)
    parts = [[v, 1.0] for v in values[0].tolist()]

    def total(sums: list[float]) -> float:
        return sums[0] / sums[1]

    whole, single = statistics.ratio(parts, total, names), statistics.ratio(parts, total)
    student = statistics.mean(values[0].tolist(), names)
    assert whole.high - whole.low == pytest.approx(student.high - student.low, rel=0.15)
    assert single.high - single.low < 0.6 * (whole.high - whole.low)


@pytest.mark.parametrize(("n", "low", "shown"), [(1, -1.0, False), (3, -0.42, False), (6, 0.08, True)])
def test_draws_that_are_all_alike_are_no_certainty(n: int, low: float, shown: bool) -> None:
    """All right against all wrong, of n rows: the bootstrap never sees what was not drawn. 1 - 0.025^(1/n)
    is the greatest chance of what never happened in n tries."""

    def f1(sums: Sequence[float]) -> float:
        return 2 * sums[0] / (2 * sums[0] + sums[1])

    right, wrong = [(1.0, 0.0)] * n, [(0.0, 1.0)] * n
    score, p = statistics.ratio_difference(right, wrong, f1, within=(-1.0, 1.0))
    assert (score.value, score.high) == (1.0, 1.0) and score.low == pytest.approx(low, abs=0.01)
    assert (p <= 0.05) is shown
    alone = statistics.ratio(right, f1, within=(0.0, 1.0))
    assert alone.low == pytest.approx(0.025 ** (1 / n) if n > 1 else 0.0) and alone.high == 1.0
    one, p = statistics.ratio_difference(right, wrong, f1, ["u"] * n, within=(-1.0, 1.0))
    assert one.low == -1.0 and p > 0.05, "one cluster shows nothing"


@pytest.mark.parametrize(("n", "shown"), [(2, False), (5, False), (6, True)])
def test_amounts_that_differ_all_alike(n: int, shown: bool) -> None:
    """By the sign test, whose p is 2 / 2^n: 0.5, 0.0625 and 0.03125."""
    score, p = statistics.mean_test([-2.0] * n)
    assert (p <= 0.05) is shown and (score.high < 0) is shown


@pytest.mark.parametrize("value", [1.0, 0.5, -0.5, 0.2])
def test_identical_differences_have_the_p_value_of_their_interval(value: float) -> None:
    """Few rows prove little, even if all differ by the same: it must not survive a correction for ten."""
    for n in range(2, 60):
        score, p = statistics.mean_test([value] * n, None, (-1.0, 1.0))
        assert (p < 0.05) == (not score.low <= 0 <= score.high)
        # A distribution on two values that has a mean of 0 gives n times the same one with this probability.
        assert p >= (1 / (1 + abs(value))) ** n
    assert statistics.mean_test([0.5] * 12, None, (-1.0, 1.0))[1] == pytest.approx(0.0154, abs=1e-4)
