"""Sums of what was spent: every expense once, every digit kept, and whole cents that add up."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrate.costing import spending
from orchestrate.costing.expenses import (
    BY,
    NONE,
    Expense,
    cents,
    exact,
    grouped,
    in_month,
    of_deployment,
    of_run,
    total,
)
from orchestrate.errors import UsageError
from orchestrate.store import deployments
from orchestrate.types import (
    Bill,
    BilledResource,
    Deployment,
    DeploymentState,
    JobStatus,
    Quote,
    Run,
    SubmitPhase,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
AMOUNTS = st.decimals(0, 10**7, places=9)
WORDS = st.sampled_from(["a", "b", "c"])
EXPENSES = st.lists(
    st.builds(
        Expense,
        id=st.uuids().map(str),
        backend=WORDS,
        account=st.none() | WORDS,
        month=st.sampled_from(["2026-09", "2026-10", "2026-11"]),
        tags=st.dictionaries(st.sampled_from(["team", "project"]), WORDS),
        project=st.none() | WORDS,
        person=st.none() | WORDS,
        spent_usd=AMOUNTS,
        committed_usd=AMOUNTS,
        known=st.booleans(),
    ),
    max_size=30,
)


def a_run(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "id": "run-1", "ref": "orc-1", "provider": "together", "model": "m", "spec": {}, "spec_hash": "0",
        "dataset_digest": "0", "host": "h", "phase": SubmitPhase.SUBMITTED, "status": JobStatus.RUNNING,
        "created_at": datetime(2026, 9, 30, tzinfo=UTC), "updated_at": datetime(2026, 10, 2, tzinfo=UTC),
    }  # fmt: skip
    return Run(**(values | changes))


QUOTE = Quote(
    provider="together", model="m", low_usd=Decimal(1), expected_usd=Decimal(2), high_usd=Decimal(3)
)


@given(EXPENSES, st.sampled_from([*BY, "tag:team"]))
def test_every_grouping_adds_up_to_what_another_way_of_adding_gives(found: list[Expense], by: str) -> None:
    groups = grouped(found, by)
    apart: dict[str, Fraction] = defaultdict(Fraction)
    for e in found:
        key = {
            "tag": ", ".join(f"{k}={e.tags[k]}" for k in sorted(e.tags)),
            "tag:team": e.tags.get("team"),
            "purpose": e.purpose or {"run": "training"}.get(e.kind, e.kind),
        }.get(by, getattr(e, by, None))
        apart[key or NONE] += Fraction(e.spent_usd) + Fraction(e.committed_usd)
    assert {g.key: Fraction(g.spent_usd) + Fraction(g.committed_usd) for g in groups} == dict(apart)
    assert sum(g.runs for g in groups) == len(found)
    assert sorted(id for g in groups for id in g.unknown) == sorted(e.id for e in found if not e.known)


@given(st.lists(AMOUNTS, max_size=40))
def test_whole_cents_add_up_to_the_total_and_are_near_their_parts(parts: list[Decimal]) -> None:
    shown = cents(parts)
    whole = sum((Fraction(p) for p in parts), Fraction()) * 100
    assert sum(Fraction(s) for s in shown) * 100 == -(-whole // 1)  # rounded up
    for part, cent in zip(parts, shown, strict=True):
        assert abs(Fraction(cent) - Fraction(part)) < Fraction(1, 100) and cent == cent.quantize(
            Decimal("0.01")
        )
        assert part or not cent


@given(st.lists(st.fractions(0, 10**6), max_size=30))
def test_what_no_decimal_can_hold_is_summed_the_same_in_any_order(amounts: list[Fraction]) -> None:
    kept = [exact(Decimal(a.numerator) / Decimal(a.denominator)) for a in amounts]
    assert sum(kept, Decimal(0)) == sum(reversed(kept), Decimal(0))
    assert all(abs(Fraction(k) - a) <= Fraction(1, 10**9) for k, a in zip(kept, amounts, strict=True))


@pytest.mark.parametrize(
    ("changes", "spent", "committed", "known"),
    [
        ({"quote": QUOTE}, 0, 3, True),
        ({"quote": QUOTE, "sandbox": True}, 0, 3, True),
        ({"status": JobStatus.SUCCEEDED, "bill": Bill(usd=Decimal("2.5"), origin="o")}, "2.5", 0, True),
        ({"phase": SubmitPhase.REFUSED, "status": JobStatus.FAILED, "quote": QUOTE}, 0, 0, True),
        ({"estimate_usd": Decimal(4), "quote": QUOTE}, 0, 4, True),
        ({"status": JobStatus.FAILED, "quote": QUOTE}, 0, 3, True),
        ({"abandoned": "lost", "quote": QUOTE}, 0, 0, False),
        ({}, 0, 0, False),
        ({"status": JobStatus.SUCCEEDED}, 0, 0, False),
    ],
)
def test_what_a_run_counts_as(changes: dict[str, Any], spent: Any, committed: Any, known: bool) -> None:
    expense = of_run(a_run(**changes), NOW)
    assert (expense.spent_usd, expense.committed_usd, expense.known) == (
        Decimal(spent),
        Decimal(committed),
        known,
    )


def test_runs_and_the_budget_count_alike() -> None:
    runs = [a_run(quote=QUOTE), a_run(status=JobStatus.SUCCEEDED, bill=Bill(usd=Decimal("1.23"), origin="o"))]
    sums = total(of_run(run, NOW) for run in runs)
    assert sums.spent_usd == sum(spending(run).spent_usd for run in runs)
    assert sums.committed_usd == sum(spending(run).committed_usd for run in runs)


def test_a_run_belongs_to_the_month_in_which_it_ended_and_an_open_one_to_this() -> None:
    ended = a_run(status=JobStatus.SUCCEEDED, finished_at=datetime(2026, 10, 1, tzinfo=UTC))
    unsaid = a_run(status=JobStatus.CANCELLED)
    assert [of_run(run, NOW).month for run in (ended, unsaid, a_run())] == ["2026-10", "2026-10", "2026-11"]
    found = [of_run(run, NOW) for run in (ended, unsaid, a_run())]
    assert len(in_month(found, "2026-10")) == 2 and in_month(found, None) == found
    with pytest.raises(UsageError, match="must be a month"):
        in_month(found, "2026-13")


def standing(bills: bool) -> list[BilledResource]:
    return [BilledResource(provider="t", kind="deployment", id="d", state="s", bills=bills, job_id="j")]


def deployed(*moments: tuple[datetime, bool | None]) -> Deployment:
    """Made at the first moment; at each of the others its host shows that it bills, that it does not, or
    (`None`) that it is gone."""
    made = moments[0][0]
    found = Deployment(
        id="dep-1", run_id="run-1", provider="together", host="h", account="a", job_id="j",
        state=DeploymentState.INTENT, created_at=made, updated_at=made, usd_per_hour=Decimal(8),
    )  # fmt: skip
    found = deployments.creating(found, made)
    for at, bills in moments[1:]:
        there = [] if bills is None else standing(bills)
        found = deployments.observed(found, there, at, settled=True)
    return found


def at(month: int, day: int, hour: int = 0) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


def by_month(deployment: Deployment, now: datetime) -> dict[str, Decimal]:
    return {e.month: e.spent_usd for e in of_deployment(deployment, None, now)}


def test_a_deployment_costs_in_each_month_what_it_was_up_there() -> None:
    # $8 per hour: 2 h of September, the 744 h of October, 24 h of November.
    whole = {"2026-09": Decimal(16), "2026-10": Decimal(5952), "2026-11": Decimal(192)}
    up = deployed((at(9, 30, 22), None), (at(10, 1), True))
    assert by_month(up, at(11, 2)) == whole
    gone = deployed((at(9, 30, 22), None), (at(10, 1), True), (at(11, 2), None))
    assert gone.state is DeploymentState.LOST and by_month(gone, NOW) == whole
    # Scaled to zero from 10 October on: 2 h and 216 h; up again for the first hour of November.
    idle = deployed((at(9, 30, 22), None), (at(10, 10), False), (at(11, 1), True), (at(11, 1, 1), False))
    assert by_month(idle, NOW) == {"2026-09": 16, "2026-10": 1728, "2026-11": 8}
    [november] = in_month(of_deployment(idle, None, NOW), "2026-11")
    assert november.committed_usd == 24 * 8, "what is held without a limit is this month's"
    sums = total(of_deployment(idle, None, NOW))
    assert (sums.deployments, sums.spent_usd) == (1, 1752), "it is one deployment in all"


def test_what_an_earlier_version_counted_is_the_months_in_which_it_ended() -> None:
    gone = deployed((at(9, 30, 22), None), (at(11, 2), None))
    old = msgspec.structs.replace(
        gone, state=DeploymentState.ENDED, billed_s=7200.0, billed_by_month={}, ended_at=at(11, 2)
    )
    assert by_month(old, NOW) == {"2026-11": 16}
    assert by_month(deployed((NOW, None), (at(9, 1), True)), NOW) == {"2026-11": 0}, (
        "a clock that was set back"
    )


def test_what_was_given_up_is_told_and_in_no_month_lost() -> None:
    bill = Bill(usd=Decimal(2), origin="o")
    given_up = a_run(abandoned="deleted there", status=JobStatus.CANCELLED, bill=bill)
    sums = total([of_run(given_up, NOW), of_run(a_run(), NOW)])
    assert (sums.abandoned, sums.spent_usd) == (("run-1",), 2)


def test_the_project_is_a_tag_or_that_of_the_tracker() -> None:
    tagged = a_run(tags={"project": "x"}, spec={"wandb": {"project": "y"}})
    assert of_run(tagged, NOW).project == "x"
    assert of_run(a_run(spec={"wandb": {"project": "y"}}), NOW).project == "y"
    assert of_run(a_run(spec={"wandb": None}), NOW).project is None


def test_an_unknown_grouping_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        grouped([], "colour")
    assert "person" in str(refused.value.fix)
