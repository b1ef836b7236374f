"""A faster forward pass for Llama-like models on a CPU, with half as many operations as transformers. In
small models, call overhead dominates the time per token. This pass merges matrix products that have the same
input, rotates queries and keys in one operation, builds the mask once, and after the last layer's attention
computes only the positions whose logits are needed. It is used only if its results match those of
transformers. Calls with unsupported arguments use the transformers pass."""

# The type annotations of torch, transformers and peft are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, addcmul
from torch.linalg import vector_norm
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from orchestrate.local.model import sampling
from orchestrate.local.model.loaded import decoder_of
from orchestrate.local.model.shortcuts.probes import CLOSE, distance

KINDS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
KNOWN = {"input_ids", "attention_mask", "position_ids", "cache", "use_cache", "logits_to_keep"}
"""Supported arguments. Calls with any other argument use the transformers pass."""
FIXED = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings in which a position's angles do not depend on the length of the row."""
Group = tuple[str, Tensor | None]
"""An adapter's name and the indices of its rows. `None` means all rows."""


class Mixes(Protocol):
    """Assigns rows to adapters."""

    @property
    def groups(self) -> Sequence[Group]: ...


_ONEDNN = torch.backends.mkldnn.is_available()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `linear`. In fp32, oneDNN is used instead of MKL, which takes twice as long on AMD CPUs."""
    if not _ONEDNN or x.dtype != torch.float32:
        return linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@dataclass(frozen=True)
class _Added:
    """The term that an adapter adds to layers with the same input: B, in blocks, times A."""

    a: Tensor
    b: Tensor
    """Transposed, as [rank, outputs], which one row's product reads in order."""
    scale: Tensor | float

    @classmethod
    def of(cls, layers: Sequence[Any], name: str) -> _Added | None:
        there = [name in layer.lora_A if isinstance(layer, LoraLayer) else False for layer in layers]
        if not any(there):
            return None
        a, b, scales = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer, has in zip(layers, there, strict=True):
            a += [layer.lora_A[name].weight.data] if has else []
            b.append(layer.lora_B[name].weight.data if has else torch.zeros(layer.out_features, 0))
            scales.append(torch.full((len(b[-1]),), float(layer.scaling[name]) if has else 0.0))
        scale = torch.cat(scales).to(a[0])
        same = bool((scale == scale[0]).all())
        blocks = torch.block_diag(*(one.to(a[0]) for one in b))
        return cls(torch.cat(a), blocks.t().contiguous(), float(scale[0]) if same else scale)

    def add(self, said: Tensor, x: Tensor, index: Tensor | None) -> Tensor:
        """Add the term to the layers' outputs `said`, for all tokens or for those of `index`. Like PEFT, add
        before rounding."""
        given = x if index is None else x[index]
        low = linear(given if given.dtype == self.a.dtype else given.to(self.a.dtype), self.a)
        if index is None and isinstance(self.scale, float) and low.dtype == said.dtype == torch.float32:
            return said.addmm_(low, self.b, alpha=self.scale)
        more = (low @ self.b).mul_(self.scale)
        if index is None:
            return more.add_(said).to(said.dtype)
        return said.index_copy_(0, index, more.add_(said[index]).to(said.dtype))


