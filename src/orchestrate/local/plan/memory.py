"""Estimate the memory of a training run from the model's configuration alone. Torch-free, offline. Weights,
adapter, gradients and optimizer state are always in memory. Activations and logits are temporary, so the plan
computes the memory use at each point of a step where it can peak (`_moments`), and takes the maximum. The
number of bytes per token is the sum over all tensors that this engine holds at that point for a Llama-like
layer (attention, gated feed-forward, two norms), as determined with torch's record of allocations.
`benchmarks/memory.py` and the tests compare the plan with measured peaks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

import msgspec

from orchestrate.errors import SetupError
from orchestrate.local import machine
from orchestrate.local.job import AdapterKind, AdapterSettings, option
from orchestrate.local.plan import FROZEN_MOE_LAYER, MOE_LAYER, NAMES, OTHER_LAYER, ModelShape
from orchestrate.text import size
from orchestrate.types import MemoryPlan, Record

# Optimizer state per trained parameter, and the packages that optimizers need. Torch-free.


EIGHT_BIT = 1 + 4 / 256
"""Bytes per value of an 8-bit bitsandbytes state: one byte, plus a 32-bit scale for every 256 values."""
STATE_BYTES = {
    "adamw": 8.0,
    "adamw_8bit": 2 * EIGHT_BIT,
    "paged_adamw": 8.0,
    "paged_adamw_8bit": 2 * EIGHT_BIT,
    "adafactor": 0.0,
    "lion": 4.0,
    "lion_8bit": EIGHT_BIT,
    "paged_lion": 4.0,
    "paged_lion_8bit": EIGHT_BIT,
    "muon": 4.0,
    "schedule_free_adamw": 8.0,
}
"""Bytes of optimizer state per parameter. Muon's value is for matrices: it uses AdamW for all other
parameters. Adafactor stores one number per row and per column, which is negligible except for matrices with
few rows."""
LION_RATE = 0.2
"""Learning rate for Lion as a fraction of AdamW's. Lion's authors recommend a third to a tenth (Chen et al.
2023)."""
MUON_SINCE = "2.9"


class OptimizerMissing(SetupError):
    """Raised if the requested optimizer cannot run here. `fix` is the command that installs the optimizer's
    package."""


def state_bytes(optimizer: str, rank: int | None) -> float:
    """Return the bytes of optimizer state per trained parameter. `rank` is the adapter's rank, or `None` for
    full fine-tuning."""
    return 4.0 / rank if optimizer == "adafactor" and rank else STATE_BYTES[optimizer]


def require(optimizer: str, find: Callable[[str], object | None] = find_spec) -> None:
    """Raise `OptimizerMissing` if the optimizer's package is missing or too old. Doesn't import packages.
    `find` returns `None` for a package that is not installed."""
    if optimizer.startswith("schedule_free") and find("schedulefree") is None:
        raise OptimizerMissing(
            f"optimizer {optimizer} needs the package schedulefree, which is not installed",
            fix="pip install schedulefree",
        )
    if optimizer == "muon":
        from packaging.version import Version

        try:
            there = Version(version("torch"))
        except PackageNotFoundError:
            return  # said of training as a whole
        if there < Version(MUON_SINCE):
            raise OptimizerMissing(
                f"optimizer muon needs torch {MUON_SINCE} or later, but {there} is installed",
                fix=f"pip install 'torch>={MUON_SINCE}'",
            )


ALL_LINEAR = "all-linear"


def trained_parameters(shape: ModelShape, adapter: AdapterSettings, added_tokens: int = 0) -> int:
    """Count the trained parameters: low-rank matrices, fully trained modules, and the rows of added
    tokens.

    All linear layers are counted if the targets don't match Llama's names, or if the model is a mixture of
    experts."""
    whole = _whole(shape, adapter.modules_to_save or ())
    tokens = added_tokens * shape.hidden * (1 if shape.tied else 2)
    if shape.experts > 1:
        layers = adapter.layers_to_transform
        share = 1.0 if layers is None else min(1.0, len(set(layers)) / shape.layers)
        low = shape.adapter_parameters(adapter.rank, dora=adapter.dora)
        low += shape.expert_adapter_parameters(adapter.rank, adapter.target_parameters or ())
        return int(share * low) + whole + tokens
    linears = dict(_linears(shape))
    targets = adapter.targets or ALL_LINEAR
    chosen = [n for n in linears if targets == ALL_LINEAR or _matches(targets, n)] or list(linears)
    saved = adapter.modules_to_save or ()
    chosen = [n for n in chosen if not _is_saved(saved, n)]
    if adapter.exclude_modules is not None:
        chosen = [n for n in chosen if not _matches(adapter.exclude_modules, n)]
    if adapter.layers_to_transform is not None:
        chosen = [n for n in chosen if int(n.split(".")[2]) in adapter.layers_to_transform]
    low = 0
    for name in chosen:
        i, o = linears[name]
        low += _rank(adapter, name) * (i + o) + (o if adapter.dora else 0)
    return low + whole + tokens


def _linears(shape: ModelShape) -> Iterator[tuple[str, tuple[int, int]]]:
    sizes = [(i, o) for i, o, n in shape.linears for _ in range(n)]
    for layer in range(shape.layers):
        for name, both in zip(NAMES, sizes, strict=True):
            yield f"model.layers.{layer}.{name}", both


def _rank(adapter: AdapterSettings, name: str) -> int:
    """Return the rank as peft reads `rank_pattern`: the first key that matches the end of the name."""
    for key, rank in (adapter.rank_pattern or {}).items():
        with suppress(re.error):
            if re.match(rf"(.*\.)?({key})$", name):
                return rank
    return adapter.rank


def _matches(wanted: str | Sequence[str], name: str) -> bool:
    if isinstance(wanted, str):
        with suppress(re.error):
            return re.fullmatch(wanted, name) is not None
        return False
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def _whole(shape: ModelShape, saved: Sequence[str]) -> int:
    """Count the parameters of modules, including everything inside them."""
    if not saved:
        return 0
    sizes = {name: i * o for name, (i, o) in _linears(shape)}
    sizes["model.norm"] = shape.hidden
    for layer in range(shape.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            sizes[f"model.layers.{layer}.{norm}"] = shape.hidden
    named = {n for n in sizes if any(_is_saved(saved, part) for part in _above(n))}
    tables = [n for n in ("model.embed_tokens", "lm_head") if _is_saved(saved, n)]
    count = len(tables[:1]) if shape.tied else len(tables)
    return sum(sizes[n] for n in named) + count * shape.vocabulary * shape.hidden


def _is_saved(saved: Sequence[str], name: str) -> bool:
    """Return whether peft saves the module by `modules_to_save`: `norm` means every norm."""
    return name.endswith(tuple(saved)) if saved else False


def _above(name: str) -> Iterator[str]:
    """Return the name of the module and of those that contain it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per parameter in NF4 with double quantization: half a byte, plus an 8-bit scale for every 64
