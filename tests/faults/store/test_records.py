"""The store's promises, the same on SQLite and Postgres."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from sqlalchemy import event, select

from orchestrate.costing import Spending
from orchestrate.errors import OverBudget, UsageError
from orchestrate.spec import JobSpec
from orchestrate.store import Clock, Uptime, schema, transitions
from orchestrate.store.database import LeaseHeld, LeaseLost
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import (
    Bill,
    Checkpoint,
    Contender,
    Evaluation,
    Event,
    Job,
    JobError,
    JobHandle,
    JobStatus,
    Measure,
    MetricPoint,
    MetricUsed,
    Quote,
    RemoteDataset,
    Run,
    Score,
    SubmitPhase,
)

SPEC = JobSpec(model="m", train="rows.jsonl", suffix="orders", tags={"team": "a"}, epochs=2)


class MovedClock(Clock):
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 25, 12, tzinfo=UTC)
        self.up = Uptime("this-start", 1000.0)

    def now(self) -> datetime:
        return self.at

    def uptime(self) -> Uptime:
        return self.up

    def passes(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.up = Uptime(self.up.boot, self.up.seconds + seconds)


@pytest.fixture
def clocked(store_url: str) -> Iterator[tuple[Store, MovedClock]]:
    clock = MovedClock()
    with Store.open(store_url, clock=clock) as opened:
        yield opened, clock


def make(store: Store, provider: str = "paper", spec: JobSpec = SPEC, **values: Any) -> Run:
    budget_usd = values.pop("budget_usd", None)
    intent = Intent(spec=spec, provider=provider, dataset_digest="d" * 64, host="here", **values)
    return store.runs.create(intent, budget_usd=budget_usd)


def has_job(store: Store, run: Run, job_id: str) -> Run:
    handle = JobHandle(provider=run.provider, job_id=job_id)
    return store.runs.apply(run.id, lambda r: transitions.submitted(r, handle, store.clock.now()))


def ends(store: Store, run: Run, status: JobStatus = JobStatus.SUCCEEDED) -> Run:
    job = Job(handle=run.handle, status=status, raw_status=status.value)
    return store.runs.apply(run.id, lambda r: transitions.observed(r, job, store.clock.now()))


def quoted(usd: str) -> Quote:
    return Quote(provider="paper", model="m", high_usd=Decimal(usd), expected_usd=Decimal(usd))


def test_a_run_comes_back_as_it_was_written_after_reopening(store_url: str) -> None:
    with Store.open(store_url) as store:
        run = make(store, quote=quoted("1.2345678901"), max_cost_usd=Decimal("2.50"))
    with Store.open(store_url) as store:
        again = store.runs.get(run.id)
    assert again == run
    assert JobSpec.parse(again.spec) == SPEC
    assert JobSpec.parse(again.spec).asked() == SPEC.asked()
    assert (again.phase, again.status) == (SubmitPhase.INTENT, JobStatus.SUBMITTING)


def test_each_column_that_is_named_like_a_field_holds_it(store: Store) -> None:
    run = make(store, account="acme", made_by="someone@here", idempotency_key="mine", max_cost_usd=Decimal(2))
    with store.database.reading() as connection:
        row = connection.execute(select(schema.runs)).mappings().one()
    record = json.loads(row["record"])
    names = {str(name) for name in row} & {*Run.__struct_fields__}
    assert names >= {"ref", "account", "made_by", "phase", "created_at", "idempotency_key"}
    for name in names - {"model"}:  # which a list may show shortened
        kept, value = row[name], record.get(name, getattr(run, name))
        if name.endswith("_at"):
            kept, value = datetime.fromisoformat(kept), datetime.fromisoformat(value)
        assert kept == value, name


def test_refs_and_ids_are_fit_for_every_host(store: Store) -> None:
    import re

    runs = [make(store) for _ in range(20)]
    assert len({run.id for run in runs}) == 20
    for run in runs:
        assert re.fullmatch(r"orc-[a-z0-9]{12}", run.ref)
        assert run.ref.removeprefix("orc-") == run.id.removeprefix("run-")
    milliseconds = [run.id[4:12] for run in runs]
    assert milliseconds == sorted(milliseconds), "ids sort by age"


def test_a_run_is_found_by_each_of_its_names(store: Store) -> None:
    old = has_job(store, make(store), "job-old")
    time.sleep(0.005)
    new = has_job(store, make(store), "job-new")
    for name in (
        new.id,
        new.ref,
        "job-new",
        new.id[:-1],
        new.id.removeprefix("run-"),
        new.id[-4:],
        "last",
        "orders",
    ):
        assert store.runs.get(name).id == new.id, name
    assert store.runs.get("job-old").id == old.id
    with pytest.raises(UsageError, match="unknown run 'nothing'"):
        store.runs.get("nothing")
    for long in ("a" * 100_000, f"{old.id}\0", "\ud800"):
        with pytest.raises(UsageError, match="unknown run") as raised:
            store.runs.get(long)
        assert len(raised.value.message) < 300
    with pytest.raises(UsageError, match="matches several"):
        store.runs.get(old.id[:6])
    assert store.runs.exists(old.ref)
    assert not store.runs.exists(old.id[:6])
    assert not store.runs.exists("%")


def test_runs_are_listed_newest_first_and_filtered(store: Store) -> None:
    a = ends(store, has_job(store, make(store, "one"), "j1"))
    time.sleep(0.002)
    b = make(store, "two", spec=JobSpec(model="m", train="rows.jsonl", tags={"team": "b"}))
    time.sleep(0.002)
    c = has_job(store, make(store, "one"), "j3")
    assert [r.id for r in store.runs.matching()] == [c.id, b.id, a.id]
    assert [r.id for r in store.runs.matching(limit=2)] == [c.id, b.id]
    assert [r.id for r in store.runs.matching(provider="one", active=True)] == [c.id]
    assert [r.id for r in store.runs.matching(active=True)] == [c.id, b.id]
    assert [r.id for r in store.runs.matching(status=JobStatus.SUCCEEDED)] == [a.id]
    assert [r.id for r in store.runs.matching(phase=[SubmitPhase.INTENT])] == [b.id]
    assert [r.id for r in store.runs.matching(tags={"team": "b"})] == [b.id]
    assert store.runs.open_providers() == ["one", "two"]
    store.runs.close(a.id)
    store.runs.close(c.id)
    assert store.runs.open_providers() == ["two"]


def test_transitions_are_appended_and_tell_the_story(store: Store) -> None:
    run = make(store)
    store.runs.apply(run.id, lambda r: transitions.uploaded(r, store.clock.now()))
    store.runs.apply(run.id, lambda r: transitions.uploaded(r, store.clock.now()))
    with store.leases.hold("run") as lease:
        store.runs.begin(run.id, lease)
    run = ends(store, has_job(store, run, "j1"))
    story = [(t.phase.value, t.status.value, t.attempt) for t in store.history.transitions(run.id)]
    assert story == [
        ("intent", "submitting", 0),
        ("uploaded", "submitting", 0),
        ("submitting", "submitting", 1),
        ("submitted", "submitting", 1),
        ("submitted", "succeeded", 1),
    ]


def test_runs_are_found_by_the_beginning_of_their_keys_and_refs(store: Store) -> None:
    spec = JobSpec(model="m", train="rows.jsonl")
    for key in ("migrate-a", "migrate-b_1", "migrateXa", "Migrate-a", None):
        intent = Intent(spec=spec, provider="one", dataset_digest="d", host="here", idempotency_key=key)
        store.runs.create(intent)
    assert {run.idempotency_key for run in store.runs.keyed("migrate-")} == {"migrate-a", "migrate-b_1"}
    assert {run.idempotency_key for run in store.runs.keyed("migrate-b_")} == {"migrate-b_1"}
    assert store.runs.keyed("migrate-%") == [] and len(store.runs.referred("orc-")) == 5


def test_a_change_that_raises_changes_nothing(store: Store) -> None:
    run, other = make(store), make(store)

    def fails(_run: Run) -> Run:
        raise RuntimeError("no")

    def works(run: Run) -> Run:
        return msgspec.structs.replace(run, tags={"changed": "yes"})

    with pytest.raises(RuntimeError):
        store.runs.apply_many(sorted([(run.id, works), (other.id, fails)], key=lambda p: p[1] is fails))
    assert [store.runs.get(r.id) for r in (run, other)] == [run, other]


def test_many_changes_together_leave_what_one_after_the_other_do(store: Store) -> None:
    """And take as many statements however many they are."""
    at, error = datetime(2026, 1, 2, tzinfo=UTC), JobError(message="no")

    def seen(status: JobStatus) -> Callable[[Run], Run]:
        def change(run: Run) -> Run:
            handle = JobHandle(provider=run.provider, job_id=run.job_id or "")
            return transitions.observed(run, Job(handle=handle, status=status, raw_status=status.value), at)

        return change

    def sent(run: Run) -> Run:
        handle = JobHandle(provider=run.provider, job_id=f"j-{run.id}")
        return transitions.submitted(run, handle, at)

    stories: list[list[Callable[[Run], Run]]] = [
        [sent, seen(JobStatus.RUNNING), seen(JobStatus.SUCCEEDED)],
        [sent],
        [lambda run: run],
        [lambda run: transitions.refused(run, error, at)],
        [lambda run: transitions.refused(run, error, at), sent],
        [lambda run: msgspec.structs.replace(run, tags={"a": "b"})],
    ]
    executed: list[str] = []

    @event.listens_for(store.database.engine, "before_cursor_execute")
    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        executed.append(statement)

    alone, together = [make(store) for _ in stories], [make(store) for _ in stories]
    changed = [store.runs.apply(r.id, c) for r, story in zip(alone, stories, strict=True) for c in story]
    executed.clear()
    found = store.runs.apply_many(
        [(r.id, c) for r, story in zip(together, stories, strict=True) for c in story]
    )
    statements = len(executed)
    assert len(found) == len(changed) - 1  # all but the one that changed nothing

    def told(run: Run) -> list[Any]:
        with store.database.reading() as connection:
            query = select(schema.runs).where(schema.runs.c.id == run.id)
            row = dict(connection.execute(query).one()._mapping)
        kept = msgspec.json.decode(row.pop("record"))
        for name in ("id", "ref", "created_at", "due_at", "job_id", "updated_at", "words"):
            row.pop(name)
            kept.pop(name, None)
        steps = [(t.phase, t.status, t.raw_status, t.attempt) for t in store.history.transitions(run.id)]
        return [row, kept, steps]

    assert [told(run) for run in together] == [told(run) for run in alone]
    many = [make(store).id for _ in range(20)]
    executed.clear()
    assert len(store.runs.apply_many([(run_id, sent) for run_id in many])) == 20
    assert len(executed) <= statements


def test_events_are_kept_once_and_in_order(store: Store) -> None:
    run = make(store)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    events = [Event(id=f"e{n}", at=at, level="info", message=f"m{n}", data={"n": n}) for n in range(3)]
    assert store.history.add_events(run.id, events[:2]) == events[:2]
    own = Event(id="orchestrate-note", at=at, level="error", message="x", type="alarm")
    store.history.add_events(run.id, [own], from_host=False)
    assert store.history.add_events(run.id, events) == events[2:]
    assert store.history.events(run.id) == [*events[:2], own, events[2]]
    assert store.history.events(run.id, after="e1") == [own, events[2]]
    assert store.history.events(run.id, limit=1) == [events[2]]
    assert store.history.last_event_id(run.id) == "e2"
    assert store.history.alarms(run.id) == [own]


def test_metrics_of_one_step_are_merged(store: Store) -> None:
    run = make(store)
    train = [MetricPoint(step=s, values={"train_loss": 1.0 / (s + 1)}, epoch=0.5) for s in range(3)]
    assert store.history.add_metrics(run.id, train) == 3
    assert store.history.add_metrics(run.id, train) == 0
    assert store.history.add_metrics(run.id, [MetricPoint(step=1, values={"valid_loss": 0.25})]) == 1
    points = store.history.metrics(run.id)
    assert [p.step for p in points] == [0, 1, 2]
    assert points[1] == MetricPoint(step=1, values={"train_loss": 0.5, "valid_loss": 0.25}, epoch=0.5)


def test_metrics_that_are_not_finite_are_left_out_with_a_warning(store: Store) -> None:
    run = make(store)
    fine = MetricPoint(step=1, values={"train_loss": 0.5})
    lost = MetricPoint(step=1, values={"valid_loss": math.nan})
    points = [MetricPoint(step=2, values={"train_loss": math.inf, "grad_norm": 1.0}), lost]
    assert (store.history.add_metrics(run.id, [fine]), store.history.events(run.id)) == (1, [])
    assert (store.history.add_metrics(run.id, points), store.history.add_metrics(run.id, points)) == (2, 0)
    assert store.history.metrics(run.id) == [
        MetricPoint(step=1, values={"train_loss": 0.5}, not_finite=("valid_loss",)),
        MetricPoint(step=2, values={"grad_norm": 1.0}, not_finite=("train_loss",)),
    ]
    warnings = store.history.events(run.id)
    assert [(e.level, e.message.split()[0]) for e in warnings] == [
        ("warning", "train_loss"),
        ("warning", "valid_loss"),
    ]
    store.history.add_metrics(run.id, [MetricPoint(step=1, values={"valid_loss": 0.25})])
    assert store.history.metrics(run.id)[0] == MetricPoint(
        step=1, values={"train_loss": 0.5, "valid_loss": 0.25}
    )


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([], []),
        ([7], [7]),
        ([3, 4, 6], [3, 4, 6]),
        (range(10, 101, 10), [10, 40, 60, 80, 100]),  # at or next after 10, 32, 55, 77, 100
        ([1, 2, 3, 4, 97, 98, 99, 101], [1, 97, 101]),  # 1, 26, 51, 76, 101: of a gap its end alone
        ([0, 500_000_000, 2_000_000_000, 2_100_000_000], [0, 2_000_000_000, 2_100_000_000]),
    ],
    ids=["none", "one", "few", "every tenth", "a gap", "large"],
)
def test_points_are_sampled_by_their_steps(store: Store, steps: list[int], kept: list[int]) -> None:
    run, other = make(store), make(store)
    store.history.add_metrics(run.id, [MetricPoint(step=s, values={"train_loss": s + 0.5}) for s in steps])
    found = store.history.sampled([run.id, other.id], 4)
    assert found == {
        run.id: [MetricPoint(step=s, values={"train_loss": s + 0.5}) for s in kept],
        other.id: [],
    }


def test_checkpoints_uploads_and_evaluations_come_back(store: Store) -> None:
    run = make(store)
    late, early = Checkpoint(id="a", step=20), Checkpoint(id="b", step=10, metrics={"valid_loss": 1.0})
    store.history.set_checkpoints(run.id, [late, early])
    store.history.set_checkpoints(run.id, [msgspec.structs.replace(late, model="m")])
    assert store.history.checkpoints(run.id) == [early, msgspec.structs.replace(late, model="m")]

    remote = RemoteDataset(provider="paper", digest="d" * 64, train_id="file-1", details={"n": 1})
    assert store.history.upload("paper", "here", "a", remote.digest) is None
    store.history.record_upload("paper", "here", "a", remote)
    assert store.history.upload("paper", "here", "a", remote.digest) == remote
    assert store.history.upload("paper", "elsewhere", "a", remote.digest) is None
    assert store.history.upload("paper", "here", "b", remote.digest) is None
    store.history.forget_upload("paper", "here", "a", remote.digest)
    assert store.history.upload("paper", "here", "a", remote.digest) is None

    contender = Contender(
        name=run.id, kind="tuned", model="m", provider="paper", served_by="paper", run_id=run.id
    )
    score = msgspec.convert({f: 1 for f in Score.__struct_fields__}, Score, strict=False)
    result = Evaluation(
        id="eval-1",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        dataset="t.jsonl",
        dataset_digest="d",
        items=1,
        items_digest="i",
        contenders=(contender,),
        metrics=(MetricUsed(name="exact_match", kind="right-or-wrong"),),
        measures=(Measure(contender=run.id, metric="exact_match", score=score),),
    )
    store.history.add_evaluation(result)
    assert store.history.evaluations(run.id) == store.history.evaluations() == [result]
    assert store.history.evaluations("run-other") == []
    other = make(store)
    both = msgspec.structs.replace(
        result,
        id="eval-2",
        contenders=(contender, msgspec.structs.replace(contender, name=other.id, run_id=other.id)),
    )
    store.history.add_evaluation(both)
    assert store.history.evaluations() == [result, both], "one evaluation of two runs is one"
    assert store.history.evaluations(other.id) == [both]


def test_last_in_a_sandbox_is_no_real_run_of_a_host(store: Store) -> None:
    tried, here, real = make(store, sandbox=True), make(store, "near"), make(store)
    assert store.runs.get("last").id == store.runs.get("last", sandboxes=False).id == real.id
    assert store.runs.get("last", near="near").id == here.id, "a run of this machine is one of both"
    assert store.runs.get("last", near="other").id == tried.id
    assert store.runs.get(real.id, near="other").id == real.id, "by its id it is found"


def test_only_real_runs_are_no_last_of_a_sandbox(store: Store) -> None:
    real = make(store)
    with pytest.raises(UsageError, match=real.id):
        store.runs.get("last", near="near")


def test_money_is_counted_once_and_to_the_digit(store: Store) -> None:
    done = ends(store, has_job(store, make(store, quote=quoted("5")), "j1"))
    assert store.ledger.spending() == Spending(committed_usd=Decimal(5))
    store.runs.set_bills({done.id: Bill(usd=Decimal("0.1"), origin="total_price")})
    make(store, quote=quoted("0.2"))
    make(store, quote=quoted("900"), sandbox=True)
    gone = make(store, quote=quoted("7"))
    store.runs.apply(gone.id, lambda r: transitions.withdrawn(r, store.clock.now()))
    assert store.ledger.spending() == Spending(spent_usd=Decimal("0.1"), committed_usd=Decimal("0.2"))
    with pytest.raises(OverBudget):
        make(store, quote=quoted("0.71"), budget_usd=Decimal(1))
    make(store, quote=quoted("0.70"), budget_usd=Decimal(1))
    assert len(store.runs.matching(active=True)) == 3


def test_a_budget_holds_when_many_ask_at_once(store_url: str) -> None:
    def ask(_n: int) -> bool:
        with Store.open(store_url) as store:
            try:
                make(store, quote=quoted("1"), budget_usd=Decimal("3.5"))
            except OverBudget:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 3


# -- leases ------------------------------------------------------------------------------------------------


def test_a_lease_has_one_holder_and_a_rising_fence(clocked: tuple[Store, MovedClock]) -> None:
    store, clock = clocked
    first = store.leases.acquire("work", 30)
    assert first is not None
    assert store.leases.acquire("work", 30) is None
    assert store.leases.held("work")
    clock.passes(29)
    assert store.leases.acquire("work", 30) is None
    assert store.leases.renew(first, 30)
    clock.passes(29)
    assert store.leases.acquire("work", 30) is None, "it was renewed"
    clock.passes(2)
    second = store.leases.acquire("work", 30)
    assert second is not None
    assert second.fence > first.fence
    assert not store.leases.renew(first, 30)
    store.leases.release(first)
    assert store.leases.held("work"), "one who lost it cannot give it away"
    store.leases.release(second)
    assert not store.leases.held("work")


def test_a_write_with_a_lost_lease_is_refused(clocked: tuple[Store, MovedClock]) -> None:
    store, clock = clocked
    run = make(store)
    slept = store.leases.acquire(f"run:{run.id}", 30)
    clock.passes(31)
    store.leases.acquire(f"run:{run.id}", 30)
    with pytest.raises(LeaseLost):
        store.runs.apply(run.id, lambda r: transitions.uploaded(r, clock.now()), lease=slept)
    assert store.runs.get(run.id) == run


@pytest.mark.parametrize("days", [-1, 1])
def test_a_moved_wall_clock_neither_ends_nor_prolongs_a_lease(
    clocked: tuple[Store, MovedClock], days: int
) -> None:
    store, clock = clocked
    store.leases.acquire("work", 30)
    clock.at += timedelta(days=days)
    assert store.leases.acquire("work", 30) is None
    clock.up = Uptime(clock.up.boot, clock.up.seconds + 31)
    assert store.leases.acquire("work", 30) is not None


def test_a_lease_from_before_the_machine_started_again_ends_by_the_wall_clock(
    clocked: tuple[Store, MovedClock],
) -> None:
    store, clock = clocked
    store.leases.acquire("work", 30)
    clock.up = Uptime("another-start", 5.0)
    assert store.leases.acquire("work", 30) is None
    clock.passes(31)
    assert store.leases.acquire("work", 30) is not None


@pytest.mark.slow
def test_a_held_lease_is_renewed_while_its_work_goes_on(store: Store) -> None:
    def expires() -> str:
        with store.database.reading() as connection:
            return connection.exec_driver_sql("SELECT expires_at FROM leases").scalar_one()

    with store.leases.hold("work", ttl_s=3.0):
        first, deadline = expires(), time.monotonic() + 240
        while expires() == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(LeaseHeld), store.leases.hold("work", ttl_s=3.0):
            pass
    with store.leases.hold("work", ttl_s=3.0):
        pass


@pytest.mark.parametrize("days", [-1, 1])
def test_waiting_is_measured_on_the_own_clock_of_each_machine(
    clocked: tuple[Store, MovedClock], days: int
) -> None:
    store, clock = clocked
    run = make(store)
    store.runs.apply(run.id, lambda r: transitions.uploaded(r, clock.now()))
    with store.leases.hold("run") as lease:
        store.runs.begin(run.id, lease)
    clock.passes(10)
    clock.at += timedelta(days=days)
    assert store.runs.waited(run.id) == pytest.approx(10)
    clock.up = Uptime("another-machine", 99_999.0)
    assert store.runs.waited(run.id) == 0, "a first look from elsewhere knows nothing of the time before it"
    clock.passes(7)
    assert store.runs.waited(run.id) == pytest.approx(7)
