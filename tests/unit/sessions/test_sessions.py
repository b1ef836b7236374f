"""Training sessions through the Python interface: a caller's own loop as a tracked run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.paths import ROOT, TINY
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.loop import IDS, LORA, OPTIONS, rows
from tests.waiting import until

from orchestrate import AsyncOrchestrator, JobStatus, Orchestrator, OverBudget, RunFailed, UsageError
from orchestrate.core.underway import ProgressCallback, listening
from orchestrate.errors import HostUnavailable, NotFound, Unsupported
from orchestrate.paid.limits import UnknownPrice
from orchestrate.settings import config

# torch and the tinker client describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers, at peft's hands
]
ADAM = {"learning_rate": 5e-3}
MODEL = str(TINY)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ft(home: Path, quick_python: None) -> Iterator[Orchestrator]:
    with workspace(home) as ft, ft.session(MODEL, lora=2, options=OPTIONS):  # keeps the base loaded
        yield ft


def opened(ft: Orchestrator, **more: Any) -> Any:
    return ft.session(MODEL, **{"lora": LORA, "options": OPTIONS, **more})


def trained(session: Any, steps: int = 2) -> list[float]:
    losses: list[float] = []
    for _ in range(steps):
        losses.append(session.forward_backward(rows()).loss)
        session.optim_step(ADAM)
    return losses


def by_torch(folder: str, steps: int) -> list[float]:
    """The same loop by transformers, peft and torch's own AdamW, row by row."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=5e-3, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)
    losses: list[float] = []
    for _ in range(steps):
        total: Any = 0.0
        for row in rows():
            logits = model(input_ids=torch.tensor([row["model_input"]])).logits[0]
            targets = torch.tensor(row["loss_fn_inputs"]["target_tokens"])
            total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        total.backward()
        adam.step()
        adam.zero_grad()
        losses.append(total.item())
    return losses


def test_a_loop_is_a_run_and_trains_as_plain_torch_does(ft: Orchestrator, tmp_path: Path) -> None:
    with opened(ft, tags={"team": "a"}) as s:
        start = s.save("start")
        losses = trained(s, 3)
        ids = IDS[:4]
        drawn = s.sample(ids, 2, {"max_tokens": 6, "seed": 1, "stop": []})
        for one in drawn.sequences:  # sampled from the live weights, which training sees too
            [_, *seen] = s.logprobs([*ids, *one.tokens])
            np.testing.assert_allclose(seen[3:], one.logprobs, atol=1e-4)
        run = ft.run(s.id)
        assert run.refresh().status is JobStatus.RUNNING
    assert losses == pytest.approx(by_torch(start.path, 3), rel=1e-5)
    record = ft.run(s.id).record
    assert record.status is JobStatus.SUCCEEDED and record.bill is not None and record.bill.usd == 0
    assert record.job_kind == "session" and record.tags == {"team": "a"} and record.spec["model"] == MODEL
    points = run.metrics()
    assert [p.step for p in points] == [1, 2, 3]
    weight = sum(len(row["model_input"]) for row in rows())
    assert [p.values["train_loss"] * weight for p in points] == pytest.approx(losses)
    assert [p.values["tokens"] for p in points] == [weight, 2 * weight, 3 * weight]
    assert [one.id for one in run.checkpoints()] == ["step-00000000"]
    artifact = run.download(tmp_path / "tuned")
    assert "adapter_model.safetensors" in {file.path for file in artifact.files}
    assert run.chat("hello").model == record.tuned_model
    assert s.id in str(ft.compare([run]).to_json())
    with pytest.raises(UsageError, match="nothing to resume"):
        run.resume()
    with pytest.raises(UsageError, match="training session"):
        ft.rerun(run)


