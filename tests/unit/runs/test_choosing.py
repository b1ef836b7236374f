"""Models and advice from Python, and the small joiners behind commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrate import JobSpec, Orchestrator
from orchestrate.errors import SetupError, UsageError
from orchestrate.reports.advice import Needs
from orchestrate.runs import data
from orchestrate.runs.data.generation import TeacherModel
from orchestrate.runs.preparing.advice import base_score
from orchestrate.sandbox import running
from orchestrate.sandbox.connection import running as running_at
from orchestrate.settings import config
from orchestrate.setup import first_spec


@pytest.fixture
def ft(tmp_path: Path) -> Iterator[Orchestrator]:
    (tmp_path / "orchestrate.toml").write_text(
        '[hosts.mine]\ntype = "fireworks"\nbase_url = "https://x.example"\n'
    )
    env = {"ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    settings = config.load(env=env, config_file=tmp_path / "orchestrate.toml", home=tmp_path / "h")
    with Orchestrator(settings) as opened:
        yield opened


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    said = [{"role": "user", "content": "Is it open?"}, {"role": "assistant", "content": "yes"}]
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": said}) + "\n")
    return path


def test_models_are_those_that_hold_the_words_and_that_the_host_offers(ft: Orchestrator) -> None:
    everywhere = {model.name for model in ft.models("qwen3")}
    there = {model.name for model in ft.models("qwen3", "fireworks")}
    assert there < everywhere and all("qwen3" in name for name in there)
    assert {model.name for model in ft.models("qwen3", "mine")} == there, (
        "a configured host has its type's models"
    )
    assert ft.models("no such model") == []


@pytest.mark.parametrize(
    ("named", "meant"),
    [("gpt-4.1-minni", "gpt-4.1-mini"), ("gpt-4.1-mini", None), ("our-own-model-2026", None)],
)
def test_a_slip_in_a_models_name_is_told_where_a_host_lets_any_name_through(
    ft: Orchestrator, rows: Path, named: str, meant: str | None
) -> None:
    found = ft.check(JobSpec(model=named, train=str(rows)), "openai")
    told = [problem.message for problem in found if problem.code == "model-unknown"]
    assert [f"Did you mean {meant}?" in line for line in told] == ([True] if meant else [])


def test_changes_name_the_hosts_that_cannot_be_asked(ft: Orchestrator) -> None:
    found = ft.model_changes("openai,together")
    assert found.changes == () and set(found.skipped) == {"openai", "together"}
    assert "key" in found.skipped["openai"].lower()


def test_changes_are_what_the_hosts_say_otherwise(tmp_path: Path) -> None:
    with running(home=tmp_path / "sandbox", train=False) as sandbox:
        env = {**sandbox.env, "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
        with Orchestrator(config.load(env=env, cwd=tmp_path, home=tmp_path / "h")) as ft:
            asked = ft.model_changes("together")
            theirs = {model.id for model in ft.provider("together").base_models()}
    assert not asked.skipped
    for change in asked.changes:
        assert change.provider == "together" and change.ours != change.theirs
        assert change.theirs is None or change.field != "id" or change.theirs in theirs


def test_advice_heeds_the_needs(ft: Orchestrator, rows: Path) -> None:
    plain, private = ft.advise(rows), ft.advise(rows, Needs(private=True))
    assert plain.facts == private.facts and plain.facts.rows == 1
    assert plain.choices != private.choices


def test_a_run_that_is_not_there_has_no_score(ft: Orchestrator) -> None:
    with pytest.raises(UsageError):
        base_score(ft, "nothing")


def test_what_is_not_checked_is_said(ft: Orchestrator, rows: Path) -> None:
    wanted = data.FileCheck(hosts="openai,together", model="gpt-4.1-mini", near=False)
    options, unchecked = data.check_options(ft.settings, {"train": str(rows)}, wanted)
    assert options.tokenizer == "o200k" and options.contexts.keys() == {"openai"}
    assert unchecked == [
        "together does not offer gpt-4.1-mini, so the length limit of together is not checked"
    ]
    with pytest.raises(UsageError, match="unknown method 'sftt'"):
        data.check_options(ft.settings, {"train": str(rows)}, data.FileCheck(method="sftt"))


def test_memory_is_that_of_the_size_named() -> None:
    eight, four = (
        first_spec.memory_plan(size, first_spec.Setup(precision="auto"), device="cpu", available_bytes=2**40)
        for size in ("8B", "4B")
    )
    assert eight.fits and four.total_bytes < eight.total_bytes
    assert eight.notes[-1] == "assuming a typical architecture of this size"


def test_an_address_never_gets_the_key_of_a_host(ft: Orchestrator) -> None:
    place = TeacherModel(model="m", base_url="https://llm.example/v1/").place(ft.settings)
    assert place.base_url == "https://llm.example/v1" and place.api_key is not None
    assert place.api_key.reveal() == "none"
    for wrong in (TeacherModel(model="m", key_variable="X"), TeacherModel(model="m", base_url="ftp://x")):
        with pytest.raises(UsageError):
            wrong.place(ft.settings)


def test_a_sandbox_on_taken_ports_says_what_to_do(tmp_path: Path) -> None:
    with running_at(0, home=tmp_path / "a", train=False) as first:
        taken = int(first.urls["openai"].split(":")[2].split("/")[0])
        with pytest.raises(SetupError, match=str(taken)) as refused, running_at(taken, train=False):
            pass
    assert refused.value.fix is not None and "--port 0" in refused.value.fix
