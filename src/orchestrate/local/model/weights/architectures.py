"""transformers' class for a model that answers in text, by its configuration. Imports transformers."""

# torch and transformers describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from orchestrate.errors import UsageError


def auto_class(folder: Path) -> Any:
    """What loads the model of a folder: that of language models, or that of models that see too, which are
    trained and asked in text alone."""
    return _auto_class(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def hollow(config: Mapping[str, Any]) -> Any:
    """The model of a config.json without weights, on the meta device. Raises `UsageError` for one that
    transformers does not know, or that its configuration does not suffice for."""
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UsageError(f"transformers knows no model_type {kind}")
    given = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config")}
    try:
        made = CONFIG_MAPPING[kind].from_dict(given)
        with torch.device("meta"):
            return _auto_class(made).from_config(made, trust_remote_code=False)
    except Exception as error:  # the classes of some hundred families check in as many ways
        raise UsageError(f"its configuration does not make a {kind} model: {error}") from error


def model_class(config: Any) -> Any:
    """transformers' own class for a configuration that `auto_class` loads."""
    seen = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if _sees(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    return seen[type(config)]


def _auto_class(config: Any) -> Any:
    return AutoModelForImageTextToText if _sees(config) else AutoModelForCausalLM


def _sees(config: Any) -> bool:
    kind = type(config)
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
