"""Models of hosts behind the proxy of an experiment: each user's requests go where the run's own would."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from tests.faults.shop import Shop

from orchestrate import JobSpec
from orchestrate.ab import Experiment
from orchestrate.errors import UsageError
from orchestrate.service.serving import experiments
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
        hosts.skip(100)
    hosts.clear_requests()
    told: dict[str, set[str]] = {"base": set(), "tuned": set()}
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
        run.undeploy()
    ft.close()
