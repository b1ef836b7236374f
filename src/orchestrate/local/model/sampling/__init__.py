"""Sample answers from a loaded model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# Sample each row's next token with the row's own settings and random numbers. Imports torch.


# The type annotations of torch are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


NO_NUMBERS = "no_numbers"
"""Error code: the model returned non-finite logits."""
NO_FORM = "no_form"
"""Error code: the constraint on the answer was too complex."""
NO_MEMORY = "no_memory"
"""Error code: the row does not fit in memory, even in a batch of one."""
LEAST_TEMPERATURE = 1e-6
"""Lower bound for the temperature. Dividing logits by a smaller value can overflow, and would select the most
likely token anyway."""


class Holds(Protocol):
    """A constraint on the tokens of an answer."""

    def allowed(self, logits: Tensor) -> Tensor:
        """Mask the logits [vocabulary]: set the logit of each forbidden token to -inf. Raises `ValueError` if
        the constraint is too complex."""
        ...

    def take(self, id: int) -> None:
        """Advance the constraint by the sampled token."""
        ...


@dataclass
class SamplingSettings:
    """Sampling settings for one row. Temperature 0 takes the most likely token. The same seed gives the same
    tokens, regardless of the other rows in the batch."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """Number of most likely tokens to sample from. 0 means all tokens."""
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict[int, float])
    tops: int | None = None
    """Number of most likely tokens whose log-probabilities are returned, besides the log-probability of the
    sampled token. `None` returns no log-probabilities at all."""
    generator: torch.Generator | None = None
    """Random number generator of the row. `None` uses the process's global generator, which other rows may
    use too."""
    held: Holds | None = None
    """Constraint that the answer must satisfy, such as a JSON schema."""

    @property
    def shared(self) -> bool:
        """True if the row uses the shared random number generator."""
        changed = self.presence or self.frequency or self.bias or self.top_k or self.top_p < 1
        own = self.generator is not None or self.tops is not None or self.held is not None
        return not own and not changed and bool(self.temperature)

    @property
    def plain(self) -> bool:
        """True if the row always takes the most likely token and needs no log-probabilities."""
        changed = self.temperature or self.presence or self.frequency or self.bias
        return not changed and self.tops is None and self.held is None


def seeded(seed: int | None, place: int) -> torch.Generator:
    """Create the random number generator for one answer. `place` is the answer's index among all answers to
    the prompt, and is added to `seed`. If `seed` is `None`, the generator is seeded randomly."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed + place)
    return generator


@dataclass(frozen=True)
class DrawnToken:
    id: int
    logprob: float | None = None
    """Log-probability of the token under the model in nats, before temperature, penalties and biases."""
    tops: tuple[tuple[int, float], ...] = ()
    failed: str = ""
    """The API's error code if no token could be sampled, otherwise empty. If it is set, `id` is
    meaningless."""


def draw(logits: Tensor, rows: Sequence[tuple[SamplingSettings, Counter[int]]]) -> list[DrawnToken]:
    """Sample the next token of each row. `logits` are [rows, vocabulary]. `rows` contains each row's settings
    and the counts of its tokens so far."""
    values, ids = logits.max(dim=-1)
    finite: list[bool] = values.isfinite().tolist()
    chosen: list[int] = ids.tolist()
    shared = [n for n, (settings, _) in enumerate(rows) if settings.shared and finite[n]]
    if shared:
        heat = torch.tensor([[max(rows[n][0].temperature, LEAST_TEMPERATURE)] for n in shared])
        odds = torch.softmax(logits[shared].float() / heat.to(logits.device), dim=-1)
        for n, [id] in zip(shared, torch.multinomial(odds, 1).tolist(), strict=True):
            chosen[n] = id
    return [
        DrawnToken(chosen[n], failed="" if finite[n] else NO_NUMBERS)
        if settings.plain or settings.shared or not finite[n]
        else _one(logits[n].float().cpu(), settings, counts)
        for n, (settings, counts) in enumerate(rows)
    ]


