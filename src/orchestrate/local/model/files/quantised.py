"""Bases whose files hold their linear layers in few bits: which library reads them, and how large they are.
Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

from orchestrate.errors import SetupError

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "auto-round": ("auto_round",),
}
"""What transformers needs to read a base of each kind."""
_EXPANDED: Mapping[str, float] = {"mxfp4": 16 / 4.25, "fp8": 2.0}
"""What is expanded while it is read, and how many times as large it is in 16 bits: see `weights.packed`."""
_CPU_KERNELS = {"gptq": "gptq_torch", "awq": "torch_awq"}
"""Of gptqmodel. What it takes on its own on a CPU repacks the weights at the first answer, and from then on
gives no gradient to what is before them."""


NF4 = "NF4 (4 bits)"


def expanded(config: Mapping[str, Any]) -> str | None:
    """In what the files hold weights that are expanded while they are read, one after the other, from a
    config.json."""
    held, method = _named(config)
    return method.upper() if held and method in _EXPANDED else None


def expansion(config: Mapping[str, Any]) -> float:
    """How many times as large as its files a base is once it is read in 16 bits."""
    held, method = _named(config)
    return _EXPANDED.get(method, 1.0) if held else 1.0


def _named(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """What a config.json says of how its files hold the weights, and the method's name."""
    held = _mapping(config.get("quantization_config"))
    held = held or _mapping(_mapping(config.get("text_config")).get("quantization_config"))
    return held, str(held.get("quant_method") or "bitsandbytes")


def _mapping(found: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


class QuantisedUnreadable(SetupError):
    """This machine lacks the library that reads the base; `fix` is the line that installs it."""


@dataclass(frozen=True)
class Quantised:
    """How a base stays in memory. Of a method that is not in `PACKAGES` only the name is known."""

    method: str
    bits: int | None
    bytes: float | None
    """Of a parameter of its linear layers, scales included."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Quantised | None:
        """From a config.json; `None` for a base in 16 or 32 bits, and for one that is expanded to them."""
        held, method = _named(config)
        if not held or method in _EXPANDED:
            return None
        if method == "bitsandbytes":
            if held.get("load_in_8bit"):
                return cls(method, 8, 1.0)
            scales = 1 / 64 + 4 / (64 * 256) if held.get("bnb_4bit_use_double_quant") else 4 / 64
            return cls(method, 4, 0.5 + scales)
        bits = held.get("bits") or held.get("w_bit")
        if method not in PACKAGES or not isinstance(bits, int):
            return cls(method, None, None)
        group = held.get("group_size") or held.get("q_group_size") or 128
        # For each group a scale in 16 bits and a zero point in as many bits as a weight.
        grouped = (2 + bits / 8) / group if isinstance(group, int) and group > 0 else 0.0
        return cls(method, bits, bits / 8 + grouped)

    def kernel(self, device: str) -> str | None:
        """What computes with the weights, where the library that reads them would take one that may give no
        gradients."""
        if self.method not in _CPU_KERNELS:
            return None
        return _CPU_KERNELS[self.method] if device == "cpu" else "auto_trainable"

    @property
    def told(self) -> str:
        return f"{self.bits} bits by {self.method}" if self.bits else f"few bits by {self.method}"

    def require(self, find: Callable[[str], object | None] = find_spec) -> None:
        """Raises `QuantisedUnreadable` where a package is missing; imports none. `find`: whether one is
        here."""
        missing = [name for name in PACKAGES.get(self.method, ()) if find(name) is None]
        if missing:
            raise QuantisedUnreadable(
                f"the model's files hold it in {self.told}; what reads them is not installed",
                fix=f"pip install {' '.join(missing)}",
            )


def weights_in(config: Mapping[str, Any], *, four_bit: bool, dtype: str) -> str:
    """Name the precision in which a base with this config.json answers, as `load_base` loads it."""
    if held := Quantised.of(config):
        return held.method if held.bits is None else f"{held.method} ({held.bits} bits)"
    return NF4 if four_bit else dtype
