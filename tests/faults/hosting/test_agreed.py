"""What is agreed to when something is deployed, holds: the budget for each call and each process, the limits
whatever the wall clock says, the options, and the end of what nobody can ask about any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.faults.hosting.test_deployment_machine import TIMING, Books, HourlyHost, Still
from tests.faults.submitting import Killed

from orchestrate.api.run import RunHandle
from orchestrate.costing import Spending
from orchestrate.errors import OrchestrateError, OtherAccount, OverBudget, UsageError
from orchestrate.providers.base import host_account
from orchestrate.runs.hosting.deployer import Deployer, DeployTerms
from orchestrate.runs.hosting.upkeep import adopt
from orchestrate.runs.syncing.sweep import sync
from orchestrate.settings import config
from orchestrate.store import Uptime
from orchestrate.store.store import Store
from orchestrate.types import (
    Bill,
    BilledResource,
    Deployment,
    DeploymentState,
    Endpoint,
    JobHandle,
    JobStatus,
    Run,
    SubmitPhase,
)

DAYS = timedelta(days=3)


@dataclass
class Clocks(Still):
    """A machine's two clocks: hands move the wall clock, a start begins another uptime."""

    off: timedelta = timedelta(0)
    boot: str = "one"

    def now(self) -> datetime:
        return super().now() + self.off

    def uptime(self) -> Uptime:
        return Uptime(self.boot, self.seconds)


