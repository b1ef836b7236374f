"""Deployed, lost, still billing: 0, when the process that deploys is killed: a process of its own, by
SIGKILL, on both kinds of store."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests import command
from tests.faults.hosting.deployed import CREATE, HOURLY, TERMS, Deployed, Moved
from tests.faults.submitting import backend
from tests.faults.world import World
from tests.paths import ROOT

from orchestrate.runs.hosting.deployer import Deployer
from orchestrate.store.store import Store, Timing
from orchestrate.types import DeploymentState

pytestmark = pytest.mark.slow

LEASE_S = 0.3
LEASE = timedelta(seconds=2)
POINTS = ("after-intent", "after-creating", "after-request")


def deploy_once(arguments: list[str]) -> None:
    """`STORE_URL BACKEND HOME RUN POINT`: deploys the run, and at POINT kills itself."""
    url, name, home, run, point = arguments

    def reached(here: str) -> None:
        if here == point:
            os.kill(os.getpid(), signal.SIGKILL)

    with Store.open(url) as store:
        timing = Timing(send_limit_s=60.0, lease_s=LEASE_S)
        deployer = Deployer(store, backend(name, Path(home), os.environ), timing, reached)
        deployer.deploy(store.runs.get(run), TERMS[name])


@pytest.fixture
def deployed(tmp_path: Path, hosts: Any, store_url: str, tally: Callable[..., None]) -> Iterator[Deployed]:
    hosts.clear_faults()
    clock = Moved()
    world = World(tmp_path, hosts, store_url, clock=clock)
    made = Deployed(world, clock, tally)
    yield made
    hosts.clear_faults()
    made.clear()
    world.close()


def child(deployed: Deployed, name: str, point: str) -> Any:
    world, log = deployed.world, deployed.world.home / "child.log"
    arguments = [world.url, name, str(world.home), deployed.runs[name].id, point]
    env, streams = {**os.environ, **world.env}, [Path(os.devnull), log, log]
    return command.start(deploy_once, arguments, cwd=ROOT, env=env, streams=streams)


@pytest.mark.parametrize("name", HOURLY)
def test_a_process_killed_on_its_way_is_found_and_gone_on_with(deployed: Deployed, name: str) -> None:
    for point in POINTS:
        assert command.ended(child(deployed, name, point), 120) == -signal.SIGKILL
        assert len(deployed.up(name)) == int(point == "after-request")
        deployed.clock.ahead += LEASE  # of the dead one, by the clock of this process
        time.sleep(LEASE_S)  # and by that of the next
        deployed.settle(name)
        deployed.count(f"deploy, SIGKILL {point}", name)
    assert deployed.deploy(name).complete and deployed.answers(name)
    assert deployed.undeploy(name).state is DeploymentState.ENDED and deployed.up(name) == []
    deployed.count("deploy, SIGKILL at each point", name)


@pytest.mark.parametrize("name", HOURLY)
def test_a_process_killed_while_the_host_answers_is_found(deployed: Deployed, hosts: Any, name: str) -> None:
    hosts.fault(name, "slow", method="POST", path=CREATE[name], delay_s=20.0)
    process = child(deployed, name, "none")
    deadline = time.monotonic() + 240
    while hosts.fronts[name].faults.waiting() or not deployed.up(name):
        assert time.monotonic() < deadline, (deployed.world.home / "child.log").read_text()
        time.sleep(0.02)
    process.kill()
    assert command.ended(process, 240) == -signal.SIGKILL
    deployed.settle(name)
    deployed.count("deploy, SIGKILL while the host answers", name)
    assert deployed.deploy(name).complete and len(deployed.up(name)) == 1
    assert deployed.undeploy(name).state is DeploymentState.ENDED and deployed.up(name) == []
