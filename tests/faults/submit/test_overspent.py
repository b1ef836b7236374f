"""Nothing is spent that nobody agreed to: estimates, limits of several backends, ends without a bill."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.shop import Shop
from tests.faults.submit.test_live_price import EstimatingHost
from tests.faults.submitting import Killed, dies_at, submit

from orchestrate.api.run import RunHandle
from orchestrate.costing import Spending, caps
from orchestrate.errors import NotFound, OverBudget, UsageError
from orchestrate.providers.base import Resumes
from orchestrate.runs.submitting.repeats import Submission
from orchestrate.runs.submitting.submit import Submitter, cancel
from orchestrate.runs.syncing import sweep
from orchestrate.runs.syncing.recovery import recover
from orchestrate.runs.syncing.sweep import refresh, sync
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store import Clock, transitions
from orchestrate.store.store import Store, Timing
from orchestrate.types import Bill, Feature, Job, JobHandle, JobStatus, Quote, Run, SubmitPhase

SPEC = JobSpec(model="m", train="rows.jsonl")
DATA: Any = Paper()
AT_ONCE = Timing(send_limit_s=60.0, requests=0, margin_s=0.0, lease_s=5.0, patience_s=1.0)
QUOTE = Quote(provider="paper", model="m", expected_usd=Decimal(3), high_usd=Decimal(4))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3") as opened:
        yield opened


@pytest.fixture
def host(tmp_path: Path) -> EstimatingHost:
    made = EstimatingHost(tmp_path / "host", timeout_s=0.1)
    made.told = Decimal(500)
    return made


# -- a run that goes on under other limits ------------------------------------------------------------------


def test_the_same_key_again_sends_under_the_limits_of_now(store: Store, tmp_path: Path) -> None:
    """After a process that died between sending the data and creating the job."""
    host = PaperHost(tmp_path / "host", timeout_s=0.1)
    asked = Submission(
        spec=SPEC,
        translation=host.translate(SPEC),
        data=DATA,
        quote=QUOTE,
        max_cost_usd=Decimal(10),
        idempotency_key="k",
    )
    with pytest.raises(Killed):
        Submitter(store, host, AT_ONCE, dies_at("after-uploaded"), Decimal(20)).submit(asked)
    assert (host.posts(), store.ledger.spending()) == (0, Spending(committed_usd=Decimal(4)))
    poor = Submitter(store, host, AT_ONCE, budget_usd=Decimal(2))
    for act in (lambda: poor.submit(asked), lambda: poor.resume(store.runs.get("last"), DATA)):
        with pytest.raises(OverBudget):
            act()
    assert host.posts() == 0
    enough = Submitter(store, host, AT_ONCE, budget_usd=Decimal(4))
    run = enough.submit(msgspec.structs.replace(asked, max_cost_usd=Decimal(5)))
    assert (host.posts(), run.phase, run.max_cost_usd) == (1, SubmitPhase.SUBMITTED, Decimal(5))
    again = poor.submit(msgspec.structs.replace(asked, max_cost_usd=Decimal(1)))
    assert (again.id, again.max_cost_usd, host.posts()) == (run.id, Decimal(5), 1), "its job is there"


# -- the host's own estimate -------------------------------------------------------------------------------


def test_an_estimate_above_the_quotes_high_end_is_refused_when_nobody_agrees(
    store: Store, host: EstimatingHost
) -> None:
    with pytest.raises(OverBudget, match=r"estimate.*\$500.*\$4") as caught:
        submit(store, host, SPEC, DATA, quote=QUOTE)
    assert "--max-cost" in str(caught.value.fix)
    assert host.posts() == 0
    assert store.runs.get("last").phase is SubmitPhase.REFUSED
    assert store.ledger.spending() == Spending()


def test_who_agrees_to_the_estimate_is_asked_once_and_the_budget_counts_it(
    store: Store, host: EstimatingHost
) -> None:
    asked: list[Decimal] = []

    def agree(live: Quote) -> bool:
        asked.append(live.expected_usd)
        return True

    wanted = Submission(spec=SPEC, translation=host.translate(SPEC), data=DATA, quote=QUOTE)
    run = Submitter(store, host, agree=agree).submit(wanted)
    assert (asked, run.estimate_usd) == ([Decimal(500)], Decimal(500))
    assert store.ledger.spending() == Spending(committed_usd=Decimal(500))


def test_a_limit_above_the_estimate_allows_it(store: Store, host: EstimatingHost) -> None:
    run = submit(store, host, SPEC, DATA, quote=QUOTE, max_cost_usd=Decimal(500))
    assert run.phase is SubmitPhase.SUBMITTED


def test_an_estimate_that_the_budget_does_not_hold_sends_nothing(store: Store, host: EstimatingHost) -> None:
    with pytest.raises(OverBudget, match="the remaining budget"):
        submit(store, host, SPEC, DATA, quote=QUOTE, max_cost_usd=Decimal(600), budget_usd=Decimal("499.99"))
    assert host.posts() == 0
    run = submit(store, host, SPEC, DATA, quote=QUOTE, max_cost_usd=Decimal(600), budget_usd=Decimal(500))
    assert run.estimate_usd == 500


# -- limits over several backends --------------------------------------------------------------------------


def quoted(high: Decimal, name: str = "paper") -> Quote:
    return Quote(provider=name, model="m", high_usd=high)


def test_a_limit_holds_for_the_sum_and_each_for_one() -> None:
    quotes = [quoted(Decimal(4), "a"), quoted(Decimal(6), "b")]
    assert caps(quotes) == [None, None]
    assert caps(quotes, max_cost_usd=Decimal(20)) == [Decimal(8), Decimal(12)]
    assert caps(quotes, max_cost_usd=Decimal(20), each_usd=Decimal(9)) == [Decimal(8), Decimal(9)]
    assert caps(quotes, each_usd=Decimal(6)) == [Decimal(6), Decimal(6)]
    with pytest.raises(OverBudget, match=r"a, b: the sum .*\$10\.00"):
        caps(quotes, max_cost_usd=Decimal("9.99"))
    with pytest.raises(OverBudget, match=r"b: .* --max-cost-each \(\$5\.99"):
        caps(quotes, each_usd=Decimal("5.99"))


@given(
    st.lists(st.decimals(0, 10**6, places=6), min_size=1, max_size=6),
    st.decimals(0, 10**6, places=6),
)
def test_shares_hold_each_quote_and_never_more_than_the_limit(highs: list[Decimal], more: Decimal) -> None:
    limit = sum(highs, Decimal(0)) + more
    shares = caps([quoted(high) for high in highs], max_cost_usd=limit)
    assert sum((share for share in shares if share is not None), Decimal(0)) <= limit
    assert all(share is not None and share >= high for share, high in zip(shares, highs, strict=True))


# -- ends --------------------------------------------------------------------------------------------------


def test_a_run_that_ends_above_its_cap_says_so_once(store: Store, tmp_path: Path) -> None:
    host = PaperHost(tmp_path / "host")
    run = submit(store, host, SPEC, DATA, max_cost_usd=Decimal(5))
    host.set(str(run.job_id), state="done", tokens=7)
    for _ in range(2):
        refresh(store, host, run, bill=lambda *_: Bill(usd=Decimal(7), origin="total_price"))
    [event] = [event for event in store.history.events(run.id) if event.type == "ended_over_cap"]
    assert "ended above its cap of $5.00: $7.00 (total_price)" in event.message


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.SUCCEEDED])
def test_an_end_without_a_bill_counts_as_quoted(store: Store, tmp_path: Path, status: JobStatus) -> None:
    host = PaperHost(tmp_path / "host")
    run = submit(store, host, SPEC, DATA, quote=QUOTE)
    state = next(word for word, known in host.profile.statuses.items() if known is status)
    host.set(str(run.job_id), state=state)
    refresh(store, host, run, bill=lambda *_: None)
    assert store.ledger.spending() == Spending(committed_usd=Decimal(4))


# -- what a host leaves undone -----------------------------------------------------------------------------


class Later(Clock):
    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


class DeafHost(PaperHost):
    """Answers a cancel and does nothing."""

    def cancel(self, job: JobHandle) -> None:
        self.requests.append("cancel")


def told(store: Store, run: Run, what: str) -> list[str]:
    return [event.message for event in store.history.events(run.id) if event.type == what]


def test_a_cancel_that_was_answered_and_not_done_is_said_once_and_asked_again(
    tmp_path: Path,
) -> None:
    clock = Later()
    store = Store.open(f"sqlite:///{tmp_path}/runs.sqlite3", clock=clock)
    host = DeafHost(tmp_path / "host")
    run = submit(store, host, SPEC, DATA, quote=QUOTE)
    host.set(str(run.job_id), state="running")
    cancel(store, host, run)
    assert sync(store, lambda _: host).uncancelled == [], "a host may take a moment"
    clock.ahead = sweep.GRACE + timedelta(seconds=1)
    for asked in (2, 3):
        assert sync(store, lambda _: host).uncancelled == [run.id]
        assert host.requests.count("cancel") == asked
    [message] = told(store, run, "uncancelled")
    assert "still running" in message and f"orchestrate abandon {run.id}" in message
    assert store.ledger.spending() == Spending(committed_usd=Decimal(4))
    store.close()


def test_a_job_that_was_deleted_at_its_host_is_said_and_keeps_its_share(store: Store, tmp_path: Path) -> None:
    host = PaperHost(tmp_path / "host")
    run = submit(store, host, SPEC, DATA, quote=QUOTE)
    (host.folder / "jobs" / f"{run.job_id}.json").unlink()
    for _ in range(2):
        assert sync(store, lambda _: host).gone == [run.id]
    assert len(told(store, run, "gone")) == 1
    assert store.ledger.spending() == Spending(committed_usd=Decimal(4))
    with pytest.raises(NotFound) as caught:
        refresh(store, host, run)
    assert "orchestrate abandon" in str(caught.value.fix)


def test_a_job_that_its_host_holds_is_said_once_and_an_ended_one_is_not_resumed(shop: Shop) -> None:
    run = shop.ft.submit(shop.spec, "openai")
    shop.hosts.skip(250)  # until it runs
    run.pause()
    for _ in range(2):
        assert f"paused: {run.id}" in shop.type("sync").output
    [message] = told(shop.ft.store, run.record, "paused")
    assert "share of the budget stays reserved" in message and f"orchestrate resume {run.id}" in message
    assert "share of the budget stays reserved" in shop.type("events", run.id).output
    assert run.resume().status is not JobStatus.PAUSED
    shop.hosts.skip(100_000)
    for _ in range(2):
        with pytest.raises(UsageError, match="nothing to resume") as caught:
            run.resume()
    assert f"orchestrate show {run.id}" in str(caught.value.fix)
    sent = [entry["path"] for entry in shop.hosts.requests("openai", method="POST")]
    resumed = [path for path in sent if path.endswith(f"{run.record.job_id}/resume")]
    assert len(resumed) == 1, "an ended job was not asked to go on"


def test_a_limit_that_is_no_number_is_no_limit(shop: Shop) -> None:
    assert shop.type("deploy", "last", "--max-hours", "nan").exit_code == 2
    endless = shop.type("deploy", "last", "--max-hours", "inf").exception
    assert isinstance(endless, UsageError) and "a number of hours" in str(endless)


def test_who_gives_a_run_up_says_why_and_frees_the_budget(shop: Shop) -> None:
    run = shop.ft.submit(shop.spec, "together")
    with pytest.raises(UsageError, match="give a reason"):
        run.abandon(" ")
    given_up = run.abandon("deleted in the console")
    assert (given_up.status, given_up.abandoned) == (JobStatus.CANCELLED, "deleted in the console")
    assert shop.ft.sync().checked == 0
    assert "deleted in the console" in str(shop.ft.store.history.transitions(run.id)[-1].note)
    shown = shop.type("show", run.id, "--offline")
    assert "deleted in the console" in shown.output


def test_a_cancel_ends_the_job_of_an_abandoned_run(shop: Shop) -> None:
    run = shop.ft.submit(shop.spec, "together")
    run.abandon("the key was lost")
    assert run.provider.get(run.record.handle).status is not JobStatus.CANCELLED
    done = shop.type("cancel", run.id)
    assert done.exit_code == 0 and "nothing to cancel" not in done.output, done.output
    assert run.provider.get(run.record.handle).status in (JobStatus.CANCELLING, JobStatus.CANCELLED)


def test_a_cancel_of_a_run_that_has_ended_asks_its_host_for_nothing(shop: Shop) -> None:
    run = shop.ft.submit(shop.spec, "together")
    shop.ft.store.runs.apply(run.id, lambda run: msgspec.structs.replace(run, status=JobStatus.SUCCEEDED))
    shop.hosts.fault("together", "error", status=404, count=0)  # its job was deleted there
    done = shop.type("cancel", run.id)
    assert done.exit_code == 0 and "has already ended" in done.output, done.output


def test_a_job_that_is_found_after_its_run_was_abandoned_counts_again(store: Store, tmp_path: Path) -> None:
    host = PaperHost(tmp_path / "host")

    def dies(point: str) -> None:
        if point == "after-post":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(store, host, SPEC, DATA, quote=QUOTE, reached=dies)
    run = store.runs.get("last")
    store.runs.apply(run.id, lambda run: transitions.abandoned(run, "gone", store.clock.now()))
    assert store.ledger.spending() == Spending()
    assert recover(store, [host]).adopted == [run.id]
    found = store.runs.get(run.id)
    assert (found.phase, found.abandoned) == (SubmitPhase.SUBMITTED, None)
    assert store.ledger.spending() == Spending(committed_usd=Decimal(4))
    with pytest.raises(OverBudget):
        submit(store, host, SPEC, DATA, quote=QUOTE, budget_usd=Decimal(7))


@pytest.mark.slow
def test_a_recovered_run_counts_what_its_host_says_and_what_it_does_not_say_is_told(
    store: Store, tmp_path: Path
) -> None:
    host = PaperHost(tmp_path / "host")
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="running", cost="7.5")
    dark = submit(store, host, SPEC, DATA)
    with Store.open(f"sqlite:///{tmp_path}/new.sqlite3") as new:
        report = recover(new, [host])
        assert set(report.recovered) == {run.id, dark.id}
        assert report.unpriced == [dark.id]
        assert new.ledger.spending() == Spending(committed_usd=Decimal("7.5"))


def test_the_command_holds_one_limit_for_all_and_says_where_it_cannot_act(shop: Shop) -> None:
    over = shop.command("openai,together", "--max-cost", "0.0001")
    assert isinstance(over.exception, OverBudget)
    assert shop.sent() == 0
    done = shop.command("openai,together", "--max-cost", "25")
    assert done.exit_code == 0, done.output
    assert "cannot stop this run during training: OpenAI reports" in done.output
    assert done.output.count("cannot stop this run during training:") == 1
    limits = [run.record.max_cost_usd for run in shop.ft.runs()]
    assert sum((limit for limit in limits if limit is not None), Decimal(0)) <= 25
    each = shop.command("fireworks", "--max-cost-each", "0.0001")
    assert isinstance(each.exception, OverBudget) and "--max-cost-each" in str(each.exception)


def test_an_end_without_a_bill_is_shown_as_one(shop: Shop) -> None:
    run = shop.ft.submit(shop.spec, "together")
    shop.ft.store.runs.apply(
        run.id, lambda now: msgspec.structs.replace(now, status=JobStatus.CANCELLED, sandbox=False)
    )
    assert "cost unknown; " in shop.type("show", run.id, "--offline").output


# -- a cap that is raised ----------------------------------------------------------------------------------


class HoldingHost(PaperHost, Resumes):
    features = PaperHost.features | {Feature.RESUME}
    profile = msgspec.structs.replace(
        PaperHost.profile, statuses={**PaperHost.profile.statuses, "held": JobStatus.PAUSED}
    )

    def resume(self, job: JobHandle) -> None:
        self._log("resume")
        self.set(job.job_id, state="running")


def test_a_hosts_cap_is_raised_within_the_budget_and_holds_from_then_on(store: Store, tmp_path: Path) -> None:
    """By hand: a dollar for each token, of a budget of $100; the run was quoted at $4 and capped at $5."""
    host = HoldingHost(tmp_path / "host")
    run = submit(store, host, SPEC, DATA, quote=QUOTE, max_cost_usd=Decimal(5))
    host.set(str(run.job_id), state="held", tokens=5)

    def bill(run: Run, job: Job) -> Bill | None:
        return Bill(usd=Decimal(job.trained_tokens or 0), origin="tokens", final=False)

    settings = config.load(env={"ORCHESTRATE_BUDGET_USD": "100"}, cwd=tmp_path, home=tmp_path / "home")
    home: Any = SimpleNamespace(settings=settings, store=store, provider=lambda name: host, bill=bill)
    handle = RunHandle(home, run)
    with pytest.raises(UsageError, match=r"has already cost \$5\.00, so a total of \$5\.00") as used:
        handle.resume(max_cost_usd=5)
    assert "--max-cost 5.01 " in str(used.value.fix)
    with pytest.raises(UsageError, match="--max-hours has no effect on paper"):
        handle.resume(max_hours=3)
    with pytest.raises(OverBudget, match=r"\$110\.00\) exceeds the remaining budget \(\$100\.00"):
        handle.resume(max_cost_usd=110)
    assert store.runs.get(run.id).max_cost_usd == 5 and "resume" not in host.requests
    assert handle.resume(max_cost_usd=9).status is JobStatus.RUNNING
    assert store.ledger.spending() == Spending(committed_usd=Decimal(9))
    assert handle.resume(max_cost_usd="7.5").max_cost_usd == Decimal("7.5"), "it need not be paused there"
    assert store.ledger.spending() == Spending(committed_usd=Decimal("7.5"))
    assert host.requests.count("resume") == 1
    for tokens, status in ((7, JobStatus.RUNNING), (8, JobStatus.CANCELLED)):
        host.set(str(run.job_id), tokens=tokens)
        sync(store, lambda _: host, bill=bill)
        sync(store, lambda _: host, bill=bill)
        assert store.runs.get(run.id).status is status
    with pytest.raises(UsageError, match="nothing to resume"):
        handle.resume(max_cost_usd=50)
    said = [event.message for event in store.history.events(run.id) if event.type == "limits"]
    assert said[0].endswith("from $5.00 to $9.00") and len(said) == 2