def _one(logits: Tensor, settings: SamplingSettings, counts: Counter[int]) -> DrawnToken:
    """Sample one token. `logits`: [vocabulary]."""
    logprobs = None if settings.tops is None else torch.log_softmax(logits, dim=-1)
    changed = _changed(logits, settings, counts)
    if settings.held is not None:
        try:
            changed = settings.held.allowed(changed)
        except ValueError:
            return DrawnToken(0, failed=NO_FORM)
    id = _chosen(changed, settings)
    if settings.held is not None:
        settings.held.take(id)
    if logprobs is None:
        return DrawnToken(id)
    tops: tuple[tuple[int, float], ...] = ()
    if settings.tops:
        values, ids = logprobs.topk(min(settings.tops, len(logprobs)))
        tops = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return DrawnToken(id, logprobs[id].item(), tops)


def _changed(logits: Tensor, settings: SamplingSettings, counts: Counter[int]) -> Tensor:
    if not (settings.bias or ((settings.presence or settings.frequency) and counts)):
        return logits
    logits = logits.clone()
    for id, bias in settings.bias.items():
        logits[id].add_(bias)
    for id, count in counts.items():
        logits[id].sub_(settings.presence + settings.frequency * count)
    return logits


def _chosen(logits: Tensor, settings: SamplingSettings) -> int:
    if settings.temperature < LEAST_TEMPERATURE:
        return int(logits.argmax())
    odds = torch.softmax(logits / settings.temperature, dim=-1)
    if settings.top_k or settings.top_p < 1:
        values, ids = odds.sort(descending=True, stable=True)
        before = values.cumsum(dim=0) - values
        kept = before < settings.top_p
        if settings.top_k:
            kept[settings.top_k :] = False
        kept[0] = True
        odds = torch.zeros_like(odds).scatter(0, ids[kept], values[kept])
    return int(torch.multinomial(odds, 1, generator=settings.generator))


# Caches, and prefixes that several prompts share and that are computed only once. Imports torch.


# The type annotations of torch and transformers are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


LEAST_SHARED = 32
"""Minimum length in tokens of a common prefix that is computed only once. Shorter prefixes save nothing."""


class GrowingLayer(DynamicLayer):
    """A cache layer that allocates columns in advance. transformers' own layer copies the entire cache for
    each token."""

    _room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        del args, kwargs
        if not self.is_initialized or self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        keys, before = self.keys, self.keys.shape[-2]
        after = before + key_states.shape[-2]
        room = self._room
        if room is None or room[0].data_ptr() != keys.data_ptr() or room[0].shape[2] < after:
            self._room = room = _with_room(keys, after), _with_room(self.values, after)
        all_keys, all_values = room
        all_keys[:, :, before:after] = key_states
        all_values[:, :, before:after] = value_states
        self.keys, self.values = all_keys[:, :, :after], all_values[:, :, :after]
        return self.keys, self.values

    @torch.inference_mode()  # as the answers, some of which are given up outside of a step
    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the cache, in this order. Rows that don't move are not copied."""
        if self.keys is None or self.values is None:
            return
        to = [place for place, row in enumerate(rows) if row != place]
        taken = [rows[place] for place in to]
        for states in (self.keys, self.values):
            if to:
                states[to] = states[taken]
        self.keys, self.values = self.keys[: len(rows)], self.values[: len(rows)]
        if self._room is not None:
            self._room = self._room[0][: len(rows)], self._room[1][: len(rows)]


MORE_COLUMNS = 32


def _with_room(states: Tensor, columns: int) -> Tensor:
    rows, heads, before, size = states.shape
    whole = states.new_empty((rows, heads, columns + MORE_COLUMNS, size))
    whole[:, :, :before] = states
    return whole


def new_cache(model: Any) -> Any:
    """Create an empty cache that never drops columns. Sliding windows are applied by the mask instead,
    because a column can be outside one row's window but inside another's."""
    cache = _as_configured(model)
    growing = (DynamicLayer, DynamicSlidingWindowLayer)
    cache.layers = [GrowingLayer() if type(layer) in growing else layer for layer in cache.layers]
    return cache


