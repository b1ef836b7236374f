"""Load models for inference in evaluations, chats, servers and training sessions: precision, adapters, chat
template. Imports torch."""

# torch, transformers and peft are only partially typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from orchestrate import settings, text
from orchestrate.errors import UsageError
from orchestrate.local.encoding import Template
from orchestrate.local.model import files, loaded
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.model.loaded import out_of_memory
from orchestrate.local.model.loader import (
    DTYPES,
    add_adapter,
    dequantize,
    load_adapter,
    load_base,
    load_tokenizer,
    pick_device,
)
from orchestrate.local.model.sampling.batching import BASE, Batching
from orchestrate.local.model.sampling.sampler import Sampler

SMALL_MODEL_BYTES = 2 << 30
"""Maximum size in bytes of NF4 weights that are dequantized once, at load time. Larger weights are
dequantized for each token."""
LARGE_MODEL_BYTES = 8 << 30
"""Size in bytes above which base models are loaded in 4-bit, unless their adapters or the caller specify a
precision."""
UNPACKED = (
    "the 4-bit base model was dequantized to 16 bits, which rounds differently from "
    f"bitsandbytes (to use its kernels: {settings.NF4_PRODUCTS}=bitsandbytes)"
)
"""Note attached to answers: other programs may give different greedy answers with the same NF4 weights."""


def too_large(folder: ModelFolder) -> bool:
    """Return whether a base model is loaded in 4-bit by default because of its size."""
    return folder.expanded_bytes > LARGE_MODEL_BYTES


def unpacks(folder: ModelFolder) -> bool:
    """Return whether NF4 weights are dequantized once for inference. Raises `ConfigError` if the environment
    variable that controls this has an invalid value."""
    return folder.expanded_bytes <= SMALL_MODEL_BYTES and not settings.packed_nf4()


def is_adapter(folder: Path) -> bool:
    """Return whether the folder contains an adapter rather than a full tuned model."""
    return (folder / "adapter_config.json").is_file()


def base_of(
    folder: ModelFolder, *, four_bit: bool | None, device: torch.device, dtype: torch.dtype | None = None
) -> Any:
    """Load a base model for inference. If `four_bit` is `None`, the model's size decides. If `dtype` is
    `None`, the device decides. Raises `UsageError` if the base model does not fit in memory in 16 bits."""
    four_bit = too_large(folder) if four_bit is None else four_bit
    try:
        base = load_base(folder.path, four_bit=four_bit, device=device, dtype=dtype)
    except Exception as error:
        if four_bit or not out_of_memory(error):
            raise
        raise UsageError(
            f"{folder.path} does not fit in this machine's memory in 16 bits: its weights take "
            f"{text.size(int(folder.expanded_bytes))}",
            fix="to evaluate in 4-bit: --base-precision nf4, or local=MODEL:nf4",
        ) from error
    if four_bit and unpacks(folder):
        dequantize(base)
    return base.eval()


def whole(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Load a fully tuned model for inference."""
    return load_base(folder, four_bit=False, device=device, dtype=dtype).eval()


def template_and_sampler(
    own: Path | None, folder: ModelFolder, device: torch.device
) -> tuple[Template, Sampler]:
    """Return a model's chat template, and a sampler with its stop tokens. Files in the tuned model's folder,
    `own`, take precedence over those of its base."""
    has_own = own is not None and (own / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(own if has_own and own else folder.path)
    tokenizer.padding_side = "left"
    template = Template(tokenizer)
    return template, Sampler.of(template, folder, device)


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """The base model that a process loads."""

    base: str
    threads: int | None = None
    device: str | None = None
    four_bit: bool | None = None
    """True if the base model is loaded in 4-bit. `None` lets the model's size decide."""
    precision: str | None = None
    """Precision of matmuls and of weights not quantized to 4 bits: bf16, fp16 or fp32. `None` lets the device
    decide."""
    most_rows: int = 32


class AdaptedModel:
    """A base model with its adapters, and the rows that are being generated."""

    def __init__(self, opening: Opening, tuned: Path | None = None) -> None:
        """Load the model. `tuned` is the folder of a full tuned model, which answers in place of the base
        model."""
        self.device = pick_device(opening.device)
        torch.set_num_threads(loaded.chosen(opening.threads, self.device))
        self.folder = files.fetch(opening.base)
        self.opening = opening
        self.inner = self.loaded_base() if tuned is None else whole(tuned, self.device, self._dtype)
        self.model: Any = self.inner
        self.batching = Batching(self.model, most_rows=opening.most_rows)
        self._numbered = 0

    @property
    def _dtype(self) -> torch.dtype | None:
        return None if self.opening.precision is None else DTYPES[self.opening.precision]

    def loaded_base(self) -> Any:
        """Load the base model from its files."""
        four_bit = self.opening.four_bit
        return base_of(self.folder, four_bit=four_bit, device=self.device, dtype=self._dtype)

    def new_name(self) -> str:
        self._numbered += 1
        return f"a{self._numbered}"

    def put(self, folder: Path, *, trainable: bool = False) -> str:
        """Load an adapter onto the base model and return the name that PEFT uses for the adapter. Raises
        `UsageError` if the adapter does not fit the base model."""
        name = self.new_name()
        with self.changing():
            if self.model is self.inner:
                self.model = load_adapter(self.inner, folder, name=name, trainable=trainable)
            else:
                add_adapter(self.model, folder, name)
        return name

    def drop(self, name: str) -> None:
        """Remove an adapter. If it is the only one, it stays loaded in PEFT but is no longer used."""
        others = [a for a in self.model.peft_config if a != name]
        if others:
            with self.changing():
                self.model.set_adapter(others[0])
                self.model.delete_adapter(name)

    @contextmanager
    def changing(self) -> Generator[None]:
        """Prepare the model for adding or removing adapters within the context. Answers in progress continue
        when it exits."""
        self.batching.changing()
        try:
            yield
        finally:
            if self.model is not self.inner:
                self.model.eval()
            self.batching.use(self.model)

    @contextmanager
    def active(self, name: str) -> Generator[Any]:
        """Yield the model with this adapter enabled. `BASE` disables all adapters."""
        self.batching.changing()
        try:
            if name != BASE:
                self.model.set_adapter(name)
                yield self.model
            elif self.model is self.inner:
                yield self.model
            else:
                with self.model.disable_adapter():
                    yield self.model
        finally:
            self.batching.use(self.model)
