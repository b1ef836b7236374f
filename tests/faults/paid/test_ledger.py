"""One budget, and everything that can cost at random against it: runs, deployments and changes of one,
answers, trials of a sweep; with answers that are lost, processes that are killed, clocks, and two processes
on one database. The judge is what the hosts bill: the ledger counts no less, and no more than agreed."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import event
from tests.faults.submitting import Killed

from orchestrate.costing import Spending
from orchestrate.errors import HostUnavailable, InvalidRequest, OrchestrateError, OverBudget
from orchestrate.paid.journal import Answer, AnswerLog, RequestBudget
from orchestrate.paid.limits import UnknownPrice
from orchestrate.paid.paid_requests import Asking, Question, Respondent
from orchestrate.spec import JobSpec
from orchestrate.store import Clock, Uptime, deployments, schema, transitions
from orchestrate.store.ledger import AnswerAccount
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import (
    Bill,
    Deployment,
    DeploymentState,
    JobError,
    JobStatus,
    Message,
    Quote,
    Run,
    Search,
    SubmitPhase,
    Trial,
    TrialState,
)

BUDGET, SWEEP = Decimal(40), Decimal(12)
HOURLY = Decimal(2)
SPEC = JobSpec(model="m", train="rows.jsonl")
MEMORY = Path("/dev/shm")
EVENTS = ("answer", "answer", "lost", "down", "refused", "killed", "killed before", "killed unsent")
WHO = st.integers(0, 1)
USD = st.sampled_from([Decimal(n) for n in ("0", "0.5", "3", "11", "60")])


@dataclass
class Moved(Clock):
    """The machine's time goes on; its wall clock may be set."""

    seconds: float = 0.0
    off: timedelta = timedelta(0)
    boot: str = "one"

    def now(self) -> datetime:
        return datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=self.seconds) + self.off

    def uptime(self) -> Uptime:
        return Uptime(self.boot, self.seconds)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Host:
    """What is billed in truth."""

    answers: Decimal = Decimal(0)
    runs: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    """The most that each can still be billed, or what it was."""
    up_since: dict[str, float] = field(default_factory=dict[str, float])
    hours: Decimal = Decimal(0)