parameters, plus a 32-bit scale for every 256 of these scales."""
LOGITS = 1 << 25
"""Number of logits in one block, the same as `loaded.BLOCK_ELEMENTS`."""
LOGITS_AT_ONCE = 1 << 19
"""Number of logits that each of a CPU's threads processes in fp32 at once, so that they stay in its cache
through all passes."""
MOST_AT_ONCE = 16
"""Maximum of `LOGITS_AT_ONCE` that are processed at once: by so many threads, or by a GPU."""
SHORT_ROW = 1024
"""Maximum row length in tokens for which attention weights are stored for the backward pass on a CPU, the
same as `kernels.SHORT_ROW`."""
BLOCK = 128
"""Number of queries in a block of attention, the same as `kernels.BLOCK`."""
OVERHEAD = {"cpu": 680 << 20, "cuda": 900 << 20}
"""Bytes of memory used by libraries. On a CPU, 620 to 700 MiB of a worker's resident memory was not tensors
(torch 2.13, with the kernels that `launcher.KERNEL_CACHE` keeps). On a GPU, the value is typical for the
driver's context and kernels, but not measured."""
SLACK = 0.05
"""Fraction of temporary memory that the allocator loses to fragmentation."""


class Setup(Record, frozen=True, kw_only=True):
    """The settings, other than the model, on which memory use depends."""

    adapter: AdapterKind = "qlora"
    precision: str = "bf16"
    """Precision of matmuls, as chosen by `local.model.precision`. Trained weights are always in fp32."""
    rank: int = 16
    dropout: bool = False
    dora: bool = False
    targets: str | tuple[str, ...] | None = None
    """Targets of the adapter. Activations are counted as if all linear layers were targets."""
    lora: AdapterSettings | None = None
    """The adapter's settings, if its size depends on more than `rank`, `targets` and `dora`."""
    added_tokens: int = 0
    threads: int = 1
    """Number of threads that compute on a CPU."""
    packing: bool = False
    """True if `rows` counts packed sequences, each filled up to `longest` tokens."""
    rows: int = 1
    """Number of rows in a forward pass. A preference pair counts as two."""
    longest: int = 2048
    """Length of the longest row in tokens."""
    trained: float = 1.0
    """Fraction of tokens that are trained. Other tokens don't reach the output layer."""
    pairs: bool = False
    judged: bool = False
    """True if the loss uses the log-probabilities of individual answers rather than pairs."""
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    accumulates: bool = True
    """True if a step has several forward passes. During every pass except the first, gradients are in
    memory."""
    copies: int = 0
    """Number of additional fp32 copies of the trained weights: one for the best weights so far, and one for
    the initial weights if the loss includes the KL divergence from them."""
    drawn: int = 0
    """Number of answers sampled in one batch. 0 if the method doesn't sample. Each has up to `longest`
    tokens, including its prompt."""

    shares: int = 1
    """Number of processes over which the weights are sharded (FSDP), each with its own GPU. The plan covers
    one of these processes."""

    @property
    def tokens(self) -> int:
        return self.rows * self.longest

    @property
    def bytes(self) -> int:
        """Bytes per value of activations and of weights that are not quantized."""
        return 4 if self.adapter == "full" or self.precision == "fp32" else 2


