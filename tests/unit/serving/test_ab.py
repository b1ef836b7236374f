"""An experiment whose models are a tuned model of this machine and its base."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import OpenAI
from tests.paths import TINY
from tests.unit.serving.conftest import Known

from orchestrate.ab import launch as experiments
from orchestrate.api.orchestrator import Orchestrator
from orchestrate.settings import config
from orchestrate.types import DecisionRule, ExperimentPlan, PlannedMetric

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_a_tuned_model_of_this_machine_and_its_base_are_served_behind_the_proxy(
    known: Known, tmp_path: Path
) -> None:
    """Each user is answered with the weights of their arm, as the sheet of the model knows them."""
    from orchestrate.ab import Experiment

    assert TINY.is_dir()
    plan = ExperimentPlan(
        name="bot",
        base=str(known.adapter),
        tuned=str(known.adapter),
        metrics=(PlannedMetric(name="resolved", role="primary"),),
        rule=DecisionRule(stages=(50, 100)),
    )
    canary = known.fingerprint.canaries[0]
    with Orchestrator(config.load(home=tmp_path / "home", env={}, cwd=tmp_path)) as ft:
        experiment = Experiment.begin(plan, ft.store)
        with (
            experiments.serve(ft, experiment, experiments.ABTerms(port=0)) as up,
            OpenAI(base_url=f"{up.url}/v1", api_key="a-key-of-tests", max_retries=0) as client,
        ):
            said: dict[str, str] = {}
            for user in (f"u{n}" for n in range(64)):  # all in one arm is as likely as 2^-63
                if (arm := experiment.assign(user).arm) in said:
                    continue
                done = client.chat.completions.create(
                    model="bot",
                    messages=canary.messages,  # type: ignore[arg-type]
                    temperature=0,
                    max_tokens=max(len(canary.tuned.ids), len(canary.base.ids)),
                    user=user,
                )
                said[arm] = done.choices[0].message.content or ""
    assert said["tuned"].strip().startswith(canary.tuned.text.strip())
    assert said["base"].strip().startswith(canary.base.text.strip())