def _as_configured(model: Any) -> Any:
    return DynamicCache(config=model.config.get_text_config())


def window(model: Any) -> int | None:
    """Return the model's smallest sliding window, in columns including padding, or `None` if all layers
    attend to all columns."""
    there = (getattr(layer, "sliding_window", None) for layer in _as_configured(model).layers)
    return min((columns for columns in there if columns is not None), default=None)


def takes(model: Any) -> tuple[str, bool]:
    """Return (name of the cache argument, True if the model can compute logits for the last position
    only)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(signature(inner.forward).parameters)
    for kind in type(inner).__mro__:  # one that only hands arguments on names neither
        if "cache" in names or "past_key_values" in names:
            break
        names |= set(signature(vars(kind).get("forward", takes)).parameters)
    return "cache" if "cache" in names else "past_key_values", "logits_to_keep" in names


def in_common(prompts: Sequence[Sequence[int]]) -> int:
    """Count the leading tokens that all prompts share, excluding at least the last token of each prompt.
    Returns 0 for fewer than `LEAST_SHARED`."""
    if len(prompts) < 2:
        return 0
    # A prefix shared by the first and the last prompt in sorted order is shared by all.
    rows = [list(prompt) for prompt in prompts]
    ends = zip(min(rows), max(rows), strict=False)
    shared = min(map(len, rows)) - 1
    shared = next((n for n, (a, b) in enumerate(ends) if a != b or n == shared), shared)
    return shared if shared >= LEAST_SHARED else 0


def read_once(model: Any, ids: Sequence[int]) -> Any:
    """Compute the cache of a shared prefix. Returns `None` if the model's cache layers don't store one column
    per token."""
    name, only_last = takes(model)
    cache = new_cache(model)
    more = {"logits_to_keep": 1} if only_last else {}
    model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=True, **{name: cache}, **more)
    return cache if all(type(layer) is GrowingLayer for layer in cache.layers) else None


def for_rows(cache: Any, rows: int) -> Any:
    """Copy a single-row cache for several rows."""
    copied = deepcopy(cache)
    copied.batch_repeat_interleave(rows)
    return copied


# Find answers that depend on 16-bit rounding. In a batch, sums are computed in a different order, so a
# different token can win if two are almost equally likely. Imports torch.


# The type annotations of torch are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


CLOSE = 0.2
"""Largest gap between two tokens' logits at which 16-bit rounding can still swap their order, as a fraction
of the standard deviation of all logits."""


def close(logits: Tensor) -> list[bool]:
    """Check each row of `logits` [rows, vocabulary]: True if rounding could change its most likely token."""
    scores = logits.float()
    two = scores.topk(2, dim=-1).values
    return ((two[:, 0] - two[:, 1]) / scores.std(dim=-1) < CLOSE).tolist()


def rounds(model: Any, device: torch.device) -> bool:
    """Return whether the model computes in 16 bits."""
    return model.dtype != torch.float32 or torch.is_autocast_enabled(device.type)


def changed_by_batching(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, share: bool
) -> list[bool]:
    """Check each greedy answer: True if decoding it without a batch would have given a different token.
    Recomputes each answer individually, in one pass. With `share`, the prefix that all prompts share is
    computed once."""
    begins = in_common(prompts) if share else 0
    cache = read_once(model, prompts[0][:begins]) if begins else None
    begins = 0 if cache is None else begins
    name, only_last = takes(model)
    read: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, name: cache}
    found: list[bool] = []
    for prompt, ids in zip(prompts, answers, strict=True):
        row = torch.tensor([[*prompt[begins:], *ids[:-1]]], device=model.device)
        more = {"logits_to_keep": len(ids)} if only_last else {}
        logits = model(input_ids=row, **read, **more).logits[0, -len(ids) :]
        found.append(bool((logits.argmax(dim=-1) != torch.tensor(ids, device=logits.device)).any()))
        if cache is not None:
            cache.crop(-row.shape[1])
    return found
