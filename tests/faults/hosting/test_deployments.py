"""Deployed, lost, still billing: 0. Deaths at each step, lost answers, refusals that were none, over the
official SDKs and the sandbox; what is up is counted in the hosts' own books."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.cells import diagonal
from tests.faults.hosting.deployed import CREATE, HOURLY, TERMS, Deployed, Moved
from tests.faults.submitting import Killed
from tests.faults.world import SETTLED, World

from orchestrate.errors import OrchestrateError, OtherAccount, OutcomeUnknown, OverBudget, UsageError
from orchestrate.runs.hosting.deployer import DEPLOY_POINTS, END_POINTS, DeployTerms
from orchestrate.types import Deployment, DeploymentState


@pytest.fixture
def deployed(
    request: pytest.FixtureRequest, tmp_path: Path, hosts: Any, tally: Callable[..., None]
) -> Iterator[Deployed]:
    """On the backend of the test, on all where it has none."""
    hosts.clear_faults()
    clock = Moved()
    world = World(tmp_path, hosts, clock=clock)
    given = getattr(getattr(request.node, "callspec", None), "params", {})
    made = Deployed(world, clock, tally, [given["name"]] if "name" in given else HOURLY)
    yield made
    hosts.clear_faults()
    made.clear()
    world.close()


@pytest.mark.parametrize("name", HOURLY)
def test_every_point_is_passed_once_and_in_order(deployed: Deployed, name: str) -> None:
    reached: list[str] = []
    up = deployed.deployer(name, reached.append).deploy(deployed.runs[name], TERMS[name])
    assert tuple(reached) == DEPLOY_POINTS and up.complete and deployed.answers(name)
    down = deployed.deployer(name, reached.append).undeploy(up, "asked to", patience_s=10)
    assert tuple(reached) == DEPLOY_POINTS + END_POINTS and deployed.up(name) == []
    assert (down.state, down.cause, down.billing_since) == (DeploymentState.ENDED, "asked to", None)
    states = [t.state.value for t in deployed.store.deployments.transitions(up.id)]
    assert states == ["intent", "creating", "up", "ending", "ended"]
    deployed.count("nothing goes wrong", name)


@pytest.mark.parametrize(("name", "point"), diagonal(HOURLY, DEPLOY_POINTS))
def test_a_deploy_killed_at_each_point_is_found_and_completed(
    deployed: Deployed, name: str, point: str
) -> None:
    with pytest.raises(Killed):
        deployed.deploy(name, point=point)
    deployed.settle(name)
    deployed.count(f"deploy killed {point}", name)
    again = deployed.deploy(name)
    assert again.complete and deployed.answers(name)
    deployed.count(f"deploy killed {point}", name)
    assert deployed.undeploy(name).state is DeploymentState.ENDED
    assert deployed.up(name) == []


@pytest.mark.parametrize(("name", "point"), diagonal(HOURLY, END_POINTS))
def test_an_end_killed_at_each_point_is_gone_on_with(deployed: Deployed, name: str, point: str) -> None:
    deployed.deploy(name)
    with pytest.raises(Killed):
        deployed.undeploy(name, point=point)
    ended = deployed.settle(name)
    assert ended is not None and ended.state is DeploymentState.ENDED
    assert deployed.up(name) == []
    deployed.count(f"undeploy killed {point}", name)


ANSWERS: dict[str, dict[str, Any]] = {
    "answer lost": {"kind": "lost_answer"},
    "request lost": {"kind": "lost_request"},
    "504 after the commit": {"kind": "timeout"},
    "an answer that is no JSON, after the commit": {"kind": "bad_json"},
    "HTML after the commit": {"kind": "html_after"},
    "committed late": {"kind": "late_commit", "delay_s": 0.2},
    "500 before": {"kind": "error", "status": 500},
    "400 before": {"kind": "error", "status": 400},
    "400 after the commit": {"kind": "refused_after", "status": 400},
    "429 after the commit": {"kind": "refused_after", "status": 429},
}
FAST = {"answer lost", "request lost", "committed late", "500 before", "429 after the commit"}


@pytest.mark.parametrize(("name", "answer"), diagonal(HOURLY, ANSWERS, fast=FAST))
def test_a_request_whose_answer_says_little_is_settled_by_looking(
    deployed: Deployed, hosts: Any, name: str, answer: str
) -> None:
    hosts.fault(name, method="POST", path=CREATE[name], **ANSWERS[answer])
    with contextlib.suppress(OrchestrateError):
        deployed.deploy(name)
    assert not hosts.fronts[name].faults.waiting(), "the fault befell nothing"
    if "late" in answer:
        hosts.skip(1_000)
        _wait_for(lambda: bool(deployed.up(name)))
    deployed.settle(name)
    deployed.count(answer, name)
    assert deployed.deploy(name).complete and deployed.answers(name)
    assert deployed.undeploy(name).state is DeploymentState.ENDED and deployed.up(name) == []
    deployed.count(answer, name)


def _wait_for(true: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 240
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_together_is_routed_by_the_next_call_when_the_process_died_before_it(
    deployed: Deployed, hosts: Any
) -> None:
    hosts.fault("together", "error", method="PATCH", path="endpoints/[^/]+$", status=400, count=1)
    with pytest.raises(OrchestrateError) as told:
        deployed.deploy("together")
    assert "the deployment is up and billed. Complete it with  orchestrate deploy" in str(told.value.fix)
    known = deployed.record("together")
    assert known is not None and (known.state, known.complete) == (DeploymentState.UP, False)
    assert not deployed.answers("together")
    assert deployed.deploy("together").complete and deployed.answers("together")


@pytest.mark.parametrize("name", HOURLY)
def test_an_end_that_the_host_refuses_is_asked_again_until_it_is_shown(
    deployed: Deployed, hosts: Any, name: str
) -> None:
    deployed.deploy(name)
    hosts.fault(name, "error", method="DELETE", status=400 if name == "together" else 503, count=0)
    hosts.fault(name, "error", method="PATCH", status=400, count=0)
    with contextlib.suppress(OrchestrateError):
        deployed.undeploy(name, patience_s=4)
    known = deployed.record(name)
    assert known is not None and known.state is DeploymentState.ENDING and known.billing_since is not None
    report = deployed.world.sync()
    assert report.ending == [known.run_id] or report.failures
    hosts.clear_faults()
    ended = deployed.settle(name)
    assert ended is not None and ended.state is DeploymentState.ENDED and deployed.up(name) == []
    deployed.count("the host does not end it", name)


@pytest.mark.parametrize("name", HOURLY)
def test_another_account_proves_nothing_and_is_asked_nothing(
    deployed: Deployed, hosts: Any, name: str
) -> None:
    deployed.deploy(name)
    other = deployed.world.provider(name)
    deployed.world.providers[name] = _elsewhere(deployed.world, name)
    with pytest.raises(OtherAccount):
        deployed.undeploy(name)
    report = deployed.world.sync()
    assert report.failures
    known = deployed.record(name)
    assert known is not None and known.state is DeploymentState.UP and len(deployed.up(name)) == 1
    deployed.world.providers[name].close()
    deployed.world.providers[name] = other
    assert deployed.undeploy(name).state is DeploymentState.ENDED
    deployed.count("another account", name)


def _elsewhere(world: World, name: str) -> Any:
    from tests.faults.submitting import backend

    keys = {key: f"{value}-of-another" for key, value in world.env.items() if key.endswith("_API_KEY")}
    return backend(name, world.home, {**world.env, **keys, "ORCHESTRATE_KEYS": str(world.home / "others")})


def test_a_fireworks_deployment_ends_though_its_job_is_gone(deployed: Deployed, hosts: Any) -> None:
    deployed.deploy("fireworks")
    deployed.world.provider("fireworks").delete(deployed.runs["fireworks"].handle)
    assert deployed.undeploy("fireworks").state is DeploymentState.ENDED
    assert deployed.up("fireworks") == []


@pytest.mark.slow
def test_one_that_somebody_else_ended_is_lost_and_costs_no_more(deployed: Deployed) -> None:
    deployed.deploy("fireworks")
    state = deployed.world.hosts.fronts["fireworks"].host.state
    state.delete("fireworks", "deployment", deployed.up("fireworks")[0]["id"])
    report = deployed.world.sync()
    assert report.hosting == [], "lists lag"
    known = deployed.settle("fireworks")
    assert known is not None and known.state is DeploymentState.LOST and known.billing_since is None


def test_one_that_the_store_does_not_know_is_taken_up_and_ended(deployed: Deployed) -> None:
    from orchestrate.runs.syncing.recovery import recover

    for name in HOURLY:
        run = deployed.runs[name]
        deployed.world.provider(name).deploy(run.handle)
    found = recover(deployed.store, [deployed.world.provider(name) for name in HOURLY])
    assert sorted(found.deployments) == sorted(run.id for run in deployed.runs.values())
    for name in HOURLY:
        assert deployed.undeploy(name).state is DeploymentState.ENDED and deployed.up(name) == []


# -- money -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "words"), [({"max_hours": Decimal(2)}, "2 hours"), ({"max_cost_usd": Decimal(10)}, "$10")]
)
@pytest.mark.parametrize("name", HOURLY)
def test_a_limit_that_has_come_ends_it_and_is_retried(
    deployed: Deployed, hosts: Any, name: str, limit: dict[str, Decimal], words: str
) -> None:
    up = deployed.deploy(name, DeployTerms(**limit))
    deployed.clock.ahead += timedelta(hours=1.1)
    report = deployed.world.sync()
    assert any("up for 1h 06m" in line for line in report.hosting), report
    assert deployed.world.sync().hosting == [], "idle ones are spoken of once a day"
    assert len(deployed.up(name)) == 1
    deployed.clock.ahead += timedelta(hours=1)
    hosts.fault(name, "error", status=503, method="DELETE", count=6)
    assert any(words in line for line in deployed.world.sync().hosting)
    ended = deployed.settle(name)
    assert ended is not None and ended.state is DeploymentState.ENDED and words in str(ended.cause)
    assert deployed.up(name) == []
    warned = [e.type for e in deployed.store.history.events(up.run_id) if e.type.startswith("deployment_")]
    assert warned == ["deployment_idle", "deployment_limit", "deployment_down"]
    deployed.count("a limit has come", name)


def test_deployments_take_their_part_of_the_budget(deployed: Deployed) -> None:
    from orchestrate.costing.expenses import deployment_spending
    from orchestrate.store.ledger import reserve

    up = deployed.deploy("fireworks", DeployTerms(max_hours=Decimal(3)))
    own = {"sandbox": False, "id": "dep-1", "job_id": "another", "host": "https://host"}
    real = Deployment.from_dict(up.to_dict() | own)
    deployed.store.deployments.add(real)
    assert real.usd_per_hour is not None
    now = deployed.clock.now()
    first = deployment_spending(real, now)
    assert round(first.committed_usd, 1) == 3 * real.usd_per_hour
    later = deployment_spending(real, now + timedelta(hours=2))
    assert round(later.spent_usd, 1) == 2 * real.usd_per_hour and round(later.total_usd, 1) == round(
        first.total_usd, 1
    )
    endless = deployment_spending(_without_limits(real), now)
    assert round(endless.committed_usd) == 24 * real.usd_per_hour
    with deployed.store.database.writing() as connection, pytest.raises(OverBudget):
        reserve(connection, deployed.clock, "together", Decimal(5), budget_usd=first.total_usd + 4)


CENTS = Decimal("0.05")
"""More than a machine costs in the seconds that the test takes."""


def test_money_follows_the_most_replicas_and_never_falls(deployed: Deployed) -> None:
    """The autoscaler may start all of them at any time. Fewer cost less from then on, and give nothing
    back."""
    from orchestrate.costing.expenses import deployment_spending

    def as_billed(known: Deployment) -> Any:
        return deployment_spending(
            Deployment.from_dict(known.to_dict() | {"sandbox": False}), deployed.clock.now()
        )

    def polled(**changes: Any) -> Any:
        [entry] = deployed.up("together")
        state = deployed.world.hosts.fronts["together"].host.state
        state.put("together", "deployment", entry["id"], {**entry, **changes})
        deployed.world.sync()
        known = deployed.record("together")
        assert known is not None
        return as_billed(known)

    scaling = {"min_replicas": 1, "max_replicas": 4}
    up = deployed.deploy("together", DeployTerms(max_hours=Decimal(3), options=scaling))
    assert up.usd_per_hour is not None
    one, first = up.usd_per_hour / 4, as_billed(up)
    assert round(first.committed_usd, 1) == round(12 * one, 1)
    with pytest.raises(OverBudget):
        deployed.deploy("together", DeployTerms(max_usd_per_hour=one + 1))
    deployed.clock.ahead += timedelta(hours=1)
    for changes in ({"desiredReplicas": 4}, {"desiredReplicas": 1}):
        found = polled(**changes)
        assert round(found.spent_usd, 1) == round(4 * one, 1), changes
        assert round(found.total_usd, 1) == round(first.total_usd, 1), changes
    # Fewer are allowed, in the console. What was spent stays spent.
    fewer = {"autoscaling": {"minReplicas": 1, "maxReplicas": 1}}
    for hours in (0, 1):
        deployed.clock.ahead += timedelta(hours=hours)
        found = polled(**fewer, desiredReplicas=1)
        assert abs(found.spent_usd - (4 + hours) * one) < CENTS
        assert abs(found.total_usd - 6 * one) < CENTS
    more = polled(autoscaling={"minReplicas": 1, "maxReplicas": 4}, desiredReplicas=1)
    assert abs(more.spent_usd - 8 * one) < CENTS, "they may have run since it was looked at last"
    assert abs(polled(**fewer, desiredReplicas=1).spent_usd - 8 * one) < CENTS


def test_a_cost_limit_ends_one_by_its_most_replicas(deployed: Deployed) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 4}
    up = deployed.deploy("together", DeployTerms(max_cost_usd=Decimal(20), options=scaling))
    assert up.usd_per_hour is not None and up.usd_per_hour > 20
    deployed.clock.ahead += timedelta(hours=1)
    assert any("$20" in line for line in deployed.world.sync().hosting)
    ended = deployed.settle("together")
    assert ended is not None and ended.state is DeploymentState.ENDED and deployed.up("together") == []
    assert ended.usd_per_hour == up.usd_per_hour, "the scaling to none at its end lowers nothing"


def _without_limits(deployment: Deployment) -> Deployment:
    return Deployment.from_dict(deployment.to_dict() | {"max_hours": None})


@pytest.mark.parametrize("name", HOURLY)
def test_terms_that_do_not_hold_make_nothing(deployed: Deployed, hosts: Any, name: str) -> None:
    hosts.requests()
    with pytest.raises(OverBudget):
        deployed.deploy(name, DeployTerms(max_usd_per_hour=Decimal(1)))
    if name == "fireworks":
        unpriced = {"shape": "default"}
        with pytest.raises(UsageError, match="no rate is known"):
            deployed.deploy(name, DeployTerms(options=unpriced))
        with pytest.raises(UsageError, match="cannot be enforced"):
            deployed.deploy(
                name, DeployTerms(options=unpriced, accept_unknown_price=True, max_cost_usd=Decimal(5))
            )
    assert deployed.record(name) is None and deployed.up(name) == []


def test_an_earlier_deploy_that_is_not_settled_is_not_made_again(deployed: Deployed, hosts: Any) -> None:
    deployed.world.timing = replace(SETTLED, margin_s=30.0)
    hosts.fault("fireworks", "lost_request", method="POST", path=CREATE["fireworks"])
    with pytest.raises(OutcomeUnknown):
        deployed.deploy("fireworks")
    posts = len(hosts.requests("fireworks", method="POST", path="/deployments"))
    with pytest.raises(OutcomeUnknown, match="not known yet"):
        deployed.deploy("fireworks")
    assert len(hosts.requests("fireworks", method="POST", path="/deployments")) == posts
    deployed.clock.ahead += timedelta(minutes=1)
    assert deployed.deploy("fireworks").complete and len(deployed.up("fireworks")) == 1
