"""`private: true`: nothing of a run leaves the user's own machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrate import Orchestrator
from orchestrate.config import load
from orchestrate.errors import ConfigError, SpecError, TranslationRefused
from orchestrate.spec import JobSpec
from orchestrate.types import Severity


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "Red."}]
    (tmp_path / "train.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 20)
    return JobSpec.parse({"model": "qwen3-8b", "train": str(tmp_path / "train.jsonl"), "private": True})


def service(tmp_path: Path, toml: str = "", **env: str) -> Orchestrator:
    (tmp_path / "orchestrate.toml").write_text(toml)
    return Orchestrator(settings=load(env=env, cwd=tmp_path, home=tmp_path / "home"))


def test_every_host_and_place_elsewhere_is_refused_in_plan_check_and_submit(
    spec: JobSpec, tmp_path: Path
) -> None:
    with service(tmp_path, TOGETHER_API_KEY="a-key-of-nobody", FIREWORKS_API_KEY="a-key-of-nobody") as ft:
        names = ["together", "fireworks", "hf-jobs", "local"]
        prepared = ft.prepare(spec, names)
        for name in names:
            offer = prepared.offer(name)
            refused = [row for row in offer.translation.refused if row.name == "private"]
            assert bool(refused) is (name != "local"), name
            errors = [p for p in offer.problems if p.severity is Severity.ERROR and p.field == "private"]
            assert bool(errors) is (name != "local"), name
            assert offer.translation.overrides is None or "private" not in offer.translation.overrides
        with pytest.raises(TranslationRefused, match="machines of your own"):
            ft.submit(spec, provider="together", max_cost_usd=100)


def test_a_host_is_ones_own_at_a_loopback_address_or_where_the_user_says_so(
    spec: JobSpec, tmp_path: Path
) -> None:
    near = '[hosts.together]\nbase_url = "http://127.0.0.1:9/v1"\n'
    with service(tmp_path, near, TOGETHER_API_KEY="a-key-of-nobody") as ft:
        assert not ft.prepare(spec, ["together"]).offer("together").translation.refused
    with service(tmp_path, ORCHESTRATE_OWN_HOSTS="fireworks", FIREWORKS_API_KEY="a-key-of-nobody") as ft:
        rows = ft.prepare(spec, ["fireworks"]).offer("fireworks").translation.refused
        assert "private" not in [row.name for row in rows]


def test_no_file_of_a_project_can_take_it_back(spec: JobSpec, tmp_path: Path) -> None:
    said = "[hosts.together]\nown = true\n"
    with (
        pytest.raises(ConfigError, match=r"unknown field hosts\.together\.own"),
        service(tmp_path, said, TOGETHER_API_KEY="a-key-of-nobody") as ft,
    ):
        ft.prepare(spec, ["together"])
    with pytest.raises(SpecError, match="cannot change private"):
        JobSpec.parse({**spec.asked(), "overrides": {"together": {"private": False}}})


def test_a_spec_without_it_is_the_spec_that_it_was(spec: JobSpec) -> None:
    plain = JobSpec.parse({name: value for name, value in spec.asked().items() if name != "private"})
    assert "private" not in plain.canonical() and plain.hash() != spec.hash()
