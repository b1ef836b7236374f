"""What processes that have ended left held: what was certainly not sent is released, the rest counts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.faults.paid.test_ledger import Money, Moved
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.submitting import Killed, submit

from orchestrate.core.files import locked
from orchestrate.costing import Spending
from orchestrate.errors import OrchestrateError, OverBudget
from orchestrate.paid.journal import lock_of
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.runs.syncing.leftovers import unsent
from orchestrate.runs.syncing.sweep import sync
from orchestrate.settings import config
from orchestrate.setup import doctor
from orchestrate.spec import JobSpec
from orchestrate.store.store import Store, Timing
from orchestrate.types import JobStatus, Quote, SubmitPhase

SPEC = JobSpec(model="m", train="rows.jsonl")
DATA: Any = Paper()
QUOTE = Quote(provider="paper", model="m", high_usd=Decimal(4))
TIMING = Timing(send_limit_s=5.0, requests=1, margin_s=30.0)
LATER = 60.0
BUDGET = Decimal(5)


@dataclass
class Shelf:
    store: Store
    clock: Moved
    host: PaperHost

    def submit(self, point: str = "", budget_usd: Decimal = BUDGET) -> None:
        def reached(here: str) -> None:
            if here == point:
                raise Killed

        with contextlib.suppress(Killed):
            submit(
                self.store,
                self.host,
                SPEC,
                DATA,
                quote=QUOTE,
                budget_usd=budget_usd,
                timing=TIMING,
                reached=reached,
            )

    def sync(self) -> Any:
        return sync(self.store, lambda _: self.host, timing=TIMING)

    @property
    def held(self) -> Decimal:
        return self.store.ledger.spending().committed_usd


@pytest.fixture
def shelf(store_url: str, tmp_path: Path) -> Iterator[Shelf]:
    clock = Moved()
    with Store.open(store_url, clock=clock) as store:
        yield Shelf(store, clock, PaperHost(tmp_path / "host", timeout_s=1.0))


@pytest.mark.parametrize("point", ["after-intent", "after-upload", "after-uploaded"])
def test_a_run_that_was_never_sent_is_released_and_held_again_before_it_is(shelf: Shelf, point: str) -> None:
    shelf.submit(point)
    [left] = unsent(shelf.store)
    assert (shelf.held, shelf.sync().released) == (4, []), "whoever made it may be at it yet"
    shelf.clock.seconds += LATER
    assert (shelf.sync().released, shelf.held) == ([left.id], 0)
    assert (shelf.sync().released, unsent(shelf.store)) == ([], [])
    shelf.submit()
    with pytest.raises(OverBudget):
        Submitter(shelf.store, shelf.host, TIMING, budget_usd=BUDGET).resume(left, DATA)
    assert (shelf.host.posts(), shelf.store.runs.get(left.id).status) == (1, JobStatus.SUBMITTING)
    run = Submitter(shelf.store, shelf.host, TIMING, budget_usd=Decimal(8)).resume(left, DATA)
    assert (run.phase, shelf.held, shelf.host.posts()) == (SubmitPhase.SUBMITTED, 8, 2)
    assert not shelf.store.ledger.recount()


@pytest.mark.parametrize("point", ["after-submitting", "after-fence", "after-post"])
def test_what_may_have_been_sent_stays_held_until_its_host_shows_that_it_was_not(
    shelf: Shelf, point: str
) -> None:
    shelf.submit(point)
    shelf.host.faults["down"] = True
    for _ in range(2):
        assert (shelf.sync().released, shelf.held) == ([], 4)
        shelf.clock.seconds += LATER
    shelf.host.faults.clear()
    for _ in range(3):
        shelf.sync()
        shelf.clock.seconds += LATER
    assert shelf.held == 4 * len(shelf.host.jobs())


def test_a_process_that_slept_finds_that_its_run_holds_nothing(shelf: Shelf) -> None:
    """Its hold was released meanwhile, and the budget taken by another run: it sends nothing."""
    slept: list[Any] = []

    def reached(here: str) -> None:
        if here == "after-uploaded" and not slept:
            shelf.clock.seconds += 10_000
            shelf.sync()
            shelf.clock.seconds += LATER
            slept.append(shelf.sync().released)
            shelf.submit()

    with pytest.raises(OrchestrateError):
        submit(
            shelf.store,
            shelf.host,
            SPEC,
            DATA,
            quote=QUOTE,
            budget_usd=BUDGET,
            timing=TIMING,
            reached=reached,
        )
    assert slept[0] and (shelf.host.posts(), shelf.held) == (1, 4)


@pytest.mark.parametrize(
    ("event", "spent"), [("killed unsent", "0"), ("killed before", "2"), ("killed", "2"), ("lost", "2")]
)
def test_answers_of_a_killed_command_are_settled_by_their_journal(event: str, spent: str) -> None:
    money = Money()
    store = money.stores[0]
    money.ask(0, "evaluation", 1, [event], None)
    [log] = (money.folder / "answers").glob("*.jsonl")
    with locked(lock_of(log)):
        sync(store, lambda _: None)  # type: ignore[arg-type, return-value]
        assert store.ledger.spending().total_usd == 2, "a command is at it"
    found = sync(store, lambda _: None)  # type: ignore[arg-type, return-value]
    assert (found.settled, store.ledger.spending()) == (event != "lost", Spending(spent_usd=Decimal(spent)))
    money.teardown()


@pytest.mark.parametrize("event", ["killed", "killed unsent"])
def test_the_journal_of_another_machine_of_the_same_name_proves_nothing(event: str) -> None:
    """Containers on the host's network, and many laptops, have one name; each has its file at that path."""
    money = Money()
    store, folder, theirs = money.stores[0], money.folder / "answers", money.folder / "theirs"
    money.ask(0, "evaluation", 1, ["answer"], None)
    folder.rename(theirs)
    money.number = 1
    money.ask(0, "evaluation", 1, [event], None)
    folder.rename(money.folder / "ours")
    theirs.rename(folder)
    sync(store, lambda _: None)  # type: ignore[arg-type, return-value]
    assert store.ledger.spending() == Spending(spent_usd=Decimal(3))
    money.teardown()