class PricedHost(HourlyHost):
    """With the price of its replicas, one that can be idle, and the host's own time of each deployment."""

    idle = False

    def __init__(self, folder: Path, books: Books, owner: str) -> None:
        super().__init__(folder, books, owner)
        self.made: dict[str, datetime] = {}

    def deployment_price(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Any:
        wanted = options or {}
        return None if wanted.get("shape") == "odd" else Decimal(8) * int(wanted.get("max_replicas", 1))

    def deploy(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Endpoint:
        made = super().deploy(job, options=options)
        self.made.setdefault(job.job_id, Still.now(self.books.clock))
        return msgspec.structs.replace(made, usd_per_hour=None)

    def deployments(self) -> Iterator[BilledResource]:
        for item in super().deployments():
            yield msgspec.structs.replace(
                item, bills=not self.idle, usd_per_hour=None, created_at=self.made.get(item.id)
            )


@dataclass
class Place:
    """One store on one machine, with runs on a host that bills."""

    store: Store
    host: PricedHost
    clock: Clocks
    budget: str | None = "40"
    runs: list[Run] = field(default_factory=list[Run])

    def handle(self, number: int = 0) -> RunHandle:
        folder = self.host.folder
        env = {} if self.budget is None else {"ORCHESTRATE_BUDGET_USD": self.budget}
        settings = config.load(env=env, cwd=folder, home=folder / "home")
        home: Any = SimpleNamespace(settings=settings, store=self.store, provider=lambda _: self.host)
        return RunHandle(home, self.runs[number])

    def deploy(self, number: int = 0, **terms: Any) -> Deployment:
        return self.handle(number).deploy(**terms).record

    def sync(self) -> Any:
        return sync(self.store, lambda _: self.host, timing=TIMING)

    def pass_hours(self, hours: float) -> None:
        self.clock.seconds += hours * 3600

    def total(self) -> Spending:
        return self.store.ledger.spending()


def add_run(place: Place, number: int) -> None:
    handle = place.host.add(f"orc-00000000000{number}", state="done")
    place.host.books.owner[handle.job_id] = place.host.owner
    now = place.clock.now()
    run = Run(
        id=f"run-00000000000{number}",
        ref=f"orc-00000000000{number}",
        provider=place.host.name,
        model="m",
        spec={},
        spec_hash="",
        dataset_digest="",
        host=place.host.host,
        account=host_account(place.host).id,
        phase=SubmitPhase.SUBMITTED,
        status=JobStatus.SUCCEEDED,
        job_id=handle.job_id,
        bill=Bill(usd=Decimal(0), origin="host", final=True),
        created_at=now,
        updated_at=now,
    )
    place.store.runs.restore(run)
    place.store.runs.close(run.id)
    place.runs.append(run)


@pytest.fixture
def place(store_url: str, tmp_path: Path) -> Iterator[Place]:
    clock = Clocks()
    host = PricedHost(tmp_path / "host", Books(clock), "one")
    with Store.open(store_url, clock=clock) as store:
        made = Place(store, host, clock)
        for number in (1, 2):
            add_run(made, number)
        yield made


# -- the budget --------------------------------------------------------------------------------------------


def test_a_change_of_what_is_up_needs_as_much_budget_as_a_new_one(place: Place) -> None:
    with pytest.raises(OverBudget):
        place.deploy(max_hours=500)
    assert place.host.books.up == {} and place.total() == Spending()
    place.deploy(max_hours=2)
    for more in ({"max_hours": 500}, {"max_hours": 500, "max_cost_usd": 900}):
        with pytest.raises(OverBudget) as told:
            place.deploy(**more)
        assert "quote" not in told.value.message and "epochs" not in str(told.value.fix)
        assert place.total() == Spending(committed_usd=Decimal(16))
    assert place.deploy(max_hours=5).max_hours == 5
    assert place.total() == Spending(committed_usd=Decimal(40))
    with pytest.raises(OverBudget):
        place.deploy(1, max_hours="0.1")


def test_one_without_a_limit_holds_a_day_and_a_change_may_not_take_that_limit_away(place: Place) -> None:
    place.budget = "100"
    with pytest.raises(OverBudget):
        place.deploy()  # 24 hours
    up = place.deploy(max_hours=2)
    again = place.deploy()
    assert (again.id, again.max_hours) == (up.id, Decimal(2))
    assert place.total().committed_usd == 16


def test_an_idle_one_is_started_only_within_the_budget(place: Place) -> None:
    place.deploy(max_hours=4)
    place.host.idle = True
    place.sync()
    place.budget = "20"
    with pytest.raises(OverBudget):
        place.deploy()
    place.budget = "40"
    assert place.deploy().complete


def test_what_bills_already_is_completed_though_the_budget_is_used_up(place: Place) -> None:
    place.deploy(max_hours=4)
    place.budget = "10"
    assert place.deploy().complete
    assert place.deploy(max_hours=3).max_hours == 3, "less is always possible"


def test_of_two_changes_at_once_only_what_fits_passes(place: Place, store_url: str) -> None:
    """Each alone fits: 1 + 4 hours, at $8 per hour, into $48."""
    place.budget = "48"
    for number in (0, 1):
        place.deploy(number, max_hours=1)
    barrier, outcomes = threading.Barrier(2), dict[int, str]()

    def change(number: int) -> None:
        with Store.open(store_url, clock=place.clock) as own:
            other = Place(own, place.host, place.clock, place.budget, place.runs)
            handle = other.handle(number)
            barrier.wait(30)
            try:
                handle.deploy(max_hours=5)
                outcomes[number] = "agreed"
            except OverBudget:
                outcomes[number] = "refused"

    threads = [threading.Thread(target=change, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes.values()) == ["agreed", "refused"]
    assert place.total().committed_usd == 48


def test_what_costs_nothing_needs_no_budget(place: Place) -> None:
    place.deploy(max_hours=4)
    place.budget = "1"
    assert place.deploy(1, max_hours=4, max_replicas=0).complete


def test_a_price_that_nobody_knows_does_not_fit_into_a_budget(place: Place) -> None:
    with pytest.raises(OverBudget, match="unknown"):
        place.deploy(max_hours=1, accept_unknown_price=True, shape="odd")
    assert place.host.books.up == {}
    place.budget = None
    assert place.deploy(max_hours=1, accept_unknown_price=True, shape="odd").complete


# -- limits and options ------------------------------------------------------------------------------------


def test_an_offer_states_the_limit_that_holds_and_what_it_may_still_cost(place: Place) -> None:
    first = place.handle().deployment_offer(max_hours=3)
    assert (first.usd_per_hour, first.most_usd, first.deployment) == (8, 24, None)
    assert place.handle().deployment_offer().most_usd is None
    up = place.deploy(max_hours=3)
    place.pass_hours(1)
    again = place.handle().deployment_offer()
    assert (again.deployment, again.max_hours, again.hours_left) == (up.id, 3, 2)
    assert (again.most_usd, again.title, again.sandbox) == (16, "Paper", False)
    assert place.handle().deployment_offer(max_hours=5).most_usd == 32


def test_a_limit_that_has_come_is_not_agreed_to_again(place: Place) -> None:
    place.deploy(max_hours=1)
    place.pass_hours(1.5)
    for again in ({}, {"max_hours": 1}, {"max_cost_usd": 2, "max_hours": 2}):
        with pytest.raises(UsageError, match="these limits would end the deployment of"):
            place.deploy(**again)
    assert place.deploy(max_hours=2).max_hours == 2


def test_other_options_than_those_of_what_is_up_are_refused(place: Place) -> None:
    place.budget = None
    up = place.deploy(max_replicas=2)
    assert (up.usd_per_hour, up.options) == (16, {"max_replicas": 2})
    with pytest.raises(UsageError, match="max_replicas=4"):
        place.deploy(max_replicas=4)
    same = place.deploy(max_replicas="2")
    assert (same.id, place.deploy().options) == (up.id, same.options), "what is not named stays"
    assert place.handle().deployment_price() == 16


def test_an_hourly_price_above_the_limit_of_an_earlier_call_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = place.deploy(max_usd_per_hour=9, max_hours=1)
    monkeypatch.setattr(place.host, "deployment_price", lambda job, *, options=None: Decimal(10))
    with pytest.raises(OverBudget, match="max-usd-per-hour"):
        place.deploy(max_hours=2)
    assert place.store.deployments.get(up.id).max_hours == 1
    assert place.deploy(max_hours=2, max_usd_per_hour=10).max_hours == 2


@pytest.mark.parametrize("limit", [{"max_hours": 0}, {"max_cost_usd": 0}, {"max_cost_usd": "1e400"}])
def test_a_limit_of_nothing_or_of_more_than_there_is_is_bad_input(
    place: Place, limit: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        place.deploy(**limit)
    assert place.store.deployments.matching() == []


# -- clocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [DAYS, -DAYS])
def test_a_wall_clock_that_is_set_moves_no_limit_and_no_cost(place: Place, off: timedelta) -> None:
    place.clock.off = off
    place.deploy(max_hours=2)
    place.pass_hours(0.5)
    place.clock.off = timedelta(0)  # somebody notices
    place.sync()
    place.pass_hours(0.5)
    assert place.handle().deployment().spent_usd == 8  # type: ignore[union-attr]
    assert place.total() == Spending(spent_usd=Decimal(8), committed_usd=Decimal(8))
    assert place.sync().ending == [] and len(place.host.books.up) == 1
    place.pass_hours(1)
    place.sync()
    assert place.host.books.up == {}
    ended = place.handle().deployment()
    assert ended is not None and ended.state is DeploymentState.ENDED and ended.spent_usd == 16


def test_a_paused_machine_is_spoken_of_and_a_set_clock_at_the_deploy_is_not(place: Place) -> None:
    place.clock.off = -DAYS
    place.deploy(max_hours=2)
    place.clock.off = timedelta(0)
    place.pass_hours(0.5)

    def clocks() -> list[str]:
        events = place.store.history.events(place.runs[0].id)
        return [event.type for event in events if event.type == "deployment_clocks"]

    place.sync()
    assert clocks() == []
    place.clock.off = DAYS  # time passed, and the uptime stood still
    place.sync()
    place.sync()
    assert clocks() == ["deployment_clocks"] and len(place.host.books.up) == 1


@pytest.mark.parametrize("off", [DAYS, -DAYS])
def test_another_machine_counts_by_the_hosts_record_where_the_first_ones_clock_was_wrong(
    place: Place, off: timedelta
) -> None:
    place.clock.off = off
    place.deploy(max_hours=2)
    place.pass_hours(1)
    place.clock.off, place.clock.boot = timedelta(0), "two"
    place.sync()
    place.pass_hours(0.5)
    found = place.handle().deployment()
    assert found is not None and found.spent_usd == 12 and len(place.host.books.up) == 1
    place.pass_hours(0.5)
    place.sync()
    assert place.host.books.up == {}


def test_after_a_start_of_the_machine_the_time_that_it_was_off_counts(place: Place) -> None:
    place.deploy(max_hours=2)
    place.pass_hours(1)
    place.clock.boot = "two"
    place.clock.off, place.clock.seconds = timedelta(hours=1), 0.0  # uptime begins anew
    found = place.handle().deployment()
    assert found is not None and found.spent_usd == 8
    place.pass_hours(1)
    place.sync()
    assert place.host.books.up == {}


def test_a_row_of_an_earlier_version_counts_by_the_wall_clock(place: Place) -> None:
    up = place.deploy(max_hours=2)
    table = "deployments"
    with place.store.database.writing() as connection:
        old = msgspec.json.decode(up.to_json()) | {"age": None}
        connection.exec_driver_sql(
            f"UPDATE {table} SET record = '{msgspec.json.encode(old).decode()}' WHERE id = '{up.id}'"
        )
    place.pass_hours(1)
    found = place.handle().deployment()
    assert found is not None and found.record.age is None and found.spent_usd == 8
    place.sync()
    place.pass_hours(1)
    place.sync()
    assert place.host.books.up == {}


# -- ends --------------------------------------------------------------------------------------------------


def test_one_that_was_never_made_costs_nothing_once_that_is_certain(place: Place) -> None:
    def dies(point: str) -> None:
        if point == "after-creating":
            raise Killed

    with pytest.raises(Killed):
        Deployer(place.store, place.host, TIMING, dies).deploy(place.runs[0], DeployTerms())
    place.pass_hours(0.001)
    ended = place.handle().undeploy(patience_s=0)
    assert ended is not None and ended.state is DeploymentState.ENDING
    assert ended.record.host_id is None and ended.settles_in_s > 0
    place.pass_hours(1)
    ended = place.handle().undeploy(patience_s=0)
    assert ended is not None and (ended.state, ended.spent_usd) == (DeploymentState.ENDED, 0)
    assert place.total() == Spending()


def test_one_in_a_lost_account_is_given_up_with_what_it_has_cost(place: Place) -> None:
    up = place.deploy(max_hours=4)
    place.pass_hours(1)
    with pytest.raises(UsageError, match="your key can still manage the deployment"):
        place.handle().abandon("we are done")
    mine, place.host = place.host, PricedHost(place.host.folder, place.host.books, "two")
    assert len(place.sync().failures) == 1
    with pytest.raises(OtherAccount) as told:
        place.handle().undeploy()
    assert "orchestrate abandon" in str(told.value.fix)
    run = place.handle().abandon("the account was closed")
    assert run.status is JobStatus.SUCCEEDED and run.abandoned is None, "the run has ended, and is known"
    place.pass_hours(10)
    [given_up] = [one.record for one in place.handle().deployments()]
    assert (given_up.state, given_up.cause) == (DeploymentState.ABANDONED, "the account was closed")
    assert place.total() == Spending(spent_usd=Decimal(8))
    assert place.sync().failures == [] and len(place.host.books.up) == 1
    place.host = mine
    again = Deployer(place.store, mine, TIMING).poll(given_up)
    assert (again.id, again.state, place.handle().deployment().spent_usd) == (up.id, DeploymentState.UP, 88)  # type: ignore[union-attr]


@pytest.mark.parametrize("by", ["undeploy", "deploy", "recover"])
def test_one_that_was_given_up_and_went_on_is_counted_from_then(place: Place, by: str) -> None:
    place.budget = None
    up = place.deploy(max_hours=4)
    place.pass_hours(1)
    mine, place.host = place.host, PricedHost(place.host.folder, place.host.books, "two")
    place.handle().abandon("the account was closed")
    place.pass_hours(10)
    place.host = mine
    if by == "undeploy":
        assert place.handle().undeploy() is not None
    elif by == "deploy":
        assert place.deploy(max_hours=20).id == up.id
    else:
        adopt(place.store, mine)
    [one] = place.handle().deployments()
    assert (one.id, one.spent_usd) == (up.id, 88)


def test_a_run_that_was_refused_has_nothing_up_and_says_so(place: Place) -> None:
    refused = msgspec.structs.replace(
        place.runs[0], id="run-000000000009", ref="orc-000000000009", job_id=None, phase=SubmitPhase.REFUSED
    )
    place.store.runs.restore(refused)
    place.runs.append(refused)
    with pytest.raises(OrchestrateError, match="has no job"):
        place.handle(2).undeploy()
