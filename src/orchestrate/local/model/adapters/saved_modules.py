"""Modules that are trained whole beside an adapter, on a base that computes in 16 bits."""

# torch, transformers and peft describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orchestrate.local.job import Adapter


def saves_tied(inner: Any, adapter: Adapter) -> bool:
    """Whether a table of tied embeddings is trained whole: then both stay one."""
    config = inner.config.get_text_config()
    if not adapter.modules_to_save or not getattr(config, "tie_word_embeddings", False):
        return False
    tables = (inner.get_input_embeddings(), inner.get_output_embeddings())
    named = [name for name, module in inner.named_modules() if any(module is table for table in tables)]
    return any(name.endswith(tuple(adapter.modules_to_save)) for name in named)


def in_32_bits(model: Any) -> None:
    """All that is trained: 16 bits would lose most updates. Modules that are trained whole compute in 32 bits
    too, and give their results in the model's own precision; the output layer's logits stay as they are."""
    from peft.utils.other import ModulesToSaveWrapper

    dtype = model.get_base_model().dtype
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if dtype == torch.float32:
        return
    head = model.get_base_model().get_output_embeddings()
    for wrapper in list(model.modules()):
        if isinstance(wrapper, ModulesToSaveWrapper):
            for module in wrapper.modules_to_save.values():
                module.register_forward_pre_hook(_widened)
                if wrapper is not head:
                    module.register_forward_hook(_narrowed(dtype))


def _widened(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _narrowed(dtype: torch.dtype) -> Any:
    def hook(_: torch.nn.Module, __: Any, out: Any) -> Any:
        return out.to(dtype) if isinstance(out, Tensor) else out

    return hook
