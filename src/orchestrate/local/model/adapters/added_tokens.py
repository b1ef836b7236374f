"""Tokens that the tokenizer did not have, and the rows of embeddings and output layer that are theirs."""

# torch, transformers and peft describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrate.core.tensors import tensors
from orchestrate.local.job import Adapter


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """The tokenizer keeps each of the texts whole from now on; their ids."""
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return [int(i) for i in tokenizer.convert_tokens_to_ids(list(tokens))]


@torch.no_grad()
def make_room(model: Any, tokens: int, new: Sequence[int] = ()) -> None:
    """Rows for `tokens` tokens, also where the model has fewer; those of `new` ids, of which nothing was
    learnt, become the mean of the others, so that none stands out (Hewitt 2021)."""
    before = model.get_input_embeddings().weight.shape[0]
    if tokens <= before and not new:
        return
    if tokens > before:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    tables = {id(layer.weight): layer.weight for layer in _tables(model)}
    for weight in tables.values():
        known = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
        known[[*new, *range(before, weight.shape[0])]] = False
        weight[~known] = weight[known].float().mean(0).to(weight.dtype)


def _tables(model: Any) -> list[Any]:
    return [
        layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    ]


def trained_rows(model: Any, ids: Sequence[int], adapter: Adapter) -> dict[str, list[int]] | None:
    """peft's `trainable_token_indices`: of the tables that are not trained whole anyway."""
    if not ids:
        return None
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    wanted = _tables(model)[: 1 if tied else 2]
    names = [name for name, module in model.named_modules() if any(module is table for table in wanted)]
    saved = tuple(adapter.modules_to_save or ())
    return {name: list(ids) for name in names if not (saved and name.endswith(saved))} or None


def rows_of(adapter: Path) -> int:
    """How many tokens the base must have rows for, so that the adapter of a folder can be put on it."""
    config = msgspec.json.decode((adapter / "adapter_config.json").read_bytes(), type=dict[str, Any])
    indices = config.get("trainable_token_indices") or {}
    most = [1 + max(ids) for ids in (indices.values() if isinstance(indices, dict) else [indices])]
    saved = config.get("modules_to_save") or ()
    for name, tensor in tensors(adapter / "adapter_model.safetensors").items():
        module = name.removesuffix(".weight")
        if len(tensor.shape) == 2 and any(end in module for end in ("embed_tokens", "lm_head", "wte")):
            most.append(tensor.shape[0] if saved and module.endswith(tuple(saved)) else 0)
    return max(most, default=0)


def spare(model: Any) -> None:
    """peft copies the whole table in each forward pass and makes a gradient of all of it; here the few rows
    are computed beside the others."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer):
            layer.forward_adapters = types.MethodType(_forward_of(layer.forward_adapters), layer)  # type: ignore[method-assign]


def _forward_of(original: Any) -> Any:
    def forward(self: Any, x: Tensor, active: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        base, rows = self.base_layer, self.trainable_tokens_delta
        if self.disable_adapters or self.merged or list(active) != ["default"] or args or kwargs:
            return original(x, active, *args, **kwargs)
        ids = torch.tensor(self.token_indices["default"], device=x.device)
        out = base(x)
        delta = rows["default"].to(out.dtype)
        if not isinstance(base, torch.nn.Embedding):
            return out.index_copy(-1, ids, F.linear(x, delta))
        scale = self._get_embed_scale()
        if scale is not None:
            delta = delta * scale.to(out.dtype)
        found = x[..., None] == ids
        return torch.where(found.any(-1, keepdim=True), found.to(out.dtype) @ delta, out)

    return forward
