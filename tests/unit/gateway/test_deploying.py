"""Tuned models that the gateway deploys when clients ask for them, up to what its model map allows."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai as sdk
import pytest
from openai import OpenAI
from tests import command
from tests.unit.gateway import worker
from tests.unit.gateway.conftest import ASKED, MODELS, Gateway, ended, gateway_of, own_port, rows, until
from tests.waiting import PATIENCE_S

from orchestrate.errors import ConfigError, Unsupported
from orchestrate.gateway import launch, terms
from orchestrate.providers.base import Deploys, capability
from orchestrate.runs.hosting.deployer import DEPLOY_POINTS
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings.config import HostConfig
from orchestrate.types import DeploymentState

ASK: list[Any] = [{"role": "user", "content": "order 17"}]
HOSTED = [name for name, target in MODELS.items() if target["backend"] != "local"]
LIMITS: dict[str, Any] = {"max_hours": 2, "max_cost_usd": 40}


@contextmanager
def allowing(home: Path, sandbox: Sandbox, limits: dict[str, Any] = LIMITS, **more: str) -> Iterator[Gateway]:
    models = {name: {**MODELS[name], "deploy": limits} for name in HOSTED}
    with gateway_of(home, {**sandbox.env, **more}, {"models": models}) as found:
        yield found


def tuned(client: OpenAI, model: str, mark: str) -> str:
    file = client.files.create(file=("t.jsonl", rows(mark=mark)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id)
    return ended(client, job.id, PATIENCE_S).fine_tuned_model


def refusal(client: OpenAI, name: str) -> sdk.APIStatusError:
    with pytest.raises(sdk.APIStatusError) as told:
        client.chat.completions.create(model=name, messages=ASK)
    return told.value


def answered(client: OpenAI, name: str) -> str:
    """As a client that comes again while it is told to."""

    def ask() -> Any:
        try:
            return client.chat.completions.create(model=name, messages=ASK, max_tokens=8)
        except sdk.APIStatusError as error:
            assert error.status_code == 503 and error.response.headers["x-should-retry"] == "true", error
            return None

    return until(ask).model


def standing(gateway: Gateway, backend: str) -> list[str]:
    """Ids of the jobs that the host has a deployment of."""
    found = capability(gateway.ft.provider(backend), Deploys).deployments()
    return [str(one.job_id) for one in found if one.kind == "deployment"]


def job_id(gateway: Gateway, name: str) -> str:
    job = gateway.ft.store.gateway_jobs.of_model(name)
    assert job is not None and job.run_id is not None
    return str(gateway.ft.store.runs.get(job.run_id).job_id).lower()


@pytest.mark.slow
@pytest.mark.parametrize("model", HOSTED)
def test_a_client_tunes_and_chats_and_nobody_else_does_anything(
    sandbox: Sandbox, tmp_path: Path, model: str
) -> None:
    with allowing(tmp_path, sandbox) as gateway, gateway.client() as client:
        name = tuned(client, model, f"life {model}")
        first = refusal(client, name)
        assert (first.status_code, first.code) == (503, "model_coming_up")
        assert 0 < int(first.response.headers["retry-after"]) <= 60, "the official client waits no longer"
        assert answered(client, name) == name
        stream = client.chat.completions.create(model=name, messages=ASK, max_tokens=8, stream=True)
        assert any(piece.choices[0].finish_reason for piece in stream if piece.choices)
        backend = MODELS[model]["backend"]
        assert standing(gateway, backend).count(job_id(gateway, name)) == 1
        [made] = [one.record for one in gateway.ft.deployments(over=None)]
        assert (made.max_hours, made.max_cost_usd) == (2, 40)
        assert (made.made_by, made.gateway_key, made.gateway_model) == ("local", "local", model)


@pytest.mark.slow
def test_many_who_ask_at_once_deploy_once(sandbox: Sandbox, tmp_path: Path) -> None:
    with allowing(tmp_path, sandbox) as gateway, gateway.client() as client:
        name = tuned(client, ASKED, "at once")
        sandbox.clear_requests()
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: answered(client, name), range(6)))
        assert found == [name] * 6
        assert standing(gateway, "together").count(job_id(gateway, name)) == 1
        assert len(gateway.ft.deployments(over=None)) == 1
        made = [one["path"] for one in sandbox.requests("together", method="POST")]
        assert len([path for path in made if path.endswith("/deployments")]) == 1


@pytest.mark.slow
def test_what_all_deployments_of_a_name_cost_stays_below_its_limit(sandbox: Sandbox, tmp_path: Path) -> None:
    """An hour costs $5.49 at least: the second model does not fit beside the first."""
    with (
        allowing(tmp_path, sandbox, {"max_hours": 2, "max_cost_usd": 12}) as gateway,
        gateway.client() as client,
    ):
        first, second = (tuned(client, ASKED, f"limit {n}") for n in range(2))
        assert refusal(client, first).code == "model_coming_up"
        refused = refusal(client, second)
        assert (refused.status_code, refused.code) == (403, "over_budget")
        assert "gateway.models" in refused.message and refused.response.headers["x-should-retry"] == "false"
        assert answered(client, first) == first, "what goes on takes nothing more"
        [one] = gateway.ft.deployments()
        one.undeploy(patience_s=240)
        assert answered(client, second) == second, "the first cost next to nothing"
        assert {each.state for each in gateway.ft.deployments(over=True)} == {DeploymentState.ENDED}


@pytest.mark.slow
def test_a_key_pays_what_it_has_deployed(sandbox: Sandbox, tmp_path: Path) -> None:
    limits = {**LIMITS, "keys": ["ann", "bob"]}
    with allowing(tmp_path, sandbox, limits) as gateway:
        ann, _ = launch.add_key(gateway.ft, "ann", budget_usd=Decimal(9))
        bob, _ = launch.add_key(gateway.ft, "bob", budget_usd=Decimal(30))
        eve, _ = launch.add_key(gateway.ft, "eve")
        with gateway.client(ann) as client:
            name = tuned(client, ASKED, "of a key")
            assert refusal(client, name).code == "over_budget"
        with gateway.client(eve) as client:
            assert refusal(client, name).code == "model_not_deployed"
        assert standing(gateway, "together").count(job_id(gateway, name)) == 0
        before = gateway.ft.store.gateway_jobs.use("bob").usd
        with gateway.client(bob) as client:
            assert refusal(client, name).code == "model_coming_up"
        [made] = [one.record for one in gateway.ft.deployments(over=None)]
        assert made.usd_per_hour is not None
        taken = gateway.ft.store.gateway_jobs.use("bob").usd - before
        assert taken == pytest.approx(2 * made.usd_per_hour) and made.gateway_key == "bob"
        with gateway.client(eve) as client:
            assert answered(client, name) == name, "asking what is up deploys nothing"


@pytest.mark.slow
def test_the_budget_of_the_store_holds(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with allowing(tmp_path, sandbox, ORCHESTRATE_BUDGET_USD="8") as gateway, gateway.client() as client:
        name = tuned(client, ASKED, "budget")
        with monkeypatch.context() as patch:
            patch.setattr(HostConfig, "sandbox", property(lambda self: False))
            assert refusal(client, name).code == "over_budget"
        assert standing(gateway, "together").count(job_id(gateway, name)) == 0
        assert not gateway.ft.deployments(over=None) and not gateway.ft.store.ledger.spending().total_usd


@pytest.mark.slow
def test_it_ends_by_itself_and_is_not_there_again_while_it_ends(sandbox: Sandbox, tmp_path: Path) -> None:
    with allowing(tmp_path, sandbox, {**LIMITS, "max_hours": 0.002}) as gateway, gateway.client() as client:
        name = tuned(client, ASKED, "hours")
        assert refusal(client, name).code == "model_coming_up"
        [made] = gateway.ft.deployments(over=None)
        until(lambda: gateway.ft.store.deployments.get(made.id).state.over)
        ended_one = gateway.ft.store.deployments.get(made.id)
        assert ended_one.state is DeploymentState.ENDED and "used up its" in str(ended_one.cause)
        assert standing(gateway, "together").count(job_id(gateway, name)) == 0


@pytest.mark.slow
def test_what_is_taken_down_while_it_is_asked(sandbox: Sandbox, tmp_path: Path) -> None:
    with allowing(tmp_path, sandbox) as gateway, gateway.client() as client:
        name = tuned(client, ASKED, "taken down")
        assert answered(client, name) == name
        [made] = gateway.ft.deployments(over=None)
        with sandbox_keeps(sandbox):
            made.undeploy(patience_s=0)
            assert gateway.ft.store.deployments.get(made.id).state is DeploymentState.ENDING
            assert refusal(client, name).code == "model_coming_up"
            assert len(gateway.ft.deployments(over=None)) == 1
        assert made.undeploy(patience_s=240).state is DeploymentState.ENDED
        assert answered(client, name) == name
        assert standing(gateway, "together").count(job_id(gateway, name)) == 1
        assert len(gateway.ft.deployments(over=None)) == 2


@contextmanager
def sandbox_keeps(sandbox: Sandbox) -> Iterator[None]:
    """A host that does not get around to the end of a deployment."""
    sandbox.fault("together", "error", method="DELETE", path="endpoints", count=0, status=409)
    try:
        yield
    finally:
        sandbox.clear_faults()


@pytest.mark.slow
@pytest.mark.parametrize("place", [f"{worker.DEPLOY} {point}" for point in DEPLOY_POINTS])
def test_a_gateway_that_is_killed_between_deploys_once(sandbox: Sandbox, tmp_path: Path, place: str) -> None:
    with own_port() as port:
        process = worker.start(tmp_path, port, place, sandbox.env)
        url = f"http://127.0.0.1:{port}/v1"
        with OpenAI(base_url=url, api_key="no-key-here", max_retries=20) as client:
            name = tuned(client, ASKED, f"killed {place}")
            with pytest.raises(sdk.APIConnectionError):
                client.with_options(max_retries=0).chat.completions.create(model=name, messages=ASK)
            assert command.ended(process, 240) == -signal.SIGKILL
            process = worker.start_again(tmp_path, port, place, sandbox.env)
            try:
                assert answered(client.with_options(max_retries=0), name) == name
            finally:
                process.kill()
                process.join()
    with gateway_of(tmp_path, sandbox.env) as gateway:
        assert standing(gateway, "together").count(job_id(gateway, name)) == 1
        [made] = [one.record for one in gateway.ft.deployments(over=False)]
        assert (made.max_hours, made.gateway_model, made.complete) == (2, ASKED, True)


def test_what_an_entry_may_not_say(sandbox: Sandbox, tmp_path: Path) -> None:
    def read(**entry: Any) -> None:
        terms.read({"models": {ASKED: {**MODELS[ASKED], **entry}}}, tmp_path, "here")

    for deploy in ({}, {"max_hours": 2}, {"max_cost_usd": 5}, {**LIMITS, "max_hours": 0}, {**LIMITS, "x": 1}):
        with pytest.raises(ConfigError, match=r"deploy"):
            read(deploy=deploy)
    with pytest.raises(ConfigError, match="on"):
        read(deploy=LIMITS, on="here")
    models = {"m": {"backend": "openai", "model": "gpt-4.1-nano", "deploy": LIMITS}}
    with pytest.raises(Unsupported), gateway_of(tmp_path, sandbox.env, {"models": models}):
        pass
