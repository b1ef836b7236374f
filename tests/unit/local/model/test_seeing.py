"""Checkpoints with a vision tower, trained in text: what is adapted, what is written, and who reads it again.
That training is a plain loop's is in `test_families`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.unit.local.families import SEEING, make
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.sessions import make_session
from transformers import AutoModelForImageTextToText

from orchestrate.local.answers.engine import Engine, Loading, PromptsRequest
from orchestrate.local.model.adapters.starts import names_of
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.model.weights import hollow
from orchestrate.local.weights.merges import merge

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TOWERS = ("visual", "vision", "multi_modal", "projector")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("qwen2_vl", "lora"),
        pytest.param("gemma3", "qlora", marks=pytest.mark.slow),
        pytest.param("llava", "lora", marks=pytest.mark.slow),
        pytest.param("qwen2_vl", "qlora", marks=pytest.mark.slow),
    ],
)
def test_the_adapter_is_on_the_language_alone_and_is_read_by_peft(
    tmp_path: Path, family: str, kind: str
) -> None:
    from peft import PeftModel

    base = make(family, tmp_path / "model", dtype="bfloat16")
    session = make_session(
        tmp_path,
        chats(tmp_path / "t.jsonl", 12),
        method={"type": "sft"},
        adapter={"type": kind, "targets": ("q_proj", "gate_proj", "down_proj", "up_proj")},
        model=str(base),
        hyper={"epochs": 2, "learning_rate": 2e-2},
        precision="fp32",
    )
    model: Any = session.loaded.inner
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert adapted and not any(word in name for name in adapted for word in TOWERS)
    assert (
        names_of(hollow(json.loads((base / "config.json").read_bytes()))).linear
        == names_of(AutoModelForImageTextToText.from_pretrained(base)).linear
    )
    session.loop.run()
    losses = [p.values["train_loss"] for p in session.run.metrics()]
    assert losses[-1] < losses[0]
    assert session.memory_plan is not None
    trained = sum(p.numel() for p in session.loaded.trainable.values())
    assert session.memory_plan.parts["optimizer"] == 8 * trained
    folder = session.publish()

    ids = torch.tensor([[5, 6, 7, 8, 9 + 20, 10 + 20]])
    loaded: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(loaded, str(folder)).eval()
    assert any("lora_A" in name for name, _ in theirs.named_parameters())
    with torch.no_grad():
        wanted, plain = theirs(input_ids=ids).logits, loaded
        with theirs.disable_adapter():
            untuned = theirs(input_ids=ids).logits
        assert (wanted - untuned).abs().max() > 0.1
        if kind == "lora":
            with session.loaded.evaluation_mode():
                ours = session.loaded.model(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)
    merge(ModelFolder(base), folder, tmp_path / "merged", "fp32")
    whole: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(input_ids=ids).logits, wanted, rtol=1e-3, atol=1e-3)
    del plain

    answerer = Engine(Loading(base=str(base), models={"tuned": str(folder)}, threads=1))
    sent: list[dict[str, Any]] = []
    asked = {"prompts": [[{"role": "user", "content": "Is 2 even?"}]] * 2, "seed": 0, "model": "tuned"}
    request = msgspec.convert({**asked, "temperature": 0.0, "max_tokens": 6}, PromptsRequest)
    answerer.answer(request, sent.append)
    [first, second] = sent[-1]["replies"]
    assert first["content"] == second["content"] and first["completion_tokens"] > 0


def test_there_is_one_of_each_way_to_say_where_the_language_is() -> None:
    """In one configuration with what sees, or as a model of its own kind inside."""
    assert {bool(config["text_config"].get("model_type")) for config in SEEING.values()} == {True, False}
