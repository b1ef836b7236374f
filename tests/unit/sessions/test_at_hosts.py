"""Training sessions at Together and Fireworks through their official clients, against the sandbox, which
really trains."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Required, Union, get_args, get_origin, get_type_hints

import pytest
from fireworks.training.sdk import types as fireworks_sdk
from fireworks.training.sdk.types._pydantic_types import forward_backward_request, forward_request
from fireworks.types import ReinforcementFineTuningStep
from tests.paths import TINY
from tests.unit.sessions import recipe_rows
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.left import MODEL as QWEN
from tests.unit.sessions.left import killed
from tests.unit.sessions.loop import IDS, LORA, OPTIONS, rows
from tests.unit.sessions.losses import ADAM, losses_of, policy_rows, trained
from together.types import post_training as together_sdk

from orchestrate import JobStatus, Orchestrator, OverBudget, RunFailed, UsageError
from orchestrate.errors import OrchestrateError, ProviderError
from orchestrate.providers.fireworks import sessions as steps
from orchestrate.sandbox.server import Sandbox
from orchestrate.sessions import recipes

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
MACHINES = "/v1/rl/model-resources"
MODEL = "qwen3.8-27b"
SHAPE = "accounts/fireworks/trainingShapes/ts-qwen-lora"
STEP = 14
"""Tokens of a step."""
TRAIN, PREFILL, SAMPLE = (Decimal(usd) / 1_000_000 for usd in ("4.103", "1.86", "5.595"))
"""By Fireworks' price page of 2026-10-08."""
PARAMS: dict[str, Any] = {
    "model-resources": together_sdk.ModelResourceCreateParams,
    "estimate-cost": together_sdk.ModelResourceEstimateCostParams,
    "training-sessions": together_sdk.SessionCreateParams,
    "forward-backward": together_sdk.OperationForwardBackwardParams,
    "custom-forward-backward": together_sdk.OperationCustomForwardBackwardParams,
    "optim-step": together_sdk.OperationOptimStepParams,
    "sample": together_sdk.OperationSampleParams,
    "weights-sync": together_sdk.OperationWeightsSyncParams,
}
BODIES: dict[str, Any] = {
    "create_session": fireworks_sdk.CreateSessionRequest,
    "create_model": fireworks_sdk.CreateModelRequest,
    "forward": forward_request.ForwardRequest,
    "forward_backward": forward_backward_request.ForwardBackwardRequest,
    "optim_step": fireworks_sdk.OptimStepRequest,
    "save_weights": fireworks_sdk.SaveWeightsRequest,
    "load_weights": fireworks_sdk.LoadWeightsRequest,
    "retrieve_future": fireworks_sdk.FutureRetrieveRequest,
}


@dataclass(frozen=True)
class RentedHost:
    """A host whose machines are up for a session and bill hourly."""

    name: str
    model: str
    usd_per_hour: int
    options: Mapping[str, Any]
    idle_s: int
    """The host has ended an unused machine by then."""
    usd_field: str
    shown: Callable[[Any], list[dict[str, Any]]]
    """What the host has, newest first."""
    is_up: Callable[[Mapping[str, Any]], bool]

    def opened(self, ft: Orchestrator, **more: Any) -> Any:
        given = {"lora": LORA, "max_cost_usd": 25, "options": dict(self.options), **more}
        return ft.session(self.model, provider=self.name, **given)

    def machines(self, sandbox: Sandbox) -> list[dict[str, Any]]:
        return self.shown(sandbox.fronts[self.name].host)

    def up(self, sandbox: Sandbox) -> list[str]:
        found = [one for one in self.machines(sandbox) if self.is_up(one)]
        return [str(one.get("id") or one["name"]).rsplit("/", 1)[-1] for one in found]

    def killed(self, home: Path, sandbox: Sandbox) -> str:
        return killed(home, sandbox, self.name, self.model, "25", json.dumps(self.options))


