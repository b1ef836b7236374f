"""Training by rewards: answers are drawn, graded, and learnt from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.local.sessions import EXACT, make_session, prompts

from orchestrate.errors import DataError, RunFailed, UsageError
from orchestrate.local.objectives.grpo import PolicyObjective
from orchestrate.local.run.loop import StopRequested
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
Make = Callable[..., Session]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Make]:
    made: list[Session] = []

    def make(grader: dict[str, Any] | None = None, rows: int = 16, **more: Any) -> Session:
        method = {"type": "rft", "grader": grader or EXACT, "samples_per_prompt": 4, **more.pop("method", {})}
        hyper = {"max_new_tokens": 8, "learning_rate": 3e-3, "epochs": 1, **more.pop("hyper", {})}
        train = more.pop("train", None) or prompts(tmp_path / "prompts.jsonl", range(10, 10 + rows))
        made.append(make_session(tmp_path, train, method=method, hyper=hyper, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def policy(session: Session) -> PolicyObjective:
    assert isinstance(session.loop.objective, PolicyObjective)
    return session.loop.objective


def code(source: str) -> dict[str, Any]:
    return {"type": "python", "name": "x", "source": source}


def values(session: Session, name: str) -> list[float]:
    return [p.values[name] for p in session.run.metrics() if name in p.values]


def weights(session: Session) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in session.loaded.trainable.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [
        pytest.param({"type": "qlora"}, marks=pytest.mark.slow, id="qlora"),
        pytest.param({"type": "full"}, id="full"),
    ],
)
def test_the_reward_rises_also_on_prompts_that_it_was_not_trained_on(
    session: Make, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    full = adapter["type"] == "full"
    made = session(
        rows=32,
        adapter=adapter,
        validation=str(prompts(tmp_path / "valid.jsonl", range(60, 76))),
        method={"samples_per_prompt": 8, "kl_beta": 0.0 if full else 0.01},
        hyper={"epochs": 4, "learning_rate": 2e-4 if full else 3e-3, "schedule": "constant", "evals": 2},
    )
    assert made.loop.valid is not None
    before = made.loop.objective.evaluate(made.loop.valid, 4096)["valid_reward"]
    made.loop.restore()
    made.loop.run()
    reward, valid = values(made, "train_reward"), values(made, "valid_reward")
    assert reward[0] < 0.4 and before < 0.6, (reward, before)
    assert min(reward[-3:]) > 0.9 and valid[-1] > 0.9, (reward, valid)
    assert len(valid) == 2 and f"validation reward {valid[-1]:.4f}" in made.outcome
    assert bool(values(made, "train_kl")) is not full
    if not full:
        assert values(made, "train_kl")[0] == pytest.approx(0, abs=1e-3) and values(made, "train_kl")[-1] > 0
    assert all(v == 0 for v in values(made, "train_grader_errors"))


@pytest.mark.slow
def test_the_split_into_parts_does_not_change_the_gradient(session: Make) -> None:
    made = session(method={"kl_beta": 0.1})
    made.loaded.model.float()
    objective = policy(made)
    rollouts = objective.roll_out(made.loop.train, range(8), 4096)
    assert rollouts.advantages.abs().sum() > 0
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    for most_tokens, most_rows in ((4096, 100), (100, 100), (4096, 1)):
        made.loop.optimizer.zero_grad()
        sums = objective.learn(rollouts, most_tokens, most_rows)
        gradients = {n: p.grad.clone() for n, p in made.loaded.trainable.items() if p.grad is not None}
        found.append((sums.loss / sums.weight, gradients))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        for name, gradient in gradients.items():
            assert (gradient - found[0][1][name]).norm() <= 1e-3 * found[0][1][name].norm() + 1e-7, name


@pytest.mark.slow
def test_where_all_answers_are_equally_good_nothing_moves(session: Make) -> None:
    made = session({**EXACT, "operation": "ne", "reference": "never said"})
    before = weights(made)
    made.loop.run()
    assert values(made, "train_reward") == [1, 1] and values(made, "train_equal_rewards") == [1, 1]
    assert same(before, weights(made))


@pytest.mark.slow
def test_a_pause_while_answers_are_drawn_loses_and_repeats_nothing(session: Make) -> None:
    hyper = {"epochs": 2, "checkpoints": 1}
    whole = session(hyper=hyper, adapter={"dropout": 0.1})
    whole.loop.restore()
    whole.loop.run()
    looks = 0

    def asked() -> str | None:
        nonlocal looks
        looks += 1
        return "pause" if looks == 60 else None

    broken = session(hyper=hyper, adapter={"dropout": 0.1}, ref="b", asked=asked)
    broken.loop.restore()
    with pytest.raises(StopRequested, match="pause"):
        broken.loop.run()
    at = broken.loop.progress.step
    assert 0 < at < 4 and len(broken.run.metrics()) == at
    again = session(hyper=hyper, adapter={"dropout": 0.1}, ref="b")
    again.loop.restore()
    assert again.loop.progress.step == at
    again.loop.run()
    for name in ("train_loss", "train_reward", "grad_norm"):
        assert values(again, name) == values(whole, name)
    assert same(weights(again), weights(whole))


def test_a_cancel_while_answers_are_drawn_ends_the_run_at_once(session: Make) -> None:
    looks = 0

    def asked() -> str | None:
        nonlocal looks
        looks += 1
        return "cancel" if looks > 2 else None

    made = session(asked=asked)
    with pytest.raises(StopRequested, match="cancel"):
        made.loop.run()
    assert looks == 3 and made.run.metrics() == []


@pytest.mark.slow
def test_an_answer_that_cannot_be_graded_gets_nothing_and_is_told_once(session: Make) -> None:
    source = "def grade(sample, item):\n    print('noise')\n    return 1 / ('e' in sample['output_text'])\n"
    made = session(code(source), hyper={"run_grader_code": True})
    made.loop.run()
    errors = values(made, "train_grader_errors")
    assert errors[0] > 0
    assert values(made, "train_reward") == pytest.approx([1 - share for share in errors])
    told = [e.message for e in made.run.events() if e.type == "grader"]
    assert (
        len(told) == 2
        and "code is sandboxed" in told[0]
        and "got a reward of 0: ZeroDivisionError" in told[1]
    )


@pytest.mark.slow
def test_a_grader_that_can_grade_nothing_ends_the_run(session: Make) -> None:
    made = session(
        code("def grade(sample, item):\n    return item['missing']\n"), hyper={"run_grader_code": True}
    )
    with pytest.raises(RunFailed, match="could not grade any answer: KeyError: 'missing'"):
        made.loop.run()


def test_code_is_not_run_unasked(session: Make, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    source = f"open({str(touched)!r}, 'w')\ndef grade(sample, item): return 1"
    with pytest.raises(UsageError, match="--allow-grader-code"):
        session(code(source))
    assert not touched.exists()


def test_prompts_that_leave_no_room_for_an_answer_are_left_out_and_told(
    session: Make, tmp_path: Path
) -> None:
    path = prompts(tmp_path / "rows.jsonl", range(8))
    long = {"messages": [{"role": "user", "content": "word " * 200}], "answer": "even"}
    with path.open("a") as out:
        out.write(json.dumps(long) + "\n")
    made = session(train=path, hyper={"max_seq_length": 64})
    assert made.loop.train.examples == 8
    told = [e.message for e in made.run.events() if e.type == "data"]
    assert told == ["train: dropped 1 prompts of more than 56 tokens"]
    with pytest.raises(DataError, match="no prompt fits in 2 tokens"):
        session(train=path, hyper={"max_seq_length": 10}, ref="b")


@pytest.mark.slow
def test_running_out_of_memory_splits_the_work_and_keeps_the_batch(session: Make) -> None:
    made = session()
    objective, tried = policy(made), []
    learn = objective.learn

    def small(rollouts: Any, max_tokens: int, max_rows: int) -> Any:
        tried.append(max_tokens)
        if max_tokens > 1024:
            raise torch.OutOfMemoryError("no room")
        return learn(rollouts, max_tokens, max_rows)

    objective.learn = small  # type: ignore[method-assign]
    made.loop.run()
    assert tried == [4096, 2048, 1024, 1024]
    assert [e.type for e in made.run.events()].count("memory") == 2
    assert len(values(made, "train_reward")) == 2
