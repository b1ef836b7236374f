"""Deployments under any order of deaths, lost answers, ends by others, clocks, syncs, switched keys and
copied stores. The judge is a host of its own that knows nothing of our protocol: once synced, a store knows
of all that the account bills and that it has ever heard of, and of the rest once it has recovered."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.faults.paper_host import PaperHost
from tests.faults.submitting import Killed

from orchestrate.errors import (
    HostUnavailable,
    InvalidRequest,
    NotFound,
    OrchestrateError,
    OutcomeUnknown,
    RateLimited,
)
from orchestrate.providers.base import Deploys
from orchestrate.runs.hosting.deployer import DEPLOY_POINTS, END_POINTS, Deployer, DeployTerms
from orchestrate.runs.syncing.recovery import recover
from orchestrate.runs.syncing.sweep import sync
from orchestrate.store import Clock, Uptime
from orchestrate.store.store import Store, Timing
from orchestrate.types import (
    BilledResource,
    DeploymentState,
    Endpoint,
    Feature,
    JobHandle,
    JobStatus,
    Run,
    SubmitPhase,
)

TIMING = Timing(send_limit_s=5.0, requests=1, margin_s=30.0)
MEMORY = Path("/dev/shm")
"""Where a write that waits for the disk waits for nothing."""
FAULTS = ("none", "lost", "late", "refused", "refused and done", "busy and done", "down", "half")


@dataclass
class Still(Clock):
    """Time that only the machine moves."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def uptime(self) -> Uptime:
        return Uptime("one", self.seconds)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Books:
    """What a host has in truth, of all accounts."""

    clock: Still
    owner: dict[str, str] = field(default_factory=dict)
    """Of each job."""
    up: dict[str, bool] = field(default_factory=dict)
    """Job -> whether requests reach it."""
    coming: list[tuple[float, str]] = field(default_factory=list)
    fault: str = "none"
    stuck: int = 0
    """Ends that are taken and not done."""

    def arrive(self) -> None:
        for at, job in list(self.coming):
            if at <= self.clock.seconds:
                self.coming.remove((at, job))
                self.up.setdefault(job, True)


