"""Load models, and replace parts of the libraries they use with faster code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from orchestrate.errors import SetupError, UsageError
from orchestrate.local import machine

# Choose a run's engine and precision, with the reasons. Torch-free, so that `plan` can use it and makes the
# same choice as the worker.


NAMES = ("auto", "plain", "fused", "compile", "liger", "unsloth")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
PACKAGES = {"liger": ("liger_kernel", "'orchestrate-ft[liger]'"), "unsloth": ("unsloth", "unsloth")}
"""Maps each engine to the module that it needs, and to what pip installs for it."""
BF16_CAPABILITY = 8.0
"""Minimum compute capability of GPUs with bf16 support (Ampere, 2020)."""
FP16_CAPABILITY = 7.0
"""Minimum compute capability at which fp16 is reliably faster than fp32 (Volta, 2017). The only older GPU
with fast fp16 is the P100 (6.0)."""
COMPILE_TOKENS = 20_000_000
"""Minimum number of tokens in a run for `torch.compile` to pay off. In shorter runs, compiling takes longer
than it saves."""


class EngineMissing(SetupError):
    """Raised if the requested engine or precision is not available on this machine. `fix` is the command that
    installs the engine, or the setting to use instead."""


@dataclass(frozen=True)
class SettingChoice:
    """A chosen engine or precision, with the reason."""

    name: str
    reason: str


NO_PACKING = "no benefit on a CPU, where rows are already packed or batched by similar length"
PLAIN = SettingChoice("plain", "set in the spec")


def choose(asked: str | None, device: str, tokens: int | None = None) -> SettingChoice:
    """Choose the training engine and give the reason. `tokens` is the token count of the entire run, if
    known. Raises `UsageError` for an unknown engine name, and `EngineMissing` if the requested engine is not
    available here."""
    if asked not in (None, *NAMES):
        raise UsageError(f"unknown engine {asked!r}", fix=f"engine: one of {', '.join(NAMES)}")
    if asked in PACKAGES:
        _require(asked, device)
    if asked == "compile" and device != "cuda":
        raise EngineMissing(
            "engine compile requires a GPU: on a CPU, compilation takes minutes, and Orchestrate's own "
            "CPU kernels do not need it",
            fix="set engine: auto to use what this machine supports",
        )
    if asked not in (None, "auto"):
        return SettingChoice(asked, "set in the spec")
    if device != "cuda":
        return SettingChoice("fused", "this engine has CPU kernels, while Liger and Unsloth need a GPU")
    if _installed("liger"):
        return SettingChoice("liger", "liger-kernel is installed and there is a GPU")
    if tokens is not None and tokens >= COMPILE_TOKENS:
        return SettingChoice(
            "compile",
            f"with {tokens:,} tokens, torch.compile saves more time than it takes, and Liger is "
            f"not installed",
        )
    how_many = "the run's token count is unknown" if tokens is None else f"this run has {tokens:,} tokens"
    return SettingChoice(
        "fused",
        f"Liger is not installed (pip install {PACKAGES['liger'][1]}), and torch.compile only pays off in "
        f"long runs ({how_many})",
    )


def precision(
    asked: str | None, device: str, *, full: bool = False, capability: float | None = None
) -> SettingChoice:
    """Choose `bf16`, `fp16` or `fp32` for activations, matmuls and frozen weights not quantized to 4 bits. In
    full fine-tuning (`full`), trained weights are always in fp32. `capability` is the GPU's compute
    capability. `None` queries this machine's GPU. Raises `UsageError` for an unknown precision, and
    `EngineMissing` if the device does not support it."""
    if asked not in (None, *PRECISIONS):
        raise UsageError(f"unknown precision {asked!r}", fix=f"one of {', '.join(PRECISIONS)}")
    if full and device == "cpu":
        if asked in ("bf16", "fp16"):
            raise EngineMissing("full fine-tuning on a CPU requires fp32", fix="precision: auto")
        return SettingChoice("fp32", "full fine-tuning on a CPU requires it")
    if asked not in (None, "auto"):
        return SettingChoice(asked, "set in the spec")
    if device != "cpu":
        found = capability or machine.capability()
        if found is None or found >= BF16_CAPABILITY:
            return SettingChoice("bf16", "the GPU supports it")
        without = f"this GPU (compute capability {found}) does not support bf16"
        if found >= FP16_CAPABILITY or found == 6.0:
            return SettingChoice("fp16", f"{without}. Loss scaling keeps small gradients from vanishing")
        return SettingChoice("fp32", f"{without}, and its fp16 is slower than fp32")
    if machine.cpu_multiplies_bf16():
        return SettingChoice("bf16", "the CPU supports it")
    return SettingChoice(
        "fp32", "this CPU does not support bf16 natively, so bf16 would be many times slower"
    )


def expected_device(wanted: str | None) -> str:
    """Predict whether the worker will use `cuda` or `cpu`. Lists GPUs with the driver's command-line tool,
    without torch."""
    return wanted or ("cuda" if machine.gpus() else "cpu")


def _installed(engine: str) -> bool:
    return find_spec(PACKAGES[engine][0]) is not None


def _require(engine: str, device: str) -> None:
    if device != "cuda":
        raise EngineMissing(
            f"engine {engine} needs an NVIDIA GPU, but this run is on {device}",
            fix="set engine: auto to use what this machine supports",
        )
    if not _installed(engine):
        raise EngineMissing(
            f"engine {engine} needs the package {PACKAGES[engine][0]}, which is not installed",
            fix=f"pip install {PACKAGES[engine][1]}",
        )
