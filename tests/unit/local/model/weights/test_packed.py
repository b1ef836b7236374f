"""Bases whose files hold weights in MXFP4 or FP8: expanded as transformers does it, put into NF4 one by one,
trained over, and planned by what they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.local.families import make
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.packing import in_fp8, in_mxfp4
from tests.unit.local.sessions import make_session

from orchestrate.errors import UsageError
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.model.loader import load_base
from orchestrate.local.plan import ModelShape
from orchestrate.local.plan.memory import Setup, plan
from orchestrate.local.speed.peaks import held_bytes
from orchestrate.providers.local.translation import translate
from orchestrate.spec import JobSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CPU = torch.device("cpu")


def held(kind: str, folder: Path, **sizes: Any) -> Path:
    family = {"mxfp4": "gpt_oss", "fp8 experts": "qwen3_moe"}.get(kind, "qwen3")
    make(family, folder, dtype="bfloat16", **sizes)
    if kind == "mxfp4":
        return in_mxfp4(folder)
    return in_fp8(folder, None if kind == "fp8 by matrix" else (32, 64))


KINDS = ["mxfp4", "fp8", "fp8 by matrix", "fp8 experts"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_expanded_as_transformers_expands_them(tmp_path: Path, kind: str) -> None:
    """To the bit. Without a GPU it expands all of them, which is the judge here."""
    from transformers import AutoModelForCausalLM

    folder = held(kind, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    ours = load_base(folder, four_bit=False, device=CPU, dtype=torch.bfloat16)
    wanted, found = theirs.state_dict(), ours.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert ours.generation_config.eos_token_id == [2, 7]
    assert getattr(ours.config, "quantization_config", None) is None


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.parametrize("kind", ["mxfp4", "fp8", "fp8 experts"])
def test_the_plan_counts_what_the_loader_holds(tmp_path: Path, kind: str, adapter: Any) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512}
    if kind == "fp8 experts":
        wide["moe_intermediate_size"] = 512
    folder = held(kind, tmp_path / "model", **wide)
    loaded = load_base(folder, four_bit=adapter == "qlora", device=CPU, dtype=torch.bfloat16)
    shape = ModelShape.of(json.loads((folder / "config.json").read_bytes()))
    wanted = plan(shape, Setup(adapter=adapter, rank=1), device="cpu", available_bytes=1).parts["weights"]
    assert held_bytes(loaded) == pytest.approx(wanted, rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_base_takes_in_16_bits_is_known_from_its_files(tmp_path: Path, kind: str) -> None:
    """By it a model that was given no precision answers in 4 bits or in 16."""
    wide = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 300}
    if kind == "fp8 experts":
        wide["moe_intermediate_size"] = 1024
    folder = ModelFolder(held(kind, tmp_path / "model", **wide))
    loaded = held_bytes(load_base(folder.path, four_bit=False, device=CPU, dtype=torch.bfloat16))
    assert 0.98 * loaded < folder.expanded_bytes < 1.5 * loaded
    load_base(folder.path, four_bit=False, device=CPU, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "whole"
    )
    assert ModelFolder(tmp_path / "whole").expanded_bytes == pytest.approx(loaded, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mxfp4", "fp8"])
def test_training_over_packed_files_is_training_over_what_they_stand_for(tmp_path: Path, kind: str) -> None:
    """To the bit, over NF4."""
    folder = held(kind, tmp_path / "packed")
    whole = tmp_path / "whole"
    load_base(folder, four_bit=False, device=CPU, dtype=torch.bfloat16).save_pretrained(whole)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (whole / file).write_bytes((folder / file).read_bytes())
    rows = chats(tmp_path / "t.jsonl", 12)
    curves: list[list[float]] = []
    for ref, model in (("packed", folder), ("whole", whole)):
        made = make_session(
            tmp_path,
            rows,
            ref=ref,
            method={"type": "sft"},
            adapter={"type": "qlora"},
            model=str(model),
            precision="bf16",
        )
        made.loop.run()
        curves.append([point.values["train_loss"] for point in made.run.metrics()])
    assert curves[0] == curves[1] and len(curves[0]) > 1


def test_check_says_what_becomes_of_packed_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))
    for asked, sent, bits in (
        ({}, "qlora", "4 bits"),
        ({"adapter": "lora"}, "lora", "16 bits"),
        ({"adapter": "full"}, "full", "32 bits"),
    ):
        found = translate(JobSpec.parse({"model": str(tmp_path), "train": "t", **asked}), {})
        (row,) = (r for r in found.settings if r.name == "adapter.type")
        assert row.sent == found.body["adapter"]["type"] == sent
        assert "stored in MXFP4" in str(row.rule) and bits in str(row.rule)
        assert "adapter.type" not in {r.name for r in found.refused}


GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_hidden_layers": 24,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "quantization_config": {"quant_method": "mxfp4"},
}
"""The published shape of the one of 20 billion."""


def test_gpt_oss_is_planned_with_16_bits_for_lora_and_4_for_qlora() -> None:
    shape = ModelShape.of(GPT_OSS)
    sizes = {
        kind: plan(shape, Setup(adapter=kind), device="cuda", available_bytes=1).parts["weights"] / (1 << 30)
        for kind in ("qlora", "lora")
    }
    assert sizes["lora"] == pytest.approx(39, rel=0.02) and 11 < sizes["qlora"] < 13


def test_a_format_of_which_the_size_is_not_known_is_planned_with_16_bits() -> None:
    shape = ModelShape.of({**GPT_OSS, "quantization_config": {"quant_method": "compressed-tensors"}})
    found = plan(shape, Setup(adapter="qlora"), device="cuda", available_bytes=1)
    assert found.parts["weights"] == pytest.approx(2 * shape.parameters)
    assert any("compressed-tensors" in note for note in found.notes)


def test_weights_in_a_format_that_is_not_read_are_refused(tmp_path: Path) -> None:
    """Left out they would be filled by chance."""
    folder = held("fp8", tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**tensors, name: tensors[name].view(torch.int8)}, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=f"{name} as I8"):
        load_base(folder, four_bit=True, device=CPU)
    without = {key: value for key, value in tensors.items() if not key.startswith(name)}
    save_file(without, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=name):
        load_base(folder, four_bit=True, device=CPU)
