"""What no gate may pass on: an ability that nobody measured."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrate.evaluation import Answer, regression
from orchestrate.evaluation.regression import Decision, Regression, compared, judged, probed
from orchestrate.evaluation.scoring import Side
from orchestrate.types import Contender, Difference, MetricUsed, Score

SAME = Score(value=0.9, low=0.85, high=0.95, n=200)
NOTHING = Score(value=0.0, low=0.0, high=0.1, n=9)
APART = Score(value=0.0, low=-0.03, high=0.03, n=200)


def result(metric: MetricUsed, apart: Score = APART, base: Score = SAME) -> Regression:
    difference = Difference(contender="t", against="b", metric=metric.name, score=apart)
    found = judged("p", "p", metric, base, base, difference, 0.1)
    who = Contender(name="t", kind="tuned", model="m", provider="p", served_by="here")
    return Regression(run_id="r", created_at=datetime.now(UTC), tuned=who, base=who, results=(found,))


@pytest.mark.parametrize(
    ("found", "decision", "settled"),
    [
        (result(MetricUsed(name="exact_match", kind="right-or-wrong")), "kept", True),
        (result(MetricUsed(name="judge:m", kind="graded", unfit="never held")), "inconclusive", False),
        (
            result(
                MetricUsed(name="exact_match", kind="right-or-wrong"),
                base=Score(value=0, low=0, high=0.1, n=9),
            ),
            "not measurable",
            False,
        ),
    ],
)
def test_a_gate_passes_on_what_was_kept(found: Regression, decision: Decision, settled: bool) -> None:
    assert (found.results[0].decision, found.settled) == (decision, settled)


@pytest.mark.parametrize(
    ("probe", "answer"),
    [
        ("refusals", "qwe zxc, asd"),
        ("refusals", ""),
        ("format", "qwe"),
        ("arithmetic", "qwe"),
        ("languages", "q"),
    ],
)
def test_gibberish_keeps_no_ability(probe: str, answer: str) -> None:
    """A model that never declines is right on half of the requests, and one word is in two forms of ten."""
    [one] = [p for p in regression.built_in() if p.name == probe]
    sides = [Side(name, [(Answer(text=answer),) for _ in one.items]) for name in ("tuned", "base")]
    found = probed(one, *sides)
    assert found.decision == "not measurable"
    who = Contender(name="t", kind="tuned", model="m", provider="p", served_by="here")
    assert not Regression(
        run_id="r", created_at=datetime.now(UTC), tuned=who, base=who, results=(found,)
    ).settled


def test_a_base_that_declines_can_lose_it() -> None:
    [one] = [p for p in regression.built_in() if p.name == "refusals"]
    rightly = [
        (Answer(text="I can't help with that." if i.expected == "decline" else "Yes."),) for i in one.items
    ]
    gibberish = [(Answer(text="qwe"),) for _ in one.items]
    assert probed(one, Side("tuned", rightly), Side("base", rightly)).decision == "kept"
    assert probed(one, Side("tuned", gibberish), Side("base", rightly)).decision == "forgot"
    assert probed(one, Side("tuned", rightly), Side("base", gibberish)).decision == "kept"


def test_no_document_of_both_is_no_proof() -> None:
    """As where a task of lm-eval gives no scores."""
    assert compared("t", [], [], ("t", "b"), 0.1).decision == "inconclusive"


def test_a_sum_keeps_its_sign_and_point() -> None:
    [probe] = [p for p in regression.built_in() if p.name == "arithmetic"]
    item = next(i for i in probe.items if int(i.expected) > 9)
    n = item.expected
    answers = [n, f"It is {n}.", f"{n}.0", f"−{n}", f"-{n}", f"7.{n}", f"{n}.5"]
    marks = probe.metric.marks([(item, Answer(text=text)) for text in answers])
    assert [mark.value for mark in marks] == [1, 1, 1, 0, 0, 0, 0]
