"""The generation loop for inference and training, with continuous batching. Rows join and leave the batch
while others continue. Each row has its own adapter and random numbers.

By default, each prompt is prefilled alone and without padding, so that other requests cannot change its first
token. Callers with many prompts pass a `PromptReader`, which prefills several prompts in one pass. The
resulting cache is padded on the left and appended to the cache of the rows in progress. If the architecture's
caches can't be concatenated, rows are processed one after another. Imports torch."""

# The type annotations of torch, transformers and peft are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.functional import linear, pad

from orchestrate.local.model import sampling
from orchestrate.local.model.loaded import give_back, out_of_memory, run_pass
from orchestrate.local.model.sampling import (
    NO_MEMORY,
    DrawnToken,
    GrowingLayer,
    SamplingSettings,
    draw,
    new_cache,
    takes,
)
from orchestrate.local.model.sampling.quick_pass import quick_of

PLAIN = ("Linear", "Linear4bit", "Linear8bitLt")
"""PEFT's layer classes that only add a low-rank product to the base layer's output."""

Matrices = tuple[Tensor, Tensor, float]
"""The low-rank matrices A and B, and the scale of their product."""


class Mixing:
    """Runs each row of a batch with its own adapter. PEFT can do this too, but it installs hooks on every
    module for each forward pass, which takes longer than a short forward pass itself. Here the layers'
    adapters are disabled until `end`, and one permanent hook per layer adds the output of each row's
    adapter."""

    def __init__(self, model: Any) -> None:
        self.adapters = frozenset(model.peft_config)
        self._layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self.groups: list[tuple[str, Tensor | None]] = []
        """The adapters in the next pass, each with the indices of its rows. `None` means all rows."""
        self._hooks: list[Any] = []
        for layer in self._layers:
            layer._disable_adapters = True  # as `enable_adapters(False)`, without its pass over gradients
            self._hooks.append(layer.register_forward_hook(_Adding(self, _matrices(layer))))

    def end(self) -> None:
        """Remove the hooks and enable PEFT's adapters again."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            layer._disable_adapters = False

    def rows(self, names: Sequence[str], device: torch.device) -> None:
        """Set the adapter of each row for the next forward pass. Rows whose adapter is not loaded use the
        base model."""
        places: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            if name in self.adapters:
                places.setdefault(name, []).append(place)
        self.groups = [
            (name, None if len(found) == len(names) else torch.tensor(found, device=device))
            for name, found in places.items()
        ]

    def add(self, matrices: dict[str, Matrices], given: Tensor, said: Tensor) -> Tensor:
        for name, index in self.groups:
            found = matrices.get(name)
            if found is None:
                continue
            a, b, scale = found
            # Like PEFT, add before rounding, so that evaluations give the same answers as the server.
            more = linear(linear((given if index is None else given[index]).to(a.dtype), a), b) * scale
            if index is None:
                said = (said + more).to(said.dtype)
            else:
                said.index_copy_(0, index, (said[index] + more).to(said.dtype))
        return said


class _Adding:
    """The hook of one layer."""

    def __init__(self, mixing: Mixing, matrices: dict[str, Matrices]) -> None:
        self._mixing, self._matrices = mixing, matrices

    def __call__(self, layer: Any, given: tuple[Any, ...], said: Tensor) -> Tensor:
        del layer
        return self._mixing.add(self._matrices, given[0], said)


def can_mix(model: Any) -> bool:
    """Return whether all of a model's adapters can be mixed in one batch."""
    if not hasattr(model, "peft_config"):
        return False
    if any(_is_alone(config) for config in model.peft_config.values()):
        return False
    return all(_is_plain(layer) for layer in model.modules() if isinstance(layer, LoraLayer))


def _is_alone(config: Any) -> bool:
    """Return whether an adapter cannot be applied to individual rows of a batch."""
    return any(getattr(config, name, None) for name in ALONE)


def _is_plain(layer: Any) -> bool:
    if type(layer).__name__ not in PLAIN or layer.merged or getattr(layer, "lora_variant", None):
        return False
    return all(b.bias is None for b in layer.lora_B.values())