class _Joined:
    """Linear layers with the same input, computed as one product. Each layer's weight is a part of the joined
    one."""

    def __init__(self, owner: Any, *names: str) -> None:
        self._owner, self._names = owner, names
        plain = [_base(layer) for layer in self.layers]
        self.weight = _joined([layer.weight.data for layer in plain])
        self.bias: Tensor | None = None
        if any(layer.bias is not None for layer in plain):
            parts = [torch.zeros(len(p.weight)) if p.bias is None else p.bias.data for p in plain]
            self.bias = torch.cat([part.to(self.weight) for part in parts])
        for layer, part in zip(plain, self.weight.split([len(p.weight) for p in plain]), strict=True):
            layer.weight.data = part
        self._added: dict[str, _Added | None] = {}

    @property
    def layers(self) -> list[Any]:
        return [getattr(self._owner, name) for name in self._names]

    @property
    def holds(self) -> bool:
        """True if the layers still have these weights. A model can be cast, or its weights replaced."""
        return _base(self.layers[0]).weight.data_ptr() == self.weight.data_ptr()

    def take(self, names: Sequence[str]) -> None:
        """Keep only these adapters."""
        layers = self.layers
        self._added = {n: self._added[n] if n in self._added else _Added.of(layers, n) for n in names}

    def __call__(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """Compute the layers. `x` is [tokens, inputs], and the groups' indices are of tokens."""
        said = product(x, self.weight, self.bias)
        for name, index in groups:
            if (found := self._added.get(name)) is not None:
                said = found.add(said, x, index)
        return said


class _Layer:
    def __init__(self, layer: Any, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.into = _Joined(attention, "q_proj", "k_proj", "v_proj")
        self.out = _Joined(attention, "o_proj")
        self.up = _Joined(mlp, "gate_proj", "up_proj")
        self.down = _Joined(mlp, "down_proj")
        self.norms = _RmsNorm(layer.input_layernorm), _RmsNorm(layer.post_attention_layernorm)
        own = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.own_norms = [_RmsNorm(norm) for norm in own if norm is not None]
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.size, self.scale = attention.head_dim, attention.scaling

    @property
    def joined(self) -> tuple[_Joined, ...]:
        return self.into, self.out, self.up, self.down

    def __call__(
        self,
        x: Tensor,
        rows: int,
        turn: tuple[Tensor, Tensor],
        seen: Any,
        mask: Tensor | None,
        groups: tuple[Sequence[Group], Sequence[Group]],
        last: int,
    ) -> Tensor:
        """Compute the layer. `x` is [rows * length, size], because operations on two dimensions have less
        overhead. `seen` is its cache. `last` is the number of last positions whose states are needed.
        `groups` are those of all tokens, and those of the last positions."""
        length = len(x) // rows
        heads, shared = self.heads, self.shared
        all_heads = self.into(self.norms[0](x), groups[0])
        all_heads = all_heads.view(rows, length, -1, self.size)
        turning, v = all_heads.split_with_sizes((heads + shared, shared), dim=2)
        if self.own_norms:
            parts = zip(self.own_norms, turning.split_with_sizes((heads, shared), dim=2), strict=True)
            turning = torch.cat([norm(part) for norm, part in parts], dim=2)
        turned = turning.roll(self.size // 2, dims=-1).mul_(turn[1]).add_(turning * turn[0])
        q, k = turned.transpose(1, 2).split_with_sizes((heads, shared), dim=1)
        v = v.transpose(1, 2)
        if seen is not None:
            k, v = seen.update(k, v)
        if last < length:
            q, x = q[:, :, -last:], x.view(rows, length, -1)[:, -last:].flatten(0, 1)
        if last == 1:  # the queries that share a key are its rows
            mask = None if mask is None else mask[:, :, -1:]
            q = q.reshape(rows, shared, heads // shared, self.size)
            found = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        else:
            columns = k.shape[2]
            alone = mask is None and last == columns
            part = None if mask is None else mask[:, :, -last:]
            if part is None and not alone:  # `is_causal` would take the last positions for the first ones
                part = _of_last(last, columns)
            found = scaled_dot_product_attention(
                q, k, v, attn_mask=part, is_causal=alone, scale=self.scale, enable_gqa=True
            ).transpose(1, 2)
        x = x + self.out(found.reshape(rows * last, -1), groups[1])
        gate, up = self.up(self.norms[1](x), groups[1]).chunk(2, dim=-1)
        return x + self.down(silu(gate).mul_(up), groups[1])


class QuickPass:
    """Replaces a model's `forward`."""

    mixing: Mixes | None = None
    """Assigns rows to adapters. `None` uses PEFT's active adapter for all rows."""

    def __init__(self, inner: Any) -> None:
        decoder = decoder_of(inner)
        self._inner, self._decoder, self.library = inner, decoder, inner.forward
        self._layers = [_Layer(layer, inner.config) for layer in decoder.layers]
        self._norm = _RmsNorm(decoder.norm)
        self._frequencies: Tensor | None = None
        """The frequencies from which `_turns` was computed."""
        self._turns = torch.empty(0)
        """Fixed rotations of the first positions, as [positions, 2, size]."""
        self._adapted: Any = None
        """A layer with adapters, from which the active adapter is read."""
        self._fits = True

    def bind(self, mixing: Mixes | None, adapters: Sequence[str], *, fits: bool) -> None:
        """Set which adapters are loaded, and how rows are assigned to them (`mixing`). `fits` is True if
        every loaded adapter is a plain low-rank product."""
        self.mixing = mixing
        self._fits = fits and all(joined.holds for one in self._layers for joined in one.joined)
        every = [layer for one in self._layers for joined in one.joined for layer in joined.layers]
        self._adapted = next((layer for layer in every if isinstance(layer, LoraLayer)), None)
        for one in self._layers if self._fits else ():
            for joined in one.joined:
                joined.take(adapters)

    def undo(self) -> None:
        """Store the model's weights as before."""
        for joined in (joined for one in self._layers for joined in one.joined):
            for layer in joined.layers:
                layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)

    def __call__(self, **given: Any) -> Any:
        given = {name: value for name, value in given.items() if value is not None}
        groups = self._groups()
        cache = given.get("cache")
        known = self._fits and groups is not None and given.keys() <= KNOWN and not torch.is_grad_enabled()
        known = known and self._layers[0].into.holds
        if not known or self._inner.training or (cache is None and given.get("use_cache") is not False):
            return self.library(**given)
        states = self._states(given, cache, groups or ())
        head = self._inner.lm_head
        plain = type(head) is torch.nn.Linear
        return SimpleNamespace(logits=product(states, head.weight, head.bias) if plain else head(states))

    def _groups(self) -> Sequence[Group] | None:
        if self.mixing is not None:
            return self.mixing.groups
        if self._adapted is None or self._adapted.disable_adapters:
            return ()
        active = self._adapted.active_adapters
        return [(active[0], None)] if len(active) == 1 and not self._adapted.merged else None

    def _states(self, given: dict[str, Any], cache: Any, groups: Sequence[Group]) -> Tensor:
        ids, mask = given["input_ids"], given.get("attention_mask")
        length = ids.shape[1]
        before = 0 if cache is None else cache.get_seq_length()
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(before, before + length, device=ids.device)[None]
        x = self._decoder.embed_tokens(ids).flatten(0, 1)
        turn = self._turn(x, positions, before + length)
        seeing = _mask(mask, before, length, x)
        kept = min(given.get("logits_to_keep") or length, length)
        every, ends = _of_tokens(groups, length), _of_tokens(groups, kept)
        for number, layer in enumerate(self._layers):
            last, those = (kept, ends) if number == len(self._layers) - 1 else (length, every)
            seen = None if cache is None else cache.layers[number]
            x = layer(x, len(ids), turn, seen, seeing, (every, those), last)
        return self._norm(x).view(len(ids), kept, -1)

    def _turn(self, x: Tensor, positions: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Return the rotation of each position's queries and keys: cosines and signed sines. All positions
        are below `columns`. Fixed rotations are computed for many positions at once."""
        rotary = self._decoder.rotary_emb
        if getattr(rotary, "rope_type", "") not in FIXED:
            found = self._turns_of(x, positions)
        else:
            # A cast replaces the frequencies, and rounds them.
            if self._frequencies is not rotary.inv_freq or len(self._turns) < columns:
                self._frequencies = rotary.inv_freq
                self._turns = self._turns_of(x, torch.arange(columns + sampling.MORE_COLUMNS)[None])[0]
            found = self._turns[positions]
        cos, sin = found.unbind(2)
        return cos[:, :, None], sin[:, :, None]

    def _turns_of(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self._decoder.rotary_emb(x, positions)
        half = sin.shape[-1] // 2
        return torch.stack((cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)), dim=2)


def _of_tokens(groups: Sequence[Group], length: int) -> Sequence[Group]:
    """Return groups of rows as groups of their tokens, of which each row has `length`."""
    if length == 1:
        return groups
    places = torch.arange(length)
    return [(name, i if i is None else (i[:, None] * length + places).flatten()) for name, i in groups]


def _joined(weights: Sequence[Tensor]) -> Tensor:
    """Join weights [outputs, inputs] along their outputs. In fp32, the result is stored transposed if this is
    faster: a product with few rows then takes a fifth to a half less time. In 16 bits, it would take a tenth
    more."""
    outputs = sum(len(weight) for weight in weights)
    # Rows of a transposed matrix that are 4 KiB or half of it apart compete for the same lines of the cache,
    # so a product takes up to 2.5 times as long.
    if weights[0].dtype != torch.float32 or outputs == 512 or outputs % 1024 == 0:
        return torch.cat(list(weights))
    whole = weights[0].new_empty(weights[0].shape[1], outputs)
    return torch.cat([weight.t() for weight in weights], dim=1, out=whole).t()


def _base(layer: Any) -> Any:
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


class _RmsNorm:
    """An RMS norm, in four operations. torch's own takes seven."""

    def __init__(self, norm: Any) -> None:
        self._weight = norm.weight
        self._epsilon = torch.tensor(norm.variance_epsilon)
        self._share = 1 / len(norm.weight)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = vector_norm(wide, dim=-1, keepdim=True)
        scale = addcmul(self._epsilon, length, length, value=self._share).rsqrt_()
        return (wide * scale).to(x.dtype).mul_(self._weight)


def _of_last(positions: int, columns: int) -> Tensor:
    """Return which columns each of the last positions attends to: all up to its own."""
    return torch.ones(positions, columns, dtype=torch.bool).tril_(columns - positions)


def _mask(mask: Tensor | None, before: int, length: int, like: Tensor) -> Tensor | None:
    """Return the mask to add to the scores, as [rows, 1, length, before + length], or `None` if causal
    attention needs no mask."""
    if mask is not None and bool(mask.all()):
        mask = None
    if mask is None and (length == 1 or not before):
        return None
    most = torch.finfo(like.dtype).max
    hidden = None if mask is None else mask.to(like.dtype).sub_(1).mul_(most)[:, None, None]
    if length == 1:
        return hidden
    later = like.new_full((length, before + length), -most).triu_(before + 1)
    return later[None, None] if hidden is None else torch.minimum(later, hidden)


def quicken(inner: Any) -> QuickPass | None:
    """Replace a model's forward pass with the quick one. Returns `None`, and changes nothing, if the
    architecture is unsupported or the logits differ."""
    if type(inner).__name__ not in KINDS or not _is_plain(inner):
        return None
    quick = QuickPass(inner)
    with suppress(Exception):  # whatever a model's code raises: it keeps its own pass
        if _agrees(inner, quick):
            inner.forward = quick
            return quick
    quick.undo()
    return None


def quick_of(model: Any) -> QuickPass | None:
    """Return a model's quick pass, or `None` if the model has none. The model may have adapters."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = vars(inner).get("forward")
    return found if isinstance(found, QuickPass) else None


def _is_plain(inner: Any) -> bool:
    config, decoder = inner.config, decoder_of(inner)
    linears = (m for name, m in decoder.layers.named_modules() if name.endswith("_proj"))
    return (
        inner.device.type == "cpu"
        and not inner.training
        and sampling.window(inner) is None
        and getattr(config, "hidden_act", "") == "silu"
        and config._attn_implementation == "sdpa"
        and all(type(layer) is torch.nn.Linear for layer in linears)
        and type(inner.lm_head) is torch.nn.Linear
    )


@torch.no_grad()
def _agrees(inner: Any, quick: QuickPass) -> bool:
    """Compare both passes on made-up tokens: a padded prompt and one more token, and the last tokens of an
    entire row."""
    ids = torch.arange(3, 35).view(2, 16) % inner.get_input_embeddings().weight.shape[0]
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[0, :5] = 0
    allowed = 1e-4 if inner.dtype == torch.float32 else CLOSE
    one, other = sampling.new_cache(inner), sampling.new_cache(inner)
    for begin, end in ((0, 16), (16, 17)):
        given: dict[str, Any] = {
            "input_ids": ids if not begin else ids[:, :1],
            "attention_mask": mask[:, :end],
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)[:, begin:end],
            "logits_to_keep": 1,
            "use_cache": True,
        }
        before = quick.library(**given, cache=one).logits.float()
        after = quick(**given, cache=other).logits.float()
        if not distance(after, before) <= allowed:
            return False
    read: dict[str, Any] = {"input_ids": ids, "logits_to_keep": 3, "use_cache": False}
    return distance(quick(**read).logits.float(), quick.library(**read).logits.float()) <= allowed
