"""One user's deployments under the fault tests, and what stands in the hosts' own books."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from tests.faults.submitting import dies_at
from tests.faults.world import World

from orchestrate.runs.hosting.deployer import Deployer, DeployTerms
from orchestrate.store import Clock
from orchestrate.store.store import CrashPoint, pass_by
from orchestrate.types import Deployment, JobStatus, Run

HOURLY = ("together", "fireworks")
CREATE = {"together": "endpoints/[^/]+/deployments$", "fireworks": "/deployments$"}
WITH_ADAPTER = DeployTerms(options={"mode": "addons"})
TERMS = {"together": DeployTerms(), "fireworks": WITH_ADAPTER}
"""With all steps that a backend has."""


class Moved(Clock):
    """A clock that can be put forward, and that nobody waits for."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> Any:
        return super().now() + self.ahead

    def uptime(self) -> Any:
        up = super().uptime()
        return type(up)(up.boot, up.seconds + self.ahead.total_seconds())

    def sleep(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


class Deployed:
    """A world with one succeeded run on each of `names`, backends that bill by the hour."""

    def __init__(
        self, world: World, clock: Moved, tally: Callable[..., None], names: Iterable[str] = HOURLY
    ) -> None:
        self.world, self.clock, self.tally, self.store = world, clock, tally, world.store
        self.runs: dict[str, Run] = {}
        for name in names:
            world.submit(name)
            wire: Any = world.provider(name)
            wire._wire._sleep = lambda seconds: None  # a retry needs no time here
        world.hosts.skip(100_000)
        world.sync()
        for run in self.store.runs.matching():
            assert run.status is JobStatus.SUCCEEDED
            self.runs[run.provider] = run

    def deployer(self, name: str, reached: CrashPoint = pass_by) -> Deployer:
        return Deployer(self.store, self.world.provider(name), self.world.timing, reached)

    def deploy(
        self, name: str, terms: DeployTerms | None = None, *, point: str = "none", **more: Any
    ) -> Deployment:
        return self.deployer(name, dies_at(point)).deploy(self.runs[name], terms or TERMS[name], **more)

    def undeploy(self, name: str, *, point: str = "none", patience_s: float = 10.0) -> Deployment:
        known = self.record(name)
        assert known is not None
        return self.deployer(name, dies_at(point)).undeploy(known, "asked to", patience_s=patience_s)

    def record(self, name: str) -> Deployment | None:
        return self.store.deployments.of_run(self.runs[name].id)

    def up(self, name: str) -> list[dict[str, Any]]:
        """By the host's own books."""
        return list(self.world.hosts.fronts[name].host.state.all(name, "deployment"))

    def answers(self, name: str) -> bool:
        """Whether requests reach the tuned model."""
        state = self.world.hosts.fronts[name].host.state
        [deployment] = self.up(name)
        if name == "together":
            [endpoint] = state.all(name, "endpoint")
            return [s["deploymentId"] for s in endpoint["trafficSplit"]] == [deployment["id"]]
        return not deployment.get("enableAddons") or len(list(state.all(name, "addon"))) == 1

    def settle(self, name: str) -> Deployment | None:
        """What a user does afterwards: sync, until the store knows what became of it."""
        for _ in range(6):
            self.world.sync()
            self.clock.ahead += timedelta(seconds=5)
        return self.record(name)

    def clear(self) -> None:
        """Ends all, by the hosts' own hand."""
        for name in HOURLY:
            state = self.world.hosts.fronts[name].host.state
            for kind in ("deployment", "endpoint", "addon"):
                for entry in list(state.all(name, kind)):
                    state.delete(name, kind, entry["id"])

    def count(self, fault: str, name: str) -> None:
        known, there = self.record(name), self.up(name)
        tracked = known is not None and not known.state.over
        lost = len(there) if not tracked else 0
        found = {"runs": int(known is not None), "jobs": len(there), "lost": lost, "doubled": len(there[1:])}
        self.tally(f"deployed, lost, still billing: {fault}", name, found)
        assert (found["lost"], found["doubled"]) == (0, 0), (known, there)
        assert not tracked or there, "the store holds one that no host has"
