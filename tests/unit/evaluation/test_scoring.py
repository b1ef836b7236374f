"""Scores, paired differences, slices, corrections, verdicts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from tests.unit.evaluation.conftest import make_item, make_items

from orchestrate.errors import UsageError
from orchestrate.evaluation import Answer, Item, statistics
from orchestrate.evaluation.evaluate import judged
from orchestrate.evaluation.metrics import Context, registry
from orchestrate.evaluation.scoring import Scored, Side, paired, score
from orchestrate.evaluation.verdict import Demand, require_decidable, verdicts
from orchestrate.types import Contender, Difference, Measure, MetricUsed, Score, Verdict

Make = Callable[..., Context]


def said(name: str, *answers: str | None) -> Side:
    """`None` is an answer that failed."""
    return Side(name, [(Answer(text=a or "", error=None if a is not None else "refused"),) for a in answers])


def scored(context: Make, items: list[Item], sides: list[Side], *metrics: str) -> Scored:
    made = registry.make(list(metrics) or ["exact_match"], context(items))
    return score(items, sides, made, {side.name: sides[-1].name for side in sides[:-1]})


def test_a_difference_is_paired_and_counts_flips(context: Make) -> None:
    items = make_items(["a", "b", "c", "d"])
    found = scored(context, items, [said("new", "a", "b", "x", "d"), said("old", "a", "x", "c", "x")])
    assert [(m.contender, m.score.value, m.score.n) for m in found.measures] == [
        ("new", 0.75, 4),
        ("old", 0.5, 4),
    ]
    [d] = found.differences
    assert (d.contender, d.against, d.score.value, d.gained, d.lost) == ("new", "old", 0.25, 2, 1)
    assert [a.marks["new"]["exact_match"][0].value for a in found.answered] == [1, 1, 0, 1]


def test_an_answer_that_never_came_is_wrong_and_has_no_length(context: Make) -> None:
    items = make_items(["a", "b"])
    found = scored(context, items, [said("new", "a", None)], "exact_match", "length")
    right, length = (m.score for m in found.measures)
    assert (right.value, right.n) == (0.5, 2) and (length.value, length.n) == (1, 1)
    assert "rejected" in found.answered[1].marks["new"]["exact_match"][0].note


def test_three_of_ten_gained_is_no_better(context: Make) -> None:
    """A bootstrap of the same rows leaves 0 out of its interval."""
    items = make_items(["a"] * 10)
    found = scored(context, items, [said("new", *"aaaaaaaaaa"), said("old", *"aaaaaaaxxx")])
    [d] = found.differences
    assert (d.p_value, d.shown) == (0.25 - 0.125, False)
    assert d.score.low < 0 < d.score.high


def test_samples_of_one_item_are_one_cluster(context: Make) -> None:
    items = make_items(["a"] * 30)
    once = [said("new", *["a" if i % 2 else "x" for i in range(30)]), said("old", *["x"] * 30)]
    four = [Side(side.name, [own * 4 for own in side.answers]) for side in once]
    one, many = (scored(context, items, sides).differences[0] for sides in (once, four))
    assert many.score.n == 30 and many.score.value == one.score.value
    assert many.score.high - many.score.low == pytest.approx(one.score.high - one.score.low, rel=0.2)


def test_clusters_widen_the_interval(context: Make) -> None:
    alone = make_items(["a"] * 40)
    grouped = [replace(item, cluster=f"user {i // 8}") for i, item in enumerate(alone)]
    sides = [said("new", *["a" if i // 8 % 2 else "x" for i in range(40)]), said("old", *["x"] * 40)]
    wide, narrow = (scored(context, items, sides).differences[0] for items in (grouped, alone))
    assert wide.score.value == narrow.score.value and narrow.shown and not wide.shown
    assert (wide.gained, wide.lost) == (16, 0)


def test_slices_are_scored_and_corrected_for_their_number(context: Make) -> None:
    draw = random.Random(1)
    items = [replace(i, slices=(f"tag:{n % 10}",)) for n, i in enumerate(make_items(["a"] * 200))]
    sides = [said(name, *[draw.choice("ax") for _ in items]) for name in ("new", "old")]
    found = scored(context, items, sides)
    parts = [d for d in found.differences if d.slice]
    assert len(parts) == 10 and {d.score.n for d in parts} == {20}
    assert all((d.p_corrected or 0) >= min(1, (d.p_value or 0)) for d in parts)
    least = min(parts, key=lambda d: d.p_value or 0)
    assert least.p_corrected == pytest.approx(min(1, 10 * (least.p_value or 0)))
    [whole] = [d for d in found.differences if not d.slice]
    assert whole.p_corrected == whole.p_value, "the first metric on all rows was chosen beforehand"


def test_f1_is_compared_by_resampling_pairs(context: Make) -> None:
    draw = random.Random(2)
    expected = draw.choices(["yes", "no"], weights=(3, 1), k=80)
    items = make_items(expected)
    good = said("new", *[e if draw.random() < 0.95 else "no" for e in expected])
    found = scored(context, items, [good, said("old", *["yes"] * 80)], "f1_macro")
    [d] = found.differences
    assert d.score.low > 0.2 and d.shown and (d.gained, d.lost) == (0, 0)


# -- verdicts ----------------------------------------------------------------------------------------------

RIGHT = MetricUsed(name="m", kind="right-or-wrong")
RIGHT_MATCH = replace(RIGHT, name="exact_match")


def decided(
    metric: MetricUsed = RIGHT,
    demand: Demand = Demand(),  # noqa: B008  frozen
    own: tuple[float, float, float] | None = None,
    gap: tuple[float, float, float] | None = None,
    p: float | None = None,
) -> Verdict:
    measures = [Measure(contender="new", metric="m", score=_score(own))] if own else []
    differences = (
        [Difference(contender="new", against="old", metric="m", score=_score(gap), p_value=p)] if gap else []
    )
    [verdict] = verdicts(metric, measures, differences, demand, ["new"])
    return verdict


def _score(values: tuple[float, float, float]) -> Score:
    return Score(low=values[0], value=values[1], high=values[2], n=200)


@pytest.mark.parametrize(
    ("gap", "p", "margin", "decision"),
    [
        ((0.05, 0.1, 0.15), 0.001, 0.0, "ship"),
        ((-0.15, -0.1, -0.05), 0.001, 0.0, "do not ship"),
        ((-0.02, 0.04, 0.1), 0.2, 0.0, "not enough evidence"),
        ((0.001, 0.04, 0.1), 0.06, 0.0, "not enough evidence"),  # the test decides, not the interval
        ((0.05, 0.1, 0.15), 0.001, 0.08, "not enough evidence"),
        ((0.09, 0.12, 0.15), 0.001, 0.08, "ship"),
        ((-0.01, 0.02, 0.07), 0.4, 0.08, "do not ship"),
        ((-0.015, 0.0, 0.015), 1.0, -0.02, "ship"),
        ((-0.05, -0.01, 0.03), 0.6, -0.02, "not enough evidence"),
        ((-0.09, -0.06, -0.03), 0.001, -0.02, "do not ship"),
    ],
)
def test_against_a_rival(gap: tuple[float, float, float], p: float, margin: float, decision: str) -> None:
    verdict = decided(gap=gap, p=p, demand=Demand(margin=margin))
    assert verdict.decision == decision and "against old" in verdict.reasons[0]
    if margin < 0:
        said = {
            "ship": ": it is not worse by more than 2.0 points",
            "do not ship": ": it is worse by more than 2.0 points",
            "not enough evidence": ": the data does not rule out that it is worse by more than 2.0 points",
        }
        assert said[decision] in verdict.reasons[0]
    # With lower as the better side everything is mirrored.
    low, value, high = gap
    mirrored = decided(
        replace(RIGHT, better="lower"), gap=(-high, -value, -low), p=p, demand=Demand(margin=margin)
    )
    assert mirrored.decision == decision


@pytest.mark.parametrize(
    ("own", "decision"),
    [
        ((0.91, 0.95, 0.98), "ship"),
        ((0.8, 0.85, 0.89), "do not ship"),
        ((0.86, 0.92, 0.96), "not enough evidence"),
    ],
)
def test_against_a_target(own: tuple[float, float, float], decision: str) -> None:
    assert decided(own=own, demand=Demand(target=0.9)).decision == decision


def test_all_demands_must_hold() -> None:
    better = {"gap": (0.05, 0.1, 0.15), "p": 0.001}
    assert decided(own=(0.5, 0.6, 0.7), demand=Demand(target=0.9), **better).decision == "do not ship"
    both = decided(own=(0.86, 0.92, 0.96), demand=Demand(target=0.9), **better)
    assert both.decision == "not enough evidence" and len(both.reasons) == 2


def test_the_rows_that_would_decide() -> None:
    """+4 points with a standard error of 3.06, of which 2.8 are to be 4 points."""
    verdict = decided(gap=(-0.02, 0.04, 0.1), p=0.2)
    assert verdict.rows_needed == pytest.approx(200 * (2.8 * 0.0306 / 0.04) ** 2, rel=0.01)
    assert "A verdict needs about 920 rows" in verdict.reasons[0]
    alike = decided(gap=(-0.06, 0.0, 0.06), p=1.0)
    assert (
        alike.rows_needed is None
        and ". More rows would not change this if the difference stays the same" in alike.reasons[0]
    )


def test_a_metric_that_may_not_decide_does_not() -> None:
    unfit = replace(RIGHT, unfit="the judge was not calibrated")
    verdict = decided(unfit, gap=(0.05, 0.1, 0.15), p=0.001)
    assert verdict.decision == "not enough evidence" and "not calibrated" in verdict.reasons[0]
    length = replace(RIGHT, better="neither")
    assert verdicts(length, [], [], Demand(), ["new"]) == []
    with pytest.raises(
        UsageError, match="cannot decide the verdict, because neither higher nor lower values are better"
    ):
        require_decidable(length, Demand(target=1))


@pytest.mark.parametrize(
    "demand", [Demand(target=90), Demand(target=math.nan), Demand(margin=2), Demand(margin=math.nan)]
)
def test_what_cannot_be_reached_is_refused_before_anything_is_asked(demand: Demand) -> None:
    with pytest.raises(
        UsageError, match=r"is impossible: m is always between 0 and 1|must be a finite number"
    ):
        require_decidable(RIGHT, demand)
    require_decidable(replace(RIGHT, kind="amount"), Demand(target=90))
    require_decidable(RIGHT, Demand(target=1, margin=-0.02))


def flipped(gained: int, n: int, contenders: int = 1) -> list[Verdict]:
    """The verdicts on so many contenders that gained so many of `n` rows each, and lost none."""
    names = [f"new {i}" for i in range(contenders)]
    values = [(1.0, 0.0)] * gained + [(1.0, 1.0)] * (n - gained)
    apart = [paired(RIGHT, values, [str(i) for i in range(n)], name, "old", alone=True) for name in names]
    p_values = statistics.holm([d.p_value or 0 for d in apart])
    corrected = [replace(d, p_corrected=p) for d, p in zip(apart, p_values, strict=True)]
    return verdicts(RIGHT, [], corrected, Demand(), names)


@pytest.mark.parametrize("contenders", [1, 4])
def test_where_one_more_row_decides_no_row_is_out_of_reach(contenders: int) -> None:
    n = next(n for n in range(1, 30) if flipped(n, n, contenders)[0].decision == "ship") - 1
    [found, *_] = flipped(n, n, contenders)
    assert found.decision == "not enough evidence" and found.rows_needed == n + 1


def test_nobody_ships_for_what_the_rival_was_refused(context: Make) -> None:
    """All that the new model gained are questions that the old one's host refused."""

    def told(refused: int, gained: int) -> Verdict:
        items = make_items(["a"] * 40)
        old = [None] * refused + ["x"] * gained + ["a"] * (40 - refused - gained)
        found = scored(context, items, [said("new", *"a" * 40), said("old", *old)])
        given = found.measures, found.differences, Demand(), ["new"], found.both_answered
        return verdicts(RIGHT_MATCH, *given)[0]

    assert told(0, 10).decision == "ship"
    only = told(10, 0)
    assert only.decision == "not enough evidence" and "old did not answer some" in only.reasons[0]
    assert told(10, 10).decision == "ship"
    assert told(10, 3).decision == "not enough evidence"


def test_a_model_for_reference_needs_no_verdict() -> None:
    one = Contender(name="run", kind="tuned", model="m", provider="p", served_by="here", run_id="run")
    base, other = replace(one, name="base", kind="base"), replace(one, name="other", kind="model")
    rivals = {"run": "base", "other": "base"}
    assert judged([one, base, other], rivals) == (["run"], ["other"])
    assert judged([other, base], {"other": "base"}) == (["other"], [])
    assert judged([one, base, other], {"run": "other", "base": "other"}) == (["run"], [])


def test_an_item_has_the_same_id_in_every_file() -> None:
    assert make_item("a", "q").id == make_item("a", "q").id
    assert make_item("a", "q").id != make_item("b", "q").id != make_item("b", "r").id
