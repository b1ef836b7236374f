"""The models of training sessions against plain torch, and against themselves in other company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.paths import TINY

from orchestrate.errors import UsageError
from orchestrate.local.sessions import (
    Adam,
    AdapterShape,
    Datum,
    Opening,
    SampleRequest,
    SessionEngine,
    Values,
)
from orchestrate.local.sessions.losses import CLIP_HIGH, CLIP_LOW, LOSSES

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, at peft's hands
TEXTS = (
    "hello there, how are you today? I am fine",
    "a short one",
    "and one more of another length, as it is",
)
SHAPE = AdapterShape(rank=4, seed=1)


@pytest.fixture(scope="module")
def engine() -> SessionEngine:
    return SessionEngine(Opening(base=str(TINY), threads=1, precision="fp32"))


def values(numbers: Any, kind: str = "<f4") -> Values:
    return Values.of(np.asarray(numbers, dtype=kind))


def rows(engine: SessionEngine, texts: Sequence[str] = TEXTS, **inputs: Callable[[int], Any]) -> list[Datum]:
    """Of each text its tokens but the last, and what follows each."""
    found: list[Datum] = []
    for text in texts:
        ids: list[int] = engine.tokenizer(text)["input_ids"]
        more = {name: values(make(len(ids) - 1)) for name, make in inputs.items()}
        given = {"target_tokens": values(ids[1:], "<i8"), **more}
        found.append(Datum(tokens=tuple(ids[:-1]), inputs=given))
    return found


def plain(folder: Path, data: Sequence[Datum]) -> list[torch.Tensor]:
    """The log-probabilities of the targets by transformers and peft, row by row."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    found: list[torch.Tensor] = []
    for datum in data:
        logits = model(input_ids=torch.tensor([datum.tokens])).logits[0]
        targets = torch.from_numpy(datum.inputs["target_tokens"].array().copy())
        found.append(torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0])
    return found


def trained(engine: SessionEngine, id: str, steps: int = 2, shape: AdapterShape = SHAPE) -> None:
    engine.create(id, shape)
    for _ in range(steps):
        engine.forward(id, rows(engine), "cross_entropy", {}, backward=True)
        engine.step(id, Adam(learning_rate=5e-3))


def drawn(engine: SessionEngine, question: SampleRequest) -> dict[str, Any]:
    sent: list[dict[str, Any]] = []
    engine.ask(question)
    while not engine.idle:
        engine.step_answers(sent.append)
    return next(one for one in sent if one["id"] == question.id)


def test_losses_and_log_probabilities_are_those_of_plain_torch(engine: SessionEngine, tmp_path: Path) -> None:
    trained(engine, "plain")
    engine.save("plain", tmp_path / "kept", optimizer=False)
    data = rows(engine)
    ours, metrics = engine.forward("plain", data, "cross_entropy", {}, backward=False)
    theirs = plain(tmp_path / "kept", data)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.array(), other.detach().numpy(), rtol=0, atol=1e-5)
    assert metrics["loss:sum"] == pytest.approx(-sum(p.sum().item() for p in theirs), rel=1e-6)
    engine.unload("plain")


