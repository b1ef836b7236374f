"""Which adapters leave the base that they lie on as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from orchestrate.core.tensors import tensors

_OWN = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "eva_config",
        "loftq_config",
        "corda_config",
        "megatron_core",
        "qalora_group_size",
    }
)
"""Settings of LoRA that shape its own layers alone, or that hold nothing without another one."""
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""The others (PiSSA, OLoRA, LoftQ and more) take a part out of the base, each time that peft loads them."""


def lies_apart(folder: Path) -> bool:
    """Whether the adapter is nothing but low-rank layers of its own, and can be taken off again. What is not
    known here, or does not read, counts against it."""
    if (found := _read(folder)) is None:
        return False
    config, names = found
    others = {name: value for name, value in config.items() if name not in _OWN}
    start, bias = others.pop("init_lora_weights", True), others.pop("bias", "none")
    if config.get("peft_type") != "LORA" or start not in _STARTS or bias != "none" or any(others.values()):
        return False
    # Whole tables and biases are written over those of the base.
    return all("lora_" in name for name in names)


def changes_base(folder: Path) -> bool:
    """Whether the base under the adapter is another one, also while peft has the adapter switched off: a part
    of it was taken out, or something was written over it. What does not read is reported where it is
    loaded."""
    if (found := _read(folder)) is None:
        return False
    config, names = found
    if config.get("peft_type") != "LORA":
        return False
    start, bias = config.get("init_lora_weights", True), config.get("bias", "none")
    if start not in _STARTS or bias != "none" or config.get("layer_replication"):
        return True
    saved = [*(config.get("modules_to_save") or ())]
    if saved and config.get("ensure_weight_tying"):
        saved += ["embed_tokens", "lm_head"]  # the one is saved as the other, too
    beside = ("lora_", "trainable_tokens", *(f"{name}." for name in saved))
    return not all(any(part in name for part in beside) for name in names)


def _read(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The settings and the names of the weights."""
    try:
        config = msgspec.json.decode((folder / "adapter_config.json").read_bytes(), type=dict[str, Any])
        return config, [*tensors(folder / "adapter_model.safetensors")]
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