TOGETHER = RentedHost(
    name="together",
    model=QWEN,
    usd_per_hour=16,  # a trainer and a generator
    options={},
    idle_s=500,
    usd_field="sandbox_usd",
    shown=lambda host: [
        host.sessions._shown(host.sessions._settled(one))
        for one in host.state.all("together", "model-resources")
    ],
    is_up=lambda one: one["status"].endswith(("READY", "CREATING")),
)
FIREWORKS = RentedHost(
    name="fireworks",
    model=MODEL,
    usd_per_hour=8,
    options={"training_shape": SHAPE},
    idle_s=400,
    usd_field="sandboxUsd",
    shown=lambda host: [host.trainers.shown(one) for one in host.state.all("fireworks", "trainer")],
    is_up=lambda one: "completedTime" not in one,
)
RENTED = pytest.mark.parametrize("host", [TOGETHER, FIREWORKS], ids=lambda host: host.name)


def serverless(ft: Orchestrator, **more: Any) -> Any:
    return ft.session(MODEL, provider="fireworks", **{"lora": LORA, "max_cost_usd": 5, **more})


def committed(ft: Orchestrator) -> Decimal:
    return ft.spending(sandbox=True, offline=True).total.committed_usd


# -- rented machines -------------------------------------------------------------------------------------


@RENTED
def test_what_a_killed_program_left_up_is_seen_counted_and_ended(
    host: RentedHost, ft: Orchestrator, home: Path, sandbox: Sandbox
) -> None:
    id = host.killed(home, sandbox)
    [machine] = host.up(sandbox)
    report = ft.spending(sandbox=True)
    assert [(found.item.id, found.run) for found in report.idle] == [(machine, id)]
    assert report.usd_per_hour == host.usd_per_hour
    (another := home.with_name("another")).mkdir(exist_ok=True)
    with workspace(another, **sandbox.env) as elsewhere:  # which `recover` can't give it
        [seen] = elsewhere.spending(sandbox=True).idle
        assert seen.item.id == machine and seen.foreign and seen.lost_run is None
    orphans = ft.orphans(sandbox=True)
    assert [(one.item.id, one.run) for one in orphans.orphans] == [(machine, id)]
    ended = ft.end_orphans(orphans)
    assert [one.outcome for one in ended.orphans] == ["asked to end"] and not host.up(sandbox)
    assert not ft.orphans(sandbox=True).orphans
    record = ft.run(id).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "caller_gone"
    with ft.session(resume=id) as s:
        assert s.step == 1
        assert float(s.cost_usd) >= host.machines(sandbox)[1][host.usd_field] - 0.001
        trained(s, 1)
    assert not host.up(sandbox) and ft.run(id).record.status is JobStatus.SUCCEEDED
    id = host.killed(home, sandbox)
    assert len(host.up(sandbox)) == 1
    sandbox.skip(host.idle_s)  # nobody does anything
    assert not host.up(sandbox), "the host ends it by itself"
    ft.run(id).cancel()
    record = ft.run(id).refresh()
    assert record.status is JobStatus.CANCELLED and record.bill is not None
    assert float(record.bill.usd) <= 25


@RENTED
def test_a_limit_ends_the_machine_and_holds(host: RentedHost, ft: Orchestrator, sandbox: Sandbox) -> None:
    before = len(host.machines(sandbox))
    with pytest.raises(UsageError, match="set a limit"):
        host.opened(ft, max_cost_usd=None)
    with pytest.raises(OverBudget, match="may still bill after the program ends"):
        host.opened(ft, max_cost_usd=Decimal("0.5"))
    assert len(host.machines(sandbox)) == before
    cap = Decimal(host.usd_per_hour * (420 + 20)) / 3600  # twenty seconds, and what a kill would cost
    cap = cap.quantize(Decimal("0.01"))
    with pytest.raises((OverBudget, RunFailed)), host.opened(ft, max_cost_usd=cap) as s:
        while True:
            trained(s, 1)
    record = next(iter(ft.runs())).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "limit"
    assert not host.up(sandbox) and host.machines(sandbox)[0][host.usd_field] < float(cap)


@pytest.mark.parametrize("name", ["together", "fireworks"])
def test_a_session_that_expired_amid_a_step_continues_from_its_save(
    name: str, ft: Orchestrator, sandbox: Sandbox
) -> None:
    opened = TOGETHER.opened if name == "together" else serverless
    with opened(ft) as s:
        [_, _, third] = trained(s, 3)
    with pytest.raises(ProviderError), opened(ft) as s:
        trained(s)
        s.save("two")
        s.forward_backward(rows())
        if name == "together":
            sandbox.skip(24 * 3600)
        else:
            sandbox.fault("fireworks", "session_expired", path="optim_step$")
        s.optim_step(ADAM)
    record = ft.run(s.id).refresh()
    assert record.status is JobStatus.PAUSED and not TOGETHER.up(sandbox)
    with ft.session(resume=s.id) as s:
        assert s.step == 2 and trained(s, 1) == pytest.approx([third], rel=1e-5)
        if name == "together":
            expired = TOGETHER.machines(sandbox)[1]["sandbox_usd"]
            assert float(s.cost_usd) > expired > TOGETHER.usd_per_hour * 300 / 3600