class _Moment(NamedTuple):
    name: str
    activations: float
    logits: float
    gradients: float


UNIFIED = "{} shares the system's memory, which other programs use too. The plan counts all of it."


def plan(
    shape: ModelShape, setup: Setup, *, device: str | None = None, available_bytes: int | None = None
) -> MemoryPlan:
    """Estimate the peak memory of training. `available_bytes` is the device's memory. If it is `None`, this
    machine's memory is detected."""
    gpus = machine.gpus()
    device = device or ("cuda" if gpus else "cpu")
    notes = shape.notes
    if available_bytes is None and device == "cpu":
        available_bytes = machine.memory_bytes()
    elif available_bytes is None and gpus:
        available_bytes = gpus[0].memory_bytes
        if gpus[0].unified:
            notes = (*notes, UNIFIED.format(gpus[0].name))
    parts, peak = _parts(shape, setup, device)
    total = sum(parts.values())
    fits, advice = None, tuple[str, ...]()
    if available_bytes is not None:
        fits = total <= available_bytes
        advice = () if fits else tuple(_advice(shape, setup, device, available_bytes))
    return MemoryPlan(
        parts=parts,
        total_bytes=total,
        peak=peak,
        available_bytes=available_bytes,
        device=device,
        fits=fits,
        advice=advice,
        rows=setup.rows,
        longest=setup.longest,
        notes=notes,
    )


def _parts(shape: ModelShape, setup: Setup, device: str) -> tuple[dict[str, int], str]:
    full = setup.adapter == "full"
    trainable = shape.parameters if full else _adapter(shape, setup)
    peak = max(_moments(shape, setup, device), key=lambda m: m.activations + m.logits + m.gradients)
    copies = 4 * trainable * (setup.copies + (0 if full else 1))
    parts = {
        "weights": _weights(shape, setup),
        "adapter": copies,
        "gradients": peak.gradients,
        "optimizer": state_bytes(setup.optimizer, None if full else setup.rank) * trainable,
        "activations": peak.activations,
        "logits": peak.logits,
    }
    if setup.shares > 1:
        parts = _in_shares(parts, shape, setup)
    slack = SLACK * (parts["gradients"] + peak.activations + peak.logits)
    parts["overhead"] = OVERHEAD[device] + slack
    return {name: int(size) for name, size in parts.items()}, peak.name


def _in_shares(parts: Mapping[str, float], shape: ModelShape, setup: Setup) -> dict[str, float]:
    """Return the memory of one process: its share, plus what is gathered while it computes: embeddings and
    output layer, the current layer and the prefetched one. If they are trained, the gradients of one layer
    and of those two are complete until they are summed. Each process holds all constants of NF4."""
    n, few = setup.shares, _few_bits(shape, setup)
    constants = (NF4_BYTES - 0.5) * few if shape.held is None else 0.0
    outside = shape.embedding_parameters
    layer = (parts["weights"] - constants - setup.bytes * outside) / shape.layers
    together = setup.bytes * outside + 2 * layer
    if setup.adapter == "full":
        together += 4 * outside + layer
    return {
        **{name: parts[name] / n for name in ("adapter", "gradients", "optimizer")},
        **{name: parts[name] for name in ("activations", "logits")},
        "weights": (parts["weights"] - constants) / n + constants,
        "gathered layers": together,
    }


