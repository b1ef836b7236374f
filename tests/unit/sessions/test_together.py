"""Training sessions at Together through its official client, against the sandbox, which really trains."""

from __future__ import annotations

import types
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Required, Union, get_args, get_origin, get_type_hints

import pytest
from tests.paths import TINY
from tests.unit.sessions.left import MODEL, killed
from tests.unit.sessions.loop import IDS, LORA, OPTIONS, rows
from tests.unit.sessions.losses import ADAM, losses_of, policy_rows, trained
from together.types import post_training as sdk

from orchestrate import JobStatus, Orchestrator, OverBudget, RunFailed, UsageError
from orchestrate.errors import OrchestrateError, ProviderError
from orchestrate.sandbox.server import Sandbox

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
MACHINES = "/v1/rl/model-resources"
USD_PER_HOUR = 16  # a trainer and a generator
PARAMS: dict[str, Any] = {
    "model-resources": sdk.ModelResourceCreateParams,
    "estimate-cost": sdk.ModelResourceEstimateCostParams,
    "training-sessions": sdk.SessionCreateParams,
    "forward-backward": sdk.OperationForwardBackwardParams,
    "custom-forward-backward": sdk.OperationCustomForwardBackwardParams,
    "optim-step": sdk.OperationOptimStepParams,
    "sample": sdk.OperationSampleParams,
    "weights-sync": sdk.OperationWeightsSyncParams,
}


def opened(ft: Orchestrator, **more: Any) -> Any:
    return ft.session(MODEL, provider="together", **{"lora": LORA, "max_cost_usd": 25, **more})


def machines(sandbox: Sandbox) -> list[dict[str, Any]]:
    """What the host has, newest first."""
    host: Any = sandbox.fronts["together"].host
    found = host.state.all("together", "model-resources")
    return [host.sessions._shown(host.sessions._settled(one)) for one in found]


def up(sandbox: Sandbox) -> list[str]:
    return [one["id"] for one in machines(sandbox) if one["status"].endswith(("READY", "CREATING"))]


def committed(ft: Orchestrator) -> Decimal:
    return ft.spending(sandbox=True, offline=True).total.committed_usd


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
    with opened(ft) as s:
        there = losses_of(s)
        [drawn] = s.sample(IDS[:4], 1, {"max_tokens": 4, "seed": 1}).sequences
        [_, *seen] = s.logprobs([*IDS[:4], *drawn.tokens])
        assert seen[3:] == pytest.approx(drawn.logprobs, abs=1e-4)
        for refused in ("gspo", "stable_reinforce", "grpo"):
            with pytest.raises(UsageError, match=refused):
                s.forward_backward(policy_rows(), refused)
        with pytest.raises(UsageError, match="token ids"):
            s.sample(IDS[:4], 1, {"max_tokens": 4, "stop": [3]})
        assert committed(ft) == before + 25
        assert len(up(sandbox)) == 1 and not ft.orphans(sandbox=True).orphans
        assert not ft.spending(sandbox=True).idle
    assert here.keys() == there.keys()
    for name in here:
        assert there[name] == pytest.approx(here[name], rel=1e-5), name
    run = ft.run(s.id)
    record = run.refresh()
    [machine] = machines(sandbox)
    assert record.status is JobStatus.SUCCEEDED and machine["status"] == "MODEL_RESOURCES_STATUS_STOPPED"
    assert record.bill is not None and record.quote is not None
    assert float(record.bill.usd) >= machine["sandbox_usd"] - 0.001
    assert record.quote.lines[0].usd_per_unit == USD_PER_HOUR
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
    before = len(machines(sandbox))
    with opened(ft) as s:
        plain = trained(s)
    sandbox.fault("together", "lost_answer", method="POST", path=f"{MACHINES}$")
    sandbox.fault("together", "lost_answer", method="POST", path="training-sessions$")
    for what in ("forward-backward$", "optim-step$"):  # carried out, and the answer is an error
        sandbox.fault("together", "timeout", method="POST", path=what)
    sandbox.clear_requests()
    with opened(ft) as s:
        assert trained(s) == pytest.approx(plain, rel=1e-6), "each was carried out once"
        assert len(up(sandbox)) == 1
    asked = [one for one in sandbox.requests("together", method="POST") if one["path"] == MACHINES]
    assert len(asked) == 1 and len(machines(sandbox)) == before + 2 and not up(sandbox)
    sandbox.fault("together", "error", method="POST", path=f"{MACHINES}$", status=400)
    with pytest.raises(OrchestrateError):
        opened(ft)
    assert len(machines(sandbox)) == before + 2


