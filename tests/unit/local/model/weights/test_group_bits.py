"""Bases held by groups in 4 bits, as GPTQ and AWQ write them, packed here by hand: what transformers reads
them with is not installed with the other packages (`pip install gptqmodel optimum`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.paths import TINY
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.sessions import make_session

pytest.importorskip("gptqmodel")
pytestmark = [pytest.mark.filterwarnings("ignore")]
GROUP = 64
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}


def packed(values: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """[rows, columns] of 4 bits -> [rows, columns / 8], eight to a number, by the places in it."""
    eight = values.to(torch.int64).reshape(values.shape[0], -1, 8)
    whole = sum(eight[:, :, value] << (4 * place) for place, value in enumerate(order))
    return torch.as_tensor(whole).to(torch.int32)


def in_groups(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers from 0 to 15, [in, out], and scales, [groups, out]; 8 is nothing."""
    groups = weight.T.reshape(-1, GROUP, weight.shape[0])
    scales = (groups.abs().amax(1) / 7).half().float()
    numbers = (groups / scales[:, None]).round().clamp(-8, 7) + 8
    return numbers.reshape(weight.shape[1], weight.shape[0]), scales


def make(method: str, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The tiny model so held, and the weights that the bits stand for."""
    shutil.copytree(TINY, folder)
    (file,) = folder.glob("*.safetensors")
    tensors, plain = load_file(file), dict[str, torch.Tensor]()
    straight = tuple(range(8))
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        numbers, scales = (part.contiguous() for part in in_groups(tensors.pop(name).float()))
        plain[name] = (
            ((numbers - 8).reshape(-1, GROUP, numbers.shape[1]) * scales[:, None])
            .reshape(numbers.shape)
            .T.contiguous()
        )
        stem, zeros = name.removesuffix("weight"), torch.full(scales.shape, 8)
        if method == "gptq":  # whose files hold zero points less one
            tensors[f"{stem}qweight"] = packed(numbers.T, straight).T.contiguous()
            tensors[f"{stem}qzeros"] = packed(zeros - 1, straight)
            tensors[f"{stem}g_idx"] = (torch.arange(numbers.shape[0]) // GROUP).to(torch.int32)
        else:
            tensors[f"{stem}qweight"] = packed(numbers, AWQ_ORDER)
            tensors[f"{stem}qzeros"] = packed(zeros, AWQ_ORDER)
        tensors[f"{stem}scales"] = scales.half()
    save_file({n: t.contiguous() for n, t in tensors.items()}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS[method]}))
    return folder, plain


@pytest.mark.parametrize("method", CONFIGS)
def test_an_adapter_is_trained_over_the_bits(tmp_path: Path, method: str) -> None:
    from transformers import AutoModelForCausalLM

    folder, plain = make(method, tmp_path / "model")
    data = chats(tmp_path / "t.jsonl", 12)
    made = make_session(
        tmp_path,
        data,
        method={"type": "sft"},
        adapter={"type": "lora"},
        model=str(folder),
        precision="fp32",
        hyper={"epochs": 2},
    )
    adapted = [name for name, module in made.loaded.inner.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == len(plain) == 21
    theirs: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        for name, value in plain.items():
            theirs.get_parameter(name).copy_(value)
    from peft import get_peft_model

    theirs = get_peft_model(theirs, made.loaded.model.peft_config["default"])
    there = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in made.loaded.trainable.items():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
            there[name].copy_(parameter)
    ids, weights = made.loop.train.row(0)
    row = torch.tensor(ids.astype(int))[None]
    labels = torch.where(torch.tensor(weights) > 0, row[0], -100)[None]
    loss = theirs(input_ids=row, labels=labels).loss
    loss.backward()
    with made.loaded.evaluation_mode():  # a kernel for answers alone must not stay behind
        sums = made.loop.objective.run(made.loop.train, [0], 1.0, backward=False)
    assert sums.loss / sums.weight == pytest.approx(loss.item(), rel=0.01)
    made.loop.objective.run(made.loop.train, [0], sums.weight, backward=True)
    for name, parameter in made.loaded.trainable.items():
        wanted = there[name].grad
        assert parameter.grad is not None and wanted is not None
        assert (parameter.grad - wanted).norm() < 0.05 * wanted.norm(), name
    made.loop.run()
    losses = [p.values["train_loss"] for p in made.run.metrics()]
    assert losses[-1] < losses[0]
    assert (made.publish() / "adapter_model.safetensors").is_file()