def _adapter(shape: ModelShape, setup: Setup) -> int:
    if setup.lora is not None and not setup.lora.full:
        return trained_parameters(shape, setup.lora, setup.added_tokens)
    return shape.adapter_parameters(setup.rank, dora=setup.dora, targets=setup.targets)


def kv_cache_bytes(shape: ModelShape, answers: int, tokens: int, each: int = 2) -> int:
    """Compute the size in bytes of the KV cache for a batch of answers. `tokens` is the length of each answer
    including its prompt, and `each` is the number of bytes per value."""
    return 2 * each * shape.layers * shape.kv_heads * shape.head_dim * answers * tokens


def _weights(shape: ModelShape, setup: Setup) -> float:
    few_bits = _few_bits(shape, setup)
    each = NF4_BYTES if shape.held is None else shape.held
    return each * few_bits + setup.bytes * (shape.parameters - few_bits)


def _few_bits(shape: ModelShape, setup: Setup) -> int:
    """Count the parameters that are stored in few bits."""
    held = setup.adapter == "qlora" or shape.held is not None
    return shape.linear_parameters + shape.expert_parameters if held else 0


class _LayerMemory(NamedTuple):
    """Bytes per token."""

    norm: float
    """Bytes that one norm stores for the backward pass. These are the tensors that its own gradient needs,
    and its output, which the linear layers' gradients need."""
    norm_output: float
    norm_work: float
    """Bytes of temporary memory while a norm's gradient is computed."""
    attention: float
    """Bytes that attention stores for the backward pass: queries, keys, values, and the attention weights or
    their sums."""
    attention_forward: float
    attention_backward: float
    kept: float
    """Bytes that the entire layer stores for the backward pass."""


def _layer(shape: ModelShape, setup: Setup, device: str) -> _LayerMemory:
    h, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    wide = shape.feed_forward * shape.experts_used
    full, ours = setup.adapter == "full", device == "cpu" and setup.adapter != "full"
    b = setup.bytes
    # For the backward pass, transformers' norm stores its input in fp32, and our norm (kernels.py) stores its
    # result in the model's precision. A trained norm stores both.
    own, work = (8 * h + 4, 12 * h) if full else (b * h + 4, 14 * h) if ours else (4 * h + 4, 20 * h)
    norm = own + b * h
    attention = b * (q + 2 * kv)
    if shape.qk_norm:
        attention += (2 * b if full else b if ours else 4) * (q + kv) + 4 * (shape.heads + shape.kv_heads)
    if device == "cpu" and setup.longest <= SHORT_ROW:
        # A block's attention weights extend to its last query and are stored in the model's precision. In
        # addition, one row at a time has its scores and softmax in fp32, or in the backward pass its
        # gradients.
        block = min(BLOCK, setup.longest)
        scores = shape.heads * block / setup.rows
        attention += b * shape.heads * (setup.longest + block) / 2
        forward, backward = 8 * scores + b * q, 3 * b * scores + b * q + 8 * kv
    else:
        attention, forward, backward = attention + 4 * shape.heads, b * q, b * (q + 2 * kv)
    low = 0 if full else b * setup.rank * (4 + (0 if shape.experts > 1 else 3))
    feed_forward = 4 * b * wide
    if shape.experts > 1 and not full:
        feed_forward = _experts(shape, setup)
    if setup.dropout and not full:
        # With dropout, peft's own forward pass runs. For each linear layer, it stores the fp32 input after
        # dropout and the dropout mask, but not the input before dropout.
        each = 8 if device == "cpu" else 5
        norm -= b * h
        feed_forward += each * (5 * h + q + wide) - b * wide - b * q
        low *= 2
    if setup.dora and not full:
        # With DoRA, peft's own forward pass runs too. It stores inputs and low-rank products in fp32, and the
        # base layer's output.
        norm -= b * h
        feed_forward += 4 * (5 * h + q + wide) - b * (wide + q) + (4 + b) * (q + 2 * kv + 2 * h + 2 * wide)
        low *= 2
    kept = 2 * norm + attention + b * q + feed_forward + low
    if shape.remark is not None:
        mixture = MOE_LAYER if full else FROZEN_MOE_LAYER
        kept *= mixture if shape.experts > 1 else OTHER_LAYER
    return _LayerMemory(norm, b * h, work, attention, forward, backward, kept)


