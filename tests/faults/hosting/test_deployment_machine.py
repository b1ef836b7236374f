"""Deployments under any order of deaths, lost answers, ends by others, clocks and syncs. The judge is a host
of its own that knows nothing of our protocol: once synced, the store knows of all that it bills."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.faults.paper_host import PaperHost

from orchestrate.errors import HostUnavailable, InvalidRequest, OrchestrateError, OutcomeUnknown, RateLimited
from orchestrate.tracking import Store, Timing, sync
from orchestrate.tracking.clock import Clock, Uptime
from orchestrate.tracking.deploying import DEPLOY_POINTS, END_POINTS, Deployer, Terms
from orchestrate.types import (
    DeploymentState,
    Endpoint,
    Feature,
    JobHandle,
    JobStatus,
    Run,
    Standing,
    SubmitPhase,
)

TIMING = Timing(send_limit_s=5.0, requests=1, margin_s=30.0)
FAULTS = ("none", "lost", "late", "refused", "refused and done", "busy and done", "down", "half")


class Killed(BaseException):
    pass


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


class HourlyHost(PaperHost):
    """Deployments by name, as the hosts have them: one of a name, made at once or late, `half` made."""

    features = PaperHost.features | {Feature.DEPLOY}

    def __init__(self, folder: Path, clock: Still) -> None:
        super().__init__(folder, timeout_s=1.0)
        self.clock = clock
        self.up: dict[str, bool] = {}
        """Job -> whether requests reach it."""
        self.made = 0
        self.coming: list[tuple[float, str]] = []
        self.fault = "none"
        self.stuck = 0
        """Ends that are taken and not done."""

    def arrive(self) -> None:
        for at, job in list(self.coming):
            if at <= self.clock.seconds:
                self.coming.remove((at, job))
                self._make(job)

    def _make(self, job: str) -> None:
        if job not in self.up:
            self.up[job] = True
            self.made += 1

    def deployment_price(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Decimal:
        return Decimal(8)

    def deploy(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Endpoint:
        self.arrive()
        fault, self.fault = self.fault, "none"
        if job.job_id not in self.up:
            self._answer(fault, job.job_id)
        self.up[job.job_id] = True
        return Endpoint(provider=self.name, id=job.job_id, model="m", state="up", usd_per_hour=Decimal(8))

    def _answer(self, fault: str, job: str) -> None:
        if fault == "down":
            raise HostUnavailable(self.name, "no answer")
        if fault == "refused":
            raise InvalidRequest(self.name, "no", status=400)
        if fault == "late":
            self.coming.append((self.clock.seconds + 4.0, job))
            raise OutcomeUnknown(self.name, job, "reset")
        self._make(job)
        if fault == "lost":
            raise OutcomeUnknown(self.name, job, "reset")
        if fault == "refused and done":
            raise InvalidRequest(self.name, "no", status=400)
        if fault == "busy and done":
            raise RateLimited(self.name, "slow down", status=429)
        if fault == "half":
            self.up[job] = False
            raise HostUnavailable(self.name, "no answer")

    def undeploy(self, job: JobHandle) -> None:
        self.arrive()
        if self.fault == "down":
            raise HostUnavailable(self.name, "no answer")
        if self.stuck:
            self.stuck -= 1
            return
        self.up.pop(job.job_id, None)

    def deployments(self) -> Iterator[Standing]:
        self.arrive()
        if self.fault == "down":
            raise HostUnavailable(self.name, "no answer")
        for job in self.up:
            yield Standing(
                provider=self.name,
                kind="deployment",
                id=job,
                state="up",
                bills=True,
                usd_per_hour=Decimal(8),
                job_id=job,
            )

    def deployed(self, job: JobHandle) -> Sequence[Standing]:
        return [item for item in self.deployments() if item.job_id == job.job_id]


class Deployments(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        root = Path(self.folder.name)
        self.clock = Still()
        self.host = HourlyHost(root / "host", self.clock)
        self.store = Store.open(f"sqlite:///{root}/runs.sqlite3", clock=self.clock)
        self.runs = [self._run(number) for number in range(2)]
        self.wanted: dict[str, bool] = {}

    def _run(self, number: int) -> Run:
        handle = self.host.add(f"orc-00000000000{number}", state="done")
        now = self.clock.now()
        run = Run(
            id=f"run-00000000000{number}",
            ref=f"orc-00000000000{number}",
            provider=self.host.name,
            model="m",
            spec={},
            spec_hash="",
            dataset_digest="",
            host=self.host.host,
            account=self.host.account().id,
            phase=SubmitPhase.SUBMITTED,
            status=JobStatus.SUCCEEDED,
            job_id=handle.job_id,
            created_at=now,
            updated_at=now,
        )
        self.store.runs.restore(run)
        self.store.runs.close(run.id)
        return run

    def _deployer(self, point: str) -> Deployer:
        def reached(here: str) -> None:
            if here == point:
                raise Killed

        return Deployer(self.store, self.host, TIMING, reached)

    @rule(
        which=st.integers(0, 1),
        fault=st.sampled_from(FAULTS),
        point=st.sampled_from(("none", "none", "none", *DEPLOY_POINTS)),
        hours=st.sampled_from((None, 1)),
    )
    def deploy(self, which: int, fault: str, point: str, hours: int | None) -> None:
        self.host.fault = fault
        terms = Terms(max_hours=None if hours is None else Decimal(hours))
        with contextlib.suppress(OrchestrateError, Killed):
            up = self._deployer(point).deploy(self.runs[which], terms)
            assert up.complete and self.host.up[up.job_id]
        self.host.fault = "none"

    @rule(
        which=st.integers(0, 1),
        point=st.sampled_from(("none", "none", *END_POINTS)),
        down=st.booleans(),
        stuck=st.integers(0, 2),
    )
    def undeploy(self, which: int, point: str, down: bool, stuck: int) -> None:
        known = self.store.deployments.of_run(self.runs[which].id)
        if known is None:
            return
        self.host.fault, self.host.stuck = "down" if down else "none", stuck
        with contextlib.suppress(OrchestrateError, Killed):
            after = self._deployer(point).undeploy(known, "asked to", patience_s=3.0)
            if after.state is DeploymentState.ENDED:
                assert after.job_id not in self.host.up and not self._is_coming(after.job_id)
        self.host.fault, self.host.stuck = "none", 0

    def _is_coming(self, job_id: str) -> bool:
        return any(job == job_id for _, job in self.host.coming)

    @rule(which=st.integers(0, 1))
    def somebody_else_ends_it(self, which: int) -> None:
        self.host.up.pop(str(self.runs[which].job_id), None)

    @rule(seconds=st.sampled_from((1.0, 5.0, 40.0, 3700.0)))
    def time_passes(self, seconds: float) -> None:
        self.clock.seconds += seconds

    @rule(down=st.booleans())
    def sync(self, down: bool) -> None:
        self.host.fault = "down" if down else "none"
        report = sync(self.store, lambda _: self.host, timing=TIMING)
        self.host.fault = "none"
        if not down:
            assert report.failures == []
            for run in self.runs:
                if str(run.job_id) in self.host.up:
                    known = self.store.deployments.of_run(run.id)
                    assert known is not None and not known.state.over, "deployed, lost, still billing"
                    assert known.state is DeploymentState.INTENT or known.billing_since is not None

    @invariant()
    def nothing_is_made_twice_or_costs_for_ever(self) -> None:
        for run in self.runs:
            known = self.store.deployments.of_run(run.id)
            assert known is not None or str(run.job_id) not in self.host.up
            assert known is None or known.billing_since is None or not known.state.over

    def teardown(self) -> None:
        for _ in range(3):
            self.clock.seconds += 60.0
            self.sync(down=False)
        for run in self.runs:
            known = self.store.deployments.of_run(run.id)
            if known is not None and not known.state.over:
                assert self._deployer("none").undeploy(known, "the end", patience_s=60.0).state.over
        assert self.host.up == {}
        self.store.close()
        self.folder.cleanup()


@pytest.mark.parametrize("fault", FAULTS)
def test_an_end_right_after_a_deploy_that_went_wrong(fault: str) -> None:
    machine = Deployments()
    machine.deploy(0, fault, "none", None)
    machine.undeploy(0, "none", False, 0)
    machine.time_passes(5.0)
    machine.sync(False)
    machine.teardown()


Deployments.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestDeployments = Deployments.TestCase
