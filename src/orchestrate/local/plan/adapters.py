"""How many parameters an adapter trains, from the model's shape and the adapter's settings alone.
Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from orchestrate.local.job import Adapter
from orchestrate.local.plan.sizes import NAMES, Shape

ALL_LINEAR = "all-linear"


def trained_parameters(shape: Shape, adapter: Adapter, added_tokens: int = 0) -> int:
    """Of the low-rank matrices, of modules that are trained whole, and of the rows of added tokens.

    Names are those of a Llama; targets by other names, and those of a mixture of experts, count as all.
    """
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


def _linears(shape: Shape) -> Iterator[tuple[str, tuple[int, int]]]:
    sizes = [(i, o) for i, o, n in shape.linears for _ in range(n)]
    for layer in range(shape.layers):
        for name, size in zip(NAMES, sizes, strict=True):
            yield f"model.layers.{layer}.{name}", size


def _rank(adapter: Adapter, name: str) -> int:
    """As peft reads `rank_pattern`: by the first key that fits the end of the name."""
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


def _whole(shape: Shape, saved: Sequence[str]) -> int:
    """Parameters of modules, each with all that is inside it."""
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
    """As peft reads `modules_to_save`: `norm` means every norm."""
    return name.endswith(tuple(saved)) if saved else False


def _above(name: str) -> Iterator[str]:
    """The name and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]
