"""`deploy` and its kin as they are typed: bad input, what holds, what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.faults.shop import Shop
from typer.testing import Result

from orchestrate import sandbox
from orchestrate.errors import UsageError
from orchestrate.sandbox.jobs import Durations


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("sandbox")
    with sandbox.running(home=home, train=False, speed=1000, waits=Durations(file=0.0)) as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path, hosts: Any) -> Shop:
    hosts.clear_faults()
    return Shop(tmp_path, hosts)


def refused(typed: Result) -> str:
    """The message of a usage error: the command ends with exit code 2."""
    assert isinstance(typed.exception, UsageError) and typed.exception.exit_code == 2, typed
    return typed.exception.message


@pytest.mark.slow
def test_a_second_deploy_says_what_holds_and_refuses_what_it_would_ignore(shop: Shop) -> None:
    run = shop.ft.submit(shop.spec, "together")
    run.wait(poll_s=0.02)
    deploy = ("deploy", run.id, "--yes", "--no-prove")
    for bad in (("--max-hours", "0"), ("--max-cost", "0"), ("--max-cost", "1e400"), ("--max-hours", "1e400")):
        typed = shop.type(*deploy, *bad)
        assert bad[0] in refused(typed)
    assert shop.ft.deployments() == []
    price = run.deployment_price()
    assert price is not None
    first = shop.type(*deploy, "--max-hours", "2")
    assert first.exit_code == 0 and f"at most ${2 * price:.2f}" in first.output, first.output
    again = shop.type(*deploy)
    assert again.exit_code == 0 and "The deployment ends after 2 h" in again.output, again.output
    assert "no limit" not in again.output
    ignored = shop.type(*deploy, "--set", "max_replicas=4")
    assert "max_replicas=4" in refused(ignored)
    kept = shop.type("abandon", run.id, "--reason", "x")
    assert "your key can still manage the deployment" in refused(kept)
    assert shop.type("undeploy", run.id).exit_code == 0


def test_limits_of_runs_are_read_by_the_same_rules(shop: Shop) -> None:
    for word in ("1e400", "-1", "nan", "7,50"):
        typed = shop.command("together", f"--max-cost={word}")
        assert "max_cost_usd" in refused(typed)
    assert shop.sent() == 0
    run = shop.ft.submit(shop.spec, "together").id
    for command in (("resume", run, "--max-cost", "1e400"), ("resume", run, "--max-hours", "1e400")):
        assert command[2].strip("-").replace("-", "_") in refused(shop.type(*command)).replace("-", "_")


def test_a_run_that_was_refused_has_nothing_to_take_down(shop: Shop, hosts: Any) -> None:
    hosts.fault("fireworks", "error", method="POST", path="FineTuningJobs$", status=400, count=1)
    assert shop.command("fireworks").exit_code == 4
    assert "has no job on fireworks" in refused(shop.type("undeploy", "last"))
