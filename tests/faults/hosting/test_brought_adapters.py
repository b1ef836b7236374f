"""A run's adapter at another host: uploaded as the host's SDK sends it, priced first, tracked and limited."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.cells import diagonal
from tests.faults.hosting.deployed import Moved
from tests.faults.shop import Shop
from tests.faults.submitting import Killed, dies_at

from orchestrate import JobSpec, Orchestrator
from orchestrate.api.run import RunHandle
from orchestrate.errors import OrchestrateError, OtherAccount, Unsupported, UsageError
from orchestrate.runs.hosting.deployer import Deployer, DeployTerms
from orchestrate.runs.tuned import adapter_of
from orchestrate.settings import config
from orchestrate.types import ADAPTER_JOB, Deployment, DeploymentState

OTHER = {"together": "fireworks", "fireworks": "together"}
PRICES = {"together": "5.49", "fireworks": "8.00"}


class Bringer:
    """One user with a finished run on each of two hosts, of a model that both have."""

    def __init__(self, folder: Path, hosts: Any) -> None:
        self.hosts, self.shop = hosts, Shop(folder, hosts)
        self.ft = self.shop.ft
        self.clock = Moved()
        self.ft.store.clock = self.ft.store.database.clock = self.clock  # type: ignore[misc]
        spec = JobSpec(model="qwen3.5-9b", train=str(self.shop.rows), epochs=1)
        self.runs = {name: self.ft.submit(spec, provider=name) for name in OTHER}
        hosts.skip(100_000)
        self.ft.sync()

    def up(self, host: str) -> list[dict[str, Any]]:
        return list(self.hosts.fronts[host].host.state.all(host, "deployment"))

    def deployer(self, run: RunHandle, to: str, point: str, home: Orchestrator | None = None) -> Deployer:
        adapter, home = adapter_of(self.ft, run), home or self.ft
        return Deployer(home.store, home.provider(to), reached=dies_at(point), adapter=adapter)

    def record(self, run: RunHandle, to: str) -> Deployment:
        found = self.ft.store.deployments.of_run(run.id, to)
        assert found is not None
        return found

    @contextmanager
    def another_key(self, host: str) -> Generator[Orchestrator]:
        """As after the host's key was switched in the environment: the same home, another account."""
        key = f"{host.upper()}_API_KEY"
        env = {**self.shop.env, key: f"{self.shop.env[key]}-of-another"}
        env.pop("FIREWORKS_ACCOUNT_ID", None)
        settings = config.load(env=env, cwd=self.shop.folder, home=self.shop.folder / "home")
        with Orchestrator(settings) as other:
            other.store.clock = other.store.database.clock = self.clock  # type: ignore[misc]
            yield other

    def clear(self) -> None:
        for name in OTHER:
            state = self.hosts.fronts[name].host.state
            for kind in ("deployment", "endpoint", "addon"):
                for one in list(state.all(name, kind)):
                    state.delete(name, kind, one["id"])


@pytest.fixture
def bringer(tmp_path: Path, hosts: Any) -> Iterator[Bringer]:
    hosts.clear_faults()
    made = Bringer(tmp_path, hosts)
    yield made
    hosts.clear_faults()
    made.clear()
    made.ft.close()


