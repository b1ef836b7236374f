"""The days on which OpenAI closes: the real host is refused with the way out, a sandbox only warns."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest

from orchestrate import catalog, costing
from orchestrate.data import TrainingData
from orchestrate.profile import profile
from orchestrate.providers.openai import provider as checking
from orchestrate.providers.openai.provider import OpenAIProvider
from orchestrate.settings.config import SANDBOX_KEY_PREFIX, HostConfig, Secret
from orchestrate.spec import RFT, JobSpec
from orchestrate.types import Problem, Quote, Severity

LAST_DAY = date(2027, 1, 5)
CLOSED = date(2027, 1, 6)
SHUT_DOWN = date(2027, 2, 1)


def seen_on(today: date, folder: Path, *, sandbox: bool) -> tuple[list[Problem], Quote]:
    path = folder / "t.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text("".join(json.dumps(row | {"metadata": {"n": str(n)}}) + "\n" for n in range(12)))
    spec, data = JobSpec(model="gpt-4o-mini", train=str(path)), TrainingData.open(str(path))
    model = catalog.resolve("gpt-4o-mini", "openai", today)
    key = Secret(f"{SANDBOX_KEY_PREFIX}key") if sandbox else None
    at = "http://127.0.0.1:9/v1" if sandbox else None
    provider = OpenAIProvider(HostConfig(name="openai", api_key=key, base_url=at))
    translation = provider.translate(spec)
    found = checking.problems_of(provider, spec, data, translation, today=today)
    quote = costing.quote_tokens_job(
        costing.PlannedJob("openai", profile("openai"), spec, data, translation, model),
        prices=costing.Prices("openai", on=today),
        sandbox=sandbox,
    )
    return found, quote


def errors(problems: list[Problem]) -> list[str]:
    return [p.code for p in problems if p.severity is Severity.ERROR]


@pytest.mark.parametrize("today", [CLOSED, SHUT_DOWN])
def test_the_real_host_is_refused_with_the_way_out(tmp_path: Path, today: date) -> None:
    problems, quote = seen_on(today, tmp_path, sandbox=False)
    assert errors(problems) == ["training-closed"]
    [closed] = [p for p in problems if p.code == "training-closed"]
    assert "2027-01-06" in closed.message and "orchestrate submit --provider" in (closed.fix or "")
    assert quote.unavailable and "2027-01-06" in quote.unavailable
    assert errors(seen_on(LAST_DAY, tmp_path, sandbox=False)[0]) == []


@pytest.mark.parametrize("today", [CLOSED, SHUT_DOWN])
def test_a_sandbox_goes_on_and_warns(tmp_path: Path, today: date) -> None:
    problems, quote = seen_on(today, tmp_path, sandbox=True)
    assert errors(problems) == []
    assert quote.unavailable is None and quote.expected_usd is not None and quote.expected_usd > 0
    [warning] = [p.message for p in problems if p.code == "model"]
    assert "2027-01-14" in warning and "nearest open model" in warning


def test_the_way_out_of_a_model_for_rft_leads_to_a_backend_that_has_rft(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}], "answer": "b"}
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row | {"n": n}) + "\n" for n in range(12)))
    grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "a", "reference": "a"}
    spec = JobSpec(model="o4-mini", train=str(path), method=RFT(grader=grader))
    provider = OpenAIProvider(HostConfig(name="openai"))
    data = TrainingData.open(str(path))
    for today in (LAST_DAY, CLOSED):
        problems = checking.problems_of(provider, spec, data, provider.translate(spec), today=today)
        [fix] = [p.fix for p in problems if p.code in ("model-closed", "training-closed")]
        [warning] = [p.message for p in problems if p.code == "model"]
        told = re.search(r"--provider (\w+) --model (\S+)(?:.*is also on: (.*)\))?", fix or "")
        assert told is not None
        able = {*catalog.trained_on(catalog.find(told[2]), ["rft"]), "local"}
        assert {told[1], *(told[3] or told[1]).split(", ")} <= able and "together" not in warning