def _matrices(layer: Any) -> dict[str, Matrices]:
    return {
        name: (layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
        for name in layer.lora_A
    }


BASE = "__base__"
"""The adapter name of rows without an adapter."""
KINDS = ("GrowingLayer", "LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer", "DummyLayer")
"""Names of the supported cache layer classes: one column per position, one state per row, both, and layers
that reuse an earlier layer's cache. Names are used because some releases of transformers lack some of these
classes."""
AS_IT_IS = ""
"""Adapter name that means: use the adapter that the caller has already activated."""
ALONE = ("use_dora", "trainable_token_indices", "modules_to_save", "target_parameters")
"""Adapter features that PEFT cannot apply to individual rows of a batch."""
PROMPTS_A_STEP = 4
"""Number of prompts that are prefilled between two decoding steps."""


class Torn(Exception):
    """Raised if the model is in an unusable state. The process must then be restarted."""


@dataclass
class DecodingRow:
    """One answer in progress."""

    key: str
    """Key for canceling the row. Several rows may have the same key."""
    adapter: str
    """The name that PEFT uses for the adapter, or `BASE`."""
    prompt: list[int]
    settings: SamplingSettings
    """Sampling settings."""
    room: int
    """Maximum number of tokens in the answer."""
    stops: frozenset[int] = frozenset()
    """Tokens that end the answer."""
    others: tuple[tuple[int, ...], ...] = ()
    """Token sequences that begin another speaker's turn. They also end the answer."""
    alone: bool = False
    """True if the row must be processed individually. In 16 bits, batching changes the rounding of sums."""
    copies: list[DecodingRow] = field(default_factory=list["DecodingRow"])
    """Rows for other answers to the same prompt. The prompt is prefilled once for all of them."""
    ids: list[int] = field(default_factory=list[int])
    counts: Counter[int] = field(default_factory=Counter[int])
    ended: bool = False
    close: bool | None = None
    """True if rounding could have changed one of the row's tokens (see `sampling.close`). `None` if this is
    not tracked."""

    @property
    def read(self) -> list[int]:
        """The tokens to prefill before the next token can be sampled."""
        return [*self.prompt, *self.ids]


@dataclass
class Read:
    """Prefilled prompts."""

    logits: Tensor
    """Logits of the next token, as [rows, vocabulary]."""
    cache: Any
    mask: Tensor
    """Attention mask, as [rows, columns]: 1 where a row has a token."""


class PromptReader(Protocol):
    """Prefills prompts and decides how many are prefilled at once."""

    @property
    def joins(self) -> bool:
        """True if prompts can be padded, because padding does not change which token the model predicts
        next."""
        ...

    def at_once(self, model: Any, rows: Sequence[DecodingRow]) -> int:
        """Return how many of the rows, starting with the first, can be prefilled in one forward pass."""
        ...

    def read(self, model: Any, rows: Sequence[DecodingRow]) -> Read: ...


class DecodingBatch:
    """Rows that are decoded in one batch. Each forward pass adds a token to every row and a column to the
    cache. Rows that join later are left-padded."""

    def __init__(self) -> None:
        self.rows: list[DecodingRow] = []
        self.cache: Any = None
        self.mask: Tensor | None = None
        """Attention mask, as [rows, columns]: 1 where a row has a token."""

        self.fixed = False
        """True if ended rows stay in the batch until the last row has ended, because the cache cannot be
        split."""

    def join(self, rows: Sequence[DecodingRow], read: Read, index: Tensor) -> None:
        """Add rows to the batch. The prompt of row i is entry `index[i]` of `read`."""
        cache, mask = read.cache, read.mask[index]
        for layer in cache.layers:
            _select(layer, index)
        if self.cache is None or self.mask is None:
            self.cache, self.mask = cache, mask
        else:
            longest = max(mask.shape[1], self.mask.shape[1])
            self.mask = torch.cat([pad(m, (longest - m.shape[1], 0)) for m in (self.mask, mask)])
            for mine, theirs in zip(self.cache.layers, cache.layers, strict=True):
                _side_by_side(mine, theirs)
        self.rows += rows

    def drop_ended(self) -> None:
        """Remove rows that have ended, and leading columns that are empty in all remaining rows."""
        kept = _closed_up([row.ended for row in self.rows])
        if len(kept) == len(self.rows) or self.mask is None or (self.fixed and kept):
            return
        self.rows = [self.rows[n] for n in kept]
        if not kept:
            self.cache = self.mask = None
            return
        index = torch.tensor(kept, device=self.mask.device)
        mask = self.mask[index]
        empty = int((mask.sum(dim=0) > 0).long().argmax())
        self.mask = mask[:, empty:]
        for layer in self.cache.layers:
            if isinstance(layer, GrowingLayer):
                layer.keep(kept)
            else:
                _select(layer, index)
            for name in _columns(layer) if empty else ():
                setattr(layer, name, getattr(layer, name)[..., empty:, :])

    def inputs(self) -> dict[str, Any]:
        """Return the model inputs for the next decoding step. Adds a column to the mask."""
        mask = self.mask
        assert mask is not None  # noqa: S101  there are rows
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=mask.device)
        places = mask.sum(dim=1, keepdim=True)
        self.mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return {
            "input_ids": ids,
            "attention_mask": self.mask,
            "position_ids": places,
        }


