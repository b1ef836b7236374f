"""What the store knows is told without asking anybody, and a name that fits several runs is not unknown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.settings import config
from orchestrate.store.store import Store
from orchestrate.types import JobError, JobStatus, Proof, ProofStage, Run, SubmitPhase


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running(
        home=tmp_path_factory.mktemp("sandbox"), train=False, speed=100, waits=Durations(file=0.0)
    ) as found:
        yield found


@pytest.fixture
def project(tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "q%d"}, {"role": "assistant", "content": "a"}]}\n'
    (tmp_path / "train.jsonl").write_text("".join(row % i for i in range(12)))
    (tmp_path / "finetune.yaml").write_text("model: gpt-4.1-mini\ntrain: train.jsonl\n")


def requests_of(hosts: Any) -> int:
    return hosts.fronts["openai"].log.report(None, None)["total"]


@pytest.mark.slow
def test_an_ended_run_is_shown_from_the_store(cli: Cli, project: None, hosts: Any) -> None:
    made = cli("submit", "-p", "openai", "--yes", "--watch", "--json", **hosts.env)
    run = made.json[0]["id"]
    assert made.json[0]["status"] == "succeeded"
    before = requests_of(hosts)
    for command in ("show", "events", "metrics", "checkpoints"):
        told = cli(command, run, "--json")  # without a key and without the host's address
        assert told.code == 0 and told.json, told.err
    assert cli("show", run, "--json", **hosts.env).json["status"] == "succeeded"
    assert requests_of(hosts) == before
    asked = cli("show", run, "--refresh", "--json", **hosts.env)
    assert asked.code == 0 and requests_of(hosts) > before
    assert cli("show", run, "--refresh").code == 3, "asked for by name, a missing key is an error"


@pytest.mark.slow
def test_the_badge_of_a_proof_is_shown_wherever_the_run_is(
    cli: Cli, project: None, hosts: Any, tmp_path: Path
) -> None:
    made = cli("submit", "-p", "openai", "--yes", "--watch", "--again", "--json", **hosts.env).json[0]
    run = made["id"]
    asked = ("eval", run, "--test", "train.jsonl", "--limit", "2", "--json")

    def answered() -> str | None:
        [tuned] = [c for c in cli(*asked, **hosts.env).json["contenders"] if c["run_id"] == run]
        return tuned["proof"]

    assert "served as trained  not proved" in cli("show", run).out
    assert cli("show", run, "--json").json["proofs"] == [] and answered() == "not proved"
    stages = [
        ProofStage(name=n, state="failed" if n == "stop" else "passed", detail="") for n in ("tokens", "stop")
    ]
    for state, told in (("proved", stages[:1]), ("failed", stages)):
        proof = Proof(
            run_id=run,
            at=made["host"],
            engine="OpenAI",
            model="m",
            state=state,  # type: ignore[arg-type]
            stages=tuple(told),
            created_at=datetime.now(UTC),
        )
        with Store.open(config.load(env={}, home=tmp_path / "home").store_url) as store:
            store.history.add_record(run, "proof", proof)
        assert answered() == proof.badge == ("failed: stop" if state == "failed" else "proved")
        assert f"served as trained  {proof.badge} at {made['host']}" in cli("show", run).out
        cli("compare", run, "-o", "r.html")
        page = (tmp_path / "r.html").read_text()
        kind = "failed" if state == "failed" else "proved"
        assert f'<span class="badge {kind}">{proof.badge} at ' in page
        assert f"{proof.badge} at " in cli("compare", run, "--format", "md").out
    assert "(failed: stop)" in cli("compare", run, "--format", "md").out, (
        "what its evaluation was answered by"
    )
    short = cli("compare", run).out
    assert "cost per answer" in short and "answered by" not in short


def test_an_open_run_is_asked_about(cli: Cli, project: None, hosts: Any) -> None:
    run = cli("submit", "-p", "openai", "--yes", "--again", "--json", **hosts.env).json[0]["id"]
    assert cli("show", run).code == 3, "no key"
    stored = cli("show", run, "--offline", "--json")
    assert stored.code == 0 and stored.json["status"] != "succeeded"
    hosts.skip(1000)
    assert cli("show", run, "--json", **hosts.env).json["status"] == "succeeded"


@pytest.mark.slow
def test_an_ambiguous_beginning_names_the_runs(cli: Cli, project: None, hosts: Any) -> None:
    runs = [
        cli("submit", "-p", "openai", "--yes", "--again", "--json", **hosts.env).json[0]["id"]
        for _ in range(2)
    ]
    shared = runs[0][: next(i for i, (a, b) in enumerate(zip(*runs, strict=True)) if a != b)]
    assert len(shared) > 4
    for name in ("r", "run", "run-", "orc-", shared, shared.removeprefix("run-")):
        told = cli("show", name, "--offline", "--json")
        assert told.code == 2
        message = json.loads(told.err)["message"]
        assert "matches several runs:" in message and all(run in message for run in runs), name
    assert cli("show", runs[0][: len(shared) + 1], "--offline", "--json").json["id"] == runs[0]
    assert "unknown run" in cli("show", "run-zzzz", "--offline").err


def test_a_beginning_that_fits_one_run_is_enough(cli: Cli, project: None, hosts: Any) -> None:
    run = cli("submit", "-p", "openai", "--yes", "--again", "--json", **hosts.env).json[0]["id"]
    for name in ("run", run[:5], run[-4:]):
        assert cli("show", name, "--offline", "--json").json["id"] == run


def test_runs_are_filtered_by_what_is_shown(cli: Cli, project: None, hosts: Any, tmp_path: Path) -> None:
    from orchestrate import JobSpec
    from orchestrate.store.runs import Intent

    settings = config.load(env={"ORCHESTRATE_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    with Store.open(settings.store_url) as store:
        for model, team in (("gpt-4.1-mini", "ml"), ("qwen3-8b", "ops")):
            spec = JobSpec(model=model, train="train.jsonl", tags={"team": team})
            store.runs.create(Intent(spec=spec, provider="openai", dataset_digest="d" * 64, host="h"))
    for words, models in (
        (("--status", "not sent"), ["qwen3-8b", "gpt-4.1-mini"]),
        (("--status", "running"), []),
        (("--model", "QWEN"), ["qwen3-8b"]),
        (("--tag", "team=ml"), ["gpt-4.1-mini"]),
        (("--tag", "team", "--limit", "1"), ["qwen3-8b"]),
        (("--tag", "owner"), []),
    ):
        found = cli("runs", "--json", *words)
        assert [run["model"] for run in found.json] == models, words
    for width in ("20", "60", "80", "100", "160"):
        assert {"team=ml", "team=ops"} <= set(cli("runs", COLUMNS=width).out.split()), width
    for run in cli("runs", "--json").json:
        assert cli("note", run["id"], "--archive").code == 0
    assert "no runs except 2 archived runs" in cli("runs").err, "not that there are none yet"
    wrong = cli("runs", "--status", "sleeping")
    assert wrong.code == 2 and "not sent, outcome unknown, submitted" in wrong.err


def test_a_failed_run_shows_why(cli: Cli, tmp_path: Path) -> None:
    at = datetime(2026, 10, 9, tzinfo=UTC)
    settings = config.load(env={}, home=tmp_path / "home")
    settings.make_home()
    with Store.open(settings.store_url) as store:
        for name, status, error in (
            ("bad", JobStatus.FAILED, JobError(code="x", message="out of memory at step 3")),
            ("good", JobStatus.SUCCEEDED, None),
        ):
            run = Run(
                id=f"run-{name}", ref=f"orc-{name}", provider="local", model="m", host="local", spec={},
                spec_hash="0" * 64, dataset_digest="0" * 64, phase=SubmitPhase.SUBMITTED, error=error,
                status=status,
                job_id=name, created_at=at, updated_at=at, finished_at=at,
            )  # fmt: skip
            store.runs.restore(run)
    shown = cli("runs")
    assert "run-bad failed: out of memory at step 3" in shown.err and "run-good failed" not in shown.err


def test_a_report_is_opened_in_the_browser(cli: Cli, project: None, tmp_path: Path) -> None:
    from orchestrate import JobSpec
    from orchestrate.store.runs import Intent

    settings = config.load(env={"ORCHESTRATE_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    with Store.open(settings.store_url) as store:
        spec = JobSpec(model="gpt-4.1-mini", train="train.jsonl")
        run = store.runs.create(Intent(spec=spec, provider="openai", dataset_digest="d" * 64, host="h"))
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    done = cli("compare", run.id, "--open", BROWSER=f"{browser} %s")
    assert done.code == 0, done.err
    page = Path(done.out.strip())
    assert (tmp_path / "opened").read_text().strip() == page.as_uri()
    assert page.read_text().startswith("<!doctype html>") and "No run has succeeded" in page.read_text()


HEAVY = (
    "orchestrate.costing",
    "orchestrate.data",
    "orchestrate.spec",
    "orchestrate.runs.tuned",
    "httpx",
    "keyring",
)


def test_reading_the_store_loads_nothing_of_what_runs_are_made_with() -> None:
    program = (
        "import sys, orchestrate.api.run, orchestrate.api.orchestrator, orchestrate.store.store; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