def _experts(shape: ModelShape, setup: Setup) -> float:
    """Bytes that `model.experts` stores for the experts: the pair and its gate, and the outputs before
    weighting. With an adapter also the inputs of its products."""
    h, wide = shape.hidden, shape.feed_forward
    adapted = setup.lora is not None and bool(setup.lora.target_parameters)
    each = 3 * wide + h + (h + wide + 3 * setup.rank if adapted else 0)
    return setup.bytes * each * shape.experts_used


def _moments(shape: ModelShape, setup: Setup, device: str) -> Iterator[_Moment]:
    """Yield the moments of one forward and backward pass that can be its peak."""
    h, tokens = shape.hidden, setup.tokens
    wide = shape.feed_forward * shape.experts_used
    full = setup.adapter == "full"
    b = setup.bytes
    layer = _layer(shape, setup, device)
    trainable = shape.parameters if full else _adapter(shape, setup)
    gradients = 4 * trainable if setup.accumulates else 0
    copies, of_head = _copies(shape, setup, device)
    # If the embeddings are frozen, the first norm needs no gradient.
    first = 0 if full else layer.norm - layer.norm_output
    if setup.gradient_checkpointing:
        before, last, copied = b * h * shape.layers * tokens, of_head, 0.0
        copies = copies / shape.layers
    else:
        copied, copies = copies + of_head, 0
        before, last = ((shape.layers - 1) * layer.kept - first) * tokens + copied, layer.kept * tokens
    final = layer.norm - layer.norm_output
    kept = before + last + final * tokens
    logits, head_gradient = _head(shape, setup, device)
    table = 4 * shape.vocabulary * shape.hidden if full else 0
    # If embeddings are tied, the output layer's gradient is kept until the embeddings' gradient is computed.
    # Their sum is a third tensor of this size.
    waiting = table if shape.tied else 0
    one = h * tokens * setup.trained
    chosen = 2 * b * one  # hidden states of the trained tokens, and their gradient
    scaled = 4 * one  # the gradient in fp32, when the logits are no longer needed
    yield _Moment("the output layer", kept + chosen, max(logits, head_gradient, scaled), gradients)
    yield _Moment("the last norm", kept + waiting + layer.norm_work * tokens, 0, gradients)
    # A frozen 4-bit weight is dequantized. A trained weight has a new gradient in addition to the accumulated
    # one.
    kind = setup.adapter if full or shape.held is None else "qlora"
    weight = {"qlora": b, "lora": 0, "full": 4}[kind] * h * shape.feed_forward
    if setup.dora:
        # peft computes DoRA's weight norms in fp32 from an identity matrix, the adapter's product, and the
        # sum of product and weight.
        weight += 4 * shape.feed_forward * (shape.feed_forward + 3 * h)
    inside = before + waiting + copies + b * h * tokens  # and the gradient of the layer's output
    work = 4 * wide + 8 * h if setup.dropout and not full else 2 * b * wide
    yield _Moment("a layer's feed-forward", inside + (layer.kept + work) * tokens + weight, 0, gradients)
    attention = layer.norm + layer.attention
    yield _Moment(
        "attention, backward",
        inside + (attention + b * shape.heads * shape.head_dim + layer.attention_backward) * tokens,
        0,
        gradients,
    )
    yield _Moment("attention, forward", inside + (attention + layer.attention_forward) * tokens, 0, gradients)
    if setup.drawn:
        cache = kv_cache_bytes(shape, setup.drawn, setup.longest, b)
        # All prompts pass through one layer at a time. A layer's cache is copied when it grows.
        passing = (2 * b * wide + 4 * b * h) * setup.drawn * setup.longest + cache / shape.layers
        yield _Moment("sampling answers", cache + passing, 12 * setup.drawn * shape.vocabulary, 0)
    if full:
        end = copied + b * h * tokens + (3 if shape.tied else 1) * table
        yield _Moment("the embeddings", end, 0, 4 * trainable)