class Money(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.clock, self.host, self.number = Moved(), Host(), 0
        url = self.database() or f"sqlite:///{self.folder}/runs.sqlite3"
        self.stores = [Store.open(url, clock=self.clock) for _ in range(2)]
        self.search = Search(
            id="sweep-1",
            created_at=self.clock.now(),
            spec={},
            providers=("paper",),
            choices={},
            ranges={},
            sampler="random",
            trials=99,
            max_cost_usd=SWEEP,
        )
        self.stores[0].searches.add(self.search)

    @staticmethod
    def database() -> str | None:
        """Of another kind than SQLite."""
        return None

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- runs, trials, resumes -----------------------------------------------------------------------------

    def _create(self, store: Store, usd: Decimal, most: Decimal | None, **values: Any) -> Run | None:
        priced = usd < 60 or self.number % 2
        quote = Quote(
            provider="paper", model="m", high_usd=usd, unavailable=None if priced else "no rate for it"
        )
        limits = values.pop("limits", ())
        intent = Intent(
            spec=SPEC,
            provider="paper",
            dataset_digest="d",
            host="here",
            quote=quote,
            allowed_usd=most,
            **values,
        )
        with contextlib.suppress(OverBudget):
            run = store.runs.create(intent, budget_usd=BUDGET, limits=limits)
            assert priced, "a run whose price nobody knows was let in"
            return run
        return None

    @rule(who=WHO, usd=USD, most=st.none() | USD, sent=st.sampled_from(("made", "lost", "refused", "killed")))
    def submit(self, who: int, usd: Decimal, most: Decimal | None, sent: str) -> None:
        self.number += 1
        if (run := self._create(self.stores[who], usd, most)) is not None:
            self._send(self.stores[1 - who], run, max(usd, most or usd), sent)

    @rule(who=WHO, usd=USD, killed=st.booleans())
    def try_settings(self, who: int, usd: Decimal, killed: bool) -> None:
        """A trial; `killed` before it is written down which run is its."""
        self.number += 1
        store = self.stores[who]
        trial = Trial(number=self.number, settings={}, high_usd=usd)
        limit = store.searches.limit(self.search, trial)
        assert limit is not None
        key = f"{self.search.id}-{trial.number}"
        store.searches.propose(self.search.id, trial)
        run = self._create(store, usd, None, limits=[limit], idempotency_key=key)
        if run is None:
            failed = {"state": TrialState.FAILED.value}
            store.searches.change(
                self.search.id, trial.number, lambda t: Trial.from_dict(t.to_dict() | failed)
            )
            return
        self._send(store, run, usd, "made")
        if not killed:
            store.searches.change(
                self.search.id, trial.number, lambda t: Trial.from_dict(t.to_dict() | {"run_id": run.id})
            )

    def _send(self, store: Store, run: Run, usd: Decimal, sent: str) -> None:
        now = self.clock.now()
        store.runs.apply(run.id, lambda r: transitions.uploaded(r, now))
        with store.leases.hold(run.id, 60.0) as lease:
            store.runs.begin(run.id, lease)
        if sent == "refused":
            error = JobError(message="no")
            store.runs.apply(run.id, lambda r: transitions.refused(r, error, now))
            return
        self.host.runs[run.id] = usd  # of a lost answer and of a killed process too
        if sent == "lost":
            store.runs.apply(run.id, lambda r: transitions.outcome_unknown(r, now))

    @rule(who=WHO, which=st.integers(0, 9), usd=USD)
    def give_more(self, who: int, which: int, usd: Decimal) -> None:
        """As `resume --max-cost`."""
        store, open_ = self.stores[who], self._open()
        if not open_:
            return
        run = open_[which % len(open_)]
        found = store.searches.of_run(run)
        limit = None if found is None else store.searches.limit(*found)
        quoted = run.quote.held_usd if run.quote else Decimal(0)
        if (most := max(quoted, usd)) < self.host.runs[run.id]:
            self.host.runs[run.id] = most  # a worker hears of a lower limit before it is written down
        with contextlib.suppress(OverBudget):
            store.runs.commit(
                run.id,
                usd,
                lambda r: Run.from_dict(r.to_dict() | {"allowed_usd": str(usd)}),
                BUDGET,
                limits=() if limit is None else [limit],
            )
            self.host.runs[run.id] = most

    @rule(who=WHO, which=st.integers(0, 9), share=st.sampled_from((0, 1, 2)), final=st.booleans())
    def bill(self, who: int, which: int, share: int, final: bool) -> None:
        """A run ends and is billed at most what it may cost, or ends and its bill does not come yet."""
        if not (open_ := self._open()):
            return
        store, run = self.stores[who], open_[which % len(open_)]
        usd = self.host.runs.get(run.id, Decimal(0)) * share / 2
        self.host.runs[run.id] = usd
        ended = {"status": JobStatus.SUCCEEDED.value, "phase": SubmitPhase.SUBMITTED.value}
        store.runs.apply(run.id, lambda r: Run.from_dict(r.to_dict() | ended))
        if final:
            store.runs.set_bills({run.id: Bill(usd=usd, origin="host", final=True)})

    def _open(self) -> list[Run]:
        return [run for run in self.stores[0].runs.matching(active=True) if run.id in self.host.runs]

    # -- deployments ---------------------------------------------------------------------------------------

    @rule(
        who=WHO,
        hours=st.sampled_from((None, 1, 4, 30)),
        sent=st.sampled_from(("up", "lost", "never", "killed")),
    )
    def deploy(self, who: int, hours: int | None, sent: str) -> None:
        self.number += 1
        store, now = self.stores[who], self.clock.now()
        made = Deployment(
            id=store.deployments.new_id(),
            run_id=f"run-{self.number}",
            provider="paper",
            host="here",
            account=None,
            job_id=f"job-{self.number}",
            model="m",
            state=DeploymentState.INTENT,
            usd_per_hour=HOURLY,
            max_hours=None if hours is None else Decimal(hours),
            created_at=now,
            updated_at=now,
        )
        with contextlib.suppress(OverBudget):
            store.deployments.add(made, budget_usd=BUDGET)
            store.deployments.apply(made.id, deployments.creating, new_attempt=True)
            if sent == "never":
                store.deployments.apply(made.id, lambda d, at: deployments.never_made(d, "no", at))
                return
            self.host.up_since[made.id] = self.clock.seconds
            if sent == "lost":
                store.deployments.apply(made.id, lambda d, at: deployments.outcome_unknown(d, "lost", at))

    @rule(who=WHO, which=st.integers(0, 9), hours=st.sampled_from((1, 2, 9, 500)))
    def change(self, who: int, which: int, hours: int) -> None:
        """`deploy` again with other limits."""
        if not self.host.up_since:
            return
        id = sorted(self.host.up_since)[which % len(self.host.up_since)]
        more = {"max_hours": str(hours)}
        with contextlib.suppress(OverBudget):
            self.stores[who].deployments.apply(
                id, lambda d, at: Deployment.from_dict(d.to_dict() | more), budget_usd=BUDGET
            )

    @rule(who=WHO, which=st.integers(0, 9))
    def undeploy(self, who: int, which: int) -> None:
        if self.host.up_since:
            self._end(self.stores[who], sorted(self.host.up_since)[which % len(self.host.up_since)])

    def _end(self, store: Store, id: str) -> None:
        store.deployments.apply(id, lambda d, at: deployments.ending(d, "asked to", at))
        since = self.host.up_since.pop(id)
        self.host.hours += Decimal(str(self.clock.seconds - since)) / 3600
        # A list shows that it is gone: what was counted stays counted.
        store.deployments.apply(
            id, lambda d, at: deployments._moved(d, at, DeploymentState.ENDED, bills=False, ended_at=at)
        )

    @rule(seconds=st.sampled_from((1.0, 600.0, 1800.0)))
    def time_passes(self, seconds: float) -> None:
        """While somebody watches, who ends what has come to its limit."""
        self.clock.seconds += seconds
        self._watch()

    def _watch(self) -> None:
        from orchestrate.costing.expenses import limit_reached

        for id in list(self.host.up_since):
            one = self.stores[0].deployments.get(id)
            if limit_reached(one, self.stores[0].deployments.time_of(one)):
                self._end(self.stores[0], id)

    @rule(days=st.sampled_from((-40, 0, 3)))
    def set_the_clock(self, days: int) -> None:
        self.clock.off = timedelta(days=days)

    # -- answers -------------------------------------------------------------------------------------------

    @rule(
        who=WHO,
        purpose=st.sampled_from(("evaluation", "judging", "recording", "generation")),
        rows=st.integers(1, 3),
        events=st.lists(
            st.sampled_from(
                ("answer", "answer", "lost", "down", "refused", "killed", "killed before", "killed unsent")
            ),
            min_size=1,
            max_size=4,
        ),
        limit=st.none() | st.just(Decimal(6)),
    )
    def ask(self, who: int, purpose: str, rows: int, events: Sequence[str], limit: Decimal | None) -> None:
        self._ask(self.stores[who], purpose, rows, list(events), limit)

    def _ask(
        self, store: Store, purpose: str, rows: int, events: Sequence[str], limit: Decimal | None
    ) -> None:
        sent = 0
        unsent = "killed unsent" in events
        account: Any = Mortal(AnswerAccount(store.database, purpose, BUDGET), dies_after_hold=unsent)

        def answer(questions: Sequence[Question]) -> list[Answer]:
            nonlocal sent
            event = events[sent % len(events)] if events else "answer"
            sent += 1
            if event == "refused":
                raise InvalidRequest("paper", "no", status=400)
            if event == "killed before":
                account.die()
            if event == "down":
                self.host.answers += 2
                raise HostUnavailable("paper", "504", status=504)
            self.host.answers += 2 if event != "answer" else 1
            if event == "lost":
                raise HostUnavailable("paper", "reset")
            if event == "killed":
                account.die()
            return [Answer(text="yes", prompt_tokens=1, completion_tokens=0)]

        respondent = Respondent(
            name="paper/m",
            identity={"purpose": purpose},
            ask=answer,
            price=lambda into, out: Decimal(1 if into == 1 else 2),
            backend="paper",
        )
        asking = Asking(
            self.folder / "answers", RequestBudget(limit, scope=purpose, account=account), skip_failed=True
        )
        questions = [
            Question(messages=(Message(role="user", content=f"row {self.number} {i} and so on"),))
            for i in range(rows)
        ]
        with contextlib.suppress(OrchestrateError, Killed):
            asking.ask(respondent, questions)

    # -- what always holds ---------------------------------------------------------------------------------

    @property
    def billed(self) -> Decimal:
        """All that is billed by now, or may still be for what is under way."""
        up = sum((self.clock.seconds - since for since in self.host.up_since.values()), 0.0)
        hours = self.host.hours + Decimal(str(up)) / 3600
        return self.host.answers + sum(self.host.runs.values(), Decimal(0)) + hours * HOURLY

    @invariant()
    def all_that_is_billed_is_counted(self) -> None:
        told = self.stores[0].ledger.spending()
        assert told == self.stores[1].ledger.spending()
        assert told.total_usd >= self.billed - Decimal("0.01"), (told, self.billed, self.host)

    @invariant()
    def what_was_agreed_holds(self) -> None:
        """A half hour between two looks may pass a deployment's limit, and one without a limit never ends."""
        late = Decimal("0.5") * HOURLY * self.number
        endless = any(d.max_hours is None for d in self.stores[0].deployments.matching())
        if not endless:
            assert self.stores[0].ledger.spending().total_usd <= BUDGET + late
        store = self.stores[0]
        assert store.searches.spent_usd(self.search.id) <= SWEEP

    @invariant()
    def the_kept_sums_are_those_of_all_rows(self) -> None:
        assert not self.stores[0].ledger.recount()

    @rule()
    def everything_ends(self) -> None:
        """Then nothing is held any more but what nobody has billed yet."""
        store = self.stores[0]
        for id in list(self.host.up_since):
            self._end(store, id)
        for run in store.runs.matching():
            if run.phase is not SubmitPhase.REFUSED and run.bill is None:
                usd = self.host.runs.get(run.id, Decimal(0))
                ended = {"status": JobStatus.SUCCEEDED.value, "phase": SubmitPhase.SUBMITTED.value}
                store.runs.apply(run.id, lambda r, ended=ended: Run.from_dict(r.to_dict() | ended))
                store.runs.set_bills({run.id: Bill(usd=usd, origin="host", final=True)})
                self.host.runs[run.id] = usd
        for purpose in ("evaluation", "judging", "recording", "generation"):
            self._ask(store, purpose, 0, (), None)  # whoever opens the log settles what was left of it
        told = store.ledger.spending()
        assert told.committed_usd == 0, told


class Mortal:
    """The ledger of a process that may end: then it neither settles nor releases anything."""

    def __init__(self, account: AnswerAccount, *, dies_after_hold: bool) -> None:
        self.account, self.dies_after_hold, self.dead = account, dies_after_hold, False

    def die(self) -> None:
        self.dead = True
        raise Killed

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            if self.dead:
                raise Killed
            done = getattr(self.account, name)(*given, **more)
            if name == "hold" and self.dies_after_hold:
                self.die()
            return done

        return call


def ask(store: Store, folder: Path, **values: Any) -> list[Answer]:
    """One question, where nothing may be spent."""

    def answer(questions: Sequence[Question]) -> list[Answer]:
        return [Answer(text="yes") for _ in questions]

    account = AnswerAccount(store.database, "evaluation", Decimal(0))
    respondent = Respondent(
        name="paper/m",
        identity={name: str(value) for name, value in values.items() if name != "price"},
        ask=answer,
        **values,
    )
    question = Question(messages=(Message(role="user", content="?"),))
    return Asking(folder / "answers", RequestBudget(account=account)).ask(respondent, [question])


def test_a_budget_lets_in_what_is_free_and_nothing_whose_price_is_unknown(
    store: Store, tmp_path: Path
) -> None:
    def price(prompt: int, completion: int) -> Decimal:
        return Decimal(1)

    assert ask(store, tmp_path, own=True), "on this machine"
    assert ask(store, tmp_path, sandbox=True, own=True, price=price), "play money"
    with pytest.raises(UnknownPrice):
        ask(store, tmp_path)
    with pytest.raises(OverBudget, match="budget"):
        ask(store, tmp_path, price=price)
    assert store.ledger.answers() == []


@pytest.mark.parametrize(
    ("event", "left", "spent"),
    [
        ("killed", "2", "3"),  # sent, and its answer never came: billed in full, then asked once more
        ("killed before", "2", "3"),
        ("killed unsent", "2", "1"),  # held, and its journal proves that it was not sent
        ("lost", "0", "3"),
        ("refused", "0", "1"),
    ],
)
def test_the_next_command_settles_what_a_killed_one_left(event: str, left: str, spent: str) -> None:
    money = Money()
    store = money.stores[0]
    money.ask(0, "evaluation", 1, [event], None)
    assert store.ledger.spending().committed_usd == Decimal(left)
    money.ask(1, "evaluation", 1, ["answer"], None)
    assert store.ledger.spending() == Spending(spent_usd=Decimal(spent))
    money.teardown()


def test_a_restored_store_counts_what_the_journals_know_once(monkeypatch: pytest.MonkeyPatch) -> None:
    money = Money()
    database, backup = money.folder / "runs.sqlite3", money.folder / "backup.sqlite3"
    money.ask(0, "evaluation", 1, ["answer"], None)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", [str(backup)])
    money.number, money.clock.seconds = 1, timedelta(days=40).total_seconds()
    money.ask(0, "evaluation", 3, ["answer", "lost", "refused"], None)
    known = money.stores[0].ledger.spending()
    assert known.total_usd == money.host.answers
    for store in money.stores:
        store.close()
    for part in money.folder.glob("runs.sqlite3*"):
        part.unlink()
    backup.rename(database)
    money.stores = [Store.open(f"sqlite:///{database}", clock=money.clock) for _ in range(2)]
    restored = money.stores[0].ledger.spending()
    assert restored.spent_usd == 1

    settle: Callable[..., None] = AnswerAccount._settle
    settled: list[str] = []

    def killed_at_the_second(account: AnswerAccount, connection: Any, id: str, *given: Any) -> None:
        settle(account, connection, id, *given)
        settled.append(id)
        if len(settled) == 2:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(AnswerAccount, "_settle", killed_at_the_second)
        money._ask(money.stores[0], "evaluation", 0, (), None)
    assert len(settled) == 2
    assert money.stores[1].ledger.spending() == restored, "all of it at once, or nothing"

    [path] = (money.folder / "answers").glob("*.jsonl")
    log = AnswerLog(path)
    both = [AnswerAccount(store.database, "evaluation", BUDGET) for store in money.stores]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: one.catch_up("paper", path, log.sends), both))
    assert money.stores[0].ledger.spending() == known
    for who in (0, 1, 0):
        money._ask(money.stores[who], "evaluation", 0, (), None)
    assert money.stores[0].ledger.spending() == known
    money.teardown()


