"""Bills, their reconciliation with quotes, and budgets."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from orchestrate import catalog, costing
from orchestrate.costing import (
    Prices,
    UnknownPrice,
    accuracy,
    bill,
    bill_run,
    cap_of,
    check_budget,
    reconcile,
    spending,
)
from orchestrate.errors import OverBudget
from orchestrate.profile import profile
from orchestrate.spec import JobSpec
from orchestrate.types import (
    SESSION,
    Bill,
    Job,
    JobError,
    JobHandle,
    JobStatus,
    Quote,
    QuoteLine,
    Run,
    SubmitPhase,
)

NOW = datetime(2026, 11, 20, 9, tzinfo=UTC)


def a_job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "handle": JobHandle(provider="openai", job_id="ftjob-1"),
        "status": JobStatus.SUCCEEDED,
        "raw_status": "succeeded",
        "created_at": NOW,
    }
    return Job(**(values | changes))


def a_quote(low: str = "0.9", usd: str = "1", high: str = "1.2", **changes: Any) -> Quote:
    line = QuoteLine(
        component="training",
        quantity=Decimal(1),
        unit="usd_per_mtok",
        usd_per_unit=Decimal(usd),
        usd_low=Decimal(low),
        usd=Decimal(usd),
        usd_high=Decimal(high),
    )
    values: dict[str, Any] = {
        "provider": "together",
        "model": "qwen3.5-9b",
        "lines": (line,),
        "low_usd": Decimal(low),
        "expected_usd": Decimal(usd),
        "high_usd": Decimal(high),
    }
    return Quote(**(values | changes))


def a_run(id: str = "r1", **changes: Any) -> Run:
    values: dict[str, Any] = {
        "id": id,
        "ref": id,
        "provider": "together",
        "model": "qwen3.5-9b",
        "spec": {"model": "qwen3.5-9b", "train": "t.jsonl"},
        "spec_hash": "h",
        "dataset_digest": "d",
        "host": "https://example",
        "phase": SubmitPhase.SUBMITTED,
        "status": JobStatus.SUCCEEDED,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Run(**(values | changes))


def made(provider: str, model: str, job: Job, **more: Any) -> Bill | None:
    spec = JobSpec.parse({"model": model, "train": "t"})
    resolved = catalog.resolve(model, provider, NOW.date())
    prices = Prices(provider, on=NOW.date())
    return bill(job, profile=profile(provider), spec=spec, resolved=resolved, prices=prices, **more)


def test_the_hosts_own_figure_goes_first() -> None:
    found = made(
        "together", "qwen3.5-9b", a_job(cost_usd=Decimal("4.2"), cost_origin="total_price", trained_tokens=1)
    )
    assert found == Bill(usd=Decimal("4.2"), origin="total_price")


@pytest.mark.parametrize("told", ["-4.2", "NaN", "-Infinity", "Infinity"])
def test_a_figure_that_is_no_price_leaves_the_estimate(told: str) -> None:
    """A negative bill would raise what is left of the budget."""
    quote = a_quote()
    found = made("together", "qwen3.5-9b", a_job(cost_usd=Decimal(told), trained_tokens=-9), quote=quote)
    assert found is not None
    assert (found.usd >= quote.lines[0].usd, found.final) == (True, False)
    handle = JobHandle(provider="local", job_id="orc-1", kind=SESSION)
    assert made("local", "Qwen/Qwen3-0.6B", a_job(handle=handle, cost_usd=Decimal(told))) is None


@pytest.mark.parametrize("status", [s for s in JobStatus if s.terminal])
def test_a_session_bills_what_it_counted_however_it_ended(status: JobStatus) -> None:
    handle = JobHandle(provider="local", job_id="orc-1", kind=SESSION)
    job = a_job(
        handle=handle, status=status, cost_usd=Decimal("0.5"), cost_origin="as counted by the session"
    )
    assert made("local", "tiny-chat", job) == Bill(usd=Decimal("0.5"), origin="as counted by the session")


def test_trained_tokens_times_rate() -> None:
    found = made("openai", "gpt-4o-mini", a_job(trained_tokens=300_000))
    assert found is not None
    assert (found.usd, found.origin) == (
        Decimal("0.9"),
        "trained_tokens x rate",
    )  # the host's published example


def test_the_rate_is_that_of_the_day_of_the_job() -> None:
    old = a_job(trained_tokens=100_000_000, created_at=datetime(2026, 6, 1, tzinfo=UTC))
    new = a_job(trained_tokens=100_000_000)
    was, now = made("together", "qwen3.5-4b", old), made("together", "qwen3.5-4b", new)
    assert was is not None and now is not None
    assert (was.usd, now.usd) == (Decimal(48), Decimal(34))


def test_a_running_jobs_bill_is_not_final() -> None:
    found = made("openai", "gpt-4o-mini", a_job(trained_tokens=10, status=JobStatus.RUNNING))
    assert found is not None and not found.final
    assert made("openai", "gpt-4o-mini", a_job(status=JobStatus.RUNNING)) is None


@pytest.mark.parametrize(
    ("changes", "usd"),
    [
        ({"status": JobStatus.CANCELLED, "step": 50, "total_steps": 200}, "0.25"),
        ({"status": JobStatus.SUCCEEDED, "early_stopped": True, "step": 150, "total_steps": 200}, "0.75"),
        ({"status": JobStatus.FAILED, "raw_status": "error"}, "0"),
    ],
)
def test_together_jobs_that_ended_early(changes: dict[str, Any], usd: str) -> None:
    found = made("together", "qwen3.5-9b", a_job(**changes), quote=a_quote())
    assert found is not None and found.usd == Decimal(usd)


WHOLE = {"cost_usd": Decimal("60.90"), "cost_origin": "total_price", "trained_tokens": 29_000_000}
"""What a Together job of $60.90 tells from its first step to its end, however it ends."""


@pytest.mark.parametrize(
    ("changes", "usd", "final"),
    [
        ({}, "60.90", True),
        ({"status": JobStatus.FAILED, "raw_status": "error", "step": 90, "total_steps": 100}, "0", True),
        ({"status": JobStatus.FAILED, "raw_status": "user_error", "step": 0, "total_steps": 100}, "0", False),
        (
            {"status": JobStatus.FAILED, "raw_status": "user_error", "step": 50, "total_steps": 100},
            "30.45",
            False,
        ),
        ({"status": JobStatus.CANCELLED, "step": 10, "total_steps": 100}, "6.09", False),
        ({"early_stopped": True, "step": 75, "total_steps": 100}, "45.675", False),
        ({"status": JobStatus.RUNNING, "step": 10, "total_steps": 100}, "60.90", False),
    ],
)
def test_the_status_goes_before_togethers_total_price(changes: dict[str, Any], usd: str, final: bool) -> None:
    found = made("together", "qwen3.5-9b", a_job(**(WHOLE | changes)), quote=a_quote())
    assert found is not None and (found.usd, found.final) == (Decimal(usd), final)


ESTIMATE = {"cost_usd": Decimal("15.50"), "cost_origin": "estimatedCost", "percent": 3.0}


@pytest.mark.parametrize(
    ("changes", "usd"),
    [
        ({}, "15.50"),
        ({"status": JobStatus.CANCELLED, "trained_tokens": 930_000}, "0.465"),  # 3% of 31 million, at $0.50
        ({"status": JobStatus.FAILED, "trained_tokens": 930_000}, "0.465"),
        ({"status": JobStatus.CANCELLED}, None),
        ({"status": JobStatus.FAILED}, None),
    ],
)
def test_fireworks_estimated_cost_is_no_bill(changes: dict[str, Any], usd: str | None) -> None:
    found = made("fireworks", "qwen3.5-9b", a_job(**(ESTIMATE | changes)), quote=a_quote())
    assert (found and found.usd) == (usd and Decimal(usd))
    assert found is None or not found.final


def test_a_fireworks_job_is_billed_by_its_gpu_seconds() -> None:
    """Two hours of an H100 at $8, the rate since 2026-09-01; not final, so it says nothing of accuracy."""
    job = a_job(accelerator_seconds={"NVIDIA_H100_80GB": 7200}, status=JobStatus.CANCELLED)
    found = made("fireworks", "qwen3.5-9b", job)
    assert found is not None and (found.usd, found.origin, found.final) == (16, "GPU-seconds x rate", False)
    ended = a_run(provider="fireworks", quote=a_quote(), bill=found)
    assert reconcile(ended) is None and accuracy([ended]) == []


def test_a_job_whose_host_tells_nothing_counts_what_was_quoted_once_it_has_succeeded() -> None:
    found = made("fireworks", "qwen3.5-9b", a_job(), quote=a_quote())
    assert found == Bill(usd=Decimal(1), origin="quote", final=False)


def test_what_is_not_known_is_no_bill() -> None:
    assert (
        made(
            "together",
            "qwen3.5-9b",
            a_job(status=JobStatus.FAILED, raw_status="user_error", step=3),
            quote=a_quote(),
        )
        is None
    )
    assert (
        made(
            "fireworks",
            "qwen3.5-9b",
            a_job(status=JobStatus.CANCELLED, step=1, total_steps=2),
            quote=a_quote(),
        )
        is None
    )


SUPERVISED: dict[str, Any] = {"handle": JobHandle(provider="fireworks", job_id="s", kind="supervised")}


@pytest.mark.parametrize(
    ("host", "model", "unbilled", "billed"),
    [
        (
            "openai",
            "gpt-4o-mini",
            {"error": JobError(message="row 3", code="invalid_training_file", param="training_file")},
            {"error": JobError(message="internal", code="server_error")},
        ),
        ("together", "qwen3.5-9b", {"raw_status": "user_error"}, {"raw_status": "user_error", "step": 3}),
        ("together", "qwen3.5-9b", {"raw_status": "error", "step": 3}, {"raw_status": "odd", "step": 1}),
        (
            "together",
            "qwen3.5-9b",
            {"raw_status": "user_error"},
            {"raw_status": "user_error", "started_at": NOW},
        ),
        ("fireworks", "qwen3-8b", SUPERVISED, SUPERVISED | {"percent": 40.0}),
        ("fireworks", "qwen3-8b", SUPERVISED, {"handle": JobHandle(provider="f", job_id="d", kind="dpo")}),
        (
            "fireworks",
            "qwen3-8b",
            SUPERVISED,
            {"handle": JobHandle(provider="f", job_id="r", kind="reinforcement")},
        ),
        ("nebius", "qwen3-8b", {"step": 0}, {}),
        ("azure", "gpt-4.1-mini", {"error": JobError(message="row 3", param="training_file")}, {}),
        ("local", "qwen3-8b", {}, {"started_at": NOW}),
    ],
)
def test_a_failure_is_free_only_where_the_hosts_rule_says_so(
    host: str, model: str, unbilled: dict[str, Any], billed: dict[str, Any]
) -> None:
    free = made(host, model, a_job(status=JobStatus.FAILED, **unbilled), quote=a_quote())
    assert free is not None and free.usd == 0
    assert made(host, model, a_job(status=JobStatus.FAILED, **billed), quote=a_quote()) is None


def test_a_tracked_run_is_billed_from_its_own_quote() -> None:
    hour = msgspec.structs.replace(
        a_quote().lines[0], component="electricity", unit="usd_per_hour", usd_per_unit=Decimal("0.10")
    )
    run = a_run(
        provider="local",
        model="qwen3-8b",
        spec={"model": "qwen3-8b", "train": "t"},
        quote=a_quote(lines=(hour,)),
    )
    job = a_job(started_at=NOW, finished_at=datetime(2026, 11, 20, 11, tzinfo=UTC))
    found = bill_run(run, job, profile=profile(run.provider))
    assert found is not None and found.usd == Decimal("0.2")
    hosted = bill_run(a_run(quote=a_quote()), a_job(trained_tokens=1_000_000), profile=profile("together"))
    assert hosted is not None and hosted.usd == Decimal(4)


def test_what_a_failed_rft_job_worked_is_billed_and_is_not_the_last_word() -> None:
    """One hour of an H100 at $8."""
    handle = JobHandle(provider="fireworks", job_id="r", kind="reinforcement")
    job = a_job(status=JobStatus.FAILED, handle=handle, accelerator_seconds={"NVIDIA_H100_80GB": 3600})
    found = made("fireworks", "qwen3.5-9b", job)
    assert found is not None and (found.usd, found.final) == (8, False)


@pytest.mark.parametrize("tokens", [100_000, None], ids=["tokens", "nothing"])
def test_a_together_job_without_its_price_is_billed_its_minimum_and_not_for_good(tokens: int | None) -> None:
    """together.ai/pricing: the larger of the total and the model's minimum, $4. Its own figure is final."""
    found = made(
        "together", "qwen3.5-9b", a_job(trained_tokens=tokens), quote=a_quote("0.03", "0.034", "0.04")
    )
    assert found is not None and (found.usd, found.final) == (4, False)
    assert sum(entry.usd for entry in found.lines) == (4 if tokens else Decimal("3.966"))
    told = made(
        "together", "qwen3.5-9b", a_job(trained_tokens=tokens, cost_usd=Decimal("3.5")), quote=a_quote()
    )
    assert told is not None and (told.usd, told.final) == (Decimal("3.5"), True)
    large = made("together", "qwen3.5-9b", a_job(trained_tokens=100_000_000))
    assert large is not None and (large.usd, large.final) == (34, False)


