"""What a model has read: its caches, and the beginning that several prompts share, which is read once.
Imports torch."""

# torch and transformers describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

LEAST_SHARED = 32
"""Tokens that prompts must have in common at their beginning to be read once: a short one saves nothing."""


def new_cache(model: Any) -> Any:
    """An empty one, whose layers keep all columns: those of a sliding window would drop other ones of each
    row, and the mask looks after the window."""
    cache = _as_configured(model)
    cache.layers = [
        DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers
    ]
    return cache


def _as_configured(model: Any) -> Any:
    return DynamicCache(config=model.config.get_text_config())


def window(model: Any) -> int | None:
    """The fewest columns that a layer looks back over, those of padding among them; `None` where all look at
    all columns."""
    there = (getattr(layer, "sliding_window", None) for layer in _as_configured(model).layers)
    return min((columns for columns in there if columns is not None), default=None)


def takes(model: Any) -> tuple[str, bool]:
    """The name under which the model takes a cache, and whether it can leave out the logits of all places but
    the last."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(signature(inner.forward).parameters)
    for kind in type(inner).__mro__:  # one that only hands arguments on names neither
        if "cache" in names or "past_key_values" in names:
            break
        names |= set(signature(vars(kind).get("forward", takes)).parameters)
    return "cache" if "cache" in names else "past_key_values", "logits_to_keep" in names


def in_common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of several prompts begin with, one of each left over; 0 where they are too few."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in order share, all share.
    rows = [list(prompt) for prompt in prompts]
    ends = zip(min(rows), max(rows), strict=False)
    shared = min(map(len, rows)) - 1
    shared = next((n for n, (a, b) in enumerate(ends) if a != b or n == shared), shared)
    return shared if shared >= LEAST_SHARED else 0


def read_once(model: Any, ids: Sequence[int]) -> Any:
    """The cache of a beginning; `None` where the model's caches hold other things than a column for each
    token."""
    name, only_last = takes(model)
    cache = new_cache(model)
    more = {"logits_to_keep": 1} if only_last else {}
    model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=True, **{name: cache}, **more)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None


def for_rows(cache: Any, rows: int) -> Any:
    """A copy of a cache of one row for several."""
    copied = deepcopy(cache)
    copied.batch_repeat_interleave(rows)
    return copied