def test_what_a_restored_store_forgot_is_counted_before_more_is_reserved(tmp_path: Path) -> None:
    """In the month of the answer; a store that is new counts all that its journals were told."""
    money = Money()
    money.ask(0, "evaluation", 3, ["answer"], None)
    [path] = (money.folder / "answers").glob("*.jsonl")
    [asked] = money.stores[0].ledger.answers()
    with Store.open(f"sqlite:///{tmp_path}/new.sqlite3", clock=money.clock) as store:
        account = AnswerAccount(store.database, "evaluation", Decimal("4.5"))
        respondent = Respondent(
            name="paper/m",
            identity={"purpose": "evaluation"},
            ask=lambda questions: [Answer(text="yes", usd=Decimal(1)) for _ in questions],
            price=lambda into, out: Decimal(2),
            backend="paper",
        )
        question = Question(messages=(Message(role="user", content="another"),))
        asking = Asking(path.parent, RequestBudget(account=account))
        with pytest.raises(OverBudget):
            asking.ask(respondent, [question])
        [found] = store.ledger.answers()
        real_month = f"{datetime.now(UTC):%Y-%m}"
        assert found == asked._replace(month=real_month)
    money.teardown()


def test_a_clock_that_jumps_during_an_answer_changes_no_total(tmp_path: Path) -> None:
    """Unless its journal is gone: then nobody can say more about it, and it counts in full."""
    clock = Moved()
    logs = [tmp_path / "kept.jsonl", tmp_path / "lost.jsonl", tmp_path / "other.jsonl"]
    for log in logs:
        log.touch()
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3", clock=clock) as store:
        account = AnswerAccount(store.database, "evaluation", Decimal(100))
        kept, lost = (
            account.hold("paper", usd, log) for usd, log in zip((Decimal(4), Decimal(8)), logs, strict=False)
        )
        logs[1].unlink()
        clock.off = timedelta(days=31)
        account.catch_up("paper", logs[2], {})
        clock.off = timedelta(0)
        for id in (kept, lost):
            account.settle(id, Decimal("0.01"))
        assert store.ledger.spending() == Spending(spent_usd=Decimal("8.01"))


