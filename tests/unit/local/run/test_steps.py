"""What happens to one optimizer step: schedule, warm-up, clipping, weight decay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.unit.local.sessions import make_session

from orchestrate.errors import RunFailed
from orchestrate.local.job import Hyper
from orchestrate.local.run import optimizers as schedules
from orchestrate.local.run.schedule import learning_rate
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def rates(schedule: str, warmup: float = 0.0, total: int = 100, **more: Any) -> list[float]:
    hyper = Hyper(learning_rate=1.0, warmup_ratio=warmup, schedule=schedule, **more)
    return [learning_rate(step, total, hyper) for step in range(total)]


def test_schedules_fall_as_they_are_called() -> None:
    linear, cosine, constant = rates("linear"), rates("cosine"), rates("constant")
    assert linear[0] == cosine[0] == 1.0 and set(constant) == {1.0}
    assert linear[50] == pytest.approx(0.5) and cosine[50] == pytest.approx(0.5)
    assert linear[-1] == pytest.approx(0.01) and 0 < cosine[-1] < 0.001
    assert cosine[25] > linear[25] and cosine[75] < linear[75]


def test_warm_up_rises_to_the_peak_and_never_starts_at_nothing() -> None:
    rising = rates("cosine", warmup=0.1)
    assert 0 < rising[0] < rising[5] < rising[9] < rising[10] == 1.0
    assert rising[10:] == sorted(rising[10:], reverse=True)


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("linear", {}, {"schedule": "linear"}),
        ("cosine", {}, {"schedule": "cosine"}),
        ("constant_with_warmup", {}, {"schedule": "constant"}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}, {"schedule": "cosine", "min_lr_ratio": 0.1}),
        (
            "polynomial",
            {"power": 2.0, "lr_end": 0.1},
            {"schedule": "polynomial", "schedule_power": 2.0, "min_lr_ratio": 0.1},
        ),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 20, "min_lr_ratio": 0.05},
            {"schedule": "warmup_stable_decay", "decay_ratio": 0.2, "min_lr_ratio": 0.05},
        ),
    ],
)
def test_after_the_warm_up_the_rate_is_that_of_transformers(
    name: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    """Within it theirs is one step behind: the first trains nothing."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler: Any = get_scheduler(
        name, optimizer, num_warmup_steps=10, num_training_steps=100, scheduler_specific_kwargs=theirs
    )
    factor = scheduler.lr_lambdas[0]
    by_ratio, by_steps = rates(warmup=0.1, **ours), rates(warmup_steps=10, **ours)
    assert by_ratio == by_steps
    assert by_ratio[10:] == pytest.approx([factor(step) for step in range(10, 100)])
    assert [by_ratio[k] for k in range(10)] == pytest.approx([(k + 1) / 11 for k in range(10)])


def test_a_decay_longer_than_what_the_warm_up_leaves_falls_from_the_peak() -> None:
    found = rates("warmup_stable_decay", warmup=0.5, decay_ratio=1.0)
    assert found[50] == 1.0 and found[51] < 1.0 and found[50:] == sorted(found[50:], reverse=True)
    assert all(0 < rate < 1 for rate in rates("cosine", warmup_steps=200))


@pytest.mark.slow
def test_clipping_bounds_the_gradient_and_decay_shrinks_the_weights(tmp_path: Path) -> None:
    train = tmp_path / "t.jsonl"
    talk = [{"role": "user", "content": "Is 2 even?"}, {"role": "assistant", "content": "yes"}]
    train.write_text(f"{json.dumps({'messages': talk})}\n" * 8)

    def after_one_step(ref: str, **hyper: Any) -> tuple[Session, torch.Tensor]:
        given = {"epochs": 1, "schedule": "constant", "warmup_ratio": 0.0, **hyper}
        session = make_session(tmp_path, train, method={"type": "sft"}, ref=ref, hyper=given)
        before = torch.cat([p.detach().flatten() for p in session.loop.parameters.values()])
        session.loop.run()
        after = torch.cat([p.detach().flatten() for p in session.loop.parameters.values()])
        return session, after - before * (1 - 2e-3 * hyper.get("weight_decay", 0.0))

    free, moved = after_one_step("a")
    norm = free.run.metrics()[0].values["grad_norm"]
    assert norm > 1e-3
    tight, _ = after_one_step("b", max_grad_norm=norm / 10)
    moments = [s["exp_avg"] for s in tight.loop.optimizer.state.values()]
    clipped = torch.cat([m.flatten() for m in moments]).norm().item() / 0.1  # Adam keeps a tenth of the first
    assert clipped == pytest.approx(norm / 10, rel=1e-3)
    _, decayed = after_one_step("c", weight_decay=0.5)
    # Decay takes rate x decay of each weight; the rest of the step is the same.
    torch.testing.assert_close(decayed, moved, rtol=0, atol=1e-6)


def test_the_scale_of_the_loss_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through overflows and runs of steps without one."""
    monkeypatch.setattr(schedules, "LONG_ENOUGH", 3)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scale, steps = schedules.FIRST_SCALE, 0
    for finite in (False, False, True, True, True, True, False, True, True, True, True, True, True, False):
        assert scale == theirs.get_scale()
        theirs.scale(weight.sum()).backward()
        if not finite:
            assert weight.grad is not None
            weight.grad[0] = torch.inf
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        scale, steps = schedules.rescaled(scale, steps, whole=finite)
    assert scale == theirs.get_scale()


@pytest.mark.slow
def test_steps_that_are_too_large_for_fp16_change_nothing_and_are_tried_at_half_the_scale(
    tmp_path: Path,
) -> None:
    train = tmp_path / "t.jsonl"
    talk = [{"role": "user", "content": "Is 2 even?"}, {"role": "assistant", "content": "yes"}]
    train.write_text(f"{json.dumps({'messages': talk})}\n" * 32)
    lora = {"type": "lora"}
    session = make_session(
        tmp_path, train, method={"type": "sft"}, adapter=lora, precision="fp16", hyper={"epochs": 20}
    )
    loop = session.loop
    loop.progress = msgspec.structs.replace(loop.progress, loss_scale=2.0**40)
    before = {name: value.detach().clone() for name, value in loop.parameters.items()}
    with pytest.raises(AssertionError, match="stop"):
        session.loop.asked = lambda: _stop(len(session.run.metrics()) == 1)
        loop.run()
    assert all(torch.equal(value, before[name]) for name, value in loop.parameters.items())
    assert loop.progress.loss_scale == 2.0**39 and loop.progress.step == 1
    with torch.no_grad():
        for parameter in loop.parameters.values():
            parameter.fill_(1e4)  # no scale brings these products into fp16
    session.loop.asked = lambda: None
    with pytest.raises(RunFailed, match="fp16"):
        loop.run()


def _stop(now: bool) -> None:
    assert not now, "stop"