@pytest.mark.slow
@pytest.mark.parametrize("own", OTHER)
def test_an_adapter_is_priced_uploaded_and_put_up_at_another_host(bringer: Bringer, own: str) -> None:
    run, to = bringer.runs[own], OTHER[own]
    early = bringer.shop.type("eval", run.id, "--test", str(bringer.shop.rows), "--on", to)
    assert isinstance(early.exception, UsageError) and f"--to {to}" in (early.exception.fix or "")
    bringer.hosts.clear_requests()
    asked = bringer.shop.type("deploy", run.id, "--to", to)
    sent = [entry["path"] for entry in bringer.hosts.requests(to) if entry["method"] in ("POST", "PUT")]
    assert isinstance(asked.exception, UsageError) and f"${PRICES[to]} per hour" in " ".join(
        asked.output.split()
    )
    assert all(path.endswith(":match") for path in sent), "nothing is sent before somebody agreed"
    told = bringer.shop.type("deploy", run.id, "--to", to, "--yes", "--no-prove", "--max-hours", "8")
    assert told.exit_code == 0, told.output
    record = bringer.record(run, to)
    assert (record.state, record.job_kind, record.max_hours) == (DeploymentState.UP, ADAPTER_JOB, 8)
    assert len(bringer.up(to)) == 1 and bringer.up(own) == []
    adapter = adapter_of(bringer.ft, run)
    folder = bringer.hosts.home / "runs"
    there = {_sha(file) for file in folder.glob(f"{to}-*/adapter/adapter_model.safetensors")}
    assert _sha(Path(adapter.folder) / "adapter_model.safetensors") in there, "byte for byte"
    bringer.hosts.skip(1_000)
    said = bringer.shop.type("chat", run.id, "hello", "--at", to)
    assert said.exit_code == 0 and "not trained" in said.output
    tests = ("eval", run.id, "--test", str(bringer.shop.rows), "--limit", "2", "--json", "--on")
    bringer.hosts.clear_requests()
    scored = bringer.shop.type(*tests, to)
    assert scored.exit_code == 0, scored.output
    tuned, base = json.loads(scored.stdout)["contenders"]
    assert (tuned["name"], tuned["provider"], base["provider"]) == (f"{run.id} at {to}", to, to)
    asked_at = [host for host in OTHER for e in bringer.hosts.requests(host) if "completions" in e["path"]]
    assert asked_at == [to] * 4
    assert isinstance(bringer.shop.type(*tests, "nowhere").exception, OrchestrateError)
    assert f"--at {to}" in bringer.shop.type("deploy", run.id, "--to", to, "--yes", "--no-prove").output
    assert len(bringer.up(to)) == 1, "a second call makes no second one"
    assert bringer.shop.type("undeploy", run.id, "--at", to).exit_code == 0
    assert bringer.up(to) == []


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "point"), diagonal(OTHER, ["after-intent", "after-upload", "after-creating", "after-request"])
)
def test_one_killed_on_its_way_is_gone_on_with_and_uploads_nothing_twice(
    bringer: Bringer, own: str, point: str
) -> None:
    run, to = bringer.runs[own], OTHER[own]
    with pytest.raises(Killed):
        bringer.deployer(run, to, point).deploy(run.record, DeployTerms())
    bringer.hosts.clear_requests()
    for _ in range(6):
        bringer.ft.sync()
        bringer.clock.ahead += timedelta(minutes=1)
    assert bringer.deployer(run, to, "none").deploy(run.record, DeployTerms()).complete
    puts = len(bringer.hosts.requests(to, method="PUT"))
    assert puts == (2 if point == "after-intent" else 0)
    assert len(bringer.up(to)) == 1
    ended = run.undeploy(to)
    assert ended is not None and ended.state is DeploymentState.ENDED and bringer.up(to) == []


@pytest.mark.slow
@pytest.mark.parametrize(("own", "point"), diagonal(OTHER, ["after-creating", "after-request", "after-up"]))
def test_another_key_neither_completes_nor_doubles_nor_ends_it(
    bringer: Bringer, own: str, point: str
) -> None:
    run, to = bringer.runs[own], OTHER[own]
    with pytest.raises(Killed):
        bringer.deployer(run, to, point).deploy(run.record, DeployTerms())
    up = len(bringer.up(to))
    with bringer.another_key(to) as other:
        for _ in range(4):
            other.sync()
            bringer.clock.ahead += timedelta(minutes=1)
        bringer.hosts.clear_requests()
        with pytest.raises(OtherAccount):
            bringer.deployer(run, to, "none", other).deploy(run.record, DeployTerms())
        with pytest.raises(OtherAccount):
            other.run(run.id).undeploy(to)
        assert [e for e in bringer.hosts.requests(to) if e["method"] in ("POST", "PUT", "DELETE")] == []
        assert len(bringer.up(to)) == up and not bringer.record(run, to).state.over
    for _ in range(4):
        bringer.ft.sync()
        bringer.clock.ahead += timedelta(minutes=1)
    assert bringer.deployer(run, to, "none").deploy(run.record, DeployTerms()).complete
    assert len(bringer.up(to)) == 1
    ended = run.undeploy(to)
    assert ended is not None and ended.state is DeploymentState.ENDED and bringer.up(to) == []