class HourlyHost(PaperHost, Deploys):
    """Deployments by name, as the hosts have them: one of a name, made at once or late, `half` made. Each key
    shows its account's alone."""

    features = PaperHost.features | {Feature.DEPLOY}

    def __init__(self, folder: Path, books: Books, owner: str, key: str = "") -> None:
        super().__init__(folder, timeout_s=1.0, owner=owner, key=key)
        self.books = books

    def deployment_price(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Decimal:
        return Decimal(8)

    def _mine_only(self, job: JobHandle) -> None:
        self.books.arrive()
        if self.books.owner.get(job.job_id) != self.owner:
            raise NotFound(self.name, "no such model", status=404)

    def deploy(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Endpoint:
        self._mine_only(job)
        fault, self.books.fault = self.books.fault, "none"
        if job.job_id not in self.books.up:
            self._answer(fault, job.job_id)
        self.books.up[job.job_id] = True
        return Endpoint(provider=self.name, id=job.job_id, model="m", state="up", usd_per_hour=Decimal(8))

    def _answer(self, fault: str, job: str) -> None:
        if fault == "down":
            raise HostUnavailable(self.name, "no answer")
        if fault == "refused":
            raise InvalidRequest(self.name, "no", status=400)
        if fault == "late":
            self.books.coming.append((self.books.clock.seconds + 4.0, job))
            raise OutcomeUnknown(self.name, job, "reset")
        self.books.up[job] = True
        if fault == "lost":
            raise OutcomeUnknown(self.name, job, "reset")
        if fault == "refused and done":
            raise InvalidRequest(self.name, "no", status=400)
        if fault == "busy and done":
            raise RateLimited(self.name, "slow down", status=429)
        if fault == "half":
            self.books.up[job] = False
            raise HostUnavailable(self.name, "no answer")

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        state = None if job.job_id not in self.books.up else "up" if self.books.up[job.job_id] else "half"
        return None if state is None else Endpoint(provider=self.name, id=job.job_id, model="m", state=state)

    def undeploy(self, job: JobHandle) -> None:
        self._mine_only(job)
        if self.books.fault == "down":
            raise HostUnavailable(self.name, "no answer")
        if self.books.stuck:
            self.books.stuck -= 1
            return
        self.books.up.pop(job.job_id, None)

    def deployments(self) -> Iterator[BilledResource]:
        self.books.arrive()
        if self.books.fault == "down":
            raise HostUnavailable(self.name, "no answer")
        for job in self.books.up:
            if self.books.owner[job] == self.owner:
                yield BilledResource(
                    provider=self.name,
                    kind="deployment",
                    id=job,
                    state="up",
                    bills=True,
                    usd_per_hour=Decimal(8),
                    job_id=job,
                )

    def deployed(self, job: JobHandle) -> Sequence[BilledResource]:
        return [item for item in self.deployments() if item.job_id == job.job_id]


OWNERS = ("one", "two")
"""The first run is of the first account, the second of the second."""
WHICH, COPY, WHO = st.integers(0, 1), st.integers(0, 1), st.sampled_from(OWNERS)
KEYS = st.sampled_from(("told", "told", "first key", "second key"))


class Deployments(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.clock = Still()
        self.books = Books(self.clock)
        self.stores = [self.open(0)]
        self.forgotten: set[str] = set()
        """Jobs whose deployment only a store knew that was then written over."""
        self.runs = [self._run(number, owner) for number, owner in enumerate(OWNERS)]

    def open(self, number: int) -> Store:
        return Store.open(f"sqlite:///{self.path(number)}", clock=self.clock)

    def path(self, number: int) -> Path:
        return self.folder / f"store-{number}" / "runs.sqlite3"

    def host(self, owner: str, key: str = "told") -> HourlyHost:
        fingerprint = "" if key == "told" else f"{owner}, {key}"
        return HourlyHost(self.folder / "host", self.books, owner, fingerprint)

    def pick(self, copy: int) -> Store:
        return self.stores[copy % len(self.stores)]

    def _run(self, number: int, owner: str) -> Run:
        host = self.host(owner)
        handle = host.add(f"orc-00000000000{number}", state="done")
        self.books.owner[handle.job_id] = owner
        now = self.clock.now()
        run = Run(
            id=f"run-00000000000{number}",
            ref=f"orc-00000000000{number}",
            provider=host.name,
            model="m",
            spec={},
            spec_hash="",
            dataset_digest="",
            host=host.host,
            account=host.account().id,
            phase=SubmitPhase.SUBMITTED,
            status=JobStatus.SUCCEEDED,
            job_id=handle.job_id,
            created_at=now,
            updated_at=now,
        )
        self.stores[0].runs.restore(run)
        self.stores[0].runs.close(run.id)
        return run

    def _deployer(self, store: Store, host: HourlyHost, point: str) -> Deployer:
        def reached(here: str) -> None:
            if here == point:
                raise Killed

        return Deployer(store, host, TIMING, reached)

    @rule(
        which=WHICH,
        fault=st.sampled_from(FAULTS),
        point=st.sampled_from(("none", "none", "none", *DEPLOY_POINTS)),
        hours=st.sampled_from((None, 1)),
        who=st.sampled_from((None, None, *OWNERS)),
        key=KEYS,
        copy=COPY,
    )
    def deploy(
        self,
        which: int,
        fault: str,
        point: str,
        hours: int | None,
        who: str | None = None,
        key: str = "told",
        copy: int = 0,
    ) -> None:
        self.books.fault = fault
        owner = who or OWNERS[which]
        terms = DeployTerms(max_hours=None if hours is None else Decimal(hours))
        with contextlib.suppress(OrchestrateError, Killed):
            up = self._deployer(self.pick(copy), self.host(owner, key), point).deploy(self.runs[which], terms)
            assert up.complete and self.books.up[up.job_id]
            assert owner == OWNERS[which], "from another account nothing is made"
        self.books.fault = "none"

    @rule(
        which=WHICH,
        point=st.sampled_from(("none", "none", *END_POINTS)),
        down=st.booleans(),
        stuck=st.integers(0, 2),
        who=st.sampled_from((None, None, *OWNERS)),
        key=KEYS,
        copy=COPY,
    )
    def undeploy(
        self,
        which: int,
        point: str,
        down: bool,
        stuck: int,
        who: str | None = None,
        key: str = "told",
        copy: int = 0,
    ) -> None:
        store = self.pick(copy)
        known = store.deployments.of_run(self.runs[which].id)
        if known is None:
            return
        before = known.state.over
        self.books.fault, self.books.stuck = "down" if down else "none", stuck
        with contextlib.suppress(OrchestrateError, Killed):
            host = self.host(who or OWNERS[which], key)
            after = self._deployer(store, host, point).undeploy(known, "asked to", patience_s=3.0)
            if after.state is DeploymentState.ENDED and not before:
                assert after.job_id not in self.books.up and (
                    len(self.stores) > 1 or not self._is_coming(after.job_id)
                )
        self.books.fault, self.books.stuck = "none", 0

    def _is_coming(self, job_id: str) -> bool:
        return any(job == job_id for _, job in self.books.coming)

    @rule(which=WHICH)
    def somebody_else_ends_it(self, which: int) -> None:
        self.books.up.pop(str(self.runs[which].job_id), None)

    @rule(seconds=st.sampled_from((1.0, 5.0, 40.0, 3700.0)))
    def time_passes(self, seconds: float) -> None:
        self.clock.seconds += seconds

    @rule(down=st.booleans(), who=WHO, key=KEYS, copy=COPY)
    def sync(self, down: bool, who: str = "one", key: str = "told", copy: int = 0) -> None:
        self.books.fault = "down" if down else "none"
        store = self.pick(copy)
        before = {run.id: store.deployments.of_run(run.id) for run in self.runs}
        report = sync(store, lambda _: self.host(who, key), timing=TIMING)
        self.books.fault = "none"
        for run, owner in zip(self.runs, OWNERS, strict=True):
            known = store.deployments.of_run(run.id)
            if owner != who:  # of another account nothing is concluded
                was, now = before[run.id], known
                assert was is None or (now is not None and now.state.over == was.state.over)
            elif not down and key == "told" and known is not None and str(run.job_id) in self.books.up:
                assert not known.state.over, "deployed, lost, still billing"
                assert known.state is DeploymentState.INTENT or known.billing_since is not None
        if not down and len({run.provider for run in self.runs}) == 1:
            assert all("account" in f.message for f in report.failures), report.failures

    @rule(who=WHO, copy=COPY)
    def recover(self, who: str, copy: int) -> None:
        store, host = self.pick(copy), self.host(who)
        assert recover(store, [host]).failures == []
        for run, owner in zip(self.runs, OWNERS, strict=True):
            if owner == who and str(run.job_id) in self.books.up:
                known = store.deployments.of_run(run.id)
                assert known is not None and not known.state.over, "deployed, lost, still billing"
                self.forgotten.discard(str(run.job_id))

    @rule(to_the_second=st.booleans())
    def the_store_is_copied(self, to_the_second: bool) -> None:
        """Onto another machine, or back from it as from a backup."""
        source, target = (0, 1) if to_the_second else (1, 0)
        if source >= len(self.stores):
            return
        with sqlite3.connect(self.path(source)) as there:
            if target < len(self.stores):
                self.forgotten |= set(self._known(self.stores[target]))
                self.stores[target].close()
            shutil.rmtree(self.path(target).parent, ignore_errors=True)
            self.path(target).parent.mkdir()
            with sqlite3.connect(self.path(target)) as copy:
                there.backup(copy)
            copy.close()
        there.close()
        self.stores[target : target + 1] = [self.open(target)]

    def _known(self, store: Store) -> list[str]:
        """Jobs of which the store has had a deployment: what is over is looked for again for a while."""
        return [one.job_id for one in store.deployments.matching()]

    @invariant()
    def nothing_bills_that_no_store_knows(self) -> None:
        known = {job for store in self.stores for job in self._known(store)} | self.forgotten
        assert self.books.up.keys() <= known
        for store in self.stores:
            for one in store.deployments.matching():
                assert one.billing_since is None or not one.state.over

    def teardown(self) -> None:
        for _ in range(3):
            self.clock.seconds += 60.0
            for copy, who in itertools.product(range(len(self.stores)), OWNERS):
                self.recover(who, copy)
                self.sync(down=False, who=who, copy=copy)
        for store, (run, owner) in itertools.product(self.stores, zip(self.runs, OWNERS, strict=True)):
            known = store.deployments.of_run(run.id)
            if known is not None and not known.state.over:
                deployer = self._deployer(store, self.host(owner), "none")
                assert deployer.undeploy(known, "the end", patience_s=60.0).state.over
        assert self.books.up == {}
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_end_right_after_a_deploy_that_went_wrong(fault: str) -> None:
    machine = Deployments()
    machine.deploy(0, fault, "none", None)
    machine.undeploy(0, "none", False, 0)
    machine.time_passes(5.0)
    machine.sync(False)
    machine.teardown()


def test_a_restored_store_finds_again_what_it_had_forgotten() -> None:
    """A backup from before the deploy: `sync` cannot know of it, `recover` does."""
    machine = Deployments()
    machine.the_store_is_copied(True)
    machine.deploy(0, "none", "none", None)
    machine.the_store_is_copied(False)
    assert machine.stores[0].deployments.matching() == [] and len(machine.books.up) == 1
    machine.recover("two", 0)
    assert machine.stores[0].deployments.matching() == [], "the other account has none"
    machine.recover("one", 0)
    machine.undeploy(0, "none", False, 0)
    assert machine.books.up == {}
    machine.teardown()


TestDeployments = Deployments.TestCase
TestDeployments.settings = settings(max_examples=4, stateful_step_count=15, deadline=None)


@pytest.mark.slow
class TestDeploymentsInALongSearch(Deployments.TestCase):
    settings = settings(max_examples=16, stateful_step_count=15, deadline=None)