# -- Together --------------------------------------------------------------------------------------------


def samples_and_refuses(s: Any) -> Any:
    """A sample's log-probabilities are those of its tokens, and what a host has no formula for is refused."""
    [drawn] = s.sample(IDS[:4], 1, {"max_tokens": 4, "seed": 1}).sequences
    [_, *seen] = s.logprobs([*IDS[:4], *drawn.tokens])
    assert seen[3:] == pytest.approx(drawn.logprobs, abs=1e-4)
    for refused in ("gspo", "stable_reinforce", "grpo"):
        with pytest.raises(UsageError, match=refused):
            s.forward_backward(policy_rows(), refused)
    return drawn


def fields_wrong(kind: Any, value: Any, at: str = "body") -> list[str]:
    """What a body has that the SDK's own types don't, or lacks."""
    while get_origin(kind) is not None and str(get_origin(kind)).endswith(("Required", "Annotated")):
        kind = get_args(kind)[0]
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return min((fields_wrong(one, value, at) for one in get_args(kind)), key=len)
    if hasattr(kind, "__required_keys__"):
        known = get_type_hints(kind, include_extras=True)
        if not isinstance(value, Mapping):
            return [f"{at} is no object"]
        wrong = [f"{at}.{name} is unknown" for name in value if name not in known]
        needed = {name for name, hint in known.items() if get_origin(hint) is Required}
        wrong += [f"{at}.{name} is missing" for name in needed - {"idempotency_key", *value}]
        return wrong + [
            one for n, v in value.items() if n in known for one in fields_wrong(known[n], v, f"{at}.{n}")
        ]
    if isinstance(value, list):
        return [one for item in value for one in fields_wrong(get_args(kind)[0], item, f"{at}[]")]
    if isinstance(value, Mapping) and len(get_args(kind)) == 2:
        return [one for name, item in value.items() for one in fields_wrong(get_args(kind)[1], item, name)]
    return []


