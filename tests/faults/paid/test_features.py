"""One budget, and the features as users call them at random against it: submit, resume, queue, sweep, deploy,
a migration, the gateway, an agent's tools. Answers are lost, processes end by SIGKILL, clocks jump, two
processes share a store. The judge is what the host has: counted is no less than it may bill, and no more than
was agreed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace
from tests.faults.paid.test_ledger import MEMORY, WHO, Moved
from tests.faults.paper_host import PaperHost
from tests.faults.submitting import Killed, write_rows

from orchestrate import JobSpec, Orchestrator
from orchestrate.errors import HostUnavailable, InvalidRequest, OrchestrateError, OutcomeUnknown
from orchestrate.gateway.submissions import Submitting
from orchestrate.mcp.read_tools import SpecGiven
from orchestrate.mcp.spending_tools import AgentBudget, Agreement, _deploying, _submitting
from orchestrate.migration.migrations import MigrationOrder, PreparedMigration
from orchestrate.paid.limits import require_within
from orchestrate.providers.base import Deploys, Limited, Pauses, Resumes
from orchestrate.runs import queue as queueing
from orchestrate.runs.queue import QueueServer
from orchestrate.runs.sweep import space, sweeps
from orchestrate.runs.sweep.sweeps import SweepOrder
from orchestrate.runs.sweep.trials import Searching
from orchestrate.settings import config
from orchestrate.store.gateway import CreateKey, KeyUse
from orchestrate.store.store import Store
from orchestrate.store.transitions import UNSENT
from orchestrate.types import (
    Allowance,
    BilledResource,
    Endpoint,
    Feature,
    GatewayJob,
    JobHandle,
    JobStatus,
    Quote,
    RemoteDataset,
    Translation,
)

BUDGET, SWEEP, KEY, AGENT = Decimal(15), Decimal(8), Decimal(7), Decimal(6)
HOURLY = Decimal(2)
HIGH = {1: Decimal("0.5"), 2: Decimal(3), 3: Decimal(11), 4: Decimal(60)}
"""By the epochs; with five nobody knows a price."""
EPOCHS, WHICH = st.sampled_from((1, 2, 3, 3, 4, 5)), st.integers(0, 9)
SENT = st.sampled_from((*("ok",) * 6, "lost", "refused", "down", "killed before", "killed after"))
KILLED = st.booleans()


class Bank(PaperHost, Deploys, Resumes):
    """What it has in truth is in files, so that it outlives the processes that asked it."""

    features = PaperHost.features | {Feature.DEPLOY, Feature.RESUME}

    def __init__(self, folder: Path, clock: Moved, name: str = "paper") -> None:
        super().__init__(folder, timeout_s=1.0, name=name)
        self.clock, self.fault, self.by_signal = clock, "ok", False

    def quote(self, spec: JobSpec, *_: Any, **__: Any) -> Quote:
        high = HIGH.get(int(spec.epochs or 1))
        if high is None:
            return Quote(provider=self.name, model="m", unavailable="no rate for it")
        return Quote(provider=self.name, model="m", low_usd=high / 4, expected_usd=high / 2, high_usd=high)

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        most = HIGH.get(int(spec.epochs or 1), Decimal(1000))
        return self._faulty(ref, lambda: self.add(ref, most=str(most), agreed=str(most), state="running"))

    def _faulty(self, ref: str, done: Callable[[], Any]) -> Any:
        fault, self.fault = self.fault, "ok"
        if fault == "refused":
            raise InvalidRequest(self.name, "no", status=400)
        if fault == "down":
            raise HostUnavailable(self.name, "full", status=503, retry_after_s=3600)
        if fault == "killed before":
            self._die()
        made = done()
        if fault == "killed after":
            self._die()
        if fault == "lost":
            raise OutcomeUnknown(self.name, ref, "reset")
        return made

    def _die(self) -> None:
        if self.by_signal:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Killed

    def resume(self, job: JobHandle) -> None:
        """It was running all the time."""

    # -- deployments

    @property
    def books(self) -> dict[str, Any]:
        file = self.folder / "books.json"
        return json.loads(file.read_text()) if file.exists() else {"up": {}, "hours": 0.0}

    def _book(self, **values: Any) -> None:
        (self.folder / "books.json").write_text(json.dumps(self.books | values))

    def deployment_price(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Decimal:
        return HOURLY

    def deploy(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Endpoint:
        up = self.books["up"]
        self._faulty(job.job_id, lambda: self._book(up={job.job_id: self.clock.seconds, **up}))
        return Endpoint(provider=self.name, id=job.job_id, model="m", state="up", usd_per_hour=HOURLY)

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        there = job.job_id in self.books["up"]
        return Endpoint(provider=self.name, id=job.job_id, model="m", state="up") if there else None

    def undeploy(self, job: JobHandle) -> None:
        books = self.books
        since = books["up"].pop(job.job_id, self.clock.seconds)
        self._book(up=books["up"], hours=books["hours"] + (self.clock.seconds - since) / 3600)

    def deployments(self) -> Iterator[BilledResource]:
        if self.fault == "down":
            raise HostUnavailable(self.name, "no answer")
        for job in self.books["up"]:
            yield BilledResource(
                provider=self.name,
                kind="deployment",
                id=job,
                state="up",
                bills=True,
                usd_per_hour=HOURLY,
                job_id=job,
            )

    # -- the judge

    def most(self, job: dict[str, Any]) -> Decimal:
        """All that a job may still come to."""
        return Decimal(job["most"])

    @property
    def billed(self) -> Decimal:
        """All that is billed by now, or may still be for what is under way."""
        jobs = sum((Decimal(job.get("cost", self.most(job))) for job in self.jobs()), Decimal(0))
        up = sum(self.clock.seconds - since for since in self.books["up"].values())
        return jobs + Decimal(str(self.books["hours"] + up / 3600)) * HOURLY


class Rented(Bank, Limited, Pauses):
    """Machines at an hourly price, whose workers end themselves at the limit that they began with."""

    features = Bank.features | {Feature.PAUSE}
    profile = replace(PaperHost.profile, statuses={**PaperHost.profile.statuses, "paused": JobStatus.PAUSED})

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        most = str(spec.max_cost_usd or HIGH.get(int(spec.epochs or 1), Decimal(1000)))
        begun = {"since": self.clock.seconds, "used": "0"}
        return self._faulty(ref, lambda: self.add(ref, most=most, given=most, state="running", **begun))

    def ends_usd(self, spec: JobSpec, translation: Translation, quote: Quote) -> Decimal | None:
        return spec.max_cost_usd or quote.high_usd

    def used(self, job: dict[str, Any]) -> Decimal:
        if job["state"] != "running":
            return Decimal(job["used"])
        hours = (self.clock.seconds - job["since"]) / 3600
        return min(Decimal(job["most"]), Decimal(job["used"]) + Decimal(str(hours)) * HOURLY)

    def most(self, job: dict[str, Any]) -> Decimal:
        return Decimal(job["most"]) if job["state"] == "running" else self.used(job)

    def pause(self, job: JobHandle) -> None:
        if (body := self._read(job))["state"] == "running":
            self.set(job.job_id, state="paused", used=str(self.used(body)))

    def resume(self, job: JobHandle) -> None:
        if (body := self._read(job))["state"] == "paused":
            begun = {"since": self.clock.seconds, "most": body["given"], "state": "running"}
            self._faulty(job.ref, lambda: self.set(job.job_id, **begun))

    def cancel(self, job: JobHandle) -> None:
        if (body := self._read(job))["state"] in ("running", "paused"):
            used = str(self.used(body))
            self.set(job.job_id, state="stopped", used=used, cost=used)

    def allowance(self, job: JobHandle) -> Allowance:
        body = self._read(job)
        seconds = float(self.used(body) / HOURLY) * 3600
        return Allowance(max_usd=Decimal(body["given"]), usd_per_hour=HOURLY, used_s=seconds)

    def allow(self, job: JobHandle, *, max_hours: float | None, max_usd: Decimal | None) -> None:
        assert max_usd is not None, "a machine without a limit"
        self._faulty(job.ref, lambda: self.set(job.job_id, given=str(max_usd)))

    def stop_workers(self, ref: str) -> None:
        for body in self.jobs(ref):
            self.cancel(JobHandle(provider=self.name, job_id=body["id"], ref=ref))


class Features(RuleBasedStateMachine):
    offered: ClassVar = ("paper", "rented")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.clock, self.number = Moved(), 0
        self.bank = Bank(self.folder / "host", self.clock)
        self.rented = Rented(self.folder / "rented", self.clock, "rented")
        self.hosts = (self.bank, self.rented)
        self.rows = write_rows(self.folder / "rows.jsonl")
        (self.folder / "valid.jsonl").write_text(self.rows.read_text().replace("What is", "Say what is"))
        named = self.folder / "orchestrate.toml"
        named.write_text(
            '[hosts.paper]\ntype = "together"\n[hosts.rented]\ntype = "together"\n'
            "[queue]\npaper = 9\nrented = 9\n"
        )
        self.settings = config.load(
            env={"ORCHESTRATE_BUDGET_USD": str(BUDGET), "ORCHESTRATE_KEYS": str(self.folder / "none")},
            config_file=named,
            home=self.folder / "home",
        )
        self.url = self.database() or f"sqlite:///{self.folder}/runs.sqlite3"
        self.shops = [self.open() for _ in range(2)]
        order = SweepOrder(space=space.parse(["epochs=1,2,3"], []), max_parallel=3, max_cost_usd=SWEEP)
        spec = self.spec(1).model_copy(update={"validation": str(self.folder / "valid.jsonl")})
        self.search = sweeps.begin(self.shops[0], spec, ["paper"], order)
        self.purses = [AgentBudget(AGENT), AgentBudget(AGENT)]

    @staticmethod
    def database() -> str | None:
        """Of another kind than SQLite."""
        return None

    def open(self) -> Orchestrator:
        ft = Orchestrator(self.settings)
        ft._opened._store = Store.open(self.url, clock=self.clock)
        ft._opened._providers |= {host.name: host for host in self.hosts}
        return ft

    def teardown(self) -> None:
        for ft in self.shops:
            ft.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def spec(self, epochs: int) -> JobSpec:
        return JobSpec(model="m", train=str(self.rows), epochs=epochs, seed=self.number)

    def do(self, who: int, act: Callable[[Orchestrator], Any], fault: str = "ok", fork: bool = False) -> None:
        """By one of two processes, or by a third one that the signal may end in the middle."""
        self.number += 1
        self._set(fault=fault)
        if not fork:
            with contextlib.suppress(OrchestrateError, Killed):
                act(self.shops[who])
        elif (child := os.fork()) == 0:
            self._set(by_signal=True)
            with contextlib.suppress(BaseException):
                act(self.open())
            os._exit(0)
        else:
            os.waitpid(child, 0)
        self._set(fault="ok")

    def _set(self, **values: Any) -> None:
        for host in self.hosts:
            vars(host).update(values)

    # -- what costs ----------------------------------------------------------------------------------------

    @rule(
        who=WHO,
        epochs=EPOCHS,
        limit=st.sampled_from((None, 2, 11)),
        fault=SENT,
        fork=KILLED,
        host=st.sampled_from(("paper", "rented")),
    )
    def submit(
        self, who: int, epochs: int, limit: int | None, fault: str, fork: bool, host: str = "paper"
    ) -> None:
        def act(ft: Orchestrator) -> None:
            name = host if host in self.offered else "paper"
            ft.submit(self.spec(epochs), name, max_cost_usd=limit, again=True)
            assert epochs < 5, "a run whose price nobody knows was sent"

        self.do(who, act, fault, fork)

    @rule(who=WHO, which=WHICH, fault=SENT, fork=KILLED)
    def resume(self, who: int, which: int, fault: str, fork: bool) -> None:
        """What was interrupted before it was sent."""
        if unsent := [run for run in self._open() if run.phase in UNSENT]:
            id = unsent[which % len(unsent)].id
            self.do(who, lambda ft: ft.run(id).resume(), fault, fork)

    @rule(who=WHO, which=WHICH, usd=st.sampled_from((1, 5, 12)))
    def give_more(self, who: int, which: int, usd: int) -> None:
        """As `resume --max-cost`: from then on the job may cost so much, where it had a limit before. A
        lower one is kept by whoever watches it: what it was quoted is held all the same."""
        if running := [run for run in self._open("paper") if run.job_id and run.max_cost_usd is not None]:
            run = running[which % len(running)]
            limit = run.max_cost_usd

            def act(ft: Orchestrator) -> None:
                ft.run(run.id).resume(max_cost_usd=usd)
                job = next(iter(self.bank.jobs(run.ref)))
                agreed, raised = Decimal(job["agreed"]), job.get("raised") or usd > limit
                most = max(agreed, Decimal(usd)) if raised else agreed
                self.bank.set(str(run.job_id), most=str(most), raised=raised)

            self.do(who, act)

    @rule(
        who=WHO,
        which=WHICH,
        usd=st.sampled_from((None, None, 1, 5, 12)),
        pause=KILLED,
        fault=SENT,
        fork=KILLED,
    )
    def pause_or_go_on(
        self, who: int, which: int, usd: int | None, pause: bool, fault: str, fork: bool
    ) -> None:
        """A rented machine, also with another limit, which holds for the worker that begins then."""
        if running := [run for run in self._open("rented") if run.job_id]:
            id = running[which % len(running)].id

            def act(ft: Orchestrator) -> None:
                if pause:
                    ft.run(id).pause()
                else:
                    ft.run(id).resume(max_cost_usd=usd)

            self.do(who, act, fault, fork)

    @rule(who=WHO, epochs=EPOCHS, host=st.sampled_from(("paper", "rented")))
    def queue(self, who: int, epochs: int, host: str) -> None:
        def act(ft: Orchestrator) -> None:
            name = host if host in self.offered else "paper"
            queueing.add(ft, ft.prepare(self.spec(epochs), name), name, again=True)

        self.do(who, act)

    @rule(who=WHO, fault=SENT, fork=KILLED)
    def serve_the_queue(self, who: int, fault: str, fork: bool) -> None:
        self.do(who, lambda ft: QueueServer(ft).turn(), fault, fork)

    @rule(who=WHO, fault=SENT, fork=KILLED)
    def search_on(self, who: int, fault: str, fork: bool) -> None:
        self.do(who, lambda ft: Searching(ft, self.search).turn(), fault, fork)

    @rule(who=WHO, epochs=EPOCHS, fault=SENT)
    def agent(self, who: int, epochs: int, fault: str) -> None:
        given = SpecGiven(settings=self.spec(epochs).asked())
        tool = lambda ft: _submitting(ft, self.purses[who])(given, "paper", Agreement(answer="yes"))  # noqa: E731
        self.do(who, tool, fault)

    @rule(who=WHO, which=WHICH, hours=st.sampled_from((1, 3, 500)), fault=SENT, fork=KILLED)
    def agent_deploys(self, who: int, which: int, hours: int, fault: str, fork: bool) -> None:
        if done := self.shops[0].store.runs.matching(status=JobStatus.SUCCEEDED):
            tool = lambda ft: _deploying(ft, self.purses[who])(  # noqa: E731
                done[which % len(done)].id, hours, Agreement(answer="yes")
            )
            self.do(who, tool, fault, fork)

    @rule(who=WHO, which=WHICH, fault=SENT, fork=KILLED, again=st.booleans())
    def migrate(self, who: int, which: int, fault: str, fork: bool, again: bool) -> None:
        """A run's data trained at the other host, once."""
        if not (runs := self.shops[0].store.runs.matching()):
            return
        old = runs[which % len(runs)]
        [to] = {"paper", "rented"} - {old.provider}
        order = MigrationOrder(to=[to], models={to: "m"}, proof=False)

        def act(ft: Orchestrator) -> None:
            moved = PreparedMigration(ft, old.id, order).submit(to, again=again)
            assert moved.record.provider == to and moved.record.ref != old.ref

        if to in self.offered:
            self.do(who, act, fault, fork)

    @rule(who=WHO, epochs=EPOCHS, fault=SENT, fork=KILLED)
    def gateway(self, who: int, epochs: int, fault: str, fork: bool) -> None:
        """A job of a key with a limit, by a worker that may end in the middle; the next one goes on."""
        number = self.number
        up = self.clock.uptime()
        job = GatewayJob(
            id=f"ftjob-{number}",
            boot=up.boot,
            uptime_s=up.seconds,
            key="team",
            project="p",
            created_at=self.clock.now(),
            asked={},
            tuned=f"ft:m:{number}",
            untuned="m",
            backend="paper",
            spec=self.spec(epochs).asked(),
            quote_usd=HIGH.get(epochs),
        )
        request = CreateKey("team", f"{number}", 0, f"{number}")

        def allow(use: KeyUse) -> None:
            require_within("paper", job.quote_usd, KEY, taken_usd=use.usd)

        def act(ft: Orchestrator) -> None:
            ft.store.gateway_jobs.take(job, request, allow)
            self._work(ft, job.id)

        self.do(who, act, fault, fork)

    @rule(who=WHO, fault=SENT)
    def gateway_goes_on(self, who: int, fault: str) -> None:
        def act(ft: Orchestrator) -> None:
            for job in ft.store.gateway_jobs.unended():
                self._work(ft, job.id)

        self.do(who, act, fault)

    def _work(self, ft: Orchestrator, id: str) -> None:
        terms: Any = SimpleNamespace(threads=1, webhook_url=None, webhook_secret=None)
        nobody: Any = SimpleNamespace(wake=lambda: None, release=lambda _: None)
        Submitting(ft, terms, nobody, nobody)._work(id)

    @rule(
        who=WHO, which=WHICH, hours=st.sampled_from((1, 3, 9, 500)), fault=SENT, fork=KILLED, undeploy=KILLED
    )
    def deploy(self, who: int, which: int, hours: int, fault: str, fork: bool, undeploy: bool) -> None:
        """Also again, with other limits."""
        done = self.shops[0].store.runs.matching(status=JobStatus.SUCCEEDED)
        if not done:
            return
        id = done[which % len(done)].id
        if undeploy:
            self.do(who, lambda ft: ft.run(id).undeploy())
        else:
            self.do(who, lambda ft: ft.run(id).deploy(max_hours=hours), fault, fork)

    # -- what happens --------------------------------------------------------------------------------------

    def _open(self, host: str | None = None) -> list[Any]:
        return self.shops[0].store.runs.matching(active=True, provider=host)

    def _end(self, host: Bank, job: dict[str, Any], share: int = 2) -> None:
        cost = host.used(job) if isinstance(host, Rented) else Decimal(job["most"]) * share / 2
        host.set(job["id"], state="done", used=str(cost), cost=str(cost), model=f"tuned-{job['id']}")

    @rule(which=WHICH, share=st.sampled_from((0, 1, 2)), who=WHO)
    def a_job_ends(self, which: int, share: int, who: int) -> None:
        running = [(host, job) for host in self.hosts for job in host.jobs() if job["state"] == "running"]
        if running:
            self._end(*running[which % len(running)], share)
            self.do(who, lambda ft: ft.sync())

    @rule(seconds=st.sampled_from((1.0, 600.0, 1800.0)), who=WHO, down=st.booleans())
    def time_passes(self, seconds: float, who: int, down: bool) -> None:
        self.clock.seconds += seconds
        self.do(who, lambda ft: ft.sync(), "down" if down and seconds < 2 else "ok")

    @rule(days=st.sampled_from((-40, 0, 3)))
    def set_the_clock(self, days: int) -> None:
        self.clock.off = timedelta(days=days)

    # -- what always holds ---------------------------------------------------------------------------------

    @invariant()
    def all_that_may_be_billed_is_counted(self) -> None:
        counted = self.shops[1].store.ledger.spending().total_usd
        billed = [host.billed for host in self.hosts]
        assert counted >= sum(billed) - Decimal("0.01"), (counted, billed)
        assert not self.shops[0].store.ledger.recount()

    @invariant()
    def no_more_than_was_agreed(self) -> None:
        """A half hour between two looks may pass the limit of a deployment."""
        store = self.shops[0].store
        late = Decimal("0.5") * HOURLY * len(store.deployments.matching())
        assert store.ledger.spending().total_usd <= BUDGET + late
        assert store.searches.spent_usd(self.search.id) <= SWEEP
        assert all(purse.taken_usd <= AGENT for purse in self.purses)
        refs = [job["ref"] for host in self.hosts for job in host.jobs()]
        assert len(refs) == len(set(refs)), "a job was made twice"

    @invariant()
    def a_key_keeps_its_limit(self) -> None:
        store = self.shops[0].store
        mine = {run.ref for run in store.runs.matching() if (run.idempotency_key or "").startswith("ftjob-")}
        jobs = [job for job in self.bank.jobs() if job["ref"] in mine]
        # What a person raised by hand is on the run, not on the key.
        assert sum((Decimal(job["agreed"]) for job in jobs if "cost" not in job), Decimal(0)) <= KEY

    @rule()
    def everything_ends(self) -> None:
        """Then nothing is held any more."""
        for _ in range(4):
            self.clock.seconds += 900.0
            for host in self.hosts:
                for job in host.jobs():
                    if "cost" not in job:
                        self._end(host, job)
            for one in self.shops[0].store.deployments.matching(over=False):
                with contextlib.suppress(OrchestrateError):
                    self.shops[0].run(one.run_id).undeploy()
            self.shops[1].sync()
        told = self.shops[0].store.ledger.spending()
        assert told.committed_usd == 0, [
            (run.id, run.phase, run.status, run.bill) for run in self.shops[0].store.runs.matching()
        ]
        assert self.bank.books["up"] == {}
        assert told.spent_usd >= sum(host.billed for host in self.hosts) - Decimal("0.01")


