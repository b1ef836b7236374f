"""A model that does something to its logits of which we do not know: its own are taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.local.sessions import TINY, make_session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
KEPT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "eos_token_id",
    "pad_token_id",
    "max_position_embeddings",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """HyperCLOVA X multiplies its logits by what Granite, under the same name, divides them by."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = json.loads((TINY / "config.json").read_bytes())
    config: Any = AutoConfig.for_model("hyperclovax", **{k: shape[k] for k in KEPT}, logits_scaling=0.125)
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, tmp_path / "model" / name)
    return tmp_path / "model"


@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.slow), "full"])
def test_its_loss_and_gradient_are_the_models_own(tmp_path: Path, model: Path, kind: str) -> None:
    train = tmp_path / "train.jsonl"
    with train.open("w", encoding="utf-8") as out:
        for n in range(8):
            talk = [{"role": "user", "content": f"Is {n} even?"}, {"role": "assistant", "content": "no" * n}]
            out.write(json.dumps({"messages": talk}) + "\n")
    session = make_session(tmp_path, train, method={"type": "sft"}, adapter={"type": kind}, model=str(model))
    loop, loaded = session.loop, session.loaded
    assert loaded.own_logits
    sums = loop._gradients(list(range(8)))  # pyright: ignore[reportPrivateUsage]
    ours = {n: p.grad.clone() for n, p in loop.parameters.items() if p.grad is not None}
    loop.optimizer.zero_grad()
    total, count = 0.0, 0.0
    for i in range(8):
        ids, weights = (torch.from_numpy(a.copy()) for a in loop.train.row(i))
        logits = loaded.model(input_ids=ids[None].long()).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, ids[1:].long(), reduction="none")
        (losses * weights[1:]).sum().backward()
        total, count = total + (losses * weights[1:]).sum().item(), count + weights[1:].sum().item()
    assert sums.loss == pytest.approx(total, rel=5e-3)
    assert ours
    for name, parameter in loop.parameters.items():
        if name in ours and parameter.grad is not None and parameter.grad.any():
            theirs = parameter.grad / count
            apart = ((ours[name] - theirs).norm() / theirs.norm()).item()
            assert apart < (1e-4 if kind == "full" else 0.05), (name, apart)
    loop.optimizer.zero_grad()
    loop.run()
    first, *_, last = (p.values["train_loss"] for p in session.run.metrics())
    assert last < first
