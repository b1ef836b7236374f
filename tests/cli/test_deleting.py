"""delete: what a run has left at its host goes, once somebody agreed; the run stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
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
    assert (
        refused.code == 2 and "Permanently delete" in refused.err + refused.out
    ) or "price was not confirmed" in refused.err
    assert deletions(sandbox, host) == []
    done = cli("delete", run["id"], "--yes", "--json", **sandbox.env)
    assert done.code == 0 and [one["kind"] for one in done.json] == ["model", "data"], done.err
    gone = deletions(sandbox, host)
    assert len(gone) == (3 if host == "fireworks" else 2), "Fireworks' models outlive their jobs"
    [data] = [one for one in done.json if one["kind"] == "data"]
    assert any(path.endswith(data["ids"][0].rsplit("/", 1)[-1]) for path in gone)
    again = cli("delete", run["id"], "--yes", "--json", **sandbox.env)
    assert (again.code, again.json) == (0, []) and deletions(sandbox, host) == gone
    assert cli("show", run["id"], "--json", **sandbox.env).json["id"] == run["id"], "the run is unchanged"
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
        ("same-rows", "run-going is running and trains on the same uploaded data"),
        ("deployed", "orchestrate undeploy run-deployed"),
        ("here", "your own machines"),
    ):
        told = cli("delete", f"run-{name}", "--yes")
        assert told.code == 2 and word in told.err, told.err
    assert cli("delete", "run-elsewhere", "--yes").code == 3, "no key"
    assert cli("delete", "run-elsewhere", "--yes", **sandbox.env).code in (3, 4), "another account"
    assert not any(deletions(sandbox, host) for host in MODELS)


def listed(cli: Cli, sandbox: Sandbox, host: str) -> dict[str, dict[str, Any]]:
    told = cli("stored", "-p", host, "--json", **sandbox.env)
    assert told.code == 0, told.err
    [account] = told.json
    return {item["id"]: item for item in account["items"]}


@pytest.mark.slow
@pytest.mark.parametrize("host", MODELS)
def test_a_file_and_a_model_go_by_their_ids_unless_something_uses_them(
    cli: Cli, project: Path, sandbox: Sandbox, host: str
) -> None:
    before = set(listed(cli, sandbox, host))
    run = cli("submit", "-p", host, "--yes", "--watch", "--json", **sandbox.env).json[0]
    made = {id: item for id, item in listed(cli, sandbox, host).items() if id not in before}
    assert {item["run_id"] for item in made.values()} == {run["id"]}
    [file] = [id for id, item in made.items() if item["kind"] == "file"]
    [model] = [id for id, item in made.items() if item["kind"] == "model"]
    assert all(item["created_at"] for item in made.values())
    assert (made[file]["bytes"] is None) is (host == "fireworks"), "Fireworks lists no sizes"

    store_file = config.load(env={}, home=project / "home").store_url
    with Store.open(store_file) as store:
        other = store.runs.get(run["id"], sandboxes=True)
        again = replace(
            other, id="run-again", ref="orc-again", status=JobStatus.RUNNING, job_id="job-again",
            phase=SubmitPhase.SUBMITTED, finished_at=None,
        )  # fmt: skip
        store.runs.restore(again)
    sandbox.clear_requests()
    used = cli("delete", file, "--yes", **sandbox.env)
    assert used.code == 2 and "run-again is running" in used.err, used.err
    with Store.open(store_file) as store:
        store.runs.apply("run-again", lambda run: replace(run, status=JobStatus.CANCELLED))
    asked = cli("delete", file, **sandbox.env)
    assert asked.code == 2 and deletions(sandbox, host) == [], "nobody agreed"
    assert file in asked.err and "can't be undone" in " ".join(asked.err.split())

    for id in (file, model):
        # The answer is lost after the host has deleted: it is asked again, and says 404.
        sandbox.fault(host, "lost_answer", method="DELETE")
        done = cli("delete", id, "--yes", "--json", **sandbox.env)
        assert done.code == 0 and done.json[0]["ids"] == [id], done.err
        assert done.json[0]["run_id"] in (run["id"], "run-again")
        assert id not in listed(cli, sandbox, host)
        gone = len(deletions(sandbox, host))
        twice = cli("delete", id, "--yes", "--json", **sandbox.env)
        assert (twice.code, twice.json) == (0, []) and len(deletions(sandbox, host)) == gone
    unknown = cli("delete", f"{file}-of-another-account", "--yes", **sandbox.env)
    assert unknown.code == 2 and "another account" in unknown.err
    assert cli("submit", "-p", host, "--yes", "--again", "--watch", **sandbox.env).code == 0, "uploads anew"


def test_a_sandbox_that_is_not_running_is_no_missing_key(cli: Cli) -> None:
    told = cli("stored", "--sandbox")
    assert told.code == 0 and "no key" not in told.err and "sandbox run -- orchestrate stored" in told.err
    spent = cli("spending", "--sandbox", "--json")
    assert not any("key" in (one["reason"] or "") for one in spent.json["accounts"]), spent.out


def test_an_account_that_cannot_be_read_is_a_gap(cli: Cli, sandbox: Sandbox) -> None:
    assert [one["keyless"] for one in cli("stored", "-p", "openai", "--json").json] == [True]
    sandbox.fault("openai", "error", path="/v1/files", status=403)
    told = cli("stored", "-p", "openai", "--json", **sandbox.env)
    assert told.code == 4 and told.json[0]["partial"] and told.json[0]["listed"], told.err


@pytest.mark.slow
@pytest.mark.parametrize("host", MODELS)
def test_a_run_whose_model_another_job_goes_on_from_stays(cli: Cli, project: Path, host: str) -> None:
    waits = Durations(file=0.0)
    with running(home=project / "sandbox", train=False, speed=100, waits=waits) as sandbox:
        base = cli("submit", "-p", host, "--yes", "--watch", "--json", **sandbox.env).json[0]
        assert base["status"] == "succeeded"
        sandbox.clock.speed = 0.001  # the next one goes on
        other = (project / "train.jsonl").read_text().replace('"a"', '"b"')
        (project / "other.jsonl").write_text(other)
        again = {
            "openai": f"model={base['tuned_model']}",
            "together": f"continue_from={base['job_id']}",
            "fireworks": f"continue_from={base['tuned_model']}",
        }[host]
        changed = ("--set", "train=other.jsonl", "--set", again)
        going = cli("submit", "-p", host, "--yes", "--json", *changed, **sandbox.env)
        assert going.code == 0, going.err
        told = cli("delete", base["id"], "--yes", **sandbox.env)
        assert told.code == 2 and f"job {going.json[0]['job_id']} at " in told.err, told.err
        assert deletions(sandbox, host) == [], "nor the rows before it"


@pytest.mark.slow
@pytest.mark.parametrize("host", MODELS)
def test_a_run_s_other_file_is_still_its_own_after_one_was_deleted_by_id(
    cli: Cli, project: Path, sandbox: Sandbox, host: str
) -> None:
    said = {"role": "assistant", "content": "b"}
    rows = [{"messages": [{"role": "user", "content": f"{project.name} v{n}"}, said]} for n in range(12)]
    (project / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (project / "finetune.yaml").open("a") as spec:
        spec.write("validation: valid.jsonl\n")
    before = set(listed(cli, sandbox, host))
    run = cli("submit", "-p", host, "--yes", "--watch", "--json", **sandbox.env).json[0]
    made = {id: item for id, item in listed(cli, sandbox, host).items() if id not in before}
    first, second = sorted(id for id, item in made.items() if item["kind"] == "file")
    assert cli("delete", first, "--yes", **sandbox.env).code == 0
    assert listed(cli, sandbox, host)[second]["run_id"] == run["id"]
    done = cli("delete", run["id"], "--yes", "--json", **sandbox.env)
    ids = [id.rsplit("/", 1)[-1] for one in done.json if one["kind"] == "data" for id in one["ids"]]
    assert done.code == 0 and ids == [second.rsplit("/", 1)[-1]], done.err
    assert not set(made) & set(listed(cli, sandbox, host)), "nothing of the run is left at the host"
    assert cli("delete", run["id"], "--yes", "--json", **sandbox.env).json == []
