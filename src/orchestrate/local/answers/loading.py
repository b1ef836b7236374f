"""Load models for inference, in the same way for evaluations, chats and servers: which precision is used, and
how the model is prompted. Imports torch."""

# torch and transformers describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from orchestrate import settings, text
from orchestrate.errors import UsageError
from orchestrate.local.encoding import Template
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.model.loaded import out_of_memory
from orchestrate.local.model.loading import dequantize, load_base, load_tokenizer
from orchestrate.local.model.sampling.sampling import Sampler

SMALL_MODEL_BYTES = 2 << 30
"""Weights up to this size are kept unpacked, with the values that their 4 bits stand for: nothing is unpacked
for each token."""
LARGE_MODEL_BYTES = 8 << 30
"""Larger bases answer in 4 bits, unless their adapters or the caller name a precision."""
UNPACKED = (
    "its 4-bit base was unpacked to 16-bit values, which round differently from bitsandbytes "
    f"({settings.NF4_PRODUCTS}=bitsandbytes uses those kernels)"
)
"""Told of an answer: greedy answers may differ from those of other programs over the same NF4."""


def too_large(folder: ModelFolder) -> bool:
    """Return whether a base answers in 4 bits by default because of its size."""
    return folder.expanded_bytes > LARGE_MODEL_BYTES


def unpacks(folder: ModelFolder) -> bool:
    """Return whether NF4 weights are unpacked once for inference. Raises `ConfigError`."""
    return folder.expanded_bytes <= SMALL_MODEL_BYTES and not settings.packed_nf4()


def is_adapter(folder: Path) -> bool:
    """Return whether the folder holds an adapter rather than a full tuned model."""
    return (folder / "adapter_config.json").is_file()


def base_of(
    folder: ModelFolder, *, four_bit: bool | None, device: torch.device, dtype: torch.dtype | None = None
) -> Any:
    """Load a base model for inference. `four_bit`: `None` decides by its size; `dtype`: `None` uses what
    suits the device. Raises `UsageError` for a base that is too large in 16 bits."""
    four_bit = too_large(folder) if four_bit is None else four_bit
    try:
        base = load_base(folder.path, four_bit=four_bit, device=device, dtype=dtype)
    except Exception as error:
        if four_bit or not out_of_memory(error):
            raise
        raise UsageError(
            f"{folder.path} does not fit into this machine's memory in 16 bits: "
            f"it has {text.size(int(folder.expanded_bytes))} of weights",
            fix="for an evaluation: --base-precision nf4, or local=MODEL:nf4",
        ) from error
    if four_bit and unpacks(folder):
        dequantize(base)
    return base.eval()


def whole(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Load a full tuned model."""
    return load_base(folder, four_bit=False, device=device, dtype=dtype).eval()


def talk(own: Path | None, folder: ModelFolder, device: torch.device) -> tuple[Template, Sampler]:
    """Return the chat template of a model and the sampler that knows where its answers end. Files in
    `own`, the tuned model's folder, take precedence over those of its base."""
    has_own = own is not None and (own / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(own if has_own and own else folder.path)
    tokenizer.padding_side = "left"
    template = Template(tokenizer)
    return template, Sampler.of(template, folder, device)