@pytest.mark.parametrize("own", OTHER)
def test_what_was_begun_with_another_key_and_never_sent_is_begun_anew(bringer: Bringer, own: str) -> None:
    run, to = bringer.runs[own], OTHER[own]
    with pytest.raises(Killed):
        bringer.deployer(run, to, "after-intent").deploy(run.record, DeployTerms())
    first = bringer.record(run, to)
    with bringer.another_key(to) as other:
        made = bringer.deployer(run, to, "none", other).deploy(run.record, DeployTerms())
        assert made.complete and made.id != first.id and made.account != first.account
        ended = other.run(run.id).undeploy(to)
        assert ended is not None and ended.state is DeploymentState.ENDED
    assert bringer.ft.store.deployments.get(first.id).state is DeploymentState.ENDED


def test_a_limit_ends_it_as_any_other(bringer: Bringer) -> None:
    run = bringer.runs["together"]
    run.deploy("fireworks", max_hours=1)
    bringer.clock.ahead += timedelta(hours=2)
    bringer.ft.sync()
    assert bringer.up("fireworks") == []
    assert bringer.record(run, "fireworks").cause == "the deployment has used up its 1 hours"


def test_a_base_that_the_host_does_not_have_is_refused_before_anything_is_sent(bringer: Bringer) -> None:
    spec = JobSpec(model="qwen3.5-4b", train=str(bringer.shop.rows), epochs=1)
    only = bringer.ft.submit(spec, provider="together")
    bringer.hosts.skip(100_000)
    bringer.ft.sync()
    bringer.hosts.clear_requests()
    with pytest.raises(UsageError, match=r"does not serve qwen3\.5-4b"):
        only.deploy("fireworks")
    refused = bringer.shop.type("deploy", bringer.runs["together"].id, "--to", "openai", "--yes")
    assert isinstance(refused.exception, Unsupported)
    assert "only serves models that were trained there" in str(refused.exception)
    assert bringer.hosts.requests("fireworks", method="POST") == []
    assert bringer.ft.deployments(over=None) == []


@pytest.mark.slow
def test_the_bodies_are_those_of_the_sdks(bringer: Bringer) -> None:
    """By the SDKs' own types, and for the upload that has no type by what the SDK's command line sends."""
    from fireworks.types.model_create_params import ModelCreateParams as FireworksModel
    from together.lib.cli.api.models.upload import _create_upload_body, _file_etag
    from together.types.model_create_params import ModelCreateParams as TogetherModel

    bringer.hosts.clear_requests()
    bringer.runs["together"].deploy("fireworks")
    bringer.runs["fireworks"].deploy("together")
    sent = [e["body"] for e in bringer.hosts.requests("fireworks", method="POST") if e["body"]]
    created = next(body for body in sent if "modelId" in body)
    details = created["model"]["peftDetails"]
    named = {
        "base_model": details["baseModel"],
        "r": details["r"],
        "target_modules": details["targetModules"],
    }
    told = {"kind": created["model"]["kind"], "peft_details": named}
    TypeAdapter(FireworksModel).validate_python({"model_id": created["modelId"], "model": told})
    assert details["baseModel"] == "accounts/fireworks/models/qwen3p5-9b" and details["r"] == 8
    assert any("filenameToSize" in body for body in sent)
    posts = {
        e["path"].rsplit("/", 1)[-1]: e["body"] for e in bringer.hosts.requests("together", method="POST")
    }
    register = posts["models"]
    TypeAdapter(TogetherModel).validate_python(
        {"base_model_id": register["baseModelId"], "name": register["name"], "type": register["type"]}
    )
    folder = Path(adapter_of(bringer.ft, bringer.runs["fireworks"]).folder)
    theirs = {file.name: _file_etag(file) for file in folder.iterdir()}
    assert {f["path"]: f["hash"] for f in posts["create"]["files"]} == theirs
    assert set(posts["create"]) == set(_create_upload_body(object_id="x", files=[]))


def test_an_upload_that_breaks_off_costs_nothing_and_is_gone_on_with(bringer: Bringer) -> None:
    run = bringer.runs["together"]
    provider: Any = bringer.ft.provider("fireworks")
    provider._wire._sleep = lambda seconds: None
    bringer.hosts.fault("fireworks", "error", method="PUT", status=503, count=0)
    with pytest.raises(Exception, match="503"):
        run.deploy("fireworks")
    assert bringer.up("fireworks") == [] and bringer.record(run, "fireworks").state is DeploymentState.INTENT
    bringer.hosts.clear_faults()
    assert run.deploy("fireworks").record.complete