def test_what_a_killed_program_left_up_is_seen_counted_and_ended(
    ft: Orchestrator, home: Path, sandbox: Sandbox
) -> None:
    id = killed(home, sandbox, "together")
    [machine] = up(sandbox)
    report = ft.spending(sandbox=True)
    assert [found.item.id for found in report.idle] == [machine] and report.idle[0].run == id
    assert report.usd_per_hour == USD_PER_HOUR
    orphans = ft.orphans(sandbox=True)
    assert [(one.item.id, one.run) for one in orphans.orphans] == [(machine, id)]
    ended = ft.end_orphans(orphans)
    assert [one.outcome for one in ended.orphans] == ["asked to end"] and not up(sandbox)
    assert not ft.orphans(sandbox=True).orphans
    record = ft.run(id).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "caller_gone"
    with ft.session(resume=id) as s:
        assert s.step == 1
        assert float(s.cost_usd) >= machines(sandbox)[1]["sandbox_usd"] - 0.001
        trained(s, 1)
    assert not up(sandbox) and ft.run(id).record.status is JobStatus.SUCCEEDED
    id = killed(home, sandbox, "together")
    assert len(up(sandbox)) == 1
    sandbox.skip(500)  # nobody does anything
    assert not up(sandbox), "the host ends it by itself"
    ft.run(id).cancel()
    record = ft.run(id).refresh()
    assert record.status is JobStatus.CANCELLED and record.bill is not None
    assert float(record.bill.usd) <= 25


def test_a_limit_ends_the_machine_and_holds(ft: Orchestrator, sandbox: Sandbox) -> None:
    before = len(machines(sandbox))
    with pytest.raises(UsageError, match="set a limit"):
        opened(ft, max_cost_usd=None)
    with pytest.raises(OverBudget, match="left running"):
        opened(ft, max_cost_usd=1)
    with pytest.raises(UsageError, match="train_mlp"):
        opened(ft, lora={"rank": 4, "train_mlp": False})
    assert len(machines(sandbox)) == before
    cap = Decimal(USD_PER_HOUR * (420 + 20)) / 3600  # twenty seconds, and what a kill would cost
    with pytest.raises((OverBudget, RunFailed)), opened(ft, max_cost_usd=cap.quantize(Decimal("0.01"))) as s:
        while True:
            trained(s, 1)
    record = next(iter(ft.runs())).refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "limit"
    assert not up(sandbox)
    assert machines(sandbox)[0]["sandbox_usd"] < float(cap)


def test_a_session_that_expired_amid_a_step_continues_from_its_save(
    ft: Orchestrator, sandbox: Sandbox
) -> None:
    with opened(ft) as s:
        [_, _, third] = trained(s, 3)
    with pytest.raises(ProviderError), opened(ft) as s:
        trained(s)
        s.save("two")
        s.forward_backward(rows())
        sandbox.skip(24 * 3600)
        s.optim_step(ADAM)
    record = ft.run(s.id).refresh()
    assert record.status is JobStatus.PAUSED and not up(sandbox)
    with ft.session(resume=s.id) as s:
        assert s.step == 2 and trained(s, 1) == pytest.approx([third], rel=1e-5)
        assert float(s.cost_usd) > machines(sandbox)[1]["sandbox_usd"] > USD_PER_HOUR * 300 / 3600
