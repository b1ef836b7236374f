"""How an adapter begins where that is more than chance and zeros: with a part of the base (PiSSA, OLoRA),
with what 4 bits lose of it (LoftQ), or with what its layers read (EVA). peft does all but LoftQ, whose
function there leaves out the scale of the adapter and asks for a GPU.

The first weights are kept beside the run, so that what was taken out of the base can be given back when the
adapter is written."""

# torch, transformers, safetensors and peft describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrate.core.files import new_folder, whole_folder, write_whole
from orchestrate.core.tensors import tensors
from orchestrate.errors import RunFailed
from orchestrate.local.encoding.encoded import Rows
from orchestrate.local.job import Adapter
from orchestrate.local.model.files.models import ModelFolder
from orchestrate.local.model.loaded import decoder_of

EVA_TOKENS = 4096
"""Of one forward pass, padding included."""
EVA_PASSES = 512
"""At most: the directions settle within some hundred."""


@dataclass(frozen=True)
class Beginning:
    """What a new adapter may begin with."""

    folder: ModelFolder
    kept: Path
    """The folder of its first weights, as far as they are to be kept."""
    rows: Rows
    """That are trained on."""
    seed: int


def begun(inner: Any, config: Any, adapter: Adapter, beginning: Beginning | None) -> Any:
    """The peft model. Raises `RunFailed`; `ValueError` and `TypeError` of peft's where the adapter does not
    fit."""
    from peft import PeftModel, get_peft_model
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    start = adapter.init_lora_weights
    keeps = adapter.changes_base or start == "eva"
    if keeps and beginning is None:
        raise RunFailed(f"init_lora_weights: {start} needs a run that keeps where it began")
    there = beginning is not None and (beginning.kept / "adapter_config.json").is_file()
    if start == "eva" and there and beginning is not None:
        # Its ranks follow from what the layers read, and must be those of the checkpoints.
        return PeftModel.from_pretrained(inner, str(beginning.kept), is_trainable=True)
    if start == "eva" and beginning is not None:
        found = _eva(inner, config, beginning)
        model = get_peft_model(inner, config)
        initialize_lora_eva_weights(model, eva_state_dict=found)
    else:
        model = get_peft_model(inner, config)
    if start == "loftq" and beginning is not None:
        make_up_for_4_bits(model, beginning.folder)
    if keeps and not there and beginning is not None:
        new_folder(beginning.kept.parent)
        with whole_folder(beginning.kept) as draft:
            model.save_pretrained(draft, save_embedding_layers=False)
    return model


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """LoRA's linear layers, each with its name in the base."""
    from peft.tuners.lora import LoraLayer

    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and "default" in layer.lora_A:
            yield name, layer


@torch.no_grad()
def make_up_for_4_bits(model: Any, folder: ModelFolder) -> None:
    """LoftQ (Li et al. 2023), one turn of it: the adapter begins as the best approximation of its rank to
    what the 4 bits lost of each weight. Raises `RunFailed` when the model's files hold a weight under another
    name."""
    import bitsandbytes.functional as bnb

    place = {name: path for path in folder.weights for name in tensors(path)}
    for name, layer in _layers(model):
        base = layer.get_base_layer()
        if type(base).__name__ != "Linear4bit":
            continue
        if f"{name}.weight" not in place:
            raise RunFailed(
                f"loftq compares with the weights as they are stored, and there is no {name}.weight",
                fix="leave out adapter.init_lora_weights",
            )
        with safe_open(place[f"{name}.weight"], framework="pt") as file:
            stored = file.get_tensor(f"{name}.weight").to(base.weight.device, torch.float32)
        lost = stored - bnb.dequantize_4bit(base.weight.data, base.weight.quant_state).float()
        u, s, v = torch.linalg.svd(lost, full_matrices=False)
        rank = layer.r["default"]
        root = s[:rank].sqrt()
        layer.lora_A["default"].weight.copy_(root[:, None] * v[:rank])
        layer.lora_B["default"].weight.copy_(u[:, :rank] * root / layer.scaling["default"])