def _copies(shape: ModelShape, setup: Setup, device: str) -> tuple[float, float]:
    """Return the bytes of the 16-bit copies of trained weights that 16-bit matmuls use, of (all layers, the
    output layer). They are kept for the backward pass, and those that autocast makes of all weights on a GPU
    until its context ends. FSDP doesn't shard them. With checkpointing, a layer's are freed with the layer.
    """
    if setup.adapter != "full":
        return 2 * _adapter(shape, setup) if setup.bytes == 2 else 0, 0
    if device != "cuda" or setup.precision == "fp32":
        return 0, 0
    return 2 * (shape.linear_parameters + shape.expert_parameters), 2 * shape.vocabulary * shape.hidden


def _head(shape: ModelShape, setup: Setup, device: str) -> tuple[float, float]:
    """Return (bytes of the logits in progress, bytes of the output layer's gradient)."""
    block = max(16, LOGITS // shape.vocabulary)
    size = min(round(setup.tokens * setup.trained), block) * shape.vocabulary
    if setup.adapter == "full":
        # First the log-softmax, its gradient and the logits' gradient, all in fp32. Then the logits' gradient
        # and the weight's gradient.
        return 12 * size, 4 * size + 4 * shape.vocabulary * shape.hidden
    if _trains_head(shape, setup):
        return 12 * size, 0
    # All of them, which become their own slopes, and a few in fp32, with their softmax.
    parts = min(setup.threads, MOST_AT_ONCE) if device == "cpu" else MOST_AT_ONCE
    return setup.bytes * size + 8 * min(size, parts * LOGITS_AT_ONCE), 0


def _trains_head(shape: ModelShape, setup: Setup) -> bool:
    """Return whether the output layer has an adapter, or is trained itself."""
    adapter = setup.lora or AdapterSettings(type=setup.adapter, targets=setup.targets)
    # In a tied model, peft saves the output layer together with the embeddings.
    tables = ("lm_head", *(("model.embed_tokens",) if shape.tied else ()))
    if setup.added_tokens or any(_is_saved(adapter.modules_to_save or (), name) for name in tables):
        return True
    targets = adapter.targets
    if targets is None or targets == ALL_LINEAR or not _matches(targets, "lm_head"):
        return False
    return adapter.exclude_modules is None or not _matches(adapter.exclude_modules, "lm_head")


def _advice(shape: ModelShape, setup: Setup, device: str, available: int) -> Iterator[str]:
    """List changes that help, cheapest first, each in addition to the previous ones, until it fits."""
    total = sum(_parts(shape, setup, device)[0].values())
    for text, change in _changes(shape, setup):
        changed = msgspec.structs.replace(setup, **change)
        now = sum(_parts(shape, changed, device)[0].values())
        if now > 0.98 * total:
            continue
        setup, total = changed, now
        fits = now <= available
        yield f"{text} ({size(now)}{', which fits' if fits else ''})"
        if fits:
            return
    for length in (setup.longest >> k for k in range(1, setup.longest.bit_length() - 8)):
        now = sum(_parts(shape, msgspec.structs.replace(setup, longest=length), device)[0].values())
        if now <= available:
            yield f"use shorter rows: max_seq_length: {length} ({size(now)}, which fits)"
            return
    yield "use a smaller model or a larger machine"


def _changes(shape: ModelShape, setup: Setup) -> Iterator[tuple[str, Mapping[str, object]]]:
    fewest = 2 if setup.pairs else 1
    if setup.rows > fewest:
        yield (
            f"use smaller micro-batches with the same batch size: {option('micro_batch')}=1",
            {"rows": fewest, "accumulates": True},
        )
    if not setup.gradient_checkpointing:
        yield (
            "recompute activations, which makes training about a third slower: "
            f"{option('gradient_checkpointing')}=true",
            {"gradient_checkpointing": True},
        )
    if setup.adapter == "full" and setup.shares == 1:
        yield (
            "use an 8-bit optimizer: optimizer=paged_adamw_8bit",
            {"optimizer": "paged_adamw_8bit"},
        )
    if setup.adapter == "full":
        yield "train an adapter instead of all weights: adapter: lora", {"adapter": "lora"}
    if setup.adapter != "qlora" and shape.held is None:
        yield "quantize the base to 4 bits: adapter: qlora", {"adapter": "qlora"}
