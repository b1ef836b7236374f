"""Evidence under peeking, judged by simulation, by closed forms and by another library's figures."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln
from scipy.stats import binom

from orchestrate.ab.evidence import (
    PRIOR,
    EvidenceUnit,
    LabelEvidence,
    Means,
    evidence,
    ratio_p,
    units,
    users_for,
)
from orchestrate.ab.experiment import Person, exposed
from orchestrate.store.experiments import StoredOutcome
from orchestrate.types import ExperimentPhase, Exposure, PlannedMetric

AT = datetime(2026, 11, 1, tzinfo=UTC)
RIGHT = PlannedMetric(name="resolved", role="primary")
NUMBER = PlannedMetric(name="rating", role="primary", kind="number")
SHARE = 0.1
MOST = 20.0
"""1 / alpha."""


def closed_form(tuned: np.ndarray, users: np.ndarray, share: float) -> np.ndarray:
    """log e of one outcome: a beta mixture over the share, against the share itself."""
    prior = (PRIOR * share, PRIOR * (1 - share))
    mixed = betaln(prior[0] + tuned, prior[1] + users - tuned) - betaln(*prior)
    return mixed - tuned * np.log(share) - (users - tuned) * np.log(1 - share)


@given(
    st.floats(0.02, 0.98),
    st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("ab")), max_size=60),
)
def test_bets_user_by_user_come_to_the_closed_form(
    share: float, people: list[tuple[bool, bool, str]]
) -> None:
    labels = LabelEvidence()
    for tuned, outcome, stratum in people:
        labels.add(stratum, share, tuned, outcome)
    expected = 0.0
    for cell in {(outcome, stratum) for _, outcome, stratum in people}:
        inside = [tuned for tuned, *rest in people if tuple(rest) == cell]
        expected += float(closed_form(np.float64(sum(inside)), np.float64(len(inside)), share))
    assert labels.log_e == pytest.approx(expected, abs=1e-9)


def test_the_mixture_is_that_of_growthbooks_library() -> None:
    """gbstats 0.8.0, SequentialTwoSidedTTest: 1800 values of mean 1.25 and variance 0.49, 200 of 1.42 and
    0.64, its tuning parameter 5290.77, which is our prior of 60 at these numbers."""
    means = Means()
    for n, mean, variance, tuned in ((1800, 1.25, 0.49, False), (200, 1.42, 0.64, True)):
        step = math.sqrt(variance * (n - 1) / n)
        for i in range(n):
            means.add(1, tuned, mean + (step if i % 2 else -step))
    found = means.mixture()
    assert found is not None and found.difference == pytest.approx(0.17)
    assert found.half_width(0.05) == pytest.approx((0.3548142073591629 + 0.014814207359163084) / 2)
    assert math.exp(-found.log_e) == pytest.approx(0.08820842319607436)


# -- false alarms and power --------------------------------------------------------------------------------


def looks(base: float, tuned: float, *, sims: int, seed: int, looks: int = 1000) -> dict[str, float]:
    """How often each way of looking claims a difference in 20,000 users, looked at every 20."""
    rng = np.random.default_rng(seed)
    chances = [SHARE * tuned, SHARE * (1 - tuned), (1 - SHARE) * base, (1 - SHARE) * (1 - base)]
    cells = np.cumsum(rng.multinomial(20, chances, size=(sims, looks)), axis=1).astype(float)
    right1, wrong1, right0, wrong0 = np.moveaxis(cells, -1, 0)
    log_e = closed_form(right1, right1 + right0, SHARE) + closed_form(wrong1, wrong1 + wrong0, SHARE)
    log_e -= np.maximum(0, closed_form(right1 + wrong1, cells.sum(axis=-1), SHARE))
    with np.errstate(all="ignore"):
        n1, n0 = right1 + wrong1, right0 + wrong0
        p1, p0, p = right1 / n1, right0 / n0, (right1 + right0) / (n1 + n0)
        z = np.abs(p1 - p0) / np.sqrt(p * (1 - p) * (1 / n1 + 1 / n0))
        known = n1 * n0 / (n1 + n0)
        deviation = np.sqrt(known * (p1 * (1 - p1) / (n1 - 1) + p0 * (1 - p0) / (n0 - 1)))
        bound = np.sqrt((known + PRIOR) * (np.log1p(known / PRIOR) + 2 * np.log(MOST)))
        beyond = np.abs(p1 - p0) > deviation * bound / known
    gated = beyond & (cells.min(axis=-1) >= 10)
    claims = {"exact": log_e >= np.log(MOST), "z": z > 1.96, "asymptotic": beyond, "gated": gated}
    return {name: float(claim.any(axis=1).mean()) for name, claim in claims.items()}


@pytest.mark.parametrize("rate", [0.30, 0.05, 0.02])
def test_looking_a_thousand_times_claims_nothing_that_is_not_there(rate: float) -> None:
    sims = 600
    found = looks(rate, rate, sims=sims, seed=round(1000 * rate))
    at_most = binom.ppf(0.999, sims, 0.05) / sims
    assert found["exact"] <= at_most and found["gated"] <= at_most
    assert found["z"] > 0.3, "the same looks by the usual test"
    if rate < 0.1:
        assert found["asymptotic"] > 0.1, "and by the usual sequence, where outcomes are rare"


@pytest.mark.parametrize(
    ("base", "tuned", "power"), [(0.30, 0.35, 0.78), (0.05, 0.08, 0.92), (0.02, 0.04, 0.9)]
)
def test_what_is_there_is_seen(base: float, tuned: float, power: float) -> None:
    found = looks(base, tuned, sims=300, seed=3)
    assert found["exact"] > power and found["gated"] > power


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.30, 0.05, 0.02])
def test_the_same_with_many_experiments(rate: float) -> None:
    sims = 6000
    found = [looks(rate, rate, sims=500, seed=n) for n in range(sims // 500)]
    for way in ("exact", "gated"):
        assert np.mean([one[way] for one in found]) <= binom.ppf(0.999, sims, 0.05) / sims
    assert np.mean([one["z"] for one in found]) > 0.4


def test_users_that_a_difference_takes_are_enough_in_four_of_five() -> None:
    deviation = math.sqrt(0.35 * 0.65 * 0.9 + 0.3 * 0.7 * 0.1)
    users = users_for(0.05, deviation, SHARE, 0.05)
    assert 15_000 < users < 20_000
    found = looks(0.30, 0.35, sims=400, seed=5, looks=users // 20)
    assert 0.74 < found["gated"] < 0.92, "seen at the end, or at a look before"


def test_what_is_computed_user_by_user_is_what_was_simulated() -> None:
    rng = random.Random(2)
    there = [EvidenceUnit(1, SHARE, rng.random() < SHARE, float(rng.random() < 0.3)) for _ in range(400)]
    there = [u._replace(value=1.0) if u.tuned and rng.random() < 0.6 else u for u in there]
    shown = evidence(RIGHT, there, 0.05)
    best = 0.0
    for end in range(1, len(there) + 1):
        seen = Counter((u.tuned, u.value) for u in there[:end])
        log_e = 0.0
        for value in (0, 1):
            of_both = np.float64(seen[True, value] + seen[False, value])
            log_e += float(closed_form(np.float64(seen[True, value]), of_both, SHARE))
        tuned = np.float64(seen[True, 0] + seen[True, 1])
        best = max(best, log_e - max(0.0, float(closed_form(tuned, np.float64(end), SHARE))))
    assert shown.log10_e == pytest.approx(best / math.log(10)) and shown.decision == "better"


def many(sims: int, seed: int, walk: object) -> float:
    """The share of experiments in which `walk(rng)` gives units that show a difference."""
    rng = random.Random(seed)
    found = [evidence(*walk(rng), 0.05).decision != "open" for _ in range(sims)]  # type: ignore[operator]
    return sum(found) / sims


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
def test_means_of_skewed_values_wait_for_their_gate(skewed: bool) -> None:
    def walk(rng: random.Random) -> tuple[PlannedMetric, list[EvidenceUnit]]:
        draw = (lambda: rng.expovariate(1)) if skewed else (lambda: rng.gauss(3, 1))
        return NUMBER, [EvidenceUnit(1, SHARE, rng.random() < SHARE, draw()) for _ in range(2500)]

    assert many(80, 7, walk) <= binom.ppf(0.999, 80, 0.05) / 80


def test_a_difference_of_means_is_seen_with_its_direction() -> None:
    rng = random.Random(1)
    for better, gain, decision in (
        ("higher", 0.5, "better"),
        ("lower", 0.5, "worse"),
        ("lower", -0.5, "better"),
    ):
        people = [rng.random() < 0.5 for _ in range(600)]
        found = [EvidenceUnit(1, 0.5, tuned, rng.gauss(gain * tuned, 1)) for tuned in people]
        metric = PlannedMetric(name="m", kind="number", better=better)  # type: ignore[arg-type]
        shown = evidence(metric, found, 0.05)
        assert shown.decision == decision and shown.low < gain < shown.high  # type: ignore[operator]
        assert shown.log10_e + 1e-4 >= max(p.log10_e for p in shown.curve) > math.log10(MOST)


# -- the unit is the user ----------------------------------------------------------------------------------


def people(rng: random.Random, number: int, share: float) -> list[Exposure]:
    phase = ExperimentPhase(number=1, share=share, at=AT, verb="start", why="", actor="")
    return [exposed(Person(str(n), rng.random()), phase, AT + timedelta(seconds=n)) for n in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("of_user", ["first", "mean"])
def test_five_events_of_a_user_are_no_five_users(of_user: str) -> None:
    """As independent ones the same events claim a difference in most experiments."""
    window = None if of_user == "first" else 1.0
    metric = PlannedMetric(name="m", kind="number", of_user=of_user, window_h=window)  # type: ignore[arg-type]
    as_events: list[bool] = []
    as_users: list[bool] = []
    rng = random.Random(11)
    for _ in range(40):
        there = people(rng, 300, 0.5)
        said = [(e, rng.gauss(0, 1)) for e in there]
        outcomes = [StoredOutcome(e.user, 1, value, e.at) for e, value in said for _ in range(5)]
        counted = units(metric, there, outcomes, AT + timedelta(days=1))
        assert len(counted) == len(there)
        as_users.append(evidence(metric, counted, 0.05).decision != "open")
        events = [unit for unit in counted for _ in range(5)]
        as_events.append(evidence(metric, events, 0.05).decision != "open")
    assert sum(as_users) <= binom.ppf(0.999, 40, 0.05) and sum(as_events) > 15


# -- ramping -----------------------------------------------------------------------------------------------

SHARES, RATES = (0.1, 0.25, 0.5), (0.2, 0.35, 0.5)


def ramped(rng: random.Random, gain: float = 0.0) -> tuple[list[Exposure], list[StoredOutcome]]:
    """Half of the users come back in each phase; what succeeds drifts while the share grows."""
    shares = dict(enumerate(SHARES, 1))
    places = {n: rng.random() for n in range(1200)}
    last: dict[int, Exposure] = {}
    seen: list[Exposure] = []
    outcomes: list[StoredOutcome] = []
    for number, (share, rate) in enumerate(zip(SHARES, RATES, strict=True), 1):
        at = AT + timedelta(days=number)
        phase = ExperimentPhase(number=number, share=share, at=at, verb="ramp", why="", actor="")
        fresh = range(400 * (number - 1), 400 * number)
        for n in [n for n in last if rng.random() < 0.5] + list(fresh):
            before = last.get(n)
            one = exposed(Person(str(n), places[n]), phase, at, before, before and shares[before.phase])
            last[n] = one
            seen.append(one)
            right = rng.random() < rate + gain * (one.arm == "tuned")
            outcomes.append(StoredOutcome(str(n), number, float(right), at))
    return seen, outcomes


def test_a_user_keeps_the_tuned_model_and_chances_add_up() -> None:
    for seed in range(3):
        seen, _ = ramped(random.Random(seed))
        arms: dict[str, list[Exposure]] = {}
        for one in seen:
            arms.setdefault(one.user, []).append(one)
        for mine in arms.values():
            for before, after in pairwise(mine):
                assert (before.arm, after.arm) != ("tuned", "base")
                assert after.chance == 1 or before.arm == "base"
    back = [e for e in seen if e.phase == 2 and e.chance not in (1, 0.25)]
    assert [*{e.chance for e in back}] == pytest.approx([(0.25 - 0.1) / 0.9])
    assert 0.05 < np.mean([e.arm == "tuned" for e in back]) < 0.3


@pytest.mark.slow
def test_drift_while_ramping_is_no_difference() -> None:
    def walk(rng: random.Random) -> tuple[PlannedMetric, list[EvidenceUnit]]:
        seen, outcomes = ramped(rng)
        assert ratio_p(seen) > 1e-5
        return RIGHT, units(RIGHT, seen, outcomes, AT + timedelta(days=9))

    assert many(100, 13, walk) <= binom.ppf(0.999, 100, 0.05) / 100
    seen, outcomes = ramped(random.Random(1))
    arm = {(e.user, e.phase): e.arm for e in seen}
    pooled = {
        a: np.mean([o.value for o in outcomes if arm[o.person, o.phase] == a]) for a in ("base", "tuned")
    }
    assert pooled["tuned"] - pooled["base"] > 0.05, "what is made of it without phases"
    shown = evidence(RIGHT, units(RIGHT, seen, outcomes, AT), 0.05)
    assert abs(shown.difference or 1) < 0.05 and shown.low < 0 < shown.high  # type: ignore[operator]
    real = evidence(RIGHT, units(RIGHT, *ramped(random.Random(2), gain=0.35), AT), 0.05)
    assert real.decision == "better" and real.difference == pytest.approx(0.35, abs=0.1)


# -- windows, missing outcomes, splits ---------------------------------------------------------------------


def test_a_window_settles_what_a_user_counts_as() -> None:
    metric = PlannedMetric(name="m", better="lower", of_user="any", window_h=1, absent=0)
    there = people(random.Random(1), 4, 0.5)
    late, back = AT + timedelta(hours=2), AT + timedelta(minutes=30)
    again = Exposure(user="3", phase=2, arm="tuned", chance=1.0, at=back)
    outcomes = [
        StoredOutcome("0", 1, 0.0, AT + timedelta(minutes=1)),
        StoredOutcome("0", 1, 1.0, AT + timedelta(minutes=50)),
        StoredOutcome("1", 1, 1.0, late),
        StoredOutcome("3", 1, 1.0, AT + timedelta(minutes=40)),
    ]
    found = units(metric, [*there, again], outcomes, AT + timedelta(hours=3))
    assert [unit.value for unit in found] == [0.0, 1.0, 0.0, 0.0], "3 first: the next phase cut its window"
    assert units(metric, there, outcomes, AT + timedelta(minutes=10)) == [], "nothing is settled yet"
    first = units(RIGHT, there, outcomes, AT)
    assert [unit.value for unit in first] == [0.0, 1.0, 1.0]


def test_outcomes_of_one_arm_that_come_later_are_no_difference() -> None:
    """While they are missing the split is told as broken, and not for ever."""
    rng = random.Random(4)
    there = people(rng, 2000, 0.2)
    said = {e.user: float(rng.random() < 0.3) for e in there}
    order = sorted(range(2000), key=lambda n: n + 500 * (there[n].arm == "tuned"))
    outcomes = [StoredOutcome(there[n].user, 1, said[there[n].user], AT) for n in order]
    early = evidence(RIGHT, units(RIGHT, there, outcomes[:400], AT), 0.05)
    late = evidence(RIGHT, units(RIGHT, there, outcomes, AT), 0.05)
    assert (early.decision, late.decision) == ("open", "open")
    assert early.counted_ratio_p < 0.001 < 0.05 < late.counted_ratio_p


def test_a_broken_split_is_found_and_a_right_one_is_not() -> None:
    rng = random.Random(5)
    there = people(rng, 3000, SHARE)
    assert ratio_p(there) > 0.05
    lost = [e for e in there if e.arm == "base" or rng.random() < 0.5]
    assert ratio_p(lost) < 0.001
    outcomes = [StoredOutcome(e.user, 1, float(rng.random() < 0.3), e.at) for e in lost]
    shown = evidence(RIGHT, units(RIGHT, there, outcomes, AT), 0.05)
    assert shown.counted_ratio_p < 0.001, "users are split well, but one arm's outcomes are lost"
