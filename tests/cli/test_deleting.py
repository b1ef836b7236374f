"""delete: what a run has left at its host goes, once somebody agreed; the run stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.cli.conftest import Cli

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.store.store import Store
from orchestrate.types import Deployment, DeploymentState, JobStatus, Run, SubmitPhase

MODELS = {"openai": "gpt-4.1-mini", "together": "qwen3.5-9b", "fireworks": "qwen3.5-9b"}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with running(
        home=tmp_path_factory.mktemp("sandbox"), train=False, speed=100, waits=Durations(file=0.0)
    ) as found:
        yield found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    said = {"role": "assistant", "content": "a"}
    rows = [{"messages": [{"role": "user", "content": f"{tmp_path.name} {n}"}, said]} for n in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "finetune.yaml").write_text(f"model: {json.dumps(MODELS)}\ntrain: train.jsonl\n")
    return tmp_path


def deletions(sandbox: Sandbox, host: str) -> list[str]:
    return [one["path"] for one in sandbox.requests(host) if one["method"] == "DELETE"]


@pytest.mark.slow
@pytest.mark.parametrize("host", MODELS)
def test_model_and_rows_go_once_and_only_when_somebody_agreed(
    cli: Cli, project: Path, sandbox: Sandbox, host: str
) -> None:
    made = cli("submit", "-p", host, "--yes", "--watch", "--json", **sandbox.env)
    run = made.json[0]
    assert run["status"] == "succeeded", made.err
    sandbox.clear_requests()
    refused = cli("delete", run["id"], **sandbox.env)
    assert (refused.code == 2 and "for good?" in refused.err + refused.out) or "nobody agreed" in refused.err
    assert deletions(sandbox, host) == []
    done = cli("delete", run["id"], "--yes", "--json", **sandbox.env)
    assert done.code == 0 and [one["kind"] for one in done.json] == ["model", "data"], done.err
    gone = deletions(sandbox, host)
    assert len(gone) == (3 if host == "fireworks" else 2), "Fireworks' models outlive their jobs"
    [data] = [one for one in done.json if one["kind"] == "data"]
    assert any(path.endswith(data["ids"][0].rsplit("/", 1)[-1]) for path in gone)
    again = cli("delete", run["id"], "--yes", "--json", **sandbox.env)
    assert (again.code, again.json) == (0, []) and deletions(sandbox, host) == gone
    assert cli("show", run["id"], "--json", **sandbox.env).json["id"] == run["id"], "the run stays"
    second = cli("submit", "-p", host, "--yes", "--again", "--watch", "--json", **sandbox.env)
    assert second.json[0]["status"] == "succeeded", "the rows are uploaded anew"


def test_what_is_in_use_or_not_at_a_host_stays(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    """Runs that go on, are deployed or were never at a host, and the key of another account."""
    settings = config.load(env={}, home=tmp_path / "home")
    settings.make_home()
    at = datetime(2026, 10, 9, tzinfo=UTC)
    going, ended = JobStatus.RUNNING, JobStatus.SUCCEEDED
    with Store.open(settings.store_url) as store:
        for name, provider, status, digest in (
            ("going", "openai", going, "1" * 64),
            ("same-rows", "openai", ended, "1" * 64),
            ("deployed", "together", ended, "2" * 64),
            ("here", "local", ended, "3" * 64),
            ("elsewhere", "fireworks", ended, "4" * 64),
        ):
            run = Run(
                id=f"run-{name}", ref=f"orc-{name}", provider=provider, model="m", host=provider, spec={},
                spec_hash="0" * 64, dataset_digest=digest, phase=SubmitPhase.SUBMITTED, status=status,
                job_id=name, tuned_model="m:tuned", created_at=at, updated_at=at, account="acme",
            )  # fmt: skip
            store.runs.restore(run)
        made = Deployment(
            id=store.deployments.new_id(), run_id="run-deployed", provider="together", host="together",
            account="acme", job_id="deployed", model="m:tuned", state=DeploymentState.UP, created_at=at,
            updated_at=at,
        )  # fmt: skip
        store.deployments.add(made)
    sandbox.clear_requests()
    for name, word in (
        ("going", "orchestrate cancel run-going"),
        ("same-rows", "run-going is running and trains on the same uploaded rows"),
        ("deployed", "orchestrate undeploy run-deployed"),
        ("here", "machines of your own"),
    ):
        told = cli("delete", f"run-{name}", "--yes")
        assert told.code == 2 and word in told.err, told.err
    assert cli("delete", "run-elsewhere", "--yes").code == 3, "no key"
    assert cli("delete", "run-elsewhere", "--yes", **sandbox.env).code in (3, 4), "another account"
    assert not any(deletions(sandbox, host) for host in MODELS)
