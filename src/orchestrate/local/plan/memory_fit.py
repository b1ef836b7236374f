"""Plan how a job fits into a machine's memory, and how many tokens each forward pass may contain.
Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orchestrate.local import machine
from orchestrate.local import model as engines
from orchestrate.local.job import AdapterSettings, Hyper, Method, Preferences, Reinforcement
from orchestrate.local.model import files
from orchestrate.local.plan import ModelShape
from orchestrate.local.plan.memory import SHORT_ROW, Setup, plan
from orchestrate.types import MemoryPlan, decoding

DEFAULT_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Default maximum number of tokens in a forward pass, including padding. Halved if memory requires it."""
LONGEST = 2048
"""Assumed length in tokens of the longest row, if neither the spec nor the data specify it."""


def setup_of(
    method: Method,
    adapter: AdapterSettings,
    hyper: Hyper,
    *,
    precision: str,
    added_tokens: int = 0,
    threads: int | None = None,
) -> Setup:
    """Build the setup of a job for `plan`. `fit` later sets the number of rows, their length, and the number
    of answers sampled in one batch. `threads` are those of the job. `None` means all of this machine's
    cores."""
    unpaired = isinstance(method, Preferences) and method.unpaired
    anchored = isinstance(method, Reinforcement) and bool(method.kl_beta)
    return Setup(
        adapter=adapter.type,
        precision=precision,
        targets=adapter.targets,
        lora=adapter if added_tokens or _is_particular(adapter) else None,
        added_tokens=added_tokens,
        threads=threads or machine.cores(),
        rank=adapter.rank,
        dropout=bool(adapter.dropout),
        dora=adapter.dora,
        pairs=isinstance(method, Preferences) and not unpaired,
        judged=unpaired,
        optimizer=hyper.optimizer,
        gradient_checkpointing=hyper.gradient_checkpointing,
        copies=int(hyper.holds_best) + anchored,
        drawn=hyper.batch_size * _samples(method),
        shares=hyper.processes if hyper.sharded else 1,
    )


def _is_particular(adapter: AdapterSettings) -> bool:
    """Return whether the size of the adapter depends on more than its rank and targets."""
    more = (
        adapter.rank_pattern,
        adapter.layers_to_transform,
        adapter.exclude_modules,
        adapter.modules_to_save,
    )
    return any(setting is not None for setting in more)


def rows_of(method: Method, hyper: Hyper, lengths: Mapping[int, int]) -> tuple[Mapping[int, int], int]:
    """Compute the arguments `lengths` and `most_rows` for `fit`: the number of examples of each length in
    tokens, and the maximum number of examples per forward pass. If the method samples answers, an example is
    a prompt with an answer of maximum length."""
    samples = _samples(method)
    if not samples:
        return lengths, min(hyper.micro_batch or hyper.batch_size, hyper.batch_size)
    answered = {n + hyper.max_new_tokens: count * samples for n, count in lengths.items()}
    return answered, hyper.micro_batch or hyper.batch_size * samples


def _samples(method: Method) -> int:
    """Return the number of answers sampled for each prompt."""
    return method.samples if isinstance(method, Reinforcement) else 0