def test_no_answer_adds_up_all_runs(store: Store, tmp_path: Path) -> None:
    """However many there are: what they take is kept. What something else changed is found and mended."""
    quote = Quote(provider="paper", model="m", high_usd=Decimal("0.1"))
    for _ in range(3):
        store.runs.create(Intent(spec=SPEC, provider="paper", dataset_digest="d", host="here", quote=quote))
    account, said = AnswerAccount(store.database, "evaluation", Decimal("0.35")), list[str]()

    def heard(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        said.append(statement)

    event.listen(store.database.engine, "before_cursor_execute", heard)
    event.listen(store.database._writer, "before_cursor_execute", heard)
    with pytest.raises(OverBudget):
        account.hold("paper", Decimal("0.06"), tmp_path / "log.jsonl")
    account.settle(account.hold("paper", Decimal("0.05"), tmp_path / "log.jsonl"), Decimal("0.02"))
    assert said and not [statement for statement in said if "FROM runs" in statement]
    assert store.ledger.spending() == Spending(spent_usd=Decimal("0.02"), committed_usd=Decimal("0.3"))
    with store.database.writing() as connection:
        connection.execute(schema.runs.update().values(committed_usd="0.2"))
    assert (store.ledger.recount(), store.ledger.recount()) == (True, False)
    assert store.ledger.spending().committed_usd == Decimal("0.6")


BRIEF = settings(
    max_examples=10, stateful_step_count=16, deadline=None, derandomize=True, phases=[Phase.generate]
)
LONG = settings(max_examples=75, stateful_step_count=40, deadline=None)


def test_nothing_is_spent_that_was_not_agreed_to() -> None:
    run_state_machine_as_test(Money, settings=BRIEF)


@pytest.mark.slow
def test_nothing_is_spent_that_was_not_agreed_to_for_long() -> None:
    run_state_machine_as_test(Money, settings=LONG)


@pytest.mark.slow
def test_nothing_is_spent_that_was_not_agreed_to_on_postgres(postgres: Any) -> None:
    class OnPostgres(Money):
        @staticmethod
        def database() -> str:
            return postgres.store()

    run_state_machine_as_test(OnPostgres, settings=settings(BRIEF, max_examples=12, stateful_step_count=25))


def test_a_deployment_that_ends_while_all_is_added_up_is_counted(store_url: str) -> None:
    with Store.open(store_url) as store, Store.open(store_url) as other:
        quote = Quote(provider="paper", model="m", high_usd=Decimal(1))
        store.runs.create(Intent(spec=SPEC, provider="paper", dataset_digest="d", host="here", quote=quote))
        at = store.clock.now()
        made = Deployment(
            id="dep-1", run_id="run-1", provider="paper", host="here", account="a", job_id="j", model="m",
            state=DeploymentState.UP, created_at=at, updated_at=at, billed_s=3600.0, usd_per_hour=HOURLY,
            max_hours=Decimal(1),
        )  # fmt: skip
        store.deployments.add(made)
        assert store.ledger.spending() == Spending(spent_usd=HOURLY, committed_usd=Decimal(1))
        ends = iter(["once"])

        def end(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "FROM kept_sums" in statement and next(ends, None):
                other.deployments.apply("dep-1", lambda d, at: deployments.abandoned(d, "gone", at))

        event.listen(store.database.engine, "after_cursor_execute", end)
        try:
            assert store.ledger.spending().spent_usd == HOURLY
        finally:
            event.remove(store.database.engine, "after_cursor_execute", end)
        assert store.ledger.spending().spent_usd == HOURLY


def test_sums_that_are_kept_are_exact(store: Store) -> None:
    """Hours of seconds have no end of digits: added one by one, taken out again and added anew, they come to
    the same."""
    bills = [Decimal(str(seconds)) / 3600 * Decimal("6.49") for seconds in (1.37, 86_399.731, 59_999.12, 7.0)]
    for turn in range(8):
        run = store.runs.create(
            Intent(spec=SPEC, provider="paper", dataset_digest=str(turn), host="here", quote=None)
        )
        for usd in (*bills, bills[turn % 4]):
            store.runs.set_bills({run.id: Bill(usd=usd, origin="host", final=False)})
            assert not store.ledger.recount()


def test_a_trial_that_ended_counts_as_its_raised_limit_until_it_is_billed() -> None:
    machine = Money()
    try:
        machine.try_settings(0, Decimal("0.5"), killed=True)
        machine.give_more(0, 0, Decimal(3))
        machine.bill(0, 0, 2, final=False)
        assert machine.stores[0].searches.spent_usd(machine.search.id) == Decimal(3)
    finally:
        machine.teardown()
