"""How much memory a training run needs, by part, from the model's configuration alone. Torch-free, offline.

The per-token figures are counts of what this engine's backward pass keeps for each layer of a Llama-like
model: two normed inputs, the queries, keys, values and attention output, four tensors of the feed-forward
width, and the two 32-bit copies in the norms. They were checked against the bytes that autograd saves
(`tests/unit/local`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrate.local import machine
from orchestrate.types import Record

NF4_BYTES = 0.516
"""Per parameter with double quantisation: half a byte, an 8-bit scale per 64, and a 32-bit one per 256 of
those."""
LOGIT_BLOCK_BYTES = (1 << 25) * 10
"""A block of logits in 32 bits, its 16-bit source and gradient."""
OVERHEAD = {"cpu": 650 << 20, "cuda": 900 << 20}
"""The libraries; on a GPU the driver's context and kernels. Seen with torch 2.13."""
SLACK = 0.05
"""Of the rest: blocks that the allocator holds and cannot use."""


class Shape(Record, frozen=True, kw_only=True):
    """Of a decoder-only transformer."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    experts: int = 1
    experts_used: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a config.json. Raises `KeyError` when it is not a decoder's."""
        c = config.get("text_config") or config
        heads = int(c["num_attention_heads"])
        experts = int(c.get("num_local_experts") or c.get("num_experts") or c.get("n_routed_experts") or 1)
        wide = c.get("moe_intermediate_size") if experts > 1 else None
        return cls(
            hidden=int(c["hidden_size"]),
            layers=int(c["num_hidden_layers"]),
            feed_forward=int(wide or c["intermediate_size"]),
            heads=heads,
            kv_heads=int(c.get("num_key_value_heads") or heads),
            head_dim=int(c.get("head_dim") or int(c["hidden_size"]) // heads),
            vocabulary=int(c["vocab_size"]),
            tied=bool(c.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            experts=experts,
            experts_used=int(c.get("num_experts_per_tok") or 1) if experts > 1 else 1,
        )

    @classmethod
    def like(cls, parameters: float) -> Shape:
        """A usual shape of this size, for a model whose configuration is not at hand."""
        known = min(KNOWN, key=lambda s: abs(s.parameters - parameters))
        rest = parameters - known.embedding_parameters
        per_layer = (known.parameters - known.embedding_parameters) / known.layers
        return msgspec.structs.replace(known, layers=max(1, round(rest / per_layer)))

    @property
    def linears(self) -> list[tuple[int, int, int]]:
        """(in, out, how many) of the linear layers of one layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            (self.hidden, q, 1),
            (self.hidden, kv, 2),
            (q, self.hidden, 1),
            (self.hidden, self.feed_forward, 2 * self.experts),
            (self.feed_forward, self.hidden, self.experts),
        ]

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(i * o * n for i, o, n in self.linears)

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return self.linear_parameters + self.embedding_parameters + norms

    def adapter_parameters(self, rank: int) -> int:
        """LoRA on all linear layers."""
        return self.layers * sum(rank * (i + o) * n for i, o, n in self.linears)


def _known(h: int, n: int, ff: int, heads: int, kv: int, vocabulary: int, tied: bool = False) -> Shape:
    return Shape(
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


class Plan(Record, frozen=True, kw_only=True):
    """Bytes by part, and what to do about them."""

    parts: dict[str, int]
    total_bytes: int
    available_bytes: int | None
    device: str
    fits: bool | None
    advice: tuple[str, ...]


def plan(
    shape: Shape,
    adapter: Mapping[str, Any],
    *,
    tokens: int,
    longest: int,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    device: str | None = None,
    available_bytes: int | None = None,
) -> Plan:
    """Peak memory of training with `tokens` tokens (padding included) in one forward pass, rows of up to
    `longest`.

    `available_bytes`: of the device; `None` looks at this machine.
    """
    gpus = machine.gpus()
    device = device or ("cuda" if gpus else "cpu")
    if available_bytes is None:
        available_bytes = (
            machine.memory_bytes() if device == "cpu" else (gpus[0].memory_bytes if gpus else None)
        )
    kind = adapter["type"]
    rank = int(adapter.get("r") or 16)
    trainable = shape.parameters if kind == "full" else shape.adapter_parameters(rank)
    parts = {
        "weights": _weights(shape, kind),
        "adapter": 0 if kind == "full" else 4 * trainable,
        "gradients": 4 * trainable,
        "optimiser": (2 if optimizer != "adamw" else 8) * trainable,
        "activations": _activations(shape, kind, rank, tokens, longest, gradient_checkpointing, device),
        "logits": min(LOGIT_BLOCK_BYTES, 10 * tokens * shape.vocabulary),
        "overhead": OVERHEAD[device],
    }
    parts["overhead"] += int(SLACK * sum(parts.values()))
    total = sum(parts.values())
    fits = None if available_bytes is None else total <= available_bytes
    return Plan(
        parts=parts,
        total_bytes=total,
        available_bytes=available_bytes,
        device=device,
        fits=fits,
        advice=tuple(_advice(kind, parts, total, available_bytes, tokens, longest, gradient_checkpointing)),
    )


def _weights(shape: Shape, kind: str) -> int:
    rest = shape.parameters - shape.linear_parameters
    if kind == "full":
        return 4 * shape.parameters
    if kind == "qlora":
        # One layer at a time is spread out to 16 bits where it is used.
        widest = max(i * o for i, o, _ in shape.linears)
        return int(NF4_BYTES * shape.linear_parameters) + 2 * rest + 2 * widest
    return 2 * shape.parameters


def _activations(
    shape: Shape, kind: str, rank: int, tokens: int, longest: int, checkpointing: bool, device: str
) -> int:
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    wide = shape.feed_forward * shape.experts_used
    linears = 4 + 3 * shape.experts_used
    layer = 12 * shape.hidden + 4 * q + 4 * kv + 8 * wide + 2 * rank * linears + 4 * shape.heads + 8
    if device == "cpu" and longest <= 512:
        # Attention by plain products keeps its weights (see stepping.SHORT_ROW).
        layer += 4 * shape.heads * longest + 6 * q + 4 * (q - kv)
    if kind == "full":
        layer *= 2  # 32 bits
    working = 8 * wide + 8 * shape.hidden  # gradients on their way through one layer
    kept = 2 * shape.hidden * shape.layers + layer if checkpointing else layer * shape.layers
    return tokens * (kept + working)


def _advice(
    kind: str,
    parts: Mapping[str, int],
    total: int,
    available: int | None,
    tokens: int,
    longest: int,
    checkpointing: bool,
) -> list[str]:
    if available is None or total <= available:
        return []
    over = total - available
    found: list[str] = []
    if kind == "full":
        found.append("train an adapter instead of all weights: adapter: qlora")
    elif kind == "lora":
        found.append("hold the base in 4 bits: adapter: qlora")
    if tokens > longest and parts["activations"] * (1 - longest / tokens) > 0:
        found.append("fewer examples at once, the same batch: provider_options: {local: {micro_batch: 1}}")
    if not checkpointing and parts["activations"] > over / 2:
        found.append(
            "keep less for the backward pass: provider_options: {local: {gradient_checkpointing: true}}"
        )
    if parts["optimiser"] > over / 2 and kind == "full":
        found.append("an 8-bit optimiser: provider_options: {local: {optimizer: paged_adamw_8bit}}")
    if longest > 1024:
        found.append("shorter rows: max_seq_length")
    return found or ["a smaller model, or a larger machine"]
