"""Training sessions at Fireworks through its training SDK, against the sandbox, which really trains."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fireworks.training.sdk import types as sdk
from fireworks.training.sdk.types._pydantic_types import forward_backward_request, forward_request
from fireworks.types import ReinforcementFineTuningStep
from tests.paths import TINY
from tests.unit.sessions import recipe_rows
from tests.unit.sessions.left import killed
from tests.unit.sessions.loop import IDS, LORA, OPTIONS, rows
from tests.unit.sessions.losses import ADAM, losses_of, policy_rows, trained

from orchestrate import JobStatus, Orchestrator, OverBudget, RunFailed, UsageError
from orchestrate.errors import ProviderError
from orchestrate.providers.fireworks import sessions as steps
from orchestrate.sandbox.server import Sandbox
from orchestrate.sessions import recipes

pytestmark = pytest.mark.slow
MODEL = "qwen3.8-27b"
SHAPE = "accounts/fireworks/trainingShapes/ts-qwen-lora"
RENTED: dict[str, Any] = {"max_cost_usd": 25, "options": {"training_shape": SHAPE}}
STEP = 14
"""Tokens of a step."""
TRAIN, PREFILL, SAMPLE = (Decimal(usd) / 1_000_000 for usd in ("4.103", "1.86", "5.595"))
"""By the price page of 2026-10-08."""
BODIES: dict[str, Any] = {
    "create_session": sdk.CreateSessionRequest,
    "create_model": sdk.CreateModelRequest,
    "forward": forward_request.ForwardRequest,
    "forward_backward": forward_backward_request.ForwardBackwardRequest,
    "optim_step": sdk.OptimStepRequest,
    "save_weights": sdk.SaveWeightsRequest,
    "load_weights": sdk.LoadWeightsRequest,
    "retrieve_future": sdk.FutureRetrieveRequest,
}


def opened(ft: Orchestrator, **more: Any) -> Any:
    return ft.session(MODEL, provider="fireworks", **{"lora": LORA, "max_cost_usd": 5, **more})


def host_tokens(sandbox: Sandbox) -> dict[str, int]:
    """What the host has counted, by kind."""
    host: Any = sandbox.fronts["fireworks"].host
    found = {"train": 0, "prefill": 0, "sample": 0}
    for bucket, tokens in host.sessions.desk.usage.between("sandbox", 0, 1e12):
        found[bucket.kind] += tokens
    return found


def host_usd(before: dict[str, int], after: dict[str, int]) -> float:
    used = {kind: after[kind] - before[kind] for kind in after}
    return float(used["train"] * TRAIN + used["prefill"] * PREFILL + used["sample"] * SAMPLE)


def sessions(sandbox: Sandbox) -> list[str]:
    host: Any = sandbox.fronts["fireworks"].host
    return list(host.sessions.desk.callers)


def test_the_same_losses_here_and_at_fireworks(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> None:
    with ft.session(str(TINY), lora=LORA, options=OPTIONS) as s:
        here = losses_of(s)
    with pytest.raises(UsageError, match="set a limit"):
        opened(ft, max_cost_usd=None)
    before = host_tokens(sandbox)
    sandbox.clear_requests()
    with opened(ft) as s:
        there = losses_of(s)
        held = ft.spending(sandbox=True, offline=True).total.committed_usd
        assert held == 5
        [drawn] = s.sample(IDS[:4], 1, {"max_tokens": 4, "seed": 1}).sequences
        [_, *seen] = s.logprobs([*IDS[:4], *drawn.tokens])
        assert seen[3:] == pytest.approx(drawn.logprobs, abs=1e-4)
        for refused in ("gspo", "stable_reinforce", "grpo"):
            with pytest.raises(UsageError, match=refused):
                s.forward_backward(policy_rows(), refused)
        asked = recipe_rows.prompts(tmp_path / "prompts.jsonl")
        with pytest.raises(UsageError, match="gspo"):  # before an answer is sampled: see the bill
            recipes.rl(s, asked, grader=recipe_rows.GRADER, run_grader_code=True, objective="gspo")
        with pytest.raises(UsageError, match="token ids"):
            s.sample(IDS[:4], 1, {"max_tokens": 4, "stop": [3]})
        s.load(s.save("end"))
    assert here.keys() == there.keys()
    for name in here:
        assert there[name] == pytest.approx(here[name], rel=1e-5), name
    record = ft.run(s.id).refresh()
    assert record.status is JobStatus.SUCCEEDED and record.bill is not None
    assert (record.tuned_model or "").startswith("fireworks://sandbox/run-")
    trained_tokens = (2 + 4 + 1 + 1) * STEP  # two steps, four losses, an own one, and a weighted one
    prefill = 3 * STEP + 4 + (4 + len(drawn.tokens) - 1)  # forwards, the prompt, the log-probabilities
    by_hand = trained_tokens * TRAIN + prefill * PREFILL + len(drawn.tokens) * SAMPLE
    assert record.bill.usd == pytest.approx(by_hand)
    assert host_usd(before, host_tokens(sandbox)) == pytest.approx(float(by_hand)), "the bill is the host's"
    assert not sessions(sandbox), "a session ends with its block"
    with pytest.raises(UsageError, match="is a checkpoint at Fireworks"):
        ft.run(s.id).deploy()
    sent = [one for one in sandbox.requests("fireworks", method="POST") if "/api/v1/" in one["path"]]
    checked = [(one["path"].rsplit("/", 1)[-1], one["body"]) for one in sent]
    for name, body in checked:
        if name in BODIES:
            BODIES[name].model_validate(body, extra="forbid")
    assert {name for name, _ in checked} >= BODIES.keys()


def test_each_request_is_trained_and_billed_once_on_a_bad_day(ft: Orchestrator, sandbox: Sandbox) -> None:
    with opened(ft) as s:
        plain = trained(s)
    before = host_tokens(sandbox)
    sandbox.fault("fireworks", "lost_answer", path="create_session$")
    sandbox.fault("fireworks", "lost_answer", path="create_model$")
    for what in ("forward_backward$", "optim_step$", "retrieve_future$"):
        sandbox.fault("fireworks", "lost_answer", path=what, skip=1)
    sandbox.fault("fireworks", "error", path="optim_step$", status=503)
    sandbox.fault("fireworks", "paused_capacity", path="retrieve_future$", skip=4, delay_s=0.1)
    with opened(ft) as s:
        assert trained(s) == pytest.approx(plain, rel=1e-6), "each was carried out once"
        sandbox.fault("fireworks", "rate_limit", path="completions$", retry_after=0)
        assert s.sample(IDS[:4], 1, {"max_tokens": 4}).sequences
        sandbox.fault("fireworks", "lost_answer", path="completions$")
        with pytest.raises(ProviderError):
            s.sample(IDS[:4], 1, {"max_tokens": 4})
    bill = ft.run(s.id).refresh().bill
    after = host_tokens(sandbox)
    assert after["train"] - before["train"] == 2 * STEP
    assert bill is not None and float(bill.usd) == pytest.approx(host_usd(before, after))


def test_a_request_that_hangs_fails_and_the_session_pauses(
    ft: Orchestrator, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sessions(sandbox)
    with pytest.raises(ProviderError, match="no result"), opened(ft) as s:
        trained(s, 1)
        s.save("one")
        monkeypatch.setattr(steps, "OPERATION_S", 1.0)
        sandbox.fault("fireworks", "paused_capacity", path="retrieve_future$", count=0, delay_s=0.2)
        s.forward_backward(rows())
    record = ft.run(s.id).refresh()
    assert record.status is JobStatus.PAUSED and record.error and "its last save" in record.error.message
    assert sessions(sandbox) == before


def test_a_killed_program_leaves_nothing_that_bills(ft: Orchestrator, home: Path, sandbox: Sandbox) -> None:
    before = host_tokens(sandbox)
    id = killed(home, sandbox, "fireworks", MODEL, "5")
    assert not ft.orphans(sandbox=True).orphans and not ft.spending(sandbox=True).idle
    record = ft.run(id).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "caller_gone"
    assert record.bill is not None
    assert float(record.bill.usd) == pytest.approx(host_usd(before, host_tokens(sandbox)))
    with ft.session(resume=id) as s:
        assert s.step == 1
        trained(s, 1)
    record = ft.run(id).refresh()
    assert record.status is JobStatus.SUCCEEDED and record.bill is not None
    assert float(record.bill.usd) == pytest.approx(host_usd(before, host_tokens(sandbox)))


def test_a_session_that_expired_amid_a_step_continues_from_its_save(
    ft: Orchestrator, sandbox: Sandbox
) -> None:
    with opened(ft) as s:
        [_, _, third] = trained(s, 3)
    with pytest.raises(ProviderError), opened(ft) as s:
        trained(s)
        s.save("two")
        s.forward_backward(rows())
        sandbox.fault("fireworks", "session_expired", path="optim_step$")
        s.optim_step(ADAM)
    assert ft.run(s.id).refresh().status is JobStatus.PAUSED
    with ft.session(resume=s.id) as s:
        assert s.step == 2 and trained(s, 1) == pytest.approx([third], rel=1e-5)


def test_a_limit_reached_amid_a_step_ends_the_session_within_it(ft: Orchestrator, sandbox: Sandbox) -> None:
    cap, before = Decimal("2.5") * STEP * TRAIN, host_tokens(sandbox)
    with pytest.raises(OverBudget), opened(ft, max_cost_usd=cap) as s:
        trained(s, 5)
    record = ft.run(s.id).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "limit"
    usd = host_usd(before, host_tokens(sandbox))
    assert record.bill is not None and float(record.bill.usd) == pytest.approx(usd) and usd <= cap
    assert not sessions(sandbox)


def trainers(sandbox: Sandbox) -> list[dict[str, Any]]:
    """What the host has, newest first."""
    host: Any = sandbox.fronts["fireworks"].host
    return [host.trainers.shown(one) for one in host.state.all("fireworks", "trainer")]


def up(sandbox: Sandbox) -> list[str]:
    return [one["name"].rsplit("/", 1)[-1] for one in trainers(sandbox) if "completedTime" not in one]


def test_a_trainer_has_the_same_losses_and_is_asked_for_once(ft: Orchestrator, sandbox: Sandbox) -> None:
    with opened(ft) as s:
        plain = [*trained(s), s.forward_backward(policy_rows(), "ppo").loss]
    sandbox.fault("fireworks", "lost_answer", method="POST", path="rlorTrainerJobs$")
    sandbox.fault("fireworks", "lost_answer", path="optim_step$")
    sandbox.clear_requests()
    before = ft.spending(sandbox=True, offline=True).total.committed_usd
    with opened(ft, **RENTED) as s:
        assert [*trained(s), s.forward_backward(policy_rows(), "ppo").loss] == pytest.approx(plain, rel=1e-5)
        assert len(up(sandbox)) == 1 and not ft.orphans(sandbox=True).orphans
        assert ft.spending(sandbox=True, offline=True).total.committed_usd == before + 25
        with pytest.raises(UsageError, match="cannot sample"):
            s.sample(IDS[:4], 1, {"max_tokens": 4})
    sent = [one for one in sandbox.requests("fireworks", method="POST") if "rlorTrainerJobs" in one["path"]]
    ids = {one["query"] for one in sent if one["path"].endswith("rlorTrainerJobs")}
    assert len(ids) == 1, "sent again under the same id only"
    record = ft.run(s.id).refresh()
    [trainer] = trainers(sandbox)
    known = {field.alias or name for name, field in ReinforcementFineTuningStep.model_fields.items()}
    assert trainer.keys() - known == {"useReservation", "inactivityTimeout", "sandbox", "sandboxUsd"}
    assert record.status is JobStatus.SUCCEEDED and trainer["state"] == "JOB_STATE_CANCELLED"
    assert record.quote is not None and record.quote.lines[0].usd_per_unit == 8
    assert record.bill is not None and float(record.bill.usd) >= trainer["sandboxUsd"] - 0.001
    with pytest.raises(UsageError, match="does not train LoRA"):
        opened(ft, max_cost_usd=25, options={"training_shape": SHAPE.removesuffix("-lora")})
    with pytest.raises(OverBudget, match="left running"):
        opened(ft, **{**RENTED, "max_cost_usd": Decimal("0.5")})
    sandbox.fault("fireworks", "error", method="POST", path="rlorTrainerJobs$", status=400)
    with pytest.raises(ProviderError):
        opened(ft, **RENTED)
    assert len(trainers(sandbox)) == 1


def test_a_trainer_that_a_killed_program_left_up_is_seen_counted_and_ended(
    ft: Orchestrator, home: Path, sandbox: Sandbox
) -> None:
    given = (MODEL, "25", json.dumps(RENTED["options"]))
    id = killed(home, sandbox, "fireworks", *given)
    [trainer] = up(sandbox)
    report = ft.spending(sandbox=True)
    assert [(found.item.id, found.run) for found in report.idle] == [(trainer, id)]
    assert report.usd_per_hour == 8
    orphans = ft.orphans(sandbox=True)
    assert [(one.item.id, one.run) for one in orphans.orphans] == [(trainer, id)]
    assert [one.outcome for one in ft.end_orphans(orphans).orphans] == ["asked to end"] and not up(sandbox)
    record = ft.run(id).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "caller_gone"
    with ft.session(resume=id) as s:
        assert s.step == 1
        assert float(s.cost_usd) >= trainers(sandbox)[1]["sandboxUsd"] - 0.001
        trained(s, 1)
    assert not up(sandbox) and ft.run(id).record.status is JobStatus.SUCCEEDED
    id = killed(home, sandbox, "fireworks", *given)
    assert len(up(sandbox)) == 1
    sandbox.skip(400)  # nobody does anything
    assert not up(sandbox), "the host ends it by itself"
    ft.run(id).cancel()
    record = ft.run(id).refresh()
    assert record.status is JobStatus.CANCELLED and record.bill is not None
    assert float(record.bill.usd) <= 25


def test_a_limit_ends_the_trainer_and_holds(ft: Orchestrator, sandbox: Sandbox) -> None:
    cap = (Decimal(8 * (420 + 15)) / 3600).quantize(Decimal("0.01"))  # and what a kill would cost
    with pytest.raises((OverBudget, RunFailed)), opened(ft, **{**RENTED, "max_cost_usd": cap}) as s:
        while True:
            trained(s, 1)
    record = next(iter(ft.runs())).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "limit"
    assert not up(sandbox) and trainers(sandbox)[0]["sandboxUsd"] < float(cap)


def test_a_model_without_a_price_is_refused_with_the_way_to_set_one(home: Path) -> None:
    from tests.unit.sessions.homes import workspace

    with workspace(home, FIREWORKS_API_KEY="fw_a_key_of_the_test") as ft:  # noqa: SIM117
        with pytest.raises(UsageError, match="training_api_serverless_train"):
            ft.session("qwen3-8b", provider="fireworks", lora=LORA, max_cost_usd=5)