def test_each_way_to_ask_gives_the_same(ft: Orchestrator) -> None:
    tinker = pytest.importorskip("tinker")
    from tinker import types

    with opened(ft) as s:
        plain = trained(s)
    with opened(ft) as s:  # all are sent before the first is answered
        sent = [(s.futures.forward_backward(rows()), s.futures.optim_step(ADAM)) for _ in range(2)]
        assert [done.result().loss for done, _ in sent] == plain
        assert [step.result().step for _, step in sent] == [1, 2]
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(row["model_input"]),
            loss_fn_inputs=row["loss_fn_inputs"],
        )
        for row in rows()
    ]
    with opened(ft) as s:
        for loss in plain:
            assert s.forward_backward(data).loss == loss
            s.optim_step(tinker.AdamParams(learning_rate=5e-3))
        prompt, asked = types.ModelInput.from_ints(IDS[:3]), types.SamplingParams(max_tokens=3, seed=4)
        assert len(s.sample(prompt, 1, asked).sequences[0].tokens) <= 3

    def mine(given: Any, log_p: list[Any]) -> Any:
        assert len(given) == len(log_p) == 2
        return -sum(p.sum() for p in log_p), {"rows": 2}

    with opened(ft) as s:
        for loss in plain:
            found = s.forward_backward_custom(rows(), mine)
            assert found.metrics == {"loss:sum": pytest.approx(loss, rel=1e-5), "rows": 2.0}
            s.optim_step(ADAM)
        ft.run(s.id).refresh()
        assert [p.values["loss_sum"] for p in ft.run(s.id).metrics()] == pytest.approx(plain, rel=1e-5)


def no_answer(*_: object, **__: object) -> None:
    raise HostUnavailable("paper", "no answer")


