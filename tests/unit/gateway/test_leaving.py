"""What was made before there was a gateway, asked through it: imported jobs, their models under their old
names, what they were migrated to, and runs that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai as sdk
import pytest
from openai import OpenAI
from tests.unit.gateway.conftest import ASKED, MODELS, Gateway, ended, gateway_of, rows, until

from orchestrate.api.run import RunHandle
from orchestrate.errors import ConfigError
from orchestrate.gateway import terms
from orchestrate.migration import account_import
from orchestrate.migration.migrations import MigrationOrder, PreparedMigration
from orchestrate.sandbox.server import Sandbox
from orchestrate.types import JobStatus

ASK: Any = [{"role": "user", "content": "q 1"}]
BASE = "gpt-4o-mini-2024-07-18"


@pytest.fixture(scope="module")
def before(sandbox: Sandbox) -> list[Any]:
    """Jobs that a team made at its host, by id and tuned model, oldest first."""
    url, key = sandbox.env["OPENAI_BASE_URL"], sandbox.env["OPENAI_API_KEY"]
    with OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        ids = list[str]()
        for n in range(3):
            file = client.files.create(file=(f"{n}.jsonl", rows(mark=f"old {n}")), purpose="fine-tune").id
            hyper: Any = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}
            method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyper}}
            asked: dict[str, Any] = {"model": BASE, "training_file": file, "suffix": f"s{n}", "seed": n}
            ids.append(client.fine_tuning.jobs.create(**asked, method=method).id)
        return [ended(client, id) for id in ids]


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox, before: list[Any]
) -> Iterator[Gateway]:
    with gateway_of(tmp_path_factory.mktemp("home"), sandbox.env) as found:
        account_import.take(found.ft, "openai")
        yield found


@pytest.fixture
def openai(gateway: Gateway) -> Iterator[OpenAI]:
    with gateway.client() as client:
        yield client


def test_imported_jobs_are_listed_among_those_made_here(openai: OpenAI, before: list[Any]) -> None:
    file = openai.files.create(file=("t.jsonl", rows(mark="new")), purpose="fine-tune").id
    new = openai.fine_tuning.jobs.create(model=ASKED, training_file=file)
    until(lambda: len(list(openai.fine_tuning.jobs.list(limit=1))) == 4)
    listed = [(job.created_at, job.id) for job in openai.fine_tuning.jobs.list(limit=100)]
    assert sorted(listed) == sorted((job.created_at, job.id) for job in [*before, new])
    times = [created_at for created_at, _ in listed]  # whole seconds, so that several may be of the same one
    assert times == sorted(times, reverse=True)
    for limit in (1, 2):
        assert [(job.created_at, job.id) for job in openai.fine_tuning.jobs.list(limit=limit)] == listed
    old = openai.fine_tuning.jobs.retrieve(before[0].id)
    facts = ("id", "model", "status", "created_at", "fine_tuned_model", "training_file", "hyperparameters")
    for name in (*facts, "seed", "user_provided_suffix", "trained_tokens"):
        assert getattr(old, name) == getattr(before[0], name), name
    assert openai.fine_tuning.jobs.list_events(old.id, limit=100).data
    assert openai.fine_tuning.jobs.checkpoints.list(old.id).data
    with pytest.raises(sdk.UnprocessableEntityError):
        openai.fine_tuning.jobs.cancel(old.id)


@pytest.mark.slow
def test_a_model_answers_under_its_old_name_by_its_host_and_once_migrated_by_the_new_run(
    gateway: Gateway, sandbox: Sandbox, openai: OpenAI, before: list[Any]
) -> None:
    name = before[0].fine_tuned_model
    until(lambda: name in [model.id for model in openai.models.list()])
    assert openai.models.retrieve(name).id == name
    assert openai.chat.completions.create(model=name, messages=ASK).model == name
    assert _chats(sandbox, "openai") == 1
    new = migrated(gateway, sandbox, before[0].id)
    until(lambda: _answers_by(gateway, name) == new.id)
    with pytest.raises(sdk.UnprocessableEntityError, match=f"orchestrate deploy {new.id}"):
        openai.chat.completions.create(model=name, messages=ASK)
    new.deploy(accept_unknown_price=True)
    patient = openai.with_options(max_retries=20)  # it may still be coming up
    assert patient.chat.completions.create(model=name, messages=ASK).model == name
    assert (_chats(sandbox, "openai"), _chats(sandbox, "together")) == (1, 1)
    other = before[1].fine_tuned_model
    assert openai.chat.completions.create(model=other, messages=ASK).model == other
    assert _chats(sandbox, "openai") == 2


@pytest.mark.slow
def test_training_goes_on_from_a_migrated_model_by_its_old_name(
    gateway: Gateway, sandbox: Sandbox, openai: OpenAI, before: list[Any]
) -> None:
    new = migrated(gateway, sandbox, before[2].id)
    name = before[2].fine_tuned_model
    until(lambda: _answers_by(gateway, name) == new.id)
    file = openai.files.create(file=("t.jsonl", rows(mark="more")), purpose="fine-tune").id
    id = openai.fine_tuning.jobs.create(model=name, training_file=file).id
    run = until(lambda: gateway.ft.store.runs.of_key(id))
    assert (run.provider, run.spec["continue_from"]) == ("together", new.record.tuned_model)


def test_models_that_are_listed_are_the_models_that_are_known(openai: OpenAI) -> None:
    """Each answers, is not deployed, or can be tuned only; none does not exist."""
    for model in openai.models.list():
        assert openai.models.retrieve(model.id).id == model.id
        try:
            openai.chat.completions.create(model=model.id, messages=ASK)
        except sdk.UnprocessableEntityError as error:
            assert error.code == ("model_not_tuned" if model.id in MODELS else "model_not_deployed")
    with pytest.raises(sdk.NotFoundError):
        openai.chat.completions.create(model="gpt-4", messages=ASK)


def test_the_configuration_names_runs_and_gives_a_model_several_names(
    gateway: Gateway, sandbox: Sandbox, before: list[Any]
) -> None:
    run = next(run for run in gateway.ft.runs() if run.record.tuned_model == before[1].fine_tuned_model)
    table = {
        "models": {
            "support": {"run": run.id, "alias": ["ft:gone:o:s:1", "desk"]},
            "base": {"backend": "together", "model": "qwen3-8b", "alias": "base-latest"},
        }
    }
    home = gateway.ft.settings.home
    with gateway_of(home, sandbox.env, table) as up, up.client() as client:
        for name in ("support", "desk", "ft:gone:o:s:1"):
            assert client.chat.completions.create(model=name, messages=ASK).model == name
        listed = {model.id for model in client.models.list()}
        assert {"support", "desk", "ft:gone:o:s:1", "base", "base-latest"} <= listed
        file = client.files.create(file=("t.jsonl", rows(mark="alias")), purpose="fine-tune").id
        id = client.fine_tuning.jobs.create(model="base-latest", training_file=file).id
        assert until(lambda: up.ft.store.runs.of_key(id)).provider == "together"


def test_another_project_sees_what_is_mapped_for_all_and_nothing_imported(
    gateway: Gateway, sandbox: Sandbox, before: list[Any], tmp_path: Path
) -> None:
    from orchestrate.gateway import launch as service

    run = next(run for run in gateway.ft.runs() if run.record.tuned_model == before[1].fine_tuned_model)
    table = {"models": {"support": {"run": run.id}}}
    with gateway_of(gateway.ft.settings.home, sandbox.env, table) as up:
        secret, _ = service.add_key(up.ft, "other", project="elsewhere")
        only, _ = service.add_key(up.ft, "only", project="elsewhere", models=["else"])
        try:
            with up.client(secret) as client:
                assert [job.id for job in client.fine_tuning.jobs.list()] == []
                assert [model.id for model in client.models.list()] == ["support"]
                assert client.chat.completions.create(model="support", messages=ASK).model == "support"
                with pytest.raises(sdk.NotFoundError):
                    client.fine_tuning.jobs.retrieve(before[1].id)
                with pytest.raises(sdk.NotFoundError):
                    client.chat.completions.create(model=before[1].fine_tuned_model, messages=ASK)
            with up.client(only) as client, pytest.raises(sdk.NotFoundError):
                client.chat.completions.create(model="support", messages=ASK)
        finally:
            for name in ("other", "only"):
                up.ft.store.gateway_keys.revoke(name, up.ft.store.clock.now(), by="test")


@pytest.mark.parametrize(
    "models",
    [
        {"default": {"run": "run-x"}},
        {"a": {"run": "run-x", "backend": "local", "model": "m"}},
        {"a": {"backend": "local"}},
        {"a": {"backend": "local", "model": "m", "alias": "b"}, "b": {"backend": "local", "model": "n"}},
    ],
)
def test_an_entry_that_names_none_or_two_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.models"):
        terms.read({"models": models}, tmp_path, "here")


def migrated(gateway: Gateway, sandbox: Sandbox, job_id: str) -> RunHandle:
    prepared = PreparedMigration(
        gateway.ft, gateway.ft.run(job_id), MigrationOrder(to=["together"], proof=False)
    )
    new = gateway.ft.run(prepared.submit("together").id)
    until(lambda: new.refresh().status is JobStatus.SUCCEEDED)
    return new


def _answers_by(gateway: Gateway, name: str) -> str | None:
    """The run that the model list shows behind a name: it was made when the run ended."""
    with gateway.client() as client:
        made = client.models.retrieve(name).created
    ends = {run.id: run.record.finished_at for run in gateway.ft.runs() if run.record.finished_at}
    return next((id for id, at in ends.items() if int(at.timestamp()) == made), None)


def _chats(sandbox: Sandbox, host: str) -> int:
    return sum("chat/completions" in entry["path"] for entry in sandbox.requests(host))