@pytest.mark.parametrize("harm", ["a copy", "another start"])
def test_a_copy_of_a_journal_and_one_of_before_the_machine_started_prove_nothing(harm: str) -> None:
    money = Money()
    store = money.stores[0]
    money.ask(0, "evaluation", 1, ["killed unsent"], None)
    [log] = (money.folder / "answers").glob("*.jsonl")
    if harm == "a copy":
        shutil.copy(log, money.folder / "copy")
        (money.folder / "copy").replace(log)
    else:
        money.clock.boot = "two"
    sync(store, lambda _: None)  # type: ignore[arg-type, return-value]
    assert store.ledger.spending() == Spending(spent_usd=Decimal(2))
    money.teardown()


@pytest.mark.parametrize("harm", ["removed", "an older copy", "torn"])
def test_a_journal_that_is_not_whole_proves_nothing(harm: str) -> None:
    money = Money()
    store = money.stores[0]
    money.ask(0, "evaluation", 1, ["answer"], None)
    [log] = (money.folder / "answers").glob("*.jsonl")
    older = log.read_bytes()
    money.number = 1
    money.ask(0, "evaluation", 1, ["answer"], None)
    money.number = 2
    money.ask(0, "evaluation", 1, ["killed unsent"], None)
    if harm == "removed":
        log.unlink()
    else:
        log.write_bytes(older if harm == "an older copy" else log.read_bytes() + b'{"type":"sent","que')
    sync(store, lambda _: None)  # type: ignore[arg-type, return-value]
    assert store.ledger.spending().total_usd == (2 if harm == "torn" else 4)
    money.ask(1, "evaluation", 0, [], None)
    assert store.ledger.spending() == Spending(spent_usd=Decimal(2 if harm == "torn" else 4))
    money.teardown()


def test_doctor_says_what_is_left_and_what_to_do(shelf: Shelf, tmp_path: Path) -> None:
    shelf.submit("after-intent")
    settings = config.load(env={}, cwd=tmp_path, home=tmp_path / "home")
    ws: Any = SimpleNamespace(settings=settings, store=shelf.store)
    [check] = [one for one in doctor.settings(ws) if one.check == "held"]
    assert check.ok is False and "$4.00" in check.detail and "sync" in str(check.fix)
    shelf.sync()
    shelf.clock.seconds += LATER
    shelf.sync()
    assert [one for one in doctor.settings(ws) if one.check == "held"] == []