def by_formula(name: str, p: torch.Tensor, q: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Token by token, as the papers write it; another way than ours to the same numbers and gradients."""
    if name == "cross_entropy":
        return -p.sum()
    if name == "dro":
        return sum(-(x * g) + 0.025 * (x - y) ** 2 for x, y, g in zip(p, q, a, strict=True))  # type: ignore[return-value]
    whole = torch.exp(torch.mean(p.detach() - q))
    total = torch.zeros(())
    for x, y, g in zip(p, q, a, strict=True):
        ratio = (
            torch.exp(x) / torch.exp(y) if name != "gspo" else whole * torch.exp(x) / torch.exp(x.detach())
        )
        bounded = min(max(ratio.item(), CLIP_LOW), CLIP_HIGH)
        if name == "importance_sampling":
            total = total - ratio * g
        elif name == "cispo":
            total = total - bounded * x * g
        else:  # the smaller of the two; where it is the bounded one no gradient flows
            total = total - (ratio * g if (ratio * g).item() <= (bounded * g).item() else bounded * g)
    return total


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_the_value_and_the_gradient_of_its_formula(name: str) -> None:
    chance = torch.Generator().manual_seed(7)
    p = (-3 * torch.rand(40, generator=chance, dtype=torch.float64)).requires_grad_()
    q = p.detach() + 0.3 * torch.randn(40, generator=chance, dtype=torch.float64)
    a = torch.randn(40, generator=chance, dtype=torch.float64)
    ours = LOSSES[name][0](p, {"logprobs": q, "advantages": a}, {})
    theirs = by_formula(name, p, q, a)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    [mine] = torch.autograd.grad(ours, p)
    [other] = torch.autograd.grad(theirs, p)
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_gradients_of_several_calls_are_those_of_one(engine: SessionEngine) -> None:
    engine.create("parts", SHAPE)
    engine.create("whole", SHAPE)
    data = rows(engine, weights=lambda n: np.linspace(-1, 1, n))
    for one in data:
        engine.forward("parts", [one], "cross_entropy", {}, backward=True)
    engine.forward("whole", data, "cross_entropy", {}, backward=True)
    parts, whole = engine.models["parts"].parameters, engine.models["whole"].parameters
    for name, parameter in parts.items():
        torch.testing.assert_close(parameter.grad, whole[name].grad, rtol=1e-4, atol=1e-5)
    engine.unload("parts")
    engine.unload("whole")


def test_a_pass_for_which_there_was_no_memory_is_counted_once(
    engine: SessionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create("short", SHAPE)
    engine.create("enough", SHAPE)
    real, calls = torch.autograd.grad, 0

    def short(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        found = real(*args, **more)
        if calls == 1:  # when all gradients are there
            raise MemoryError
        return found

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", short)
        engine.forward("short", rows(engine), "cross_entropy", {}, backward=True)
    assert calls > 1
    engine.forward("enough", rows(engine), "cross_entropy", {}, backward=True)
    enough = engine.models["enough"].parameters
    for name, parameter in engine.models["short"].parameters.items():
        torch.testing.assert_close(parameter.grad, enough[name].grad, rtol=1e-4, atol=1e-5)
    engine.unload("short")
    engine.unload("enough")


def test_two_models_on_one_base_are_to_the_bit_what_each_is_alone(engine: SessionEngine) -> None:
    trained(engine, "alone", steps=3)
    expected = {n: p.detach().clone() for n, p in engine.models["alone"].parameters.items()}
    engine.unload("alone")
    other = AdapterShape(rank=8, seed=5, train_unembed=False)
    engine.create("one", SHAPE)
    engine.create("two", other)
    for _ in range(3):  # turn by turn, with gradients of both at once
        engine.forward("one", rows(engine), "cross_entropy", {}, backward=True)
        engine.forward("two", rows(engine, TEXTS[::-1]), "cross_entropy", {}, backward=True)
        engine.step("two", Adam(learning_rate=1e-2))
        engine.step("one", Adam(learning_rate=5e-3))
    for name, parameter in engine.models["one"].parameters.items():
        assert torch.equal(parameter, expected[name]), name
    engine.unload("one")
    engine.unload("two")


def test_what_was_saved_goes_on_to_the_bit(engine: SessionEngine, tmp_path: Path) -> None:
    trained(engine, "first")
    engine.save("first", tmp_path / "state", optimizer=True)
    engine.load("again", tmp_path / "state", optimizer=True)
    for id in ("first", "again"):
        engine.forward(id, rows(engine), "cross_entropy", {}, backward=True)
        assert engine.step(id, Adam(learning_rate=5e-3))["step:max"] == 3
    again = engine.models["again"].parameters
    for name, parameter in engine.models["first"].parameters.items():
        assert torch.equal(parameter, again[name]), name
    engine.unload("first")
    engine.unload("again")


def test_what_is_sampled_has_the_log_probabilities_of_training(engine: SessionEngine, tmp_path: Path) -> None:
    trained(engine, "sampled")
    engine.save("sampled", tmp_path / "now", optimizer=False)
    prompt = tuple(engine.tokenizer(TEXTS[0])["input_ids"][:5])
    folder = str(tmp_path / "now")
    question = SampleRequest(id="q", folder=folder, prompt=prompt, n=3, max_tokens=8, seed=3, stop_ids=())
    told = drawn(engine, question)
    for answer in told["answers"]:
        ids = [*prompt, *answer["tokens"]]
        datum = Datum(tokens=tuple(ids[:-1]), inputs={"target_tokens": values(ids[1:], "<i8")})
        [log_p], _ = engine.forward("sampled", [datum], "cross_entropy", {}, backward=False)
        np.testing.assert_allclose(log_p.array()[4:], answer["logprobs"].array(), rtol=0, atol=1e-4)
    assert drawn(engine, question)["answers"][0]["tokens"] == told["answers"][0]["tokens"], "the same seed"
    trained(engine, "other", steps=1)  # weights that were saved stay what they were
    assert drawn(engine, question)["answers"][1]["tokens"] == told["answers"][1]["tokens"]
    engine.unload("sampled")
    engine.unload("other")


def test_rows_that_do_not_fit_leave_the_gradients_as_they_were(engine: SessionEngine) -> None:
    engine.create("kept", SHAPE)
    engine.forward("kept", rows(engine), "cross_entropy", {}, backward=True)
    before = {n: p.grad.clone() for n, p in engine.models["kept"].parameters.items() if p.grad is not None}
    [good] = rows(engine, TEXTS[:1])
    for bad in (
        Datum(tokens=(99_999,), inputs={"target_tokens": values([1], "<i8")}),
        Datum(tokens=good.tokens, inputs={}),
        Datum(tokens=good.tokens, inputs={**good.inputs, "weights": values([1.0])}),
        Datum(tokens=good.tokens, inputs={**good.inputs, "weights": values([np.nan] * len(good.tokens))}),
        Datum(tokens=(1,) * 2000, inputs={"target_tokens": values([1] * 2000, "<i8")}),
    ):
        with pytest.raises(UsageError):
            engine.forward("kept", [good, bad], "cross_entropy", {}, backward=True)
    for name in ("stable_reinforce", "ppo", "nothing"):
        with pytest.raises(UsageError):
            engine.forward("kept", [good], name, {}, backward=True)
    after = {n: p.grad for n, p in engine.models["kept"].parameters.items()}
    assert before and all(torch.equal(before[n], after[n]) for n in before)  # type: ignore[arg-type]
    engine.step("kept", Adam())
    with pytest.raises(UsageError, match="no gradient"):
        engine.step("kept", Adam())
    engine.unload("kept")
