"""Evaluations laid beside one another: other rows, the same model twice; and what a page shows of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.unit.evaluation.conftest import answering, make_items

from orchestrate.errors import UsageError
from orchestrate.evaluation import Item
from orchestrate.evaluation.contenders import Candidate
from orchestrate.evaluation.evaluate import EvaluationTerms, Subject, evaluate
from orchestrate.evaluation.metrics import Context, registry
from orchestrate.evaluation.pairs import between, flips
from orchestrate.evaluation.verdict import Demand
from orchestrate.paid.paid_requests import Asking, Respondent
from orchestrate.reports import EvaluationReport
from orchestrate.types import Contender, Evaluation, Sampling

Answer = Callable[[str], str]


@pytest.fixture
def evaluated(tmp_path: Path, context: Callable[..., Context]) -> Callable[..., Evaluation]:
    """One contender for each function, compared with the last."""

    def make(
        id: str,
        items: Sequence[Item],
        *answers: Answer,
        metrics: Sequence[str] = ("exact_match",),
        judge: Respondent | None = None,
    ) -> Evaluation:
        candidates = [
            Candidate(
                Contender(
                    name=f"m{i}",
                    kind="tuned",
                    model="m",
                    provider="p",
                    served_by=f"host {i}",
                    run_id=f"run-{i}",
                ),
                answering(answer, identity={"id": id, "i": i}),
            )
            for i, answer in enumerate(answers)
        ]
        last = candidates[-1].contender.name
        terms = EvaluationTerms(
            metrics=registry.make(metrics, context(items, respondent=lambda *_: judge)),
            sampling=Sampling(),
            rivals={c.contender.name: last for c in candidates[:-1]},
            demand=Demand(),
        )
        subject = Subject(items=items, dataset="t.jsonl", digest="d")
        asking = Asking(tmp_path / "answers")
        return evaluate(id, subject, candidates, terms, asking, tmp_path / id / "items.jsonl")

    return make


def right(question: str) -> str:
    return question.removeprefix("question ")


def partly(question: str) -> str:
    return right(question) if int(right(question)) % 2 else "wrong"


def rows(count: int) -> list[Item]:
    return make_items([str(i) for i in range(count)])


def test_evaluations_of_other_rows_are_paired_by_what_both_asked(
    evaluated: Callable[..., Evaluation],
) -> None:
    ten, twenty = evaluated("a", rows(10), partly), evaluated("b", rows(20)[::-1], right)
    assert ten.items_digest != twenty.items_digest
    found = between((ten, "m0"), (twenty, "m0"))
    assert found is not None and (found.items, found.first_items, found.second_items) == (10, 10, 20)
    [d] = found.differences
    assert (d.score.value, d.score.n, d.gained, d.lost) == (0.5, 10, 5, 0)
    assert between((ten, "m0"), (evaluated("c", make_items(["x"]), right), "m0")) is None
    assert between((ten, "m0"), (replace(twenty, items_file="/gone"), "m0")) is None


def test_a_host_that_changed_its_model_is_seen(evaluated: Callable[..., Evaluation]) -> None:
    before, after = evaluated("a", rows(40), right), evaluated("b", rows(40), partly)
    found = between((before, "m0"), (after, "m0"))
    assert found is not None and found.same_answers == 20 and found.differences[0].shown
    again = between((before, "m0"), (evaluated("c", rows(40), right), "m0"))
    assert again is not None and again.same_answers == 40 and not again.differences[0].shown


def test_preferences_over_different_rivals_are_not_compared(
    evaluated: Callable[..., Evaluation],
) -> None:
    """Half of the answers being better than a weak model's is not half of them being better than a strong
    one's."""
    judge = answering(lambda question: '{"winner": "tie", "reason": ""}', identity={"model": "j"})
    metrics = ("judge_pair:j", "exact_match")
    first = evaluated("a", rows(10), right, partly, metrics=metrics, judge=judge)
    same = evaluated("b", rows(10), partly, partly, metrics=metrics, judge=judge)
    found = between((first, "m0"), (same, "m0"))
    assert found is not None and [d.metric for d in found.differences] == list(metrics)
    rival = replace(same.contenders[1], model="another")
    other = replace(same, contenders=(same.contenders[0], rival))
    found = between((first, "m0"), (other, "m0"))
    assert found is not None and [d.metric for d in found.differences] == ["exact_match"]


def test_scores_of_a_file_that_was_edited_in_between_are_not_compared(
    evaluated: Callable[..., Evaluation], tmp_path: Path
) -> None:
    """The model answers the same. Its scores differ only because the files do."""
    code, schema, grader = (tmp_path / name for name in ("checks.py", "schema.json", "grader.json"))

    def measured(id: str, ok: bool) -> Evaluation:
        code.write_text(f"def fits(expected: str, answer: str) -> bool:\n    return {ok}\n")
        schema.write_text('{"type": "integer"}' if ok else '{"type": "string"}')
        text = "{{item.expected}}" if ok else "other"
        grader.write_text(
            json.dumps(
                {
                    "type": "string_check",
                    "name": "g",
                    "operation": "eq",
                    "input": "{{sample.output_text}}",
                    "reference": text,
                }
            )
        )
        names = (f"{code}:fits", f"json_schema:{schema}", f"grader:{grader}", "exact_match")
        return evaluated(id, rows(20), right, metrics=names)

    before, same, edited = measured("a", True), measured("b", True), measured("c", False)
    paired = between((before, "m0"), (same, "m0"))
    assert paired is not None and len(paired.differences) == 4
    paired = between((before, "m0"), (edited, "m0"))
    assert paired is not None and [d.metric for d in paired.differences] == ["exact_match"]


def test_an_earlier_evaluation_keeps_its_answers(evaluated: Callable[..., Evaluation]) -> None:
    ten, four = evaluated("a", rows(10), partly), evaluated("b", rows(4), right)
    assert ten.items_file != four.items_file
    assert len(Path(ten.items_file or "").read_bytes().splitlines()) == 10


def test_broken_items_come_first_with_both_answers(evaluated: Callable[..., Evaluation]) -> None:
    def odd(question: str) -> str:
        return right(question) if int(right(question)) % 3 else "other"

    [found] = flips(evaluated("a", rows(12), odd, partly))
    assert (found.contender, found.against) == ("m0", "m1")
    assert found.broken_count == 2 and [f.expected for f in found.broken] == ["3", "9"]
    assert found.broken[0].after == "other" and found.broken[0].before == "3"
    assert found.fixed_count == 4 and found.fixed[0].before == "wrong"


def test_a_page_says_who_answered_how_many_and_what(evaluated: Callable[..., Evaluation]) -> None:
    one = evaluated("a", rows(30), right, partly, metrics=("exact_match", "accuracy"))
    report = EvaluationReport(evaluation=one, flips=tuple(flips(one)))
    for format in ("table", "md", "html"):
        text = report.render(format)
        for told in ("host 0", "host 1", one.items_digest[:12], "30", "fixed with m0", "ship"):
            assert told.lower() in text.lower(), (format, told)
    page = report.render("html")
    assert "<del>wrong</del>" in page and "Confusion of m0" in page
    with pytest.raises(UsageError, match="the file extension sets the format:"):
        report.save("x.pdf")