class Batching:
    """All waiting and active rows of a model and its adapters."""

    def __init__(self, model: Any, *, most_rows: int, reader: PromptReader | None = None) -> None:
        self.model = self._forward = model
        self.most_rows = most_rows
        self._reader = reader
        self.waiting: list[DecodingRow] = []
        self._batches: dict[str, DecodingBatch] = {}
        self._lies: bool | None = None
        self._mixing: Mixing | None = None
        self._device = model.device  # slow: transformers searches the weights
        self._cache, only_last = takes(model)
        self._last = {"logits_to_keep": 1} if only_last else {}

    def use(self, model: Any) -> Any:
        """Switch to the same model with different adapters. Answers in progress continue."""
        self.changing()
        self.model = self._forward = model
        self._mixing = Mixing(model) if can_mix(model) else None
        if (quick := quick_of(model)) is not None:
            adapters = list(getattr(model, "peft_config", ()))
            fits = self._mixing is not None or not adapters
            quick.bind(self._mixing, adapters, fits=fits)
            if fits:  # PEFT's wrappers would only hand the call on
                self._forward = quick
        return model

    def changing(self) -> None:
        """Remove the per-row adapter hooks, so that adapters can be added or removed. Call `use`
        afterwards."""
        if self._mixing is not None:
            self._mixing.end()
            self._mixing = None
        if (quick := quick_of(self.model)) is not None:
            quick.mixing = None
        self._forward = self.model

    @property
    def rows(self) -> int:
        return sum(len(batch.rows) for batch in self._batches.values())

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.rows

    def uses(self, adapter: str) -> bool:
        """Return whether a waiting or active row uses this adapter."""
        active = (row for batch in self._batches.values() for row in batch.rows)
        return any(row.adapter == adapter for row in (*active, *self.waiting))

    def cancel(self, key: str) -> None:
        self.waiting = [row for row in self.waiting if row.key != key]
        for batch in self._batches.values():
            for row in batch.rows:
                row.ended |= row.key == key
            batch.drop_ended()

    def step(self) -> Iterator[tuple[DecodingRow, DrawnToken]]:
        """Decode one token for each active row and prefill some waiting prompts. Yields each row with its new
        token. Marks rows that have ended. The caller may also end rows. If memory runs out, halves the
        maximum number of rows and prefills the active rows again."""
        with torch.no_grad():
            for name in list(self._batches):
                batch = self._batches[name]
                batch.drop_ended()
                if batch.rows:
                    yield from self._next(batch)
                    batch.drop_ended()
                if not batch.rows:
                    del self._batches[name]
            for _ in range(PROMPTS_A_STEP):
                coming = self._coming() if self.waiting else 0
                if not coming:
                    break
                rows = self.waiting[:coming]
                del self.waiting[:coming]
                yield from self._begin(rows)

    def _coming(self) -> int:
        """Return how many of the waiting rows are prefilled next, in one pass."""
        if self._reader is None:
            return int(self.rows + 1 + len(self.waiting[0].copies) <= self._room())
        room = self.most_rows - self.rows
        if self.rows and (not (self._lies and self._reader.joins) or room < self._worth()):
            return 0
        return self._reader.at_once(self.model, self.waiting[:room])

    def _worth(self) -> int:
        """Return the minimum number of waiting rows to prefill while others continue. A pass costs little
        more for several rows."""
        return min(len(self.waiting), max(1, self.most_rows // 4))

    def _room(self) -> int:
        """Return how many rows may be decoded at once, at least one group of copies."""
        if self._lies is False:
            return 0 if self.rows else 1 + len(self.waiting[0].copies)
        return self.most_rows if self.rows else max(self.most_rows, 1 + len(self.waiting[0].copies))

    def _begin(self, asked: list[DecodingRow]) -> Iterator[tuple[DecodingRow, DrawnToken]]:
        """Begin one row with its copies, or several rows."""
        read = self._read(asked)
        if read is None:
            yield from self._put_off(asked, max(1, self.rows, (self.rows + len(asked)) // 2))
            return
        rows, index = list(asked), list(range(len(asked)))
        for place, row in enumerate(asked):
            rows += row.copies
            index += [place] * len(row.copies)
            row.copies = []
        if self._lies is None:
            self._lies = all(_lies(layer) for layer in read.cache.layers)
        yield from self._take(rows, read.logits[index])
        fixed = not self._lies and len(asked) > 1
        going = [n for n, row in enumerate(rows) if fixed or not row.ended]
        if all(row.ended for row in rows):
            return
        batch = self._batches.setdefault(self._batch_of(asked[0]), DecodingBatch())
        batch.fixed = fixed
        joining = [rows[n] for n in going]
        places = torch.tensor([index[n] for n in going], device=read.mask.device)
        if not _fits(lambda: batch.join(joining, read, places)):
            yield from self._interrupted(batch, [row for row in joining if not row.ended])

    def _read(self, rows: Sequence[DecodingRow]) -> Read | None:
        """Prefill rows, or return `None` if memory has run out."""
        if self._reader is not None:
            reader, found = self._reader, list[Read]()
            return found[0] if _fits(lambda: found.append(reader.read(self.model, rows))) else None
        [row] = rows
        ids = torch.tensor([row.read], device=self.model.device)
        cache = new_cache(self.model)
        logits = self._logits(rows, cache, {"input_ids": ids, **self._last})
        return None if logits is None else Read(logits, cache, torch.ones_like(ids))

    def _batch_of(self, row: DecodingRow) -> str:
        """Return the batch for a row. Adapters that PEFT cannot mix get separate batches, and so does each
        row that must be alone."""
        if row.alone:
            return f"alone {id(row)}"
        if row.adapter == AS_IT_IS:
            return AS_IT_IS
        return "" if self._lies and self._mixes(row.adapter) else row.adapter

    def _mixes(self, adapter: str) -> bool:
        if self._mixing is not None:
            return True
        return adapter == BASE or not _is_alone(self.model.peft_config[adapter])

    def _next(self, batch: DecodingBatch) -> Iterator[tuple[DecodingRow, DrawnToken]]:
        logits = self._logits(batch.rows, batch.cache, batch.inputs())
        if logits is not None:
            yield from self._take(batch.rows, logits)
            return
        yield from self._interrupted(batch, [])

    def _logits(self, rows: Sequence[DecodingRow], cache: Any, inputs: dict[str, Any]) -> Tensor | None:
        """Compute the logits [rows, vocabulary] of the next token, or return `None` if memory has run out."""
        found: list[Tensor] = []

        def compute() -> None:
            with self._as(rows) as more:
                out = self._passed(**inputs, use_cache=True, **{self._cache: cache}, **more)
            found.append(out.logits[:, -1])

        return found[0] if _fits(compute) else None

    def _passed(self, **inputs: Any) -> Any:
        """Run a forward pass. Raises `Torn` if PEFT mixed the adapters, because its hooks then remain in the
        model."""
        try:
            return self._forward(**inputs)
        except (RuntimeError, MemoryError) as error:
            if "adapter_names" in inputs:
                raise Torn("the model is no longer usable") from error
            raise

    def _interrupted(
        self, batch: DecodingBatch, coming: list[DecodingRow]
    ) -> Iterator[tuple[DecodingRow, DrawnToken]]:
        """Recover from running out of memory in the middle of a batch, when only some layers' caches have the
        new tokens."""
        half = max(1, (self.rows + len(coming)) // 2)
        there = [row for row in batch.rows if not row.ended]
        rows, batch.rows, batch.cache, batch.mask = [*there, *coming], [], None, None
        yield from self._put_off(rows, half)

    def _put_off(self, rows: list[DecodingRow], most: int) -> Iterator[tuple[DecodingRow, DrawnToken]]:
        """Postpone rows until fewer rows are decoded. A row that was already alone can never fit."""
        give_back(self.model.device)
        if len(rows) > 1 or self.rows:
            self.most_rows = min(self.most_rows, most)
            self.waiting[:0] = rows
            return
        for row in [*rows, *rows[0].copies]:
            row.ended = True
            yield row, DrawnToken(0, failed=NO_MEMORY)

    def _take(self, rows: Sequence[DecodingRow], logits: Tensor) -> Iterator[tuple[DecodingRow, DrawnToken]]:
        if any(row.ended for row in rows):  # who stays with the others until all have ended
            going = [n for n, row in enumerate(rows) if not row.ended]
            rows, logits = [rows[n] for n in going], logits[going]
        if any(row.close is False for row in rows):
            for row, close in zip(rows, sampling.close(logits), strict=True):
                row.close = row.close or (close if row.close is False else None)
        for row, drawn in zip(rows, draw(logits, [(r.settings, r.counts) for r in rows]), strict=True):
            if drawn.failed:
                row.ended = True
                yield row, drawn
                continue
            row.ids.append(drawn.id)
            row.counts[drawn.id] += 1
            over = len(row.ids) >= row.room
            row.ended = over or drawn.id in row.stops or _begins_another(row)
            yield row, drawn

    @contextmanager
    def _as(self, rows: Sequence[DecodingRow]) -> Generator[dict[str, Any]]:
        """Return the arguments that select the rows' adapters in the forward pass."""
        names = [row.adapter for row in rows]
        if self._mixing is not None:
            self._mixing.rows(names, self._device)
            yield {}
        elif names[0] == AS_IT_IS or not hasattr(self.model, "peft_config"):
            yield {}
        elif len(set(names)) > 1:
            yield {"adapter_names": names}
        elif names[0] == BASE:
            with self.model.disable_adapter():
                yield {}
        else:
            if self.model.active_adapter != names[0]:
                self.model.set_adapter(names[0])
            yield {}


def _fits(compute: Callable[[], None]) -> bool:
    """Run the computation and return whether memory sufficed."""
    try:
        run_pass(compute)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def _begins_another(row: DecodingRow) -> bool:
    return any(tuple(row.ids[-len(other) :]) == other for other in row.others)


def _lies(layer: Any) -> bool:
    """Return whether caches of this kind can be concatenated."""
    return type(layer).__name__ in KINDS


def _columns(layer: Any) -> tuple[str, ...]:
    """Return the states that have a column for each position."""
    return ("keys", "values") if getattr(layer, "keys", None) is not None else ()


def _side_by_side(mine: Any, theirs: Any) -> None:
    for name in _columns(mine):
        both: list[Tensor] = [getattr(mine, name), getattr(theirs, name)]
        longest = max(t.shape[-2] for t in both)
        joined = torch.cat([pad(t, (0, 0, longest - t.shape[-2], 0)) for t in both])
        setattr(mine, name, joined)
    if hasattr(mine, "conv_states"):
        for name in ("conv_states", "recurrent_states"):
            states: dict[int, Tensor | None] = getattr(mine, name)
            for key, state in states.items():
                if state is not None:
                    states[key] = torch.cat([state, getattr(theirs, name)[key]])


def _closed_up(ended: Sequence[bool]) -> list[int]:
    """Return the places of the remaining rows. The last ones take the places of ended rows, so that few rows
    move."""
    going = [n for n, over in enumerate(ended) if not over]
    moving = [n for n in going if n >= len(going)]
    return [moving.pop() if ended[n] else n for n in range(len(going))]


def _select(layer: Any, index: Tensor) -> None:
    for name in _columns(layer):
        setattr(layer, name, getattr(layer, name)[index])
    if hasattr(layer, "conv_states"):
        for name in ("conv_states", "recurrent_states"):
            states: dict[int, Tensor | None] = getattr(layer, name)
            for key, state in states.items():
                if state is not None:
                    states[key] = state[index]
