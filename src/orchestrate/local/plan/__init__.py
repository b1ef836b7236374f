"""Estimate how much memory training needs, and suggest changes to make it fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orchestrate.local.model.files import Quantised
from orchestrate.types import Record

# Dimensions of a decoder-only transformer, read from its configuration. Torch-free.


LLAMA_LIKE = frozenset(
    (
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "qwen3_vl",
        "smollm3",
        "phi3",
        "granite",
        "olmo2",
        "seed_oss",
        "ministral",
    )
)
"""Model families (`model_type`) that meet the memory plan's assumption: each layer consists of attention, a
gated feed-forward network and two norms."""
OTHER_LAYER = 1.4
"""Activation memory of other families' layers, relative to Llama. Gemma 3 was measured at 1.2 to 1.4."""
MOE_LAYER = 1.2
"""Activation memory of a mixture of experts in full fine-tuning, relative to a dense model. Not measured."""
FROZEN_MOE_LAYER = 1.06
"""Activation memory of a mixture of experts when only an adapter is trained, relative to a dense model. Plans
were 2 to 5% above the memory measured with 1, 2 and 4 active experts out of 4, in rows of 128 to 1,024
tokens."""
QK_NORM = frozenset(("qwen3", "qwen3_moe", "qwen3_vl", "olmo2", "gemma3"))
"""Model families that normalize queries and keys."""


NAMES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
"""Names of the linear modules in a layer, in the order of `ModelShape.linears`."""