def test_what_is_sent_twice_counts_once_and_what_is_refused_changes_nothing(
    ft: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(ft) as s:
        first = s.forward_backward(rows(), seq_id=1)
        assert s.forward_backward(rows(), seq_id=1) is first
        for bad in (
            lambda: s.forward_backward([]),
            lambda: s.forward_backward([{"model_input": [1]}]),
            lambda: s.forward_backward([{"model_input": [99_999], "loss_fn_inputs": {"target_tokens": [1]}}]),
            lambda: s.forward_backward(rows(), "stable_reinforce"),
            lambda: s.optim_step({"lr": 1}),
            lambda: s.sample("text"),
            lambda: s.save("../there"),
        ):
            with pytest.raises(UsageError):
                bad()
        with pytest.raises(NotFound):
            s.load("nowhere")
        with monkeypatch.context() as lost:
            lost.setattr(type(s._backend), "forward", no_answer)
            for _ in range(2):  # it may have arrived, so it is not carried out again
                with pytest.raises(HostUnavailable):
                    s.futures.forward_backward(rows(), seq_id=3).result(timeout=60)
        assert s.optim_step(ADAM, seq_id=2) is s.optim_step(ADAM, seq_id=2)
        assert s.step == 1
        one = s.save("one")
        before = s.forward(rows()).loss
        trained(s)
        s.load("one")
        assert s.forward(rows()).loss == before
        trained(s)
        s.load(one, optimizer=False)
        assert s.forward(rows()).loss == before
    with opened(ft) as s:
        trained(s, 1)
        assert s.forward(rows()).loss == pytest.approx(before, rel=1e-6), "the gradient was added once"


def test_two_sessions_at_once_are_what_each_is_alone(ft: Orchestrator) -> None:
    with opened(ft) as s:
        alone = trained(s, 3)
    with opened(ft) as one, opened(ft, lora=8) as two:
        for loss in alone:
            assert one.forward_backward(rows()).loss == loss
            two.forward_backward(rows(IDS[::-1]))
            two.sample(IDS[:3], 2, {"max_tokens": 4})
            two.optim_step({"learning_rate": 1e-2})
            one.optim_step(ADAM)


def test_a_loop_that_breaks_off_goes_on_from_where_it_was(ft: Orchestrator) -> None:
    with opened(ft) as s:
        whole = trained(s, 4)
    with pytest.raises(ZeroDivisionError), opened(ft) as s:
        trained(s)
        raise ZeroDivisionError
    run = ft.run(s.id)
    record = run.refresh()
    assert record.status is JobStatus.PAUSED and record.error is not None
    assert "ZeroDivisionError" in record.error.message and s.id in record.error.message
    with pytest.raises(RunFailed):
        s.forward(rows())
    with pytest.raises(UsageError, match="your own training loop"):
        run.resume()
    with ft.session(resume=run) as again:
        assert again.step == 2
        with pytest.raises(UsageError, match="another program"):
            ft.session(resume=run.id)
        assert trained(again) == whole[2:]
    assert [p.step for p in run.metrics()] == [1, 2, 3, 4]
    assert run.refresh().status is JobStatus.SUCCEEDED
    with pytest.raises(UsageError, match="has ended"):
        ft.session(resume=run)


def test_another_program_ends_it(ft: Orchestrator) -> None:
    waits: list[str] = []

    @contextmanager
    def heard(what: str, _unit: str) -> Generator[ProgressCallback]:
        waits.append(what)
        yield lambda _done, _total=None, _detail="", /: None

    with pytest.raises(RunFailed, match="canceled"), opened(ft) as s:
        trained(s, 1)
        with listening(heard):
            ft.run(s.id).cancel()
        assert waits == ["waiting for local to cancel the run"], "a host may hang"
        until(lambda: ft.run(s.id).refresh().status.terminal, "the end")
        s.forward(rows())
    assert ft.run(s.id).status is JobStatus.CANCELLED
    with pytest.raises(RunFailed, match="paused"), opened(ft) as s:
        trained(s, 1)
        ft.run(s.id).pause()
        until(lambda: ft.run(s.id).refresh().status is JobStatus.PAUSED, "the pause")
        s.forward(rows())
    with ft.session(resume=s.id) as again:
        assert again.step == 1


def test_a_quiet_session_ends(ft: Orchestrator) -> None:
    with pytest.raises(RunFailed, match="there were no requests"), opened(ft, idle_minutes="0.02") as s:
        until(lambda: ft.run(s.id).refresh().status is JobStatus.PAUSED, "the end")
    error = ft.run(s.id).record.error
    assert error is not None and error.code == "idle"


def priced(home: Path, usd_per_hour: int) -> None:
    rate = f"method: owned, usd_per_hour: {usd_per_hour}, source: mine, start: 2020-01-01, confidence: quoted"
    (home / "rates.yaml").write_text(f"provider: local\nrates:\n- {{{rate}}}\n")


def test_the_hour_of_ones_own_machine_has_a_price_and_a_limit(tmp_path: Path, quick_python: None) -> None:
    priced(tmp_path, 3600)
    with workspace(tmp_path) as ft, pytest.raises(ZeroDivisionError), opened(ft) as s:
        trained(s, 1)
        raise ZeroDivisionError
    with workspace(tmp_path) as ft:
        run = ft.run(s.id)
        cap = round(run.metrics()[-1].values["cost_usd"]) + 20
        with (
            pytest.raises((RunFailed, OverBudget), match="limit"),
            ft.session(resume=run, max_cost_usd=cap) as s,
        ):
            assert ft.store.ledger.spending().committed_usd >= cap
            while True:
                trained(s, 1)
        record = run.refresh()
        assert record.status is JobStatus.PAUSED and record.error is not None and record.error.code == "limit"
        points = run.metrics()
        assert all(p.values["cost_usd"] < cap for p in points[:-1]), "it ends within one step"


def test_without_a_limit_a_budget_cannot_be_kept(tmp_path: Path) -> None:
    priced(tmp_path, 1)
    with workspace(tmp_path, ORCHESTRATE_BUDGET_USD="20") as ft:
        with pytest.raises(UnknownPrice):
            opened(ft)
        with pytest.raises(OverBudget):
            opened(ft, max_cost_usd=21)
        with pytest.raises(Unsupported, match="training sessions"):
            ft.session("gpt-4.1-nano", provider="openai")
        assert ft.runs() == []


def loop(home: Path, run: str = "new", steps: int = 4, save_at: int = 2, killed: str = "nowhere") -> Any:
    command = ["-m", "tests.unit.sessions.loop", str(home), run, str(steps), str(save_at), killed]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=900, cwd=ROOT, check=False
    )
    assert done.returncode == (0 if killed == "nowhere" else -signal.SIGKILL), done.stderr[-3000:]
    said: dict[str, Any] = {"loss": []}
    for one in map(json.loads, done.stdout.splitlines()):
        if one["what"] == "loss":
            said["loss"].append(one["value"])
        else:
            said[one["what"]] = one["value"]
    return said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, quick_python: None) -> list[float]:
    return loop(tmp_path_factory.mktemp("undisturbed"))["loss"]