BRIEF = settings(
    max_examples=4, stateful_step_count=14, deadline=None, derandomize=True, phases=[Phase.generate]
)
LONG = settings(max_examples=20, stateful_step_count=30, deadline=None)


def test_nothing_is_spent_that_was_not_agreed_to() -> None:
    run_state_machine_as_test(Features, settings=BRIEF)


def test_what_is_taken_already_counts_for_what_comes_next() -> None:
    """A way through the machine that chance seldom takes: a run, a deployment that uses up the budget, then
    more of each; a run that was let go is held again before it is sent."""
    one = Features()
    one.submit(who=0, epochs=3, limit=None, fault="ok", fork=False)
    one.submit(who=0, epochs=2, limit=None, fault="killed before", fork=True)
    for _ in range(2):
        one.time_passes(seconds=1800.0, who=0, down=False)
    one.a_job_ends(which=0, share=2, who=0)
    for hours in (1, 9, 3):
        one.deploy(who=1, which=0, hours=hours, fault="ok", fork=False, undeploy=False)
        one.no_more_than_was_agreed()
    for _ in range(3):
        one.resume(who=1, which=0, fault="ok", fork=False)
        one.submit(who=0, epochs=2, limit=None, fault="ok", fork=False)
        one.no_more_than_was_agreed()
        one.all_that_may_be_billed_is_counted()
    one.everything_ends()
    one.teardown()


