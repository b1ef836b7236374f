"""The sandbox's merge of an adapter into its base, against PEFT's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.paths import TINY
from transformers import AutoModelForCausalLM

from orchestrate.sandbox.training import merge, read_tensors, write_tensors


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, at peft's hands
@pytest.mark.parametrize("rslora", [False, True])
def test_it_equals_pefts(tmp_path: Path, rslora: bool) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", use_rslora=rslora)
    model = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = model.merge_and_unload().state_dict()
    folder = merge(TINY, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    original = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).state_dict()
    assert expected.keys() == merged.keys()
    changed = 0
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight, atol=1e-5, rtol=1e-5)
        changed += not torch.equal(merged[name], original[name])
    assert changed == 7 * 3  # linear layers of each of the three blocks


def test_tensors_come_back_as_they_were_written(tmp_path: Path) -> None:
    weights = read_tensors(TINY / "model.safetensors")
    write_tensors(tmp_path / "again.safetensors", weights, {"format": "pt"})
    again = read_tensors(tmp_path / "again.safetensors")
    assert again.keys() == weights.keys()
    assert all((again[name] == weights[name]).all() for name in weights)