def test_a_run_is_billed_at_the_price_that_its_command_gave_for_it() -> None:
    line = msgspec.structs.replace(
        a_quote().lines[0], usd_per_unit=Decimal(7), own="--rate nebius:sft=7", source="--rate"
    )
    values = {"provider": "nebius", "model": "qwen3-8b", "spec": {"model": "qwen3-8b", "train": "t"}}
    job = a_job(trained_tokens=1_000_000)
    given = bill_run(a_run(**values, quote=a_quote(lines=(line,))), job, profile=profile("nebius"))
    listed = bill_run(a_run(**values, quote=a_quote()), job, profile=profile("nebius"))
    assert given is not None and given.usd == 7 and given.lines[0].own == "--rate nebius:sft=7"
    assert listed is None or listed.usd != 7


def test_a_price_of_the_users_own_comes_before_a_hosts_estimate_at_its_list_price() -> None:
    line = msgspec.structs.replace(
        a_quote().lines[0], usd_per_unit=Decimal(20_000), own="--rate fireworks:sft=20000", source="--rate"
    )
    values = {"provider": "fireworks", "model": "qwen3-8b", "spec": {"model": "qwen3-8b", "train": "t"}}
    job = a_job(trained_tokens=760, cost_usd=Decimal("0.00038"), cost_origin="estimatedCost")
    given = bill_run(a_run(**values, quote=a_quote(lines=(line,))), job, profile=profile("fireworks"))
    assert given is not None and (given.usd, given.final) == (Decimal("15.2"), False)
    listed = bill_run(a_run(**values, quote=a_quote()), job, profile=profile("fireworks"))
    assert listed is not None and listed.usd == Decimal("0.00038")