def _eva(inner: Any, config: Any, beginning: Beginning) -> dict[str, Tensor]:
    """The directions in which the inputs of each layer vary most over the rows, under the names that they
    have in the peft model."""
    from peft.tuners.lora.eva import get_eva_state_dict

    ranks = [config.r, *config.rank_pattern.values()]
    least = math.ceil(max(ranks) * config.eva_config.rho)
    device = inner.get_input_embeddings().weight.device
    batches = eva_batches(beginning.rows, least, beginning.seed, device)

    def forward(_: Any, inputs: dict[str, Tensor]) -> None:
        decoder_of(inner)(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )

    found = get_eva_state_dict(inner, batches, config, forward_fn=forward, show_progress_bar=False)
    return {f"base_model.model.{name}": value for name, value in found.items()}


def eva_batches(rows: Rows, least: int, seed: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Rows in the order of the first epoch, padded on the right, with at least `least` trained tokens in
    each; labels are those of peft. Raises `RunFailed` when all rows together have fewer."""
    parts: list[list[int]] = []
    part: list[int] = []
    trained = width = 0
    for number in (number for batch in rows.batches(1, seed, 0) for number in rows.rows_of(batch)):
        ids, weights = rows.row(number)
        part.append(number)
        trained += int(np.count_nonzero(weights))
        width = max(width, len(ids))
        if trained >= least and (len(part) + 1) * width > EVA_TOKENS:
            parts.append(part)
            part, trained, width = [], 0, 0
            if len(parts) == EVA_PASSES:
                break
    if part and trained >= least:
        parts.append(part)
    if not parts:
        raise RunFailed(
            f"eva needs {least} trained tokens to see where the rows vary, and they have fewer",
            fix="more rows, a smaller adapter.r, or another init_lora_weights",
        )
    return [_padded([rows.row(number) for number in part], device) for part in parts]


def _padded(rows: Sequence[tuple[Any, Any]], device: torch.device) -> dict[str, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    out = {
        "input_ids": torch.zeros(len(rows), width, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
        "labels": torch.full((len(rows), width), -100),
    }
    for r, (ids, weights) in enumerate(rows):
        row = torch.from_numpy(np.array(ids, dtype=np.int64))
        out["input_ids"][r, : len(row)] = row
        out["attention_mask"][r, : len(row)] = 1
        out["labels"][r, : len(row)] = torch.where(torch.from_numpy(np.array(weights)) != 0, row, -100)
    return {name: value.to(device) for name, value in out.items()}


def as_plain_lora(folder: Path, kept: Path) -> None:
    """Rewrites the adapter in `folder`, which belongs on a base without its first weights, as one of twice
    the rank for the base as it is: B A - B0 A0, as peft converts it."""
    after, first = (load_file(f / "adapter_model.safetensors") for f in (folder, kept))
    for name, value in after.items():
        # Adapters on embeddings take nothing out of them.
        zero = torch.zeros_like(first[name])
        if ".lora_A." in name or "lora_embedding_A" in name:
            after[name] = torch.cat([value, first[name] if ".lora_A." in name else zero], dim=0)
        elif ".lora_B." in name or "lora_embedding_B" in name:
            after[name] = torch.cat([value, -first[name] if ".lora_B." in name else zero], dim=1)
    path = folder / "adapter_config.json"
    config = msgspec.json.decode(path.read_bytes())
    scale = math.sqrt(2) if config["use_rslora"] else 2  # alpha over the rank, or its root, stays what it was
    config |= {
        "init_lora_weights": True,
        "r": 2 * config["r"],
        "lora_alpha": scale * config["lora_alpha"],
        "rank_pattern": {k: 2 * v for k, v in (config["rank_pattern"] or {}).items()},
        "alpha_pattern": {k: scale * v for k, v in (config["alpha_pattern"] or {}).items()},
    }
    save_file(after, folder / "adapter_model.safetensors", {"format": "pt"})
    write_whole(path, msgspec.json.format(msgspec.json.encode(config), indent=2))