class ModelShape(Record, frozen=True, kw_only=True):
    """The dimensions of a decoder-only transformer."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    qk_norm: bool = False
    experts: int = 1
    """Number of experts per layer. Each has the width `feed_forward`."""
    experts_used: int = 1
    family: str = "llama"
    held: float | None = None
    """Bytes per parameter of linear layers that stay quantized in memory, or 2 if their size is unknown.
    `None` if the model is not quantized."""
    held_by: str | None = None
    """Name of the quantization method in the weight files, if its bytes per parameter are unknown. `None`
    otherwise."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the shape from the contents of config.json. Raises `KeyError` if they don't describe a
        decoder."""
        c = config.get("text_config") or config
        heads = int(c["num_attention_heads"])
        experts = cls.experts_in(c)
        wide = c.get("moe_intermediate_size") if experts > 1 else None
        family = str(c.get("model_type") or config.get("model_type") or "llama").removesuffix("_text")
        quantised = Quantised.of(config)
        return cls(
            hidden=int(c["hidden_size"]),
            layers=int(c["num_hidden_layers"]),
            feed_forward=int(wide or c["intermediate_size"]),
            heads=heads,
            kv_heads=int(c.get("num_key_value_heads") or heads),
            head_dim=int(c.get("head_dim") or int(c["hidden_size"]) // heads),
            vocabulary=int(c["vocab_size"]),
            tied=bool(c.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            qk_norm=family in QK_NORM,
            experts=experts,
            experts_used=int(c.get("num_experts_per_tok") or 1) if experts > 1 else 1,
            family=family,
            held=(quantised.bytes or 2.0) if quantised else None,
            held_by=quantised.method if quantised and quantised.bytes is None else None,
        )

    @staticmethod
    def experts_in(config: Mapping[str, Any]) -> int:
        """Return the number of experts per layer, or 1 for a model that is not a mixture of experts."""
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        return int(next((config[name] for name in names if config.get(name)), 1))

    @classmethod
    def like(cls, parameters: float) -> ModelShape:
        """Return a typical shape for a model with this number of parameters and an unknown configuration."""
        known = min(KNOWN, key=lambda s: abs(s.parameters - parameters))
        rest = parameters - known.embedding_parameters
        per_layer = (known.parameters - known.embedding_parameters) / known.layers
        return msgspec.structs.replace(known, layers=max(1, round(rest / per_layer)))

    @property
    def remark(self) -> str | None:
        """Message for the user that says why the memory plan is only approximate for this model. `None` if
        there is no such reason."""
        if self.experts > 1:
            return "the model is a mixture of experts, so its activation memory is a rough estimate"
        if self.family not in LLAMA_LIKE:
            return (
                f"the layers of {self.family} models are assumed to need 1.4 times the activation "
                f"memory of Llama's"
            )
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user with all reasons why the memory plan is only approximate."""
        found = [self.remark] if self.remark else []
        if self.held_by is not None:
            found.append(
                f"the weights are stored as {self.held_by}, but this estimate assumes 16 bits per weight"
            )
        return tuple(found)

    @property
    def linears(self) -> list[tuple[int, int, int]]:
        """The sizes (in, out, count) of the linear modules in a layer. Experts are excluded because they are
        stored as one tensor."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, q, 1), (self.hidden, kv, 2), (q, self.hidden, 1)]
        if self.experts > 1:
            return attention
        return [*attention, (self.hidden, self.feed_forward, 2), (self.feed_forward, self.hidden, 1)]

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(i * o * n for i, o, n in self.linears)

    @property
    def expert_parameters(self) -> int:
        return self.layers * self.experts * 3 * self.hidden * self.feed_forward if self.experts > 1 else 0

    @property
    def router_parameters(self) -> int:
        """Number of parameters of the layers that route tokens to experts."""
        return self.layers * self.experts * self.hidden if self.experts > 1 else 0

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        if self.qk_norm:
            norms += 2 * self.layers * self.head_dim
        mixture = self.expert_parameters + self.router_parameters
        return self.linear_parameters + mixture + self.embedding_parameters + norms

    @property
    def active_parameters(self) -> int:
        """Number of parameters that are used for a token, counting only active experts."""
        idle = self.experts - self.experts_used
        return self.parameters - self.layers * idle * 3 * self.hidden * self.feed_forward

    def adapter_parameters(
        self, rank: int, *, dora: bool = False, targets: str | Sequence[str] | None = None
    ) -> int:
        """Count the LoRA parameters on the linear layers that `targets` selects by peft's rules (default:
        all). Experts are excluded. DoRA adds a magnitude for each output. All linear layers are counted if
        the targets don't match Llama's names, or if the model is a mixture of experts."""
        named = [] if self.experts > 1 else self._named(targets)
        chosen = [(i, o, 1) for i, o in named] or [(i, o, n * self.layers) for i, o, n in self.linears]
        return sum(n * (rank * (i + o) + (o if dora else 0)) for i, o, n in chosen)

    def expert_adapter_parameters(self, rank: int, names: Sequence[str]) -> int:
        """Count the LoRA parameters on the named expert weights. As in peft, the fused gate and up
        projections get twice the rank."""
        h, wide = self.hidden, self.feed_forward
        pair = 2 * (h + 2 * wide) if any("gate" in name or "up" in name for name in names) else 0
        down = h + wide if any("down" in name for name in names) else 0
        return self.layers * self.experts * rank * (pair + down) if self.experts > 1 else 0

    def _named(self, targets: str | Sequence[str] | None) -> list[tuple[int, int]]:
        """Return (in, out) of the layers that the targets select."""
        if targets is None or targets == "all-linear":
            return []
        sizes = [(i, o) for i, o, n in self.linears for _ in range(n)]
        named = {
            f"model.layers.{k}.{name}": size
            for k in range(self.layers)
            for name, size in zip(NAMES, sizes, strict=False)
        }
        if isinstance(targets, str):
            try:
                return [size for name, size in named.items() if re.fullmatch(targets, name)]
            except re.error:
                return []
        ends = tuple(f".{target}" for target in targets)
        return [size for name, size in named.items() if f".{name}".endswith(ends)]


def _known(h: int, n: int, ff: int, heads: int, kv: int, vocabulary: int, tied: bool = False) -> ModelShape:
    return ModelShape(
        hidden=h,
        layers=n,
        feed_forward=ff,
        heads=heads,
        kv_heads=kv,
        head_dim=128 if h > 900 else h // heads,
        vocabulary=vocabulary,
        tied=tied,
    )


KNOWN = (
    _known(896, 24, 4864, 14, 2, 151936, True),
    _known(2048, 16, 8192, 32, 8, 128256, True),
    _known(3072, 28, 8192, 24, 8, 128256, True),
    _known(4096, 32, 14336, 32, 8, 128256),
    _known(5120, 40, 17408, 40, 8, 151936),
    _known(5120, 64, 25600, 64, 8, 151936),
    _known(8192, 80, 28672, 64, 8, 128256),
)
"""Published configurations: Qwen2.5-0.5B, Llama-3.2-1B and -3B, Llama-3.1-8B, Qwen3-14B and -32B,
Llama-3.1-70B."""
