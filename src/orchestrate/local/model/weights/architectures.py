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


def _auto_class(config: Any) -> Any:
    seeing = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return (
        AutoModelForImageTextToText
        if seeing and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        else AutoModelForCausalLM
    )
