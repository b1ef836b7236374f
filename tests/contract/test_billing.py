"""What each backend says of all that bills or could: also what we did not make, and what it cannot see."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from tests.contract.backends import BACKENDS, HOSTED, Backend
from tests.scripted_host import Answer, Host, scripted_host

from orchestrate import sandbox as sandboxes
from orchestrate.errors import ProviderError
from orchestrate.providers.base import (
    Provider,
    billing_of,
)
from orchestrate.sandbox.jobs import Durations
from orchestrate.types import BilledResource

DEPLOYING = {b.name: b for b in HOSTED if b.name in ("together", "fireworks")}
ACCOUNT = "/v1/accounts/acme"
PROJECT = "/v2/projects/proj-1"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_every_backend_lists_the_jobs_that_have_not_ended(
    backend: Backend, make: Callable[[Backend], Provider], files: dict[str, str]
) -> None:
    provider = make(backend)
    open_jobs = {job.handle.job_id for job in provider.list() if not job.status.terminal}
    found = billing_of(provider)
    assert {item.id for item in found.items if item.kind in ("job", "worker")} == open_jobs
    assert all(item.bills is not True for item in found.items if item.kind == "worker")


def hosted(name: str, host: Host, tmp_path: Any) -> Provider:
    upper = name.upper()
    env = {
        f"{upper}_BASE_URL": host.url,
        f"{upper}_API_KEY": "a-key-of-a-test",
        f"{upper}_ACCOUNT_ID": "acme",
    }
    if name == "together":
        env["TOGETHER_PROJECT_ID"] = "proj-1"
        host.on("GET", "/v1/fine-tunes", {"data": []})
    else:
        for kind in ("supervisedFineTuningJobs", "dpoJobs", "reinforcementFineTuningJobs"):
            host.on("GET", f"{ACCOUNT}/{kind}", {})
    return DEPLOYING[name].make(env, tmp_path)


def by_id(items: tuple[BilledResource, ...]) -> dict[str, BilledResource]:
    return {item.id: item for item in items}


def test_a_foreign_fireworks_deployment_is_listed_with_its_price(tmp_path: Any) -> None:
    gpus = {"acceleratorType": "NVIDIA_H100_80GB", "acceleratorCount": 2, "baseModel": "m"}
    entries = [
        {**gpus, "name": "accounts/acme/deployments/theirs", "state": "READY", "replicaCount": 1},
        {**gpus, "name": "accounts/acme/deployments/asleep", "state": "READY", "replicaCount": 0},
        {**gpus, "name": "accounts/acme/deployments/silent", "state": "READY"},
        {**gpus, "name": "accounts/acme/deployments/going", "state": "DELETING"},
        {**gpus, "name": "accounts/acme/deployments/gone", "state": "DELETED"},
    ]
    with scripted_host() as host:
        provider = hosted("fireworks", host, tmp_path)
        host.on("GET", f"{ACCOUNT}/deployments", {"deployments": entries})
        found = by_id(billing_of(provider).items)
        assert {id.rsplit("/", 1)[-1]: item.bills for id, item in found.items()} == {
            "theirs": True,
            "asleep": False,
            "silent": None,
            "going": True,
        }
        assert all(item.usd_per_hour == 16 for item in found.values())
        host.on("GET", f"{ACCOUNT}/deployments", Answer({"error": "no"}, 403))
        told = billing_of(provider)
        assert told.items == ()
        assert any("could not look up deployments" in line for line in told.unseen)


def test_foreign_together_endpoints_are_listed_with_and_without_deployments(tmp_path: Any) -> None:
    def deployment(state: str, **more: Any) -> dict[str, Any]:
        return {
            "id": f"dep_{state.lower()}",
            "state": f"DEPLOYMENT_STATE_{state}",
            "autoscaling": {"minReplicas": 1, "maxReplicas": 2},
            "hardware": "1xnvidia-h100-80gb",
            "name": "me/x/y",
            "model": "m",
            **more,
        }

    states = [deployment(s) for s in ("READY", "STOPPED", "STOPPING", "FAILED", "NEW_WORD")]
    with scripted_host() as host:
        provider = hosted("together", host, tmp_path)
        ours = {"id": "ep_0", "name": "me/orc-ft-1", "deployments": []}
        theirs = {"id": "ep_1", "name": "me/chatbot", "deployments": states}
        host.on("GET", f"{PROJECT}/endpoints", {"data": [ours, theirs]})
        found = by_id(billing_of(provider).items)
        assert (found["ep_0"].kind, found["ep_0"].bills, found["ep_0"].job_id) == ("endpoint", False, "ft-1")
        assert {id: item.bills for id, item in found.items() if item.kind == "deployment"} == {
            "ep_1/dep_ready": True,
            "ep_1/dep_stopped": False,
            "ep_1/dep_stopping": True,
            "ep_1/dep_failed": None,
            "ep_1/dep_new_word": None,
        }
        assert found["ep_1/dep_ready"].job_id is found["ep_1/dep_ready"].usd_per_hour is None
        price = {"name": "1xnvidia-h100-80gb", "id": "h", "priceCentsPerHour": "549"}
        host.on("GET", "/v2/public/inference-instance-types", {"data": [price]})
        assert by_id(billing_of(provider).items)["ep_1/dep_ready"].usd_per_hour == Decimal("10.98")


@pytest.mark.parametrize("answer", [{}, {"data": None}, {"error": {"message": "no"}}])
def test_an_answer_that_is_no_list_of_endpoints_is_not_nothing(tmp_path: Any, answer: Any) -> None:
    with scripted_host() as host:
        provider = hosted("together", host, tmp_path)
        provider._wire._sleep = lambda seconds: None  # type: ignore[attr-defined]  # pyright: ignore
        host.on("GET", f"{PROJECT}/endpoints", answer)
        assert any("could not look up endpoints" in line for line in billing_of(provider).unseen)
        host.on("GET", "/v1/fine-tunes", answer)
        with pytest.raises(ProviderError):
            billing_of(provider)


@pytest.mark.parametrize("name", DEPLOYING)
def test_the_sandbox_lists_a_deployment_that_somebody_else_made(name: str, tmp_path: Any) -> None:
    with sandboxes.running(train=False, waits=Durations(file=0.0)) as sandbox:
        provider: Any = DEPLOYING[name].make(sandbox.env, tmp_path)
        if name == "together":
            client = provider._client()
            project = provider._serving.project()
            client.endpoints.create(name="forgotten", project_id=project)
            kind, bills = "endpoint", False
        else:
            client = provider._at.client()
            client.deployments.create(
                account_id=provider._at.account(),
                base_model="accounts/fireworks/models/qwen3-8b",
                deployment_id="forgotten",
                deployment_shape="default",
            )
            kind, bills = "deployment", True
        [item] = billing_of(provider).items
        assert (item.kind, item.bills) == (kind, bills)
        assert "forgotten" in f"{item.id} {item.name}"
        provider.close()