def test_reconcile() -> None:
    line = msgspec.structs.replace(a_quote().lines[0], usd=Decimal("1.1"))
    run = a_run(quote=a_quote(), bill=Bill(usd=Decimal("1.25"), origin="x", lines=(line,)))
    found = reconcile(run)
    assert found is not None
    assert found.total.error_usd == Decimal("-0.25")
    assert found.total.relative == pytest.approx(-0.2)
    assert not found.total.within_band
    [part] = found.components
    assert (part.component, part.error_usd, part.within_band) == ("training", Decimal("-0.1"), True)
    assert reconcile(a_run(quote=a_quote())) is None
    assert reconcile(a_run(quote=a_quote(), bill=Bill(usd=Decimal(1), origin="x", final=False))) is None


def test_accuracy_by_backend_with_sandboxes_apart() -> None:
    def run(id: str, usd: str, **changes: Any) -> Run:
        return a_run(id, quote=a_quote(), bill=Bill(usd=Decimal(usd), origin="x"), **changes)

    found = accuracy(
        [
            run("a", "1.0"),
            run("b", "0.8"),
            run("c", "1.25"),
            run("d", "1.0", sandbox=True),
            run("e", "9.0", status=JobStatus.CANCELLED),
            run("f", "9.0", early_stopped=True),
        ]
    )
    real, sandbox = found
    assert (real.provider, real.runs, real.within_band) == ("together", 3, 1)
    assert real.median_relative == pytest.approx(0.2)  # |0|, |0.25|, |-0.2|
    assert real.worst_relative == pytest.approx(0.25)
    assert real.bias == pytest.approx((0 + 0.25 - 0.2) / 3)
    assert (sandbox.sandbox, sandbox.runs) == (True, 1)


