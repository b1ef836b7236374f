"""`submit --provider tinker`: a recipe over a session that a process on this machine drives, at a sandbox."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.paths import TINY
from tests.unit.sessions import recipe_rows
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.hosted import NAME
from tests.unit.sessions.loop import OPTIONS
from tests.unit.sessions.recipe_rows import GRADER
from tests.waiting import until

from orchestrate import JobStatus, Orchestrator, OverBudget, sandbox
from orchestrate.local.run import WorkerId, started
from orchestrate.sandbox.server import Sandbox
from orchestrate.sessions import recipes
from orchestrate.types import Outcome

pytestmark = pytest.mark.timeout(1800)
STEPS = 8
SETTINGS: dict[str, Any] = {"epochs": STEPS // 2, "batch_size": 4, "learning_rate": 1e-3, "seed": 1}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, quick_python: None) -> Iterator[Sandbox]:
    with sandbox.running(home=tmp_path_factory.mktemp("sandbox")) as running:
        yield running


@pytest.fixture
def ft(tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orchestrator]:
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    for name, value in {**box.env, "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}.items():
        monkeypatch.setenv(name, value)  # the process that drives the session reads it
    with workspace(tmp_path, ORCHESTRATE_ALLOW_GRADER_CODE="1") as ft:
        yield ft
    box.clear_faults()


def spec(train: Path, **more: Any) -> dict[str, Any]:
    made = {"model": NAME, "train": str(train), "adapter": {"type": "lora", "r": 4}, **SETTINGS}
    return {**made, "max_cost_usd": 1, **more}


def host_usd(box: Sandbox) -> Decimal:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    window = {"starting_on": hour - timedelta(hours=1), "ending_before": hour + timedelta(hours=1)}
    answer = httpx.get(
        f"{box.urls['tinker']}/api/v1/billing/usage/events",
        params={name: at.isoformat() for name, at in window.items()},
        headers={"x-api-key": box.env["TINKER_API_KEY"]},
    ).raise_for_status()
    events = json.loads(answer.content, parse_float=Decimal)["data"]
    return sum((event["estimated_cost_usd"] for event in events), Decimal(0))


def worker(run: Any) -> int:
    return WorkerId.from_json((folder(run) / "worker.json").read_bytes()).pid


def kill_worker(run: Any) -> None:
    os.kill(worker(run), signal.SIGKILL)


def folder(run: Any) -> Path:
    return Path(str(run.provider.get(run.record.handle).payload["folder"]))


@pytest.mark.slow
def test_a_job_whose_process_is_killed_goes_on_from_its_save(
    ft: Orchestrator, box: Sandbox, tmp_path: Path
) -> None:
    chats = recipe_rows.chats(tmp_path / "chats.jsonl")
    before = host_usd(box)
    run = ft.submit(spec(chats, checkpoint_steps=2), "tinker")
    until(lambda: len(run.metrics()) >= 3, "three steps")
    kill_worker(run)
    until(lambda: run.refresh().status is JobStatus.PAUSED, "the pause")
    error = run.record.error
    assert error is not None and error.code == "caller_gone" and "orchestrate resume" in error.message
    held = ft.spending(sandbox=True, offline=True).total.committed_usd
    assert run.record.bill is not None and run.record.bill.usd > 0
    assert held < 1, "only what it has cost so far, to the cent"
    run.resume()
    run.wait(timeout_s=600)
    record = run.refresh()
    assert record.status is JobStatus.SUCCEEDED, record.error
    with ft.session(str(TINY), lora={"rank": 4, "seed": 1}, options=OPTIONS) as s:
        recipes.sft(s, chats, **SETTINGS)
    losses = [{p.step: p.values["train_loss"] for p in ft.run(id).metrics()} for id in (run.record.id, s.id)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5), "as on this machine, without a break"
    assert list(losses[0]) == list(range(1, STEPS + 1)) and record.total_steps == STEPS
    assert record.tuned_model is not None and record.tuned_model.startswith("tinker://")
    assert [one.step for one in run.checkpoints()] == [2, 4, 6, 8]
    assert record.bill is not None and record.quote is not None
    spent, billed = host_usd(box) - before, record.bill.usd
    step = spent / STEPS
    assert spent <= billed <= spent + step, "requests under way at the kill count once, in full"
    assert ft.spending(sandbox=True, offline=True).total.committed_usd == 0


@pytest.mark.slow
def test_answers_are_graded_here_and_cost_what_was_quoted(ft: Orchestrator, tmp_path: Path) -> None:
    method = {"type": "rft", "grader": GRADER, "samples_per_prompt": 4}
    more = {"method": method, "provider_options": {"tinker": {"max_new_tokens": 6, "objective": "ppo"}}}
    asked = spec(recipe_rows.prompts(tmp_path / "prompts.jsonl"), **more, max_steps=2, epochs=None)
    run = ft.submit({name: value for name, value in asked.items() if value is not None}, "tinker")
    run.wait(timeout_s=600)
    record = run.refresh()
    assert record.status is JobStatus.SUCCEEDED, record.error
    assert [p.values["train_answer_tokens"] > 0 for p in run.metrics()] == [True, True]
    assert record.bill is not None and record.quote is not None and record.quote.high_usd is not None
    assert 0 < record.bill.usd <= record.quote.high_usd


@pytest.mark.slow
def test_a_job_without_a_limit_is_paused_at_its_quote_however_often_it_is_killed_and_resumed(
    ft: Orchestrator, box: Sandbox, tmp_path: Path
) -> None:
    chats, before = recipe_rows.chats(tmp_path / "chats.jsonl"), host_usd(box)
    box.fault("tinker", "lost_request", path="optim_step$", skip=3, count=0)
    run = ft.submit({**spec(chats, checkpoints=1), "max_cost_usd": None}, "tinker")
    until(lambda: len(run.metrics()) == 3, "three steps")
    kill_worker(run)
    box.clear_faults()
    until(lambda: run.refresh().status is JobStatus.PAUSED, "the pause")
    assert run.record.quote is not None and run.record.quote.high_usd is not None
    run.resume()
    until(lambda: at_limit(run), "the limit")
    [error, bill] = run.record.error, run.record.bill
    assert error is not None and "the high end of the run's quote" in error.message
    assert bill is not None and host_usd(box) - before <= bill.usd <= run.record.quote.high_usd
    [command] = re.findall(r"orchestrate resume \S+ --max-cost (\S+)", error.message)
    spent = host_usd(box)
    run.resume()  # again without more
    until(lambda: attempts(run) == 3 and at_limit(run), "the limit again")
    assert host_usd(box) - spent < bill.usd / STEPS, "what remained, if anything"
    run.resume(max_cost_usd=command)
    run.wait(timeout_s=600)
    assert run.refresh().status is JobStatus.SUCCEEDED, run.record.error
    assert [p.step for p in run.metrics()] == list(range(1, STEPS + 1))


def at_limit(run: Any) -> bool:
    error = run.refresh().error
    assert not run.status.terminal, run.status
    return run.status is JobStatus.PAUSED and error is not None and error.code == "limit"


def attempts(run: Any) -> int:
    return int(run.provider.get(run.record.handle).payload["attempt"])


@pytest.mark.slow
def test_a_host_that_is_gone_holds_up_neither_a_cancel_nor_the_signal_to_end(
    ft: Orchestrator, box: Sandbox, tmp_path: Path
) -> None:
    chats = recipe_rows.chats(tmp_path / "chats.jsonl")
    box.fault("tinker", "lost_request", path="optim_step$", skip=2, count=0)
    run = ft.submit(spec(chats), "tinker")
    until(lambda: len(run.metrics()) == 2, "two steps")
    job = msgspec.json.decode((folder(run) / "job.json").read_bytes())
    assert job["hyper"]["epochs"] == STEPS // 2 and job["session"]["lora"]["rank"] == 4
    box.fault("tinker", "lost_request", count=0)
    run.pause()  # its last save has no answer
    run.cancel()
    until(lambda: run.refresh().status is JobStatus.CANCELLED, "the cancel", 60)
    assert len(run.metrics()) < STEPS
    other = ft.submit(spec(chats, seed=2), "tinker")
    until(lambda: (folder(other) / "lock").exists() and attempts(other) == 1, "its process")
    os.kill(worker(other), signal.SIGTERM)
    until(lambda: other.refresh().status is JobStatus.PAUSED, "the pause", 60)
    until(lambda: started(worker(other)) is None, "the end of its process", 60)
    box.clear_faults()
    # Without this it could end before the cancel.
    box.fault("tinker", "lost_request", path="optim_step$", skip=1, count=0)
    other.resume()
    until(lambda: other.metrics(), "a step")
    other.cancel()
    until(lambda: other.refresh().status is JobStatus.CANCELLED, "the cancel")
    box.clear_faults()


def test_each_setting_is_answered(ft: Orchestrator, tmp_path: Path) -> None:
    chats = recipe_rows.chats(tmp_path / "chats.jsonl")
    asked = spec(
        chats,
        packing=True,
        validation=str(chats),
        keep_best=True,
        optimizer={"type": "lion"},
        warmup_steps=2,
        schedule="linear",
    )
    asked["adapter"] = {"type": "qlora", "r": 8, "alpha": 16, "dropout": 0.1}
    asked["provider_options"] = {"tinker": {"objective": "ppo", "speed": 9}}
    [offer] = ft.prepare(asked, "tinker").offers
    rows = {one.name: one.outcome for one in offer.translation.settings}
    refused = {name for name, outcome in rows.items() if outcome is Outcome.REFUSED}
    assert refused == {
        "packing", "keep_best", "optimizer", "adapter.type", "adapter.alpha", "adapter.dropout",
        "provider_options.objective", "provider_options.speed",
    }  # fmt: skip
    assert rows["warmup_steps"] is rows["schedule"] is rows["adapter.r"] is Outcome.KEPT
    assert rows["max_grad_norm"] is Outcome.DEFAULTED
    reads = {"input": "{{sample.output_text}}", "reference": "{{item.word}}", "operation": "eq"}
    method = {"type": "rft", "grader": {"type": "string_check", "name": "same", **reads}}
    [offer] = ft.prepare(spec(recipe_rows.prompts(tmp_path / "rows.jsonl"), method=method), "tinker").offers
    assert "grader-field-missing" in {one.code for one in offer.problems}, "before its answers are billed"


def test_without_a_rate_there_is_no_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = recipe_rows.chats(tmp_path / "chats.jsonl")
    keys = {"TINKER_API_KEY": "tml-key-of-the-test", "TINKER_BASE_URL": "https://tinker.example.com"}
    with workspace(tmp_path, **keys, ORCHESTRATE_BUDGET_USD="1") as ft:
        [quote] = ft.quote(spec(chats), "tinker")
        assert quote.price is None and "session_train" in str(quote.unavailable)
        with pytest.raises(OverBudget):
            ft.submit(spec(chats), "tinker")
    rate = "usd_per_mtok: 1000, source: mine, start: 2020-01-01, confidence: quoted"
    rates = "\n".join(f"- {{method: session_{what}, {rate}}}" for what in ("train", "prefill", "sample"))
    (tmp_path / "rates.yaml").write_text(f"provider: tinker\nrates:\n{rates}\n")
    with workspace(tmp_path, **keys) as ft:
        [quote] = ft.quote(spec(chats), "tinker")
        train, read, sampled = quote.lines
        assert train.usd == train.quantity * 1000 and train.usd_low < train.usd <= train.usd_high
        assert read.usd == sampled.usd == 0