@pytest.mark.parametrize("killed", ["amid a step", "after a save"])
def test_a_killed_caller_leaves_nothing_running_and_its_last_save(
    tmp_path: Path, undisturbed: list[float], killed: str
) -> None:
    said = loop(tmp_path, killed=killed)
    with workspace(tmp_path) as ft:
        run = ft.run(said["id"])
        until(lambda: run.refresh().status is JobStatus.PAUSED, "the end of a killed caller")
        assert run.record.error is not None and run.record.error.code == "caller_gone"
        ft.sync()
        assert run.refresh().status is JobStatus.PAUSED, "no worker is started in its place"
    again = loop(tmp_path, run=said["id"])
    assert again["step"] == 2 and again["loss"] == undisturbed[2:]
    with workspace(tmp_path) as ft:
        run = ft.run(said["id"])
        assert run.refresh().status is JobStatus.SUCCEEDED
        assert [p.step for p in run.metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize("killed", ["before the directory", "after the directory"])
def test_a_caller_killed_while_it_began_leaves_no_second_session(tmp_path: Path, killed: str) -> None:
    loop(tmp_path, killed=killed)
    with workspace(tmp_path) as ft:
        [run] = ft.runs()
        ft.sync()
        until(lambda: run.refresh() and run.status is not JobStatus.RUNNING, "its state")
        assert not run.status.terminal
        if killed == "after the directory":
            until(lambda: run.refresh().status is JobStatus.PAUSED, "that nobody drives it")
            with ft.session(resume=run) as s:
                assert s.step == 0 and trained(s, 1)
        else:
            run.cancel()
        assert len(ft.runs()) == 1 and ft.store.ledger.spending().committed_usd == 0


def test_a_killed_worker_costs_what_was_not_saved(tmp_path: Path, undisturbed: list[float]) -> None:
    with workspace(tmp_path) as ft:
        with pytest.raises(RunFailed), opened(ft) as s:
            trained(s)
            s.save("kept")
            trained(s, 1)
            child = max(  # the other one is of the fixture
                int(file.parent.name)
                for file in Path("/proc").glob("[0-9]*/stat")
                if file.read_text().rpartition(")")[2].split()[1] == str(os.getpid())
                and b"orchestrate.local.sessions.process" in (file.parent / "cmdline").read_bytes()
            )
            os.kill(child, signal.SIGKILL)
            s.forward(rows())
        assert ft.run(s.id).refresh().status is JobStatus.PAUSED
        with ft.session(resume=s.id) as again:
            assert again.step == 2 and trained(again) == undisturbed[2:]


def test_the_same_for_asyncio(home: Path, quick_python: None) -> None:
    own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml")}
    settings = config.load(env={**os.environ, **own}, cwd=home)

    async def main() -> list[float]:
        losses: list[float] = []
        async with AsyncOrchestrator(settings) as ft:
            async with await ft.session(MODEL, lora=LORA, options=OPTIONS) as s:
                for _ in range(2):
                    losses.append((await s.forward_backward(rows())).loss)
                    await asyncio.wrap_future(s.futures.optim_step(ADAM))
                await s.save("two")
                assert s.step == 2 and s.saves == ["two"]
            assert (await (await ft.run(s.id)).refresh()).status is JobStatus.SUCCEEDED
        return losses

    losses = asyncio.run(main())
    with workspace(home) as ft, opened(ft) as s:
        assert trained(s) == losses


def test_the_documented_session_runs(tmp_path: Path) -> None:
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sessions.md").read_text(), re.DOTALL)[0]
    env = {**os.environ, "MODEL": MODEL, "ORCHESTRATE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", block], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(losses) == 8 and losses[-1] < losses[0] / 2
    assert "succeeded 0" in done.stdout