@pytest.mark.parametrize(
    ("run", "spent", "committed"),
    [
        (a_run(bill=Bill(usd=Decimal(3), origin="x")), "3", "0"),
        (a_run(status=JobStatus.RUNNING, quote=a_quote()), "0", "1.2"),
        (
            a_run(
                status=JobStatus.RUNNING,
                quote=a_quote(),
                bill=Bill(usd=Decimal(2), origin="x", final=False),
            ),
            "0",
            "2",
        ),
        (a_run(status=JobStatus.CANCELLED, quote=a_quote()), "0", "1.2"),
        (a_run(status=JobStatus.FAILED, quote=a_quote()), "0", "1.2"),
        (a_run(status=JobStatus.RUNNING, quote=a_quote(), estimate_usd=Decimal(5)), "0", "5"),
        (a_run(status=JobStatus.CANCELLED, quote=a_quote(), abandoned="gone"), "0", "0"),
        (
            a_run(
                status=JobStatus.CANCELLED,
                quote=a_quote(),
                abandoned="gone",
                bill=Bill(usd=Decimal(2), origin="x", final=False),
            ),
            "2",
            "0",
        ),
        (a_run(status=JobStatus.FAILED, phase=SubmitPhase.REFUSED, quote=a_quote()), "0", "0"),
        (a_run(sandbox=True, bill=Bill(usd=Decimal(99), origin="x")), "0", "0"),
        (a_run(sandbox=True, status=JobStatus.RUNNING, quote=a_quote()), "0", "0"),
        (a_run(status=JobStatus.RUNNING), "0", "0"),
        (a_run(status=JobStatus.PAUSED, job_kind=SESSION, quote=a_quote()), "0", "1.2"),
        (
            a_run(
                status=JobStatus.PAUSED,
                job_kind=SESSION,
                quote=a_quote(),
                allowed_usd=Decimal(5),
                bill=Bill(usd=Decimal("0.3"), origin="x", final=False),
            ),
            "0",
            "0.3",
        ),
        (
            a_run(
                status=JobStatus.PAUSED,
                quote=a_quote(),
                bill=Bill(usd=Decimal("0.3"), origin="x", final=False),
            ),
            "0",
            "1.2",
        ),
    ],
    ids=str,
)
def test_spending_counts_bills_and_commitments(run: Run, spent: str, committed: str) -> None:
    found = spending(run)
    assert (found.spent_usd, found.committed_usd) == (Decimal(spent), Decimal(committed))
    assert found.total_usd == Decimal(spent) + Decimal(committed)


