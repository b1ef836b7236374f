"""What `fine-tunes/models/limits` tells about a base model, and which rows are taken."""

from __future__ import annotations

from functools import cache
from typing import Any

from orchestrate.catalog import resolve
from orchestrate.sandbox.uploads import Taken

DEFAULT_CONTEXT = 32768
TAKEN = Taken(
    message_fields=frozenset({"reasoning", "reasoning_content"}),
    text=True,
    mixed_fields=False,
    any_first_role=False,
)


@cache
def limits_of(model: str) -> dict[str, Any]:
    """From the catalog where it knows, else what most models of the host have."""
    resolved = resolve(model, "together")
    host = resolved.host
    rank = (host.max_rank if host else None) or 64
    full = host is not None and "full" in host.adapters
    sizes = {"max_batch_size": 64, "max_batch_size_dpo": 32, "min_batch_size": 1}
    none = dict.fromkeys(sizes, 0)
    return {
        "model_name": model,
        "max_num_epochs": 20,
        "max_num_evals": 100,
        "max_num_checkpoints": 100,
        "min_learning_rate": 1e-8,
        "max_learning_rate": 0.01,
        "max_seq_length_sft": resolved.context("sft") or DEFAULT_CONTEXT,
        "max_seq_length_dpo": resolved.context("dpo") or DEFAULT_CONTEXT,
        "min_max_seq_length": 64,
        "supports_vision": bool(resolved.model and resolved.model.vision),
        "supports_tools": True,
        "supports_reasoning": bool(resolved.model and resolved.model.reasoning),
        "supports_full_training": full,
        "merge_output_lora": True,
        "default_gradient_accumulation_steps": 1,
        "lora_training": {
            **sizes,
            "default_rank": min(8, rank),
            "max_rank": rank,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        },
        "full_training": sizes if full else none,
        "sandbox": True,
    }
