"""What an answer costs where tokens are billed, and where hours are."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.unit.evaluation.conftest import answering, cents, make_items

from orchestrate.evaluation import Answer
from orchestrate.evaluation.contenders import Candidate, at_traffic
from orchestrate.evaluation.evaluate import ContenderPlan, EvaluationTerms, Subject, evaluate, plan
from orchestrate.evaluation.metrics import Context, registry
from orchestrate.evaluation.verdict import Demand
from orchestrate.paid.paid_requests import TEMPLATE_TOKENS, Asking, Question
from orchestrate.reports import EvaluationReport
from orchestrate.types import Contender, Evaluation, Sampling

ITEMS = make_items(["yes"] * 20)


def evaluated(folder: Path, candidate: Candidate) -> Evaluation:
    nobody: Any = None
    asking = Asking(folder / "answers")
    metrics = registry.make(["exact_match"], Context(ITEMS, asking, nobody, nobody))
    terms = EvaluationTerms(metrics, Sampling(), {}, Demand())
    return evaluate("e", Subject(ITEMS, "t", "d"), [candidate], terms, asking, folder / "items.jsonl")


def timed(seconds: float | None, parallel: int) -> Any:
    plain = answering(lambda _: "yes")

    def ask(questions: list[Question]) -> list[Answer]:
        return [replace(answer, seconds=seconds) for answer in plain.ask(questions)]

    return answering(lambda _: "yes", ask=ask, parallel=parallel)


CONTENDER = Contender(name="tuned", kind="tuned", model="m", provider="h", served_by="h")
BY_THE_HOUR = replace(CONTENDER, usd_per_hour=Decimal("7.20"))


@pytest.mark.parametrize(
    ("seconds", "per_hour", "usd", "note", "cell"),
    [
        # 20 answers of 9 s, 4 at a time: 45 s of 7.20 per hour are 0.09 over 20 answers
        (
            9.0,
            None,
            "0.0045",
            "at 1,600 answers per hour, the pace of this evaluation",
            "$0.0045 at this pace",
        ),
        (
            9.0,
            Decimal(100),
            "0.072",
            "at 100 answers per hour, from --traffic",
            "at the given traffic",
        ),
        (None, None, None, ", so the cost per answer is unknown (set --traffic)", "unknown: $7.20 per hour"),
    ],
)
def test_an_hour_that_is_billed_is_spread_over_the_answers(
    tmp_path: Path, seconds: float | None, per_hour: Decimal | None, usd: str | None, note: str, cell: str
) -> None:
    respondent = timed(seconds, 4)
    found = evaluated(tmp_path, at_traffic(Candidate(BY_THE_HOUR, respondent), per_hour))
    [one] = found.contenders
    assert one.usd is None and one.usd_per_answer == (None if usd is None else Decimal(usd))
    [told] = [n for n in found.notes if "$7.20 per hour is billed regardless of use" in n]
    assert note in told
    page = re.sub(r"\s+", " ", EvaluationReport(evaluation=found).render("md"))
    assert cell in page
    again = evaluated(tmp_path, at_traffic(Candidate(BY_THE_HOUR, respondent), per_hour))
    assert again.contenders[0].usd_per_answer == one.usd_per_answer, "kept answers keep their time"


def test_tokens_are_billed_as_they_come(tmp_path: Path) -> None:
    candidate = Candidate(CONTENDER, answering(lambda _: "yes", price=cents))
    [one] = evaluated(tmp_path, at_traffic(candidate, Decimal(5))).contenders
    assert one.usd_per_answer == Decimal("0.03") and one.answers_per_hour is None


def test_the_announced_price_includes_tools_and_what_a_host_adds(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "find", "description": "word " * 100}}

    def planned(**more: Any) -> ContenderPlan:
        candidate = Candidate(CONTENDER, answering(lambda _: "yes", price=cents))
        [found] = plan(make_items(["yes"], **more), [candidate], 1, Asking(tmp_path)).asked
        return found

    plain, with_tools = planned(), planned(tools=(tool,))
    assert plain.expected_usd and plain.high_usd and with_tools.expected_usd and with_tools.high_usd
    assert plain.high_usd > Decimal(TEMPLATE_TOKENS) / 1000 + Decimal(1), "and 100 tokens of answer"
    assert with_tools.expected_usd > plain.expected_usd + Decimal("0.10")
    assert with_tools.high_usd > plain.high_usd + Decimal("0.10")


def test_questions_that_were_refused_make_no_answer_cheaper() -> None:
    one = replace(CONTENDER, answers=4, failed=2, usd=Decimal("0.06"))
    assert one.usd_per_answer == Decimal("0.03")
    assert replace(one, failed=4, usd=Decimal(0)).usd_per_answer is None