def fit(
    shape: ModelShape,
    setup: Setup,
    lengths: Sequence[int] | Mapping[int, int],
    *,
    most_rows: int,
    device: str,
    available_bytes: int | None = None,
) -> tuple[int, MemoryPlan]:
    """Return the maximum number of tokens in a forward pass, and the memory plan of the largest pass. Starts
    with the engine's default and halves it until the plan fits, as the engine does if memory runs out. A pass
    has at least one example, even if that does not fit. `lengths` are the examples' lengths in tokens (for a
    pair, the longer side), or the number of examples of each length. `most_rows` is the maximum number of
    examples in a pass, packed or not."""
    counts = sorted((lengths if isinstance(lengths, Mapping) else Counter(lengths)).items())
    tokens, longest = DEFAULT_TOKENS[device], counts[-1][0]
    while True:
        passes = _passes(counts, tokens, most_rows)
        each = 2 if setup.pairs else 1
        plans = [
            plan(
                shape,
                msgspec.structs.replace(
                    setup,
                    rows=rows * each,
                    longest=length,
                    drawn=min(setup.drawn, drawn_at_once(tokens, length)),
                ),
                device=device,
                available_bytes=available_bytes,
            )
            for rows, length in passes
        ]
        worst = max(plans, key=lambda p: p.total_bytes)
        if worst.fits is not False or tokens <= longest or all(rows == 1 for rows, _ in passes):
            return tokens, worst
        tokens = max(longest, tokens // 2)


def drawn_at_once(tokens: int, longest: int) -> int:
    """Return how many answers are sampled in one batch. The batch is larger than in training, because nothing
    is stored for a backward pass."""
    return max(1, 4 * tokens // longest)


def _passes(counts: Sequence[tuple[int, int]], tokens: int, most_rows: int) -> list[tuple[int, int]]:
    """Return (examples, tokens of the longest) of the forward passes that can need the most memory: the one
    with the longest row, those with more tokens, including padding, than any of longer rows, and rows whose
    attention stores its weights. `counts` maps tokens to examples."""
    passes: list[tuple[int, int]] = []
    rows = longest = 0  # of the pass that is being filled
    for longest_now, count in counts:
        most = min(most_rows, tokens // longest_now)
        taken = min(count, max(0, most - rows)) if rows else 0
        if count > taken:
            if rows + taken:
                passes.append((rows + taken, longest_now if taken else longest))
            full, rest = divmod(count - taken, max(1, most))
            if full:
                passes.append((max(1, most), longest_now))
            rows, taken = rest or max(1, most), 0
        rows, longest = rows + taken, longest_now
    passes.append((rows, longest))
    found = [passes[-1]]
    for short in (False, True):
        most = 0
        for rows, longest in reversed(passes):
            if (longest <= SHORT_ROW) is short and rows * longest > most:
                found.append((rows, longest))
                most = rows * longest
    return found


def shape_of(model: str, billions: float | None) -> tuple[ModelShape, str | None] | None:
    """Return the shape of a local or Hub model. If the model's configuration is not on this machine, returns
    a typical shape for its size and a note. Returns `None` if the size is also unknown."""
    config = files.config_of(model)
    if config is not None:
        try:
            return ModelShape.of(config), None
        except (KeyError, TypeError, ValueError):
            return None
    if billions is None:
        return None
    shape = ModelShape.like(billions * 1e9)
    return shape, (
        "the model's configuration is not on this machine: assuming a typical "
        f"{shape.parameters / 1e9:.1f}B architecture"
    )


def active_parameters(model: str, billions: float | None) -> float | None:
    """Return the number of parameters that a local or Hub model uses for a token, or `None` if the model's
    size is unknown."""
    found = shape_of(model, billions)
    return None if found is None else float(found[0].active_parameters)


def of_job(
    model: str,
    body: Mapping[str, Any],
    *,
    billions: float | None = None,
    longest: int | None = None,
    gpu_bytes: int | None = None,
) -> MemoryPlan | None:
    """Plan the memory of a local job, given its `body`. Returns `None` if the model's size is unknown.
    `longest` is the length of the longest row in tokens, if it is known. With `gpu_bytes`, plans for a GPU of
    that size instead of this machine."""
    found = shape_of(model, billions)
    if found is None:
        return None
    shape, remark = found
    hyper, method = Hyper.from_dict(body.get("hyper", {})), decoding.convert(body["method"], Method)
    adapter = decoding.convert(body["adapter"], AdapterSettings)
    notes = [remark] if remark else []
    if longest is None and hyper.max_seq_length is None:
        notes.append(f"assuming rows of up to {LONGEST} tokens. To count them: orchestrate check")
    longest = min(n for n in (longest or hyper.max_seq_length or LONGEST, hyper.max_seq_length) if n)
    if _samples(method) and hyper.max_seq_length is not None:
        longest = min(longest, max(1, hyper.max_seq_length - hyper.max_new_tokens))
    lengths, most_rows = rows_of(method, hyper, {longest: hyper.batch_size})
    if adapter.targets:
        notes.append("activations are estimated as if the adapter covered all linear layers")
    device = engines.expected_device("cuda" if gpu_bytes else body.get("device"))
    products = engines.precision(body.get("precision"), device, full=adapter.full)
    _, found_plan = fit(
        shape,
        setup_of(
            method,
            adapter,
            hyper,
            precision=products.name,
            added_tokens=len(body.get("added_tokens", ())),
            threads=body.get("threads"),
        ),
        lengths,
        most_rows=most_rows,
        device=device,
        available_bytes=gpu_bytes,
    )
    return msgspec.structs.replace(found_plan, notes=(*found_plan.notes, *notes))