def test_the_same_losses_here_and_at_together(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> None:
    with ft.session(str(TINY), lora=LORA, options=OPTIONS) as s:
        here = losses_of(s)
    before = committed(ft)
    sandbox.clear_requests()
    with TOGETHER.opened(ft) as s:
        there = losses_of(s)
        samples_and_refuses(s)
        with pytest.raises(UsageError, match="token ids"):
            s.sample(IDS[:4], 1, {"max_tokens": 4, "stop": [3]})
        assert committed(ft) == before + 25
        assert len(TOGETHER.up(sandbox)) == 1 and not ft.orphans(sandbox=True).orphans
        assert not ft.spending(sandbox=True).idle
    assert here.keys() == there.keys()
    for name in here:
        assert there[name] == pytest.approx(here[name], rel=1e-5), name
    run = ft.run(s.id)
    record = run.refresh()
    machine = TOGETHER.machines(sandbox)[0]
    assert record.status is JobStatus.SUCCEEDED and machine["status"] == "MODEL_RESOURCES_STATUS_STOPPED"
    assert record.bill is not None and record.quote is not None
    assert float(record.bill.usd) >= machine["sandbox_usd"] - 0.001
    assert record.quote.lines[0].usd_per_unit == TOGETHER.usd_per_hour
    assert committed(ft) == before
    artifact = run.download(tmp_path / "tuned")
    assert "adapter_model.safetensors" in {file.path for file in artifact.files}
    sent = [one for one in sandbox.requests("together", method="POST") if "/v1/rl/" in one["path"]]
    checked = [(one["path"].rsplit("/", 1)[-1], one["body"]) for one in sent]
    wrong = [(name, fields_wrong(PARAMS[name], body)) for name, body in checked if name in PARAMS]
    assert {name for name, _ in wrong} >= PARAMS.keys() and not any(found for _, found in wrong)
    assert fields_wrong(PARAMS["sample"], {"model_input": []}), "the judge can fail"


def test_a_machine_whose_answer_was_lost_is_found_and_never_asked_for_twice(
    ft: Orchestrator, sandbox: Sandbox
) -> None:
    before = len(TOGETHER.machines(sandbox))
    with TOGETHER.opened(ft) as s:
        plain = trained(s)
    sandbox.fault("together", "lost_answer", method="POST", path=f"{MACHINES}$")
    sandbox.fault("together", "lost_answer", method="POST", path="training-sessions$")
    for what in ("forward-backward$", "optim-step$"):  # carried out, and the answer is an error
        sandbox.fault("together", "timeout", method="POST", path=what)
    sandbox.clear_requests()
    with TOGETHER.opened(ft) as s:
        assert trained(s) == pytest.approx(plain, rel=1e-6), "each was carried out once"
        assert len(TOGETHER.up(sandbox)) == 1
    asked = [one for one in sandbox.requests("together", method="POST") if one["path"] == MACHINES]
    assert len(asked) == 1 and len(TOGETHER.machines(sandbox)) == before + 2 and not TOGETHER.up(sandbox)
    sandbox.fault("together", "error", method="POST", path=f"{MACHINES}$", status=400)
    with pytest.raises(OrchestrateError):
        TOGETHER.opened(ft)
    assert len(TOGETHER.machines(sandbox)) == before + 2


def test_together_trains_attention_and_mlp_together(ft: Orchestrator, sandbox: Sandbox) -> None:
    before = len(TOGETHER.machines(sandbox))
    with pytest.raises(UsageError, match="train_mlp"):
        TOGETHER.opened(ft, lora={"rank": 4, "train_mlp": False})
    assert len(TOGETHER.machines(sandbox)) == before


# -- Fireworks -------------------------------------------------------------------------------------------


def host_tokens(sandbox: Sandbox) -> dict[str, int]:
    """What the host has counted, by kind."""
    host: Any = sandbox.fronts["fireworks"].host
    found = {"train": 0, "prefill": 0, "sample": 0}
    for bucket, tokens in host.sessions.service.usage.between("sandbox", 0, 1e12):
        found[bucket.kind] += tokens
    return found


def host_usd(before: dict[str, int], after: dict[str, int]) -> float:
    used = {kind: after[kind] - before[kind] for kind in after}
    return float(used["train"] * TRAIN + used["prefill"] * PREFILL + used["sample"] * SAMPLE)


def sessions(sandbox: Sandbox) -> set[str]:
    """What the host has. Those that a killed program left there end later by themselves."""
    host: Any = sandbox.fronts["fireworks"].host
    return set(host.sessions.service.callers)


def test_the_same_losses_here_and_at_fireworks(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> None:
    with ft.session(str(TINY), lora=LORA, options=OPTIONS) as s:
        here = losses_of(s)
    with pytest.raises(UsageError, match="set a limit"):
        serverless(ft, max_cost_usd=None)
    before, held, others = host_tokens(sandbox), committed(ft), sessions(sandbox)
    sandbox.clear_requests()
    with serverless(ft) as s:
        there = losses_of(s)
        assert committed(ft) == held + 5
        drawn = samples_and_refuses(s)
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
    assert sessions(sandbox) <= others, "a session ends with its block"
    with pytest.raises(UsageError, match="is a checkpoint at Fireworks"):
        ft.run(s.id).deploy()
    sent = [one for one in sandbox.requests("fireworks", method="POST") if "/api/v1/" in one["path"]]
    checked = [(one["path"].rsplit("/", 1)[-1], one["body"]) for one in sent]
    for name, body in checked:
        if name in BODIES:
            BODIES[name].model_validate(body, extra="forbid")
    assert {name for name, _ in checked} >= BODIES.keys()


def test_each_request_is_trained_and_billed_once_on_a_bad_day(ft: Orchestrator, sandbox: Sandbox) -> None:
    with serverless(ft) as s:
        plain = trained(s)
    before = host_tokens(sandbox)
    sandbox.fault("fireworks", "lost_answer", path="create_session$")
    sandbox.fault("fireworks", "lost_answer", path="create_model$")
    for what in ("forward_backward$", "optim_step$", "retrieve_future$"):
        sandbox.fault("fireworks", "lost_answer", path=what, skip=1)
    sandbox.fault("fireworks", "error", path="optim_step$", status=503)
    sandbox.fault("fireworks", "paused_capacity", path="retrieve_future$", skip=4, delay_s=0.1)
    with serverless(ft) as s:
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
    with pytest.raises(ProviderError, match="no result"), serverless(ft) as s:
        trained(s, 1)
        s.save("one")
        monkeypatch.setattr(steps, "OPERATION_S", 1.0)
        sandbox.fault("fireworks", "paused_capacity", path="retrieve_future$", count=0, delay_s=0.2)
        s.forward_backward(rows())
    record = ft.run(s.id).refresh()
    assert record.status is JobStatus.PAUSED and record.error and "last checkpoint" in record.error.message
    assert sessions(sandbox) <= before


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


def test_a_limit_reached_amid_a_step_ends_the_session_within_it(ft: Orchestrator, sandbox: Sandbox) -> None:
    cap, before, others = Decimal("2.5") * STEP * TRAIN, host_tokens(sandbox), sessions(sandbox)
    with pytest.raises(OverBudget), serverless(ft, max_cost_usd=cap) as s:
        trained(s, 5)
    record = ft.run(s.id).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "limit"
    usd = host_usd(before, host_tokens(sandbox))
    assert record.bill is not None and float(record.bill.usd) == pytest.approx(usd) and usd <= cap
    assert sessions(sandbox) <= others


def test_a_trainer_has_the_same_losses_and_is_asked_for_once(ft: Orchestrator, sandbox: Sandbox) -> None:
    had = len(FIREWORKS.machines(sandbox))
    with serverless(ft) as s:
        plain = [*trained(s), s.forward_backward(policy_rows(), "ppo").loss]
    sandbox.fault("fireworks", "lost_answer", method="POST", path="rlorTrainerJobs$")
    sandbox.fault("fireworks", "lost_answer", path="optim_step$")
    sandbox.clear_requests()
    before = ft.spending(sandbox=True, offline=True).total.committed_usd
    with FIREWORKS.opened(ft) as s:
        assert [*trained(s), s.forward_backward(policy_rows(), "ppo").loss] == pytest.approx(plain, rel=1e-5)
        assert len(FIREWORKS.up(sandbox)) == 1 and not ft.orphans(sandbox=True).orphans
        assert ft.spending(sandbox=True, offline=True).total.committed_usd == before + 25
        with pytest.raises(UsageError, match="cannot sample"):
            s.sample(IDS[:4], 1, {"max_tokens": 4})
    sent = [one for one in sandbox.requests("fireworks", method="POST") if "rlorTrainerJobs" in one["path"]]
    ids = {one["query"] for one in sent if one["path"].endswith("rlorTrainerJobs")}
    assert len(ids) == 1, "sent again under the same id only"
    record = ft.run(s.id).refresh()
    trainer = FIREWORKS.machines(sandbox)[0]
    known = {field.alias or name for name, field in ReinforcementFineTuningStep.model_fields.items()}
    assert trainer.keys() - known == {"useReservation", "inactivityTimeout", "sandbox", "sandboxUsd"}
    assert record.status is JobStatus.SUCCEEDED and trainer["state"] == "JOB_STATE_CANCELLED"
    assert record.quote is not None and record.quote.lines[0].usd_per_unit == 8
    assert record.bill is not None and float(record.bill.usd) >= trainer["sandboxUsd"] - 0.001
    with pytest.raises(UsageError, match="does not train LoRA"):
        FIREWORKS.opened(ft, options={"training_shape": SHAPE.removesuffix("-lora")})
    sandbox.fault("fireworks", "error", method="POST", path="rlorTrainerJobs$", status=400)
    with pytest.raises(ProviderError):
        FIREWORKS.opened(ft)
    assert len(FIREWORKS.machines(sandbox)) == had + 1


def test_a_model_without_a_price_is_refused_with_the_way_to_set_one(home: Path) -> None:
    with workspace(home, FIREWORKS_API_KEY="fw_a_key_of_the_test") as ft:  # noqa: SIM117
        with pytest.raises(UsageError, match="training_api_serverless_train"):
            ft.session("qwen3-8b", provider="fireworks", lora=LORA, max_cost_usd=5)
