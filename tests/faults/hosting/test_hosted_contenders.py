"""Models of hosts behind the proxy of an experiment: each user's requests go where the run's own would."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from tests.faults.shop import Shop

from orchestrate import JobSpec
from orchestrate.ab import Experiment
from orchestrate.ab import launch as experiments
from orchestrate.errors import UsageError
from orchestrate.types import DecisionRule, ExperimentPlan, PlannedMetric

HOSTED = ("openai", "together", "fireworks")


@pytest.mark.parametrize("name", HOSTED)
def test_a_run_of_a_host_and_its_base_are_asked_there(name: str, hosts: Any, tmp_path: Any) -> None:
    hosts.clear_faults()
    shop = Shop(tmp_path, hosts)
    ft = shop.ft
    model = {"openai": "gpt-4o-mini"}.get(name, "qwen3.5-9b")
    run = ft.submit(JobSpec(model=model, train=str(shop.rows), epochs=1), provider=name)
    hosts.skip(100_000)
    ft.sync()
    plan = ExperimentPlan(
        name="bot",
        base=run.id,
        tuned=run.id,
        metrics=(PlannedMetric(name="resolved", role="primary"),),
        rule=DecisionRule(stages=(50, 100)),
    )
    experiment = Experiment.begin(plan, ft.store)
    terms = experiments.ABTerms(port=0)
    if name != "openai":
        with pytest.raises(UsageError, match="deploy"), experiments.serve(ft, experiment, terms):
            pass
        run.deploy()
        hosts.skip(1_000)
    hosts.clear_requests()
    told: dict[str, set[str]] = {"base": set(), "tuned": set()}
    known = ft.store.deployments.of_run(run.id)
    assert (known is None) == (name == "openai") and (known is None or known.used_at is None)
    with (
        experiments.serve(ft, experiment, terms) as up,
        OpenAI(base_url=f"{up.url}/v1", api_key="a-key-of-tests", max_retries=0) as client,
    ):
        for user in (f"u{n}" for n in range(12)):
            raw = client.chat.completions.with_raw_response.create(
                model="bot", messages=[{"role": "user", "content": "Hi"}], user=user
            )
            arm = raw.headers["x-orchestrate-arm"]
            assert raw.headers["x-orchestrate-answered-by"] == arm == experiment.assign(user).arm
            done = raw.parse()
            assert done.choices[0].message.content
            told[arm].add(done.model)
    asked = [e for e in hosts.requests(name, method="POST") if "completions" in e["path"]]
    assert len(asked) == 12 and experiment.report().counts == {}
    assert len(told["base"]) == len(told["tuned"]) == 1 and told["base"] != told["tuned"]
    if name != "openai":
        assert _used(ft, run.id), "its users' questions are uses: it is not idle"
        run.undeploy()
    ft.close()


@pytest.mark.parametrize("share", [0, 100])
def test_a_deployment_named_by_its_model_is_used_by_its_own_users_alone(
    share: int, hosts: Any, tmp_path: Any
) -> None:
    """As `HOST=MODEL`. With everybody sent to the base, nobody uses what stands there: it is idle."""
    hosts.clear_faults()
    shop = Shop(tmp_path, hosts)
    ft = shop.ft
    run = ft.submit(JobSpec(model="qwen3.5-9b", train=str(shop.rows), epochs=1), provider="fireworks")
    hosts.skip(100_000)
    ft.sync()
    run.deploy()
    hosts.skip(1_000)
    handle = run.record.handle
    asking: Any = run.provider
    base, tuned = (asking.chat(handle, base=wanted).model for wanted in (True, False))
    plan = ExperimentPlan(
        name="bot",
        base=f"fireworks={base}",
        tuned=f"fireworks={tuned}",
        metrics=(PlannedMetric(name="resolved", role="primary"),),
        rule=DecisionRule(stages=(50, 100)),
    )
    experiment = Experiment.begin(plan, ft.store)
    experiment.stop("tuned" if share else "base")
    with (
        experiments.serve(ft, experiment, experiments.ABTerms(port=0)) as up,
        OpenAI(base_url=f"{up.url}/v1", api_key="a-key-of-tests", max_retries=0) as client,
    ):
        for user in ("u1", "u2"):
            messages: Any = [{"role": "user", "content": "Hi"}]
            assert client.chat.completions.create(model="bot", messages=messages, user=user).choices
    assert _used(ft, run.id) == (share > 0)
    run.undeploy()
    ft.close()


def _used(ft: Any, run_id: str) -> bool:
    known = ft.store.deployments.of_run(run_id)
    return known is not None and known.used_at is not None
