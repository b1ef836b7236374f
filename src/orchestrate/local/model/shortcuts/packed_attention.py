"""Attention over packed rows on a GPU, with torch's variable-length attention kernel, which needs no
quadratic mask."""

# The type annotations of torch and transformers are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from orchestrate.local.model.loaded import Loaded
from orchestrate.local.model.shortcuts import probes
from orchestrate.local.model.shortcuts.kernels import is_plain

NAME = "orchestrate_packed"
KERNEL = "torch.nn.attention.varlen"
CAUSAL = (-1, 0)


def use(loaded: Loaded) -> str | None:
    """Switch the model to this attention for packed rows. Returns the reason if that is not possible,
    otherwise `None`."""
    config = loaded.inner.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return "the model uses its own attention"
    if any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")):
        return "the model uses sliding-window attention"
    if loaded.inner.dtype not in (torch.bfloat16, torch.float16):
        return "only available in 16-bit precision"
    try:
        import_module(KERNEL)
    except ImportError:
        return f"torch {torch.__version__} has no variable-length attention kernel"
    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    loaded.inner.set_attn_implementation(NAME)
    loaded.packed_layout = True
    if reason := probes.packs(loaded):
        undo(loaded)
    return reason


def undo(loaded: Loaded) -> None:
    loaded.inner.set_attn_implementation("sdpa")
    loaded.packed_layout = False


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention with transformers' attention interface: [sequences, heads, tokens, dim] ->
    [sequences, tokens, heads, dim]. Rows that are not packed use torch's usual kernels."""
    layout = kwargs.pop("layout", None)
    if layout is None:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found, None
    # `Loaded.hidden` passes a mask with a single element. Any larger mask was created by the model.
    if not is_plain(module, dropout, kwargs) or (attention_mask is not None and attention_mask.numel() > 1):
        raise NotImplementedError(
            "attention over packed rows does not support dropout, soft cap, bias or mask"
        )
    lines, _, tokens, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    kernel: Any = import_module(KERNEL)
    out = kernel.varlen_attn(
        q,
        k,
        v,
        layout.starts,
        layout.starts,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=CAUSAL,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.unflatten(0, (lines, tokens)), None