def test_a_migration_and_an_agents_deployment_count_as_all_else() -> None:
    """Shown to happen: chance alone may have each of them refused."""
    one = Features()
    one.submit(who=0, epochs=2, limit=None, fault="ok", fork=False)
    one.a_job_ends(which=0, share=2, who=0)
    for fault in ("lost", "ok", "ok"):
        one.migrate(who=1, which=0, fault=fault, fork=False, again=False)
        one.no_more_than_was_agreed()
        one.all_that_may_be_billed_is_counted()
    assert len(one.rented.jobs()) == 1
    one.agent_deploys(who=0, which=0, hours=500, fault="ok", fork=False)
    one.agent_deploys(who=0, which=0, hours=1, fault="ok", fork=False)
    assert one.purses[0].taken_usd == HOURLY and len(one.bank.books["up"]) == 1
    one.no_more_than_was_agreed()
    one.everything_ends()
    one.teardown()


@pytest.mark.slow
def test_nothing_is_spent_that_was_not_agreed_to_for_long() -> None:
    class AtOneHost(Features):
        offered = ("paper",)

    run_state_machine_as_test(AtOneHost, settings=LONG)


@pytest.mark.slow
def test_nothing_is_spent_that_was_not_agreed_to_on_postgres(postgres: Any) -> None:
    class OnPostgres(Features):
        offered = ("paper",)

        @staticmethod
        def database() -> str:
            return postgres.store()

    run_state_machine_as_test(OnPostgres, settings=settings(BRIEF, max_examples=6, stateful_step_count=25))