def test_budgets_are_kept_from_the_high_end() -> None:
    check_budget(a_quote(), max_cost_usd=Decimal("1.2"))
    with pytest.raises(OverBudget, match=r"\$1\.20\) exceeds --max-cost \(\$1\.19"):
        check_budget(a_quote(), max_cost_usd=Decimal("1.19"))
    check_budget(a_quote(), budget_usd=Decimal("10.2"), used_usd=Decimal(9))
    with pytest.raises(OverBudget, match="the remaining budget"):
        check_budget(a_quote(), budget_usd=Decimal("10.1"), used_usd=Decimal(9))


def test_what_a_running_job_has_cost_so_far() -> None:
    hourly = QuoteLine(
        component="rental",
        quantity=Decimal(2),
        unit="usd_per_hour",
        usd_per_unit=Decimal(3),
        usd_low=Decimal(6),
        usd=Decimal(6),
        usd_high=Decimal(6),
    )
    run = a_run(provider="local", status=JobStatus.RUNNING, quote=a_quote(lines=(hourly,)))
    job = a_job(status=JobStatus.RUNNING, started_at=NOW)
    found = bill_run(run, job, profile=profile(run.provider), now=NOW + timedelta(minutes=20))
    assert found is not None and (found.usd, found.final) == (Decimal(1), False)
    # Clocks differ a little.
    early = bill_run(run, job, profile=profile(run.provider), now=NOW - timedelta(seconds=3))
    assert early is not None and early.usd == 0
    assert bill_run(run, job, profile=profile(run.provider)) is None
    assert bill_run(run, a_job(status=JobStatus.QUEUED), profile=profile(run.provider), now=NOW) is None


def test_a_limit_needs_a_price() -> None:
    unknown = Quote(provider="together", model="m", unavailable="no price was found")
    check_budget(unknown)
    with pytest.raises(UnknownPrice, match="no price was found") as caught:
        check_budget(unknown, max_cost_usd=Decimal(5))
    assert caught.value.exit_code == 6


def test_cap() -> None:
    run = a_run(max_cost_usd=Decimal(2))
    assert (cap_of(a_run()), cap_of(run)) == (None, 2)
    assert cap_of(msgspec.structs.replace(run, allowed_usd=Decimal("1.5"))) == Decimal("1.5")


def test_ages_and_confidence() -> None:
    line = msgspec.structs.replace(a_quote().lines[0], as_of="2026-10-07")
    assert costing.age_days(a_quote(lines=(line,)), date(2026, 10, 17)) == 10
    assert costing.age_days(a_quote(), date(2026, 10, 17)) is None
