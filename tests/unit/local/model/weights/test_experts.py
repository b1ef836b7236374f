"""Experts of a mixture in 4 bits, with adapters: what is held, what is left behind, what reads it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.local.families import make
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.sessions import make_session

from orchestrate.errors import RunFailed
from orchestrate.local.model.loader import dequantize, load_adapter, load_base
from orchestrate.local.model.weights import held_of
from orchestrate.local.run.session import Session
from orchestrate.local.speed.peaks import held_bytes

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CPU = torch.device("cpu")
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def trained(tmp_path: Path, family: str, adapter: dict[str, Any], **job: Any) -> Session:
    session = make_session(
        tmp_path,
        chats(tmp_path / "t.jsonl", 12),
        method={"type": "sft"},
        adapter=adapter,
        model=str(make(family, tmp_path / "model", dtype="bfloat16")),
        hyper={"epochs": 1, "learning_rate": 2e-2, **job.pop("hyper", {})},
        precision=None if adapter["type"] == "full" else "fp32",
        **job,
    )
    session.loop.run()
    return session


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_what_was_trained_on_four_bits_is_read_with_and_without_them(tmp_path: Path, family: str) -> None:
    """By our layers over the 4 bits, and by peft's own over the values that these stand for."""
    session = trained(tmp_path, family, {"type": "qlora", "target_parameters": BOTH})
    folder = session.publish()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with session.loaded.evaluation_mode(), torch.no_grad():
        wanted = session.loaded.model(input_ids=ids, use_cache=False).logits
    for plain in (False, True):
        base = load_base(tmp_path / "model", four_bit=True, device=CPU, dtype=torch.float32)
        if plain:
            dequantize(base)
        assert any(held_of(base)) is not plain
        tuned = load_adapter(base, folder).eval()
        with torch.no_grad():
            logits = tuned(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
            with tuned.disable_adapter():
                before = tuned(input_ids=ids, use_cache=False).logits
        assert (before - wanted).norm() > 1e-2 * wanted.norm()


def test_experts_are_held_in_half_a_byte(tmp_path: Path) -> None:
    folder = make("qwen3_moe", tmp_path / "model", moe_intermediate_size=256, num_experts=8)
    sizes = [
        held_bytes(load_base(folder, four_bit=four_bit, device=CPU, dtype=torch.float32)) / 1e6
        for four_bit in (True, False)
    ]
    experts = 2 * 8 * 3 * 64 * 256 / 1e6
    linear = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64) / 1e6
    # A byte and a few for each 64 weights and, with these few weights, a table for each expert.
    assert sizes[1] - sizes[0] == pytest.approx((4 - 0.53) * (experts + linear), rel=0.03)


@pytest.mark.slow
def test_the_router_stays_and_the_experts_are_asked_for(tmp_path: Path) -> None:
    plain = trained(tmp_path, "mixtral", {"type": "lora"}, ref="plain")
    told = [e.message for e in plain.run.events() if e.type == "adapter"]
    assert told == [
        "no adapter on the experts (mlp.experts.gate_up_proj, mlp.experts.down_proj): "
        "to adapt some of them, list them in adapter.target_parameters"
    ]
    names = {n.split(".lora_")[0].rpartition(".")[2] for n in plain.loop.parameters}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    one = trained(
        tmp_path, "mixtral", {"type": "lora", "target_parameters": ["1.mlp.experts.down_proj"]}, ref="one"
    )
    experts = [n for n in one.loop.parameters if "experts" in n]
    assert len(experts) == 2 and all(".layers.1." in n for n in experts)
    assert not any("gate" in n for n in one.loop.parameters)
    with pytest.raises(RunFailed, match="the model has no parameter nosuch") as error:
        trained(tmp_path, "mixtral", {"type": "lora", "target_parameters": ["nosuch"]}, ref="none")
    assert "mlp.experts.gate_up_proj" in str(error.value.fix)
    with pytest.raises(RunFailed, match="dropout"):
        trained(
            tmp_path, "mixtral", {"type": "lora", "dropout": 0.1, "target_parameters": BOTH}, ref="dropout"
        )


def test_the_routers_own_loss_is_that_of_transformers(tmp_path: Path) -> None:
    """Losses and gradients of one step, all weights trained, over padded rows and over a line in which what
    the rows share is there once."""
    from transformers import AutoModelForCausalLM

    session = trained(tmp_path, "qwen3_moe", {"type": "full"}, hyper={"router_aux_loss": 0.5})
    objective, rows, batch = session.loop.objective, session.loop.train, [0, 1, 2, 5]
    model: Any = AutoModelForCausalLM.from_pretrained(session.publish(), dtype=torch.float32)
    with torch.no_grad():
        for parameter, ours in zip(model.parameters(), session.loaded.inner.parameters(), strict=True):
            parameter.copy_(ours)
    ids, weights = (
        torch.nn.utils.rnn.pad_sequence([torch.from_numpy(rows.row(i)[k].copy()) for i in batch], True)
        for k in (0, 1)
    )
    read = (
        int((weights[:, 1:] > 0).nonzero()[:, 1].max()) + 1
    )  # what follows predicts nothing that is trained
    lengths = [(weights[r, 1:] > 0).nonzero().max().item() + 1 for r in range(len(batch))]
    mask = (torch.arange(read)[None] < torch.tensor(lengths)[:, None]).long()
    labels = ids.long().masked_fill(weights == 0, -100)
    out = model(
        input_ids=ids[:, :read].long(), attention_mask=mask, output_router_logits=True, use_cache=False
    )
    each = torch.nn.functional.cross_entropy(
        out.logits.flatten(0, 1), labels[:, 1 : read + 1].flatten(), ignore_index=-100
    )
    (each + 0.5 * out.aux_loss).backward()
    assert session.loaded.line_limit > 0 and session.loaded.shares
    for limit in (session.loaded.line_limit, 0):
        session.loaded.line_limit = limit
        session.loop.optimizer.zero_grad()
        sums = objective.run(rows, batch, objective.weight_of(rows, batch), backward=True)
        assert sums.shown is not None
        assert sums.loss / sums.weight == pytest.approx(each.item(), rel=1e-5)
        assert sums.shown["router_loss"] / sums.weight == pytest.approx(out.aux_loss.item(), rel=1e-5)
        gates = 0
        for (name, mine), theirs in zip(session.loop.parameters.items(), model.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None
            gates += "gate.weight" in name
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)
        assert gates == 2


def test_a_model_without_routers_has_no_such_loss(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="router logits, which llama models do not return"):
        trained(tmp_path, "llama", {"type": "lora"}, hyper={"router_aux_loss": 0.1})
