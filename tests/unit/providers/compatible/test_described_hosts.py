"""Hosts that a YAML file describes: of ours, of the user, and wrong ones; their deployments; the end of a
model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import structs
from tests.scripted_host import Host, scripted_host
from tests.sending import create, upload

from orchestrate import catalog, description
from orchestrate.api.orchestrator import Orchestrator
from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.errors import (
    ConfigError,
    MissingKey,
    OutcomeUnknown,
    OverBudget,
    TranslationRefused,
    UsageError,
)
from orchestrate.profile import described, profile
from orchestrate.providers import registry
from orchestrate.providers.base import Provider
from orchestrate.providers.compatible import backends
from orchestrate.sandbox import running
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.settings.config import Settings
from orchestrate.spec import JobSpec, LoRA, WandB
from orchestrate.types import ADAPTER_JOB, Adapter, JobHandle, JobStatus, Message, RemoteDataset, Severity

TEMPLATE = files("orchestrate.providers").joinpath("compatible", "profiles", "template.yaml")
OPENED: list[Provider] = []
REMOTE = RemoteDataset(provider="any", digest="d", train_id="file-1")
JOB: dict[str, Any] = {
    "object": "fine_tuning.job",
    "id": "ftjob-1",
    "created_at": 1790000000,
    "status": "running",
}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def opened(provider: Provider) -> Provider:
    OPENED.append(provider)
    return provider


def settings(tmp_path: Path, toml: str = "", **env: str) -> Settings:
    named = tmp_path / config.CONFIG_NAME
    named.write_text(toml)
    own = {"ORCHESTRATE_HOME": str(tmp_path), "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    return config.load(env={**own, **env}, config_file=named)


@pytest.fixture
def host() -> Iterator[Host]:
    with scripted_host() as found:
        yield found


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    home = tmp_path_factory.mktemp("sandbox")
    with running(home=home, train=False, speed=50, also=("azure", "nebius")) as found:
        yield found


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path) -> Iterator[None]:
    """A process goes on to know the hosts of a folder: those of one test are none of the next one's."""
    yield
    shutil.rmtree(tmp_path / "hosts", ignore_errors=True)


@pytest.fixture
def train(tmp_path: Path) -> str:
    rows = [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"a {i}"}]}
        for i in range(12)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# -- a file is a host ------------------------------------------------------------------------------------


def test_a_file_in_the_configuration_is_a_host(tmp_path: Path, host: Host, train: str) -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts" / "basement.yaml").write_text(
        text.replace("https://api.example.com/v1", f"{host.url}/v1")
    )
    found = settings(tmp_path, BASEMENT_API_KEY="sandbox-basement")
    assert "basement" in registry.names(found)
    host.on("POST", "/v1/fine_tuning/jobs", JOB)
    spec = JobSpec(
        model="llama-3.1-8b", train=train, epochs=2, batch_size=16, learning_rate=1e-4, suffix="mine"
    )
    with Orchestrator(found) as ft:
        backend = ft.provider("basement")
        [quote] = ft.quote(spec, "basement")
        assert quote.unavailable is None and quote.expected_usd < 1
        assert [p for p in ft.check(spec, "basement") if p.severity is Severity.ERROR] == []
        create(backend, spec, REMOTE, "orc-123456789012")
    [sent] = host.sent
    assert sent.body == {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "training_file": "file-1",
        "suffix": "mine-orc-123456789012",
        "hyperparameters": {"lora": True, "n_epochs": 2, "batch_size": 16, "learning_rate": 1e-4},
    }
    assert sent.headers["authorization"] == "Bearer sandbox-basement"


