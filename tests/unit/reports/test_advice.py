"""Facts of datasets that were made to have them, and what follows."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.costing import BasePrice, Ownership, ServingTotal
from orchestrate.costing.latency import of_model
from orchestrate.data import Dataset
from orchestrate.data.goals import Goal
from orchestrate.reports.advice import Advice, DataTraits, Needs, Way, advise, measure
from orchestrate.types import Quote, QuoteLine, Score


def dataset(path: Path, rows: list[tuple[str, str, str]]) -> Dataset:
    with path.open("w") as out:
        for system, user, answer in rows:
            messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
            if system:
                messages.insert(0, {"role": "system", "content": system})
            out.write(json.dumps({"messages": messages}) + "\n")
    return Dataset.open(path)


def test_facts_of_an_extraction_task(tmp_path: Path) -> None:
    system = "Extract the order. " * 100
    rows = [(system, f"I want {i} apples", json.dumps({"item": "apples", "count": i})) for i in range(80)]
    found = measure(dataset(tmp_path / "t.jsonl", [*rows, rows[0], rows[1]]))
    assert found.rows == 82
    assert found.json_share == found.same_keys_share == 1
    assert found.distinct_answers == 80
    assert found.duplicate_share == pytest.approx(2 / 82)
    assert found.shared_tokens == pytest.approx(len(system) / 4)
    assert found.prompt_tokens > 300 > found.answer_tokens > 5


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": [{"role": "user", "content": f"q {i}"}], "reference": "a"} for i in range(4)],
        [{"text": f"page {i}"} for i in range(4)],
    ],
    ids=["rl", "text"],
)
def test_rows_without_an_answer_are_no_repeats_and_no_classification(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, rows[0])))
    found = measure(Dataset.open(tmp_path / "t.jsonl"))
    assert (
        found.duplicate_share == pytest.approx(1 / 5) and found.distinct_answers == 0
    ) or found.kind == "text"
    reasons = [reason for choice in advise(found, Needs()).choices for reason in choice.reasons]
    assert not any("classification" in reason for reason in reasons)


def test_facts_of_knowledge(tmp_path: Path) -> None:
    rows = [
        ("", f"Who is number {i}?", f"Person{i} lived in Town{i * 3} and built House{i * 7}")
        for i in range(60)
    ]
    found = measure(dataset(tmp_path / "t.jsonl", rows))
    assert found.copied_share < 0.3
    assert found.distinct_share == 1
    assert found.json_share == found.shared_tokens == 0


def facts(**changes: Any) -> DataTraits:
    values: dict[str, Any] = {
        "rows": 1000,
        "kind": "chat",
        "prompt_tokens": 100.0,
        "answer_tokens": 30.0,
        "shared_tokens": 0.0,
        "json_share": 0.0,
        "same_keys_share": 0.0,
        "distinct_answers": 900,
        "distinct_share": 0.9,
        "copied_share": 0.6,
        "duplicate_share": 0.0,
    }
    return DataTraits(**(values | changes))


def points(found: Advice, way: Way) -> int:
    return next(c.points for c in found.choices if c.way is way)


def test_few_rows_are_for_the_prompt() -> None:
    found = advise(facts(rows=30), Needs())
    assert found.best.way is Way.FEW_SHOT
    assert found.would_change == ("100 rows or more",)


def test_too_few_rows_exclude_tuning() -> None:
    found = advise(facts(rows=9), Needs(own_gpu=True))
    assert {c.way for c in found.choices if c.excluded} == {Way.TUNE_HOSTED, Way.TUNE_OWN}
    assert "at least 10" in (found.choices[-1].excluded or "")


def test_many_consistent_rows_are_for_tuning() -> None:
    assert advise(facts(json_share=1.0, same_keys_share=1.0), Needs()).best.way is Way.TUNE_HOSTED


def test_a_good_base_model_needs_no_tuning() -> None:
    good = Needs(base_score=Score(value=0.97, low=0.96, high=0.99, n=500))
    assert advise(facts(), good).best.way is Way.PROMPT
    unsure = Needs(base_score=Score(value=0.8, low=0.6, high=0.9, n=20))
    assert advise(facts(), unsure).best.way is Way.TUNE_HOSTED
    rule = advise(facts(), unsure).rule
    assert rule is not None and rule.applies is None and rule.assumed


def test_a_poor_base_model_speaks_for_tuning() -> None:
    poor = Needs(base_score=Score(value=0.3, low=0.25, high=0.35, n=500))
    assert points(advise(facts(), poor), Way.TUNE_HOSTED) > points(advise(facts(), Needs()), Way.TUNE_HOSTED)


def test_knowledge_is_looked_up() -> None:
    found = advise(facts(copied_share=0.1, distinct_share=1.0, answer_tokens=80.0), Needs(changing=True))
    assert found.best.way is Way.RETRIEVAL


def test_private_data_stay() -> None:
    found = advise(facts(), Needs(private=True))
    assert found.best.way is Way.TUNE_OWN
    assert next(c for c in found.choices if c.way is Way.TUNE_HOSTED).excluded


def test_a_few_labels_are_a_classification() -> None:
    found = advise(facts(distinct_answers=4, distinct_share=0.004), Needs())
    assert any("4 distinct answers" in reason for reason in found.best.reasons)


def total(tuned: str, base: str, unit: str = "usd_per_gpu_hour") -> Ownership:
    line = QuoteLine(
        component="hosting",
        quantity=Decimal(1),
        unit=unit,
        usd_per_unit=Decimal(1),
        usd_low=Decimal(tuned),
        usd=Decimal(tuned),
        usd_high=Decimal(tuned),
    )
    return Ownership(
        provider="together",
        model="m",
        months=1,
        training=Quote(provider="together", model="m", expected_usd=Decimal(0)),
        monthly=(line,),
        monthly_usd=Decimal(tuned),
        low_usd=Decimal(tuned),
        expected_usd=Decimal(tuned),
        high_usd=Decimal(tuned),
        base=BasePrice(model="b", provider="p", usd_per_request=Decimal(1), input_tokens=1, source="s"),
        base_monthly_usd=Decimal(base),
        base_usd=Decimal(base),
        requests_per_day=Decimal(20_000),
        break_even_requests_per_day=Decimal(500),
    )


def test_money_speaks_for_the_cheaper_side() -> None:
    plain = advise(facts(), Needs())
    saving = advise(facts(), Needs(), [total("10", "100")])
    assert points(saving, Way.TUNE_HOSTED) == points(plain, Way.TUNE_HOSTED) + 2
    assert "fewer than 500 requests per day" in saving.would_change
    own = advise(facts(), Needs(), [total("10", "100", unit="usd_per_hour")])
    assert points(own, Way.TUNE_OWN) == points(plain, Way.TUNE_OWN) + 2
    losing = advise(facts(), Needs(), [total("100", "10")])
    assert points(losing, Way.PROMPT) == points(plain, Way.PROMPT) + 2


def test_latency_and_long_instructions() -> None:
    plain, fast = advise(facts(), Needs()), advise(facts(), Needs(latency_ms=300))
    assert points(fast, Way.FEW_SHOT) == points(plain, Way.FEW_SHOT) - 1
    assert points(advise(facts(), Needs(latency_ms=501)), Way.FEW_SHOT) == points(plain, Way.FEW_SHOT)
    long = advise(facts(shared_tokens=300.0), Needs())
    assert points(long, Way.TUNE_HOSTED) == points(plain, Way.TUNE_HOSTED) + 1


def test_bad_data_are_said_first() -> None:
    assert any("dedupe" in text for text in advise(facts(duplicate_share=0.3), Needs()).warnings)
    assert any("inconsistency" in text for text in advise(facts(json_share=0.6), Needs()).warnings)
    assert any(
        "same keys" in text for text in advise(facts(json_share=1.0, same_keys_share=0.5), Needs()).warnings
    )
    assert advise(facts(), Needs()).warnings == ()


def test_close_calls_are_called_close() -> None:
    assert advise(facts(), Needs(own_gpu=True)).close  # one point between host and own hardware
    assert not advise(facts(), Needs(private=True)).close


# -- the cases of the sources ------------------------------------------------------------------------------


def score(value: float) -> Score:
    return Score(value=value, low=value, high=value, n=0)


@pytest.mark.parametrize(
    ("value", "target", "best"),
    [
        (0.86, 0.9, Way.PROMPT),  # 96% of the target
        (0.72, 0.9, Way.PROMPT),  # exactly 80%
        (0.71, 0.9, Way.TUNE_HOSTED),  # below
        (0.9, 0.9, Way.PROMPT),  # reached
        (0.3, 0.9, Way.TUNE_HOSTED),
        (0.5, 0.6, Way.PROMPT),  # 83% of a modest target
    ],
)
def test_prompting_that_reaches_80_percent_of_the_target(value: float, target: float, best: Way) -> None:
    assert advise(facts(), Needs(base_score=score(value), target=target)).best.way is best


@pytest.mark.parametrize("value", [0.8, 0.85, 0.94])
def test_the_rule_needs_no_target_to_speak(value: float) -> None:
    """80% of whatever target: no score is above 1."""
    found = advise(facts(), Needs(base_score=score(value)))
    assert found.best.way is Way.PROMPT and "assumed" in str(found.rule)


def test_examples_in_the_prompt_that_reach_80_percent_come_before_tuning() -> None:
    needs = Needs(base_score=score(0.4), few_shot_score=score(0.8), target=0.9)
    found = advise(facts(), needs)
    assert found.best.way is Way.FEW_SHOT and found.rule is not None and found.rule.applies
    weak = advise(facts(), Needs(base_score=score(0.4), few_shot_score=score(0.5), target=0.9))
    assert weak.best.way is Way.TUNE_HOSTED and points(weak, Way.FEW_SHOT) < points(found, Way.FEW_SHOT)


def test_what_is_left_to_win_is_told() -> None:
    found = advise(facts(), Needs(base_score=score(0.86), target=0.9))
    assert (
        "96% of the target of 0.9" in found.best.reasons[0] and "0.040 left to gain" in found.best.reasons[0]
    )
    assert "(0.860 to 0.860)" not in found.best.reasons[0]  # a bare value has no interval


@pytest.mark.parametrize(
    ("rows", "best", "reason"),
    [
        (30, Way.FEW_SHOT, "+2 30 rows, fewer than 100"),
        (99, Way.FEW_SHOT, "+2 99 rows, fewer than 100"),
        (100, Way.FEW_SHOT, "+1 100 rows, fewer than 300"),
        (299, Way.FEW_SHOT, "+1 299 rows, fewer than 300"),
        (300, Way.TUNE_HOSTED, "+2 300 rows, enough for the goal style (300 or more)"),
    ],
)
def test_rows_by_the_guides(rows: int, best: Way, reason: str) -> None:
    found = advise(facts(rows=rows), Needs())
    assert found.best.way is best
    assert any(reason in text for text in found.best.reasons)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_thirty_rows_are_shown_in_the_prompt_wherever_they_may_go(private: bool, gpu: bool) -> None:
    few = facts(rows=30, json_share=1.0, same_keys_share=1.0)
    assert advise(few, Needs(private=private, own_gpu=gpu)).best.way is Way.FEW_SHOT


_GUIDE = {  # as published: rows that are usual for each
    "format": (300, 500),
    "domain": (1_000, 5_000),
    "capability": (5_000, 50_000),
}


@pytest.mark.parametrize(("goal", "rows"), _GUIDE.items())
def test_a_given_goal_has_its_volume(goal: str, rows: tuple[int, int]) -> None:
    for n in (rows[0] - 1, rows[0]):
        found = advise(facts(rows=n), Needs(goal=Goal(goal)))
        assert (found.volume.least, found.volume.most, found.volume.why) == (*rows, None)
        assert found.volume.enough is (n == rows[0])
        assert (points(found, Way.TUNE_HOSTED) > points(found, Way.FEW_SHOT)) is (n == rows[0])


@pytest.mark.parametrize(
    ("changes", "goal", "least"),
    [
        ({"distinct_answers": 3, "distinct_share": 0.003}, Goal.CLASSIFICATION, 1_000),
        ({"distinct_answers": 40, "distinct_share": 0.04}, Goal.CLASSIFICATION, 4_000),
        ({"calls_tools": True}, Goal.TOOL_USE, 300),
        ({"json_share": 1.0, "same_keys_share": 1.0}, Goal.FORMAT, 300),
        ({"copied_share": 0.1}, Goal.DOMAIN, 1_000),
        ({"kind": "text"}, Goal.DOMAIN, 1_000),
        ({}, Goal.STYLE, 300),
    ],
)
def test_the_goal_is_inferred_from_the_rows_and_said(changes: dict[str, Any], goal: Goal, least: int) -> None:
    found = advise(facts(**changes), Needs()).volume
    assert (found.goal, found.least) == (goal, least)
    assert found.why and found.why in str(found)


def test_privacy_leaves_prompting_to_local_models() -> None:
    found = advise(facts(), Needs(private=True))
    limited = {c.way for c in found.choices if c.limited}
    assert limited == {Way.PROMPT, Way.FEW_SHOT, Way.RETRIEVAL}
    assert all("on your own machines" in (c.limited or "") for c in found.choices if c.way in limited)
    assert all(c.limited is None for c in advise(facts(), Needs()).choices)


def test_private_serving_costs_the_same_untuned() -> None:
    own = total("10", "100", unit="usd_per_hour")
    found = advise(facts(), Needs(private=True), [own])
    assert any(", with or without tuning. Tuning adds" in text for text in found.best.reasons)
    assert points(found, Way.PROMPT) == points(advise(facts(), Needs(private=True)), Way.PROMPT)


def test_each_reason_is_in_points_or_money() -> None:
    needs = Needs(base_score=score(0.86), target=0.9, latency_ms=200, changing=True, own_gpu=True)
    found = advise(facts(shared_tokens=400.0), needs, [total("10", "100")])
    for choice in found.choices:
        assert choice.points == sum(int(text.split(" ", 1)[0]) for text in choice.reasons)
    money = next(text for c in found.choices for text in c.reasons if "$" in text)
    assert (
        "tuning costs $10.00 over 1 month on together, and prompting costs $100.00 with b: $90.00 less"
        in money
    )


def test_a_tuned_model_that_ends_is_told_with_its_cost() -> None:
    ending = msgspec.structs.replace(total("40", "100"), serves_until=date(2027, 1, 14), provider="openai")
    found = advise(facts(), Needs(), [ending])
    assert any("until its shutdown on 2027-01-14" in text and "$40.00" in text for text in found.best.reasons)
    assert points(found, Way.TUNE_HOSTED) == points(advise(facts(), Needs()), Way.TUNE_HOSTED)


def test_the_cheapest_place_may_be_elsewhere() -> None:
    dear = total("100", "90")
    rented = ServingTotal(
        server="runpod",
        monthly=dear.monthly,
        monthly_usd=Decimal(20),
        low_usd=Decimal(20),
        expected_usd=Decimal(20),
        high_usd=Decimal(20),
        base_usd=Decimal(90),
    )
    found = advise(facts(), Needs(), [msgspec.structs.replace(dear, elsewhere=(rented,))])
    assert any("together, served at runpod" in text for text in found.best.reasons)


def test_a_latency_is_predicted_for_the_tuned_model_and_the_one_that_it_replaces() -> None:
    needs = Needs(latency_ms=2000, model="llama-3.1-8b", tokens=(900, 150))
    made = [of_model(catalog.find(name), (900, 150), ["H100"]) for name in ("llama-3.1-8b", "llama-3.3-70b")]
    found = advise(facts(), needs, (), (made[0], made[1]))
    assert [one.model for one in found.latency] == ["llama-3.1-8b", "llama-3.3-70b"]
    small, large = (one.answer_ms for one in found.latency)
    assert 1.4 * small < 2000 < 1.4 * large, "the case is the one that decides"
    assert points(found, Way.TUNE_HOSTED) == points(advise(facts(), needs), Way.TUNE_HOSTED) + 1
    assert not any("is predicted to take" in text for text in found.warnings)
    late = advise(facts(), replace(needs, latency_ms=20), (), (made[0], made[1]))
    assert any("is predicted to take" in text for text in late.warnings)
