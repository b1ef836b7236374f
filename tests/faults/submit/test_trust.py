"""What a project's folder brings does not decide what is spent until its user has agreed to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrate import JobSpec, Orchestrator
from orchestrate.cli import app
from orchestrate.data.operations.generate import GenerateOrder
from orchestrate.errors import OrchestrateError, ProjectNotTrusted, UsageError
from orchestrate.runs.data.generation import TeacherModel, generate
from orchestrate.settings import config
from orchestrate.types import JobStatus, Run, SubmitPhase

FREE = """provider: openai
sources: {us: ours}
rates:
  - {method: sft, model: gpt-4.1-mini-2025-04-14, usd_per_mtok: 0, start: 2026-01-01,
     confidence: quoted, source: us}
"""
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
BRINGS = {
    "budget": ("orchestrate.toml", "budget_usd = 1000000\n"),
    "store": ("orchestrate.toml", 'store = "sqlite:////tmp/never-made/runs.sqlite3"\n'),
    "prices of another": ("orchestrate.toml", '[hosts.openai.options]\nprices = "local"\n'),
    "prices": ("rates.yaml", FREE),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "orchestrate.toml").write_text("")
    (folder / "rows.jsonl").write_text("".join(json.dumps(ROW) + "\n" for _ in range(12)))
    monkeypatch.chdir(folder)
    for name, value in {
        "ORCHESTRATE_HOME": str(tmp_path / "home"),
        "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"),
        "TOGETHER_API_KEY": "of-a-real-host",
        "TOGETHER_BASE_URL": "http://127.0.0.1:1/v1",
        "OPENAI_API_KEY": "sk-of-a-real-host",
        "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
        "COLUMNS": "200",
    }.items():
        monkeypatch.setenv(name, value)
    return folder


def spec(project: Path) -> JobSpec:
    return JobSpec(model="gpt-4.1-mini-2025-04-14", train=str(project / "rows.jsonl"), epochs=1)


def trusted(project: Path) -> bool:
    try:
        with Orchestrator(config.load(store_url=f"sqlite:///{project.parent}/runs.sqlite3")) as ft:
            ft.preflight(ft.prepare(spec(project), "openai"), "openai")
    except ProjectNotTrusted as error:
        assert "keys trust --project" in str(error.fix)
        return False
    return True


@pytest.mark.parametrize("brought", BRINGS)
def test_a_project_says_what_is_spent_only_when_trusted_as_it_is(project: Path, brought: str) -> None:
    assert trusted(project), "it says nothing of money"
    name, text = BRINGS[brought]
    (project / name).write_text(text)
    assert not trusted(project)
    assert CliRunner().invoke(app, ["keys", "trust", "--project"]).exit_code == 0
    assert trusted(project)
    (project / name).write_text(text + "\n# more\n")
    assert not trusted(project), "it has changed since"


@pytest.mark.slow
def test_what_goes_on_with_a_run_asks_for_the_same_trust(project: Path) -> None:
    """A deploy, a resume, an evaluation and a submit with a known key spend as the first submit does."""
    soon = "".join(f"[hosts.{name}.options]\nretry_budget_s = 0.5\n" for name in ("openai", "together"))
    (project / "orchestrate.toml").write_text(soon)  # no host is there
    with Orchestrator(config.load()) as ft:
        name = ft.provider("openai").name
        for number, backend in enumerate((name, "together", name)):
            sent = number > 0
            ft.store.runs.restore(
                Run(
                    id=f"run-{number}",
                    ref=f"orc-{number}",
                    provider=backend,
                    model="m",
                    spec=spec(project).model_dump(mode="json"),
                    spec_hash="",
                    dataset_digest=ft.data(spec(project)).digest,
                    host=ft.provider(backend).host,
                    phase=SubmitPhase.SUBMITTED if sent else SubmitPhase.INTENT,
                    status=JobStatus.SUCCEEDED if sent else JobStatus.SUBMITTING,
                    job_id="job-1" if sent else None,
                    idempotency_key=None if sent else "k",
                    created_at=ft.store.clock.now(),
                    updated_at=ft.store.clock.now(),
                )
            )
        acts: list[Callable[[], object]] = [
            lambda: ft.run("run-0").resume(),
            lambda: ft.run("run-1").deploy(),
            lambda: ft.submit(spec(project), name, idempotency_key="k"),
            lambda: ft.evaluate(["run-2"], project / "rows.jsonl"),
        ]
        (project / "rates.yaml").write_text(FREE)
        for act in acts:
            with pytest.raises(ProjectNotTrusted):
                act()
        assert CliRunner().invoke(app, ["keys", "trust", "--project"]).exit_code == 0
        for act in acts:
            with pytest.raises(OrchestrateError) as caught:
                act()
            assert not isinstance(caught.value, ProjectNotTrusted)


def test_rows_are_written_by_a_paid_model_only_for_a_trusted_project(project: Path) -> None:
    (project / "orchestrate.toml").write_text("budget_usd = 1000000\n")
    paid = TeacherModel(model="gpt-4.1", base_url="https://models.example/v1")
    with Orchestrator(config.load()) as ft, pytest.raises(ProjectNotTrusted):
        generate(ft, "rows.jsonl", project / "more.jsonl", paid, GenerateOrder(rows=6))
    assert not (project / "more.jsonl").exists()


def test_a_file_that_the_user_names_is_the_users(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "orchestrate.toml").write_text("budget_usd = 5\n")
    assert not trusted(project)
    monkeypatch.setenv("ORCHESTRATE_CONFIG", str(project / "orchestrate.toml"))
    assert trusted(project)


def test_a_price_of_nothing_that_is_not_the_hosts_says_so_and_is_asked_about(project: Path) -> None:
    (project / "rates.yaml").write_text(FREE)
    assert CliRunner().invoke(app, ["keys", "trust", "--project"]).exit_code == 0
    with Orchestrator(config.load()) as ft:
        quote = ft.prepare(spec(project), "openai").offer("openai").quote
    assert quote.high_usd == Decimal(0)
    assert any(", not from the host" in warning and "rates.yaml" in warning for warning in quote.warnings)
    words = ["--model", "gpt-4.1-mini-2025-04-14", "--train", "rows.jsonl", "--epochs", "1"]
    for agreed in ([], ["--max-cost", "25"]):
        done = CliRunner().invoke(app, ["submit", "-p", "openai", *words, *agreed])
        assert isinstance(done.exception, UsageError) and "price was not confirmed" in str(done.exception)