def test_a_description_without_a_key_is_named_and_not_among_all(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert set(described()) >= {"azure", "nebius", "crusoe"}
    assert not {"azure", "nebius", "crusoe"} & set(registry.names(found))
    assert {"azure", "nebius", "crusoe"} <= set(registry.known(found))
    assert registry.make("nebius", found).profile.title == "Nebius"


def test_two_hosts_of_one_description(tmp_path: Path) -> None:
    toml = """
        [hosts.east]
        type = "openai-compatible"
        profile = "azure"
        base_url = "https://east.openai.azure.com/openai/v1"
        [hosts.west]
        type = "openai-compatible"
        profile = "azure"
        base_url = "https://west.openai.azure.com/openai/v1"
    """
    found = settings(
        tmp_path, toml, EAST_API_KEY="sandbox-of-the-east-0123", WEST_API_KEY="sandbox-of-the-west-0123"
    )
    east, west = (registry.make(name, found) for name in ("east", "west"))
    assert (east.profile.kind, east.name, west.name) == ("azure", "east", "west")
    assert east.account() != west.account()
    assert {"east", "west"} <= set(registry.names(found))


def test_the_template_says_every_field(tmp_path: Path) -> None:
    told = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    assert set(told) == set(description.Described.__struct_fields__)
    description.read(TEMPLATE, "template.yaml")


@pytest.mark.parametrize("name", described())
def test_every_fact_has_a_source(name: str) -> None:
    told = description.read(*described()[name])
    used = {key for model in told.models.values() for key in model.sources}
    used |= {str(rate["source"]) for rate in told.rates} | {
        told.deployment.source if told.deployment else "guide"
    }
    assert used - {"guide"} <= set(told.sources)
    assert all("20" in text or key in told.undated for key, text in told.sources.items())
    assert told.inferred, "what no page says is labelled"


WRONG = {
    "a field that there is not": ({"colour": "red"}, "colour"),
    "a feature without a reason": ({"missing": {}}, "in `features`, or in `missing`"),
    "an unknown feature": ({"features": ["sft", "telepathy"]}, "unknown feature telepathy"),
    "a setting with two outcomes": (
        {"settings": {"epochs": {"field": "a", "refused": "b"}}},
        "exactly one of",
    ),
    "an unknown status": ({"statuses": {"odd": "reticulating"}}, "reticulating"),
    "an unknown trait": ({"rows": {"refuses": ["colour"]}}, "rows.refuses: colour"),
    "a pattern without a base": ({"tuned_name": "ft:.*"}, r"\(\?P<base>"),
    "a price without a source": (
        {
            "rates": [
                {"method": "sft_lora", "usd_per_mtok": 1, "start": date(2026, 1, 1), "confidence": "quoted"}
            ]
        },
        "has no source",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_description_says_where(tmp_path: Path, case: str) -> None:
    changes, message = WRONG[case]
    values = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    folder = tmp_path / "hosts"
    folder.mkdir()
    (folder / "cellar.yaml").write_text(yaml.safe_dump({**values, **changes}))
    found = settings(tmp_path, CELLAR_API_KEY="sandbox-of-the-cellar-0123")
    with pytest.raises(ConfigError, match=message) as caught:
        registry.make("cellar", found)
        built_in()
    assert "cellar.yaml" in caught.value.message
    (folder / "cellar.yaml").unlink()


def test_a_host_without_an_address_says_what_it_looks_like(tmp_path: Path) -> None:
    found = settings(tmp_path, AZURE_API_KEY="sandbox-of-azure-0123")
    with pytest.raises(ConfigError, match="https://NAME") as caught:
        registry.make("azure", found)
    assert "AZURE_BASE_URL" in str(caught.value.fix)


def test_a_profile_needs_its_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="openai-compatible"):
        settings(tmp_path, '[hosts.a]\nprofile = "azure"\n')


# -- what is asked ---------------------------------------------------------------------------------------


def nebius(tmp_path: Path, url: str, **env: str) -> Provider:
    return opened(
        registry.make(
            "nebius", settings(tmp_path, NEBIUS_BASE_URL=url, NEBIUS_API_KEY="sandbox-of-nebius-0123", **env)
        )
    )


def test_a_setting_beyond_its_range_gives_the_nearest(tmp_path: Path) -> None:
    provider = nebius(tmp_path, "http://127.0.0.1:9/v1")
    spec = JobSpec(
        model="llama-3.1-8b", train="t", epochs=40, max_seq_length=5000, adapter=LoRA(r=4), suffix="x" * 40
    )
    rows = {row.name: row for row in provider.translate(spec).settings}
    assert (rows["epochs"].instead, rows["max_seq_length"].instead, rows["adapter.r"].instead) == (
        20,
        8192,
        8,
    )
    assert rows["suffix"].exact and rows["suffix"].sent == f"{'x' * 40}-<ref>"


def test_the_wandb_key_goes_with_the_request_and_is_in_no_plan(tmp_path: Path, host: Host) -> None:
    host.on("POST", "/v1/fine_tuning/jobs", JOB)
    spec = JobSpec(model="llama-3.1-8b", train="t", wandb=WandB(project="p"))
    without = nebius(tmp_path, f"{host.url}/v1")
    with pytest.raises(MissingKey):
        create(without, spec, REMOTE, "orc-1")
    assert host.sent == []
    provider = nebius(tmp_path, f"{host.url}/v1", WANDB_API_KEY="wandb-key-of-the-tests")
    assert "wandb-key-of-the-tests" not in repr(provider.translate(spec))
    create(provider, spec, REMOTE, "orc-1")
    assert host.sent[-1].body["integrations"] == [
        {"type": "wandb", "wandb": {"project": "p", "api_key": "wandb-key-of-the-tests"}}
    ]


AZURE = """
    [hosts.azure]
    type = "openai-compatible"
    base_url = "%s"
    options = {%s}
"""


def test_a_tier_that_needs_another_version_of_the_api(tmp_path: Path, host: Host) -> None:
    def azure(path: str, options: str = "") -> Provider:
        toml = AZURE % (f"{host.url}{path}", options)
        return opened(registry.make("azure", settings(tmp_path, toml, AZURE_API_KEY="sandbox-of-azure-0123")))

    spec = JobSpec(
        model="gpt-4.1-mini", train="t", provider_options={"azure": {"trainingType": "developerTier"}}
    )
    with pytest.raises(TranslationRefused, match="2025-04-01-preview"):
        create(azure("/openai/v1"), spec, REMOTE, "orc-1")
    host.on("POST", "/openai/fine_tuning/jobs", JOB)
    create(azure("", 'api_version = "2025-04-01-preview"'), spec, REMOTE, "orc-1")
    [sent] = host.sent
    assert (sent.query, sent.body["trainingType"]) == (
        {"api-version": "2025-04-01-preview"},
        "developerTier",
    )
    assert sent.headers["api-key"] == "sandbox-of-azure-0123"


def test_words_of_files_and_jobs_are_the_hosts(tmp_path: Path, host: Host, train: str) -> None:
    toml = AZURE % (f"{host.url}/openai/v1", "")
    provider = opened(registry.make("azure", settings(tmp_path, toml, AZURE_API_KEY="sandbox-of-azure-0123")))
    provider._files._sleep = lambda _: None  # type: ignore[attr-defined]
    file = {
        "id": "file-1",
        "object": "file",
        "bytes": 1,
        "created_at": 1,
        "filename": "f",
        "purpose": "fine-tune",
    }
    host.on("GET", "/openai/v1/files", {"object": "list", "data": []})
    host.on("POST", "/openai/v1/files", {**file, "status": "pending"})
    host.on("GET", "/openai/v1/files/file-1", {**file, "status": "running"}, {**file, "status": "processed"})
    assert (
        upload(provider, JobSpec(model="gpt-4.1", train=train), TrainingData.open(train)).train_id == "file-1"
    )
    for word, status in {
        "notRunning": JobStatus.QUEUED,
        "canceled": JobStatus.CANCELLED,
        "new": JobStatus.UNKNOWN,
    }.items():
        host.on("GET", "/openai/v1/fine_tuning/jobs/ftjob-1", {**JOB, "status": word})
        assert provider.get(JobHandle(provider="azure", job_id="ftjob-1")).status is status


def test_the_end_of_a_model_is_its_own(tmp_path: Path, train: str) -> None:
    toml = AZURE % ("https://me.openai.azure.com/openai/v1", "")
    provider = registry.make("azure", settings(tmp_path, toml, AZURE_API_KEY="a-real-key-of-a-test"))
    spec = JobSpec(model="gpt-4.1", train=train)
    data = TrainingData.open(train)

    def codes(today: date) -> set[str]:
        found = backends.check_settings(provider, spec, data, provider.translate(spec), today=today)
        return {p.code for p in found if p.severity is Severity.ERROR}

    assert (codes(date(2027, 4, 13)), codes(date(2027, 4, 14))) == (set(), {"model-closed"})
    model = catalog.find("gpt-4.1").on("azure")
    assert model is not None
    assert (model.shutdown, model.no_new_jobs_after) == (date(2027, 10, 14), date(2027, 4, 14))
    gated = profile("azure").gated(date(2026, 11, 26))
    assert gated is not None and "had not fine-tuned gpt-4.1 before" in gated


# -- deployments -----------------------------------------------------------------------------------------

OPTIONS = 'subscription = "s", resource_group = "g", resource = "r"'


def tuned(provider: Provider, sandbox: Sandbox, model: str, train: str, ref: str) -> JobHandle:
    spec = JobSpec(model=model, train=train, epochs=1)
    handle = create(provider, spec, upload(provider, spec, TrainingData.open(train)), ref)
    sandbox.skip(3600)
    assert provider.get(handle).status is JobStatus.SUCCEEDED
    return handle


def make(tmp_path: Path, sandbox: Sandbox, name: str, **changes: Any) -> Provider:
    toml = f'[hosts.azure]\ntype = "openai-compatible"\noptions = {{{OPTIONS}}}\n' if name == "azure" else ""
    made = opened(registry.make(name, settings(tmp_path, toml, **sandbox.env)))
    return opened(type(made)(dataclasses.replace(made.config, **changes))) if changes else made


def test_a_deployment_has_a_login_and_a_price_of_its_own(
    tmp_path: Path, sandbox: Sandbox, train: str
) -> None:
    azure = make(tmp_path, sandbox, "azure")
    job = tuned(azure, sandbox, "gpt-4.1-mini", train, "orc-000000000001")
    loggedout = make(tmp_path, sandbox, "azure", management_token=None)
    with pytest.raises(MissingKey) as caught:
        loggedout.deploy(job)
    assert "az account get-access-token" in str(caught.value.fix)
    assert azure.deployment_price(job) == Decimal("1.70")
    assert azure.deployment_price(job, options={"tier": "DeveloperTier"}) == 0
    with pytest.raises(OverBudget):
        azure.deploy(job, options={"max_usd_per_hour": 1})
    with pytest.raises(UsageError, match="GlobalStandard"):
        azure.deploy(job, options={"tier": "Gold"})
    assert list(azure.deployments()) == []

    up = azure.deploy(job)
    assert (up.id, up.state, up.usd_per_hour) == (f"orc-{job.job_id}".lower(), "ready", Decimal("1.70"))
    before = sandbox.count("azure", method="PUT")
    assert azure.deploy(job).id == up.id
    assert sandbox.count("azure", method="PUT") == before, "a second call finds the first"
    [standing] = azure.deployed(job)
    assert (standing.bills, standing.usd_per_hour, standing.state) == (True, Decimal("1.70"), "succeeded")
    [reply] = azure.generate(job, [[Message(role="user", content="q")]], max_tokens=4)
    assert reply.content
    assert sandbox.requests("azure", path="chat")[-1]["body"]["model"] == up.id
    with pytest.raises(
        UsageError, match="serves models only through deployments, and no deployment of the base model"
    ):
        azure.generate(job, [[Message(role="user", content="q")]], base=True)
    azure.undeploy(job)
    azure.undeploy(job)
    assert list(azure.deployed(job)) == []


def test_a_lost_answer_to_a_deploy_is_settled_by_the_list(
    tmp_path: Path, sandbox: Sandbox, train: str
) -> None:
    azure = make(tmp_path, sandbox, "azure")
    job = tuned(azure, sandbox, "gpt-4.1-mini", train, "orc-000000000002")
    sandbox.fault("azure", "lost_answer", method="PUT")
    with pytest.raises(OutcomeUnknown):
        azure.deploy(job)
    assert [item.bills for item in azure.deployed(job)] == [True]
    azure.undeploy(job)


def test_a_tier_without_an_hourly_price_does_not_bill(tmp_path: Path, sandbox: Sandbox, train: str) -> None:
    azure = make(tmp_path, sandbox, "azure")
    job = tuned(azure, sandbox, "gpt-4.1-mini", train, "orc-000000000003")
    assert azure.deploy(job, options={"tier": "DeveloperTier"}).usd_per_hour == 0
    [standing] = azure.deployed(job)
    assert (standing.bills, standing.usd_per_hour) == (False, 0)
    azure.undeploy(job)


def test_an_adapter_that_is_served_by_the_token(tmp_path: Path, sandbox: Sandbox, train: str) -> None:
    provider = make(tmp_path, sandbox, "nebius")
    job = tuned(provider, sandbox, "llama-3.1-8b", train, "orc-000000000004")
    with pytest.raises(UsageError, match="no model yet"):
        provider.generate(job, [[Message(role="user", content="q")]])
    up = provider.deploy(job)
    made = sandbox.requests("nebius", method="POST", path="/v0/models")[-1]["body"]
    last = provider.checkpoints(job)[-1].id
    assert made == {
        "source": f"{job.job_id}:{last}",
        "base_model": "meta-llama/Llama-3.1-8B-Instruct-fast",
        "name": f"orc-{job.job_id}".lower(),
    }
    assert "-LoRa:" in up.model and up.usd_per_hour == 0
    [reply] = provider.generate(job, [[Message(role="user", content="q")]], max_tokens=4)
    assert reply.content
    assert sandbox.requests("nebius", path="chat")[-1]["body"]["model"] == up.model
    assert provider.generate(job, [[Message(role="user", content="q")]], base=True)
    provider.undeploy(job)
    assert list(provider.deployments()) == []


def test_an_adapter_of_elsewhere_is_brought_and_served_by_the_token(
    tmp_path: Path, sandbox: Sandbox, train: str
) -> None:
    provider = make(tmp_path, sandbox, "nebius")
    job = tuned(provider, sandbox, "llama-3.1-8b", train, "orc-000000000006")
    folder = Path(provider.download(job, tmp_path / "model").folder)
    given = {"folder": str(folder), "base": "llama-3.1-8b", "rank": 8, "targets": ("q_proj",)}
    adapter = Adapter(id=f"orc-{'5e' * 12}", **given)  # type: ignore[arg-type]
    brought = provider.adapters()
    sandbox.clear_requests()
    assert brought.price(adapter, {}) == 0
    with pytest.raises(UsageError, match="does not serve qwen3-8b"):
        brought.price(structs.replace(adapter, base="qwen3-8b"), {})
    with pytest.raises(UsageError, match="up to rank 128"):
        brought.price(structs.replace(adapter, rank=256), {})
    assert sandbox.requests("nebius", method="POST") == []
    brought.upload(adapter)
    handle = JobHandle(provider="nebius", job_id=adapter.id, kind=ADAPTER_JOB)
    up = provider.deploy(handle)
    made = sandbox.requests("nebius", method="POST", path="/v0/models")[-1]["body"]
    assert (
        made["base_model"] == "meta-llama/Llama-3.1-8B-Instruct-fast" and made["name"] == f"orc-{adapter.id}"
    )
    assert made["source"].startswith("file-") and set(made) == {"source", "base_model", "name"}
    assert up.state == "ready" and "-LoRa:" in up.model
    [reply] = provider.generate(handle, [[Message(role="user", content="q")]], max_tokens=4)
    assert reply.content and sandbox.requests("nebius", path="chat")[-1]["body"]["model"] == up.model
    [standing] = provider.deployed(handle)
    assert (standing.bills, standing.job_id) == (False, adapter.id)
    brought.upload(adapter)
    assert len(sandbox.requests("nebius", method="POST", path="/v0/models/upload")) == 1
    provider.undeploy(handle)
    assert list(provider.deployments()) == []


def test_weights_are_the_files_of_the_last_checkpoint(tmp_path: Path, sandbox: Sandbox, train: str) -> None:
    provider = make(tmp_path, sandbox, "nebius")
    job = tuned(provider, sandbox, "llama-3.1-8b", train, "orc-000000000005")
    artifact = provider.download(job, tmp_path / "model")
    names = {file.path for file in artifact.files}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert artifact.kind == "adapter"
    with pytest.raises(UsageError, match="no checkpoint ftckpt_other"):
        provider.download(job, tmp_path / "other", checkpoint="ftckpt_other")
