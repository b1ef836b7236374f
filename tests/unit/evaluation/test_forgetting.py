"""What no gate may pass on: an ability that nobody measured."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrate.evaluation.items import Answer
from orchestrate.evaluation.regression import probes
from orchestrate.evaluation.regression.regress import Decision, Regression, compared, judged
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


def test_no_document_of_both_is_no_proof() -> None:
    """As where a task of lm-eval gives no scores."""
    assert compared("t", [], [], ("t", "b"), 0.1).decision == "inconclusive"


def test_a_sum_keeps_its_sign_and_point() -> None:
    [probe] = [p for p in probes.built_in() if p.name == "arithmetic"]
    item = next(i for i in probe.items if int(i.expected) > 9)
    n = item.expected
    answers = [n, f"It is {n}.", f"{n}.0", f"−{n}", f"-{n}", f"7.{n}", f"{n}.5"]
    marks = probe.metric.marks([(item, Answer(text=text)) for text in answers])
    assert [mark.value for mark in marks] == [1, 1, 1, 0, 0, 0, 0]
