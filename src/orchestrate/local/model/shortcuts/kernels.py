"""Attention and norms for training on a CPU, faster than those in torch and transformers. Measured on one
core in bf16 with 16 rows of 77 tokens, forward and backward: an RMS norm of size 512 takes 4.4 to 11 ms in
transformers and 2.6 to 7 ms here. Each replacement is compared with the original on synthetic input. If the
results differ, the original is used."""

from __future__ import annotations

import types
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from orchestrate.local import machine
from orchestrate.local.model.loaded import decoder_of

# Causal attention, one block of queries at a time. Scores for keys after the block are never computed.


# The type annotations of torch are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


BLOCK = 128
"""Number of queries in a block, chosen so that their scores fit in the CPU caches."""


def attend(q: Tensor, k: Tensor, v: Tensor, before: int, scale: float) -> tuple[Tensor, list[Tensor]]:
    """Compute attention for groups of heads that share keys. q: [groups, heads, queries, dim]; k, v: [groups,
    before + queries, dim]. Query i attends to the first `before` keys (the shared prefix) and to the i + 1
    keys after them. Scores are computed in fp32, and weights are stored in the input's precision. Returns the
    result in the shape of q, and the weights of each block, which `slopes` needs."""
    asked, keys = q.float() * scale, k.float().transpose(1, 2)
    out = q.new_empty((*q.shape[:3], v.shape[2]))
    kept: list[Tensor] = []
    for begin, end in _blocks(q):
        seen = before + end
        part = asked[:, :, begin:end]
        scores = torch.bmm(part.flatten(1, 2), keys[:, :, :seen])
        later = torch.full((end - begin, end - begin), float("-inf")).triu_(1)
        scores.view(*part.shape[:3], seen)[..., before + begin :] += later
        kept.append(scores.softmax(-1).to(v.dtype))
        out[:, :, begin:end] = torch.bmm(kept[-1], v[:, :seen]).view(*part.shape[:3], -1)
    return out, kept


def slopes(
    toward: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Sequence[Tensor], before: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v. The gradients of k and v are in fp32."""
    grad_q = torch.empty_like(q)
    grad_k = torch.zeros(k.shape, dtype=torch.float32)
    grad_v = torch.zeros(v.shape, dtype=torch.float32)
    for weights, (begin, end) in zip(kept, _blocks(q), strict=True):
        seen = before + end
        part = toward[:, :, begin:end].flatten(1, 2)
        slope = torch.bmm(part, v[:, :seen].transpose(1, 2))
        slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, weights.dtype)
        grad_q[:, :, begin:end] = torch.bmm(slope, k[:, :seen]).view(grad_q[:, :, begin:end].shape)
        grad_k[:, :seen] += torch.bmm(slope.transpose(1, 2), q[:, :, begin:end].flatten(1, 2))
        grad_v[:, :seen] += torch.bmm(weights.transpose(1, 2), part)
    return grad_q.mul_(scale), grad_k.mul_(scale), grad_v


def block_count(q: Tensor) -> int:
    return -(-q.shape[2] // BLOCK)


def _blocks(q: Tensor) -> Iterator[tuple[int, int]]:
    length = q.shape[2]
    return ((begin, min(begin + BLOCK, length)) for begin in range(0, length, BLOCK))


# oneDNN compiles a kernel for each shape of a matrix.


def even(size: int) -> int:
    """Round a matrix's size up, by at most a sixteenth or 15. Sizes that differ from step to step then take
    few values, so that few kernels are compiled. In steps of 1,200 tokens of the bundled model, compiling
    took twice as long as calculating."""
    return -(-size // _unit(size)) * _unit(size)


def even_below(size: int) -> int:
    """Round a size of at least 16 down to one that `even` leaves as it is."""
    return size // _unit(size) * _unit(size)


def _unit(size: int) -> int:
    return max(16, 1 << max(size.bit_length() - 5, 0))


# Pack a step's rows into one sequence, with shared prefixes stored once.


# The type annotations of torch and numpy are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


Ids = npt.NDArray[np.integer[Any]]
Piece = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""A segment of a packed sequence, as (positions of the shared prefix, positions of the segment's own tokens).
Each of the segment's own tokens attends to the prefix, to the segment's earlier tokens and to itself."""


LONG_ROW = 512
"""Row length in tokens from which torch's own attention is faster on a CPU with AMX: on one core, forward and
backward over 8 heads took 37.0 ms here and 23.5 ms in torch for 1,024 tokens, 25.7 and 19.6 ms for 860, but
3.1 and 6.3 ms for 5 rows of 80 tokens."""
AT_ONCE = 32_768
"""Maximum number of attention scores per head if several segments are computed as one group."""


@dataclass(frozen=True)
class AttentionGroup:
    """Segments of a packed sequence whose attention is computed in one batch. A segment's queries are its own
    tokens. Its keys are the shared prefix and its own tokens."""

    first: int
    """Position of the segments' first own token in the packed sequence. They stand one after another."""
    queries: Tensor
    """Positions of the queries in the packed sequence, padded to the `even` length of the longest segment, as
    [pieces * longest]. Positions of padding are arbitrary."""
    real: Tensor
    """1 for tokens and 0 for padding, as [pieces * longest, 1]."""
    back: Tensor
    """Index in `queries` of each of the segments' own tokens, as [own tokens]."""
    keys: Tensor
    """Positions of the keys in the packed sequence, as [pieces * (before + longest)]."""
    before: int
    """Length of the shared prefix in tokens, the same for each segment."""
    sizes: tuple[int, ...]
    """Number of each segment's own tokens."""

    @property
    def pieces(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class Layout:
    groups: tuple[AttentionGroup, ...]
    long_rows: bool
    """True if torch's attention is used, because it is faster (`_long`). It rounds differently."""

    @property
    def sizes(self) -> list[int]:
        return [size for group in self.groups for size in group.sizes]


@dataclass(frozen=True)
class PackedLine:
    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    starts: list[int]
    """For each row, the index in the packed sequence of its first token after the shared prefix."""
    shared: list[int]
    """For each row, the length in tokens of the prefix that it shares with its family."""
    times: npt.NDArray[np.float32]
    """For each position in the packed sequence, the number of rows that contain its token."""
    layout: Layout


def common_start(rows: Sequence[Ids], limit: int) -> int:
    """Count the leading tokens that all rows share, up to `limit`."""
    for row in rows[1:]:
        limit = min(limit, len(row))
        differs = np.flatnonzero(row[:limit] != rows[0][:limit])
        limit = int(differs[0]) if len(differs) else limit
    return limit


def line_up(
    rows: Sequence[Ids], families: Sequence[Sequence[int]], shared: Sequence[int], *, steady: bool = False
) -> PackedLine:
    """Pack rows into one sequence in which shared prefixes occur only once. `families` is a partition of the
    rows. All rows of family f start with the same `shared[f]` tokens and have more tokens than that. With
    `steady`, the attention's kernel is not chosen by the rows' lengths."""
    begun = [f for f, n in enumerate(shared) if n]
    family = {r: f for f, members in enumerate(families) for r in members}
    order = [r for members in families for r in members]
    ids = [rows[families[f][0]][: shared[f]] for f in begun] + [rows[r][shared[family[r]] :] for r in order]
    offsets = np.cumsum([0, *(len(part) for part in ids)])
    beginning = {f: np.arange(offsets[i], offsets[i + 1]) for i, f in enumerate(begun)}
    nothing = np.arange(0)
    starts = [0] * len(rows)
    pieces: list[Piece] = [(nothing, own) for own in beginning.values()]
    for i, r in enumerate(order, len(begun)):
        starts[r] = int(offsets[i])
        pieces.append((beginning.get(family[r], nothing), np.arange(offsets[i], offsets[i + 1])))
    positions = [np.arange(shared[f]) for f in begun]
    positions += [np.arange(shared[family[r]], len(rows[r])) for r in order]
    return PackedLine(
        ids=np.concatenate(ids).astype(np.int64),
        positions=np.concatenate(positions),
        starts=starts,
        shared=[shared[family[r]] for r in range(len(rows))],
        times=np.repeat(
            np.array([len(families[f]) for f in begun] + [1] * len(order), dtype=np.float32),
            [len(part) for part in ids],
        ),
        layout=Layout(tuple(map(_group, _alike(pieces))), long_rows=not steady and _long(pieces)),
    )


def _long(pieces: Sequence[Piece]) -> bool:
    """Return whether torch's attention is faster: the CPU has AMX, no rows share a prefix, and most attention
    scores belong to rows of at least `LONG_ROW` tokens."""
    scores = [len(own) ** 2 for _, own in pieces]
    apart = not any(len(seen) for seen, _ in pieces)
    return apart and 2 * sum(n for n in scores if n >= LONG_ROW**2) > sum(scores) and machine.cpu_has_amx()


def _alike(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Group neighbors that attend to the same number of earlier tokens, and that are so short that separate
    calls would cost more than the arithmetic."""
    found: list[Piece] = []
    longest = 0
    for piece in pieces:
        seen, wider = len(piece[0]), max(longest, even(len(piece[1])))
        full = (len(found) + 1) * wider * (seen + wider) > AT_ONCE
        if found and (full or seen != len(found[0][0])):
            yield found
            found, wider = [], even(len(piece[1]))
        found.append(piece)
        longest = wider
    yield found


def _group(pieces: Sequence[Piece]) -> AttentionGroup:
    longest, before = even(max(len(own) for _, own in pieces)), len(pieces[0][0])
    queries = np.zeros((len(pieces), longest), dtype=np.int64)
    real = np.zeros((len(pieces), longest), dtype=np.float32)
    keys = np.zeros((len(pieces), before + longest), dtype=np.int64)
    for p, (seen, own) in enumerate(pieces):
        queries[p, : len(own)], real[p, : len(own)] = own, 1
        keys[p, : before + len(own)] = np.concatenate([seen, own])
    return AttentionGroup(
        first=int(pieces[0][1][0]),
        queries=torch.from_numpy(queries.reshape(-1)),
        real=torch.from_numpy(real.reshape(-1, 1)),
        back=torch.from_numpy(np.flatnonzero(real)),
        keys=torch.from_numpy(keys.reshape(-1)),
        before=before,
        sizes=tuple(len(own) for _, own in pieces),
    )


class _LineAttention(torch.autograd.Function):
    """q, k, v: [tokens, heads, dim] -> [tokens, heads, dim]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        out = torch.empty((*q.shape[:2], v.shape[2]), dtype=v.dtype)
        kept: list[Tensor] = []
        for group in layout.groups:
            found, weights = attend(*_side_by_side(group, q, k, v), group.before, scale)
            kept += weights
            _put(out, group, found)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        # In fp32, because several rows add to the gradients of a shared prefix.
        grad_k = torch.zeros(k.shape, dtype=torch.float32)
        grad_v = torch.zeros(v.shape, dtype=torch.float32)
        for group in ctx.layout.groups:
            asked = _side_by_side(group, q, k, v)
            toward = grads[0].reshape(len(q), -1).index_select(0, group.queries)
            toward = toward.mul_(group.real).view(-1, *grads[0].shape[1:])
            toward = _split(toward, group.pieces, k.shape[1])
            weights, kept = kept[: block_count(asked[0])], kept[block_count(asked[0]) :]
            found = slopes(toward, *asked, weights, group.before, ctx.scale)
            _put(grad_q, group, found[0])
            _add(grad_k, group, found[1])
            _add(grad_v, group, found[2])
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _side_by_side(group: AttentionGroup, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads = k.shape[1]
    return (
        _split(q.index_select(0, group.queries), group.pieces, kv_heads),
        _split(k.index_select(0, group.keys), group.pieces, kv_heads).squeeze(1),
        _split(v.index_select(0, group.keys), group.pieces, kv_heads).squeeze(1),
    )


def _split(x: Tensor, pieces: int, kv_heads: int) -> Tensor:
    """[pieces * tokens, heads, dim] -> [pieces * kv heads, heads per kv head, tokens, dim]: queries that
    share a key are one matrix, so that keys are not repeated."""
    each = x.shape[1] // kv_heads
    x = x.view(pieces, -1, kv_heads, each, x.shape[2]).permute(0, 2, 3, 1, 4)
    return x.reshape(pieces * kv_heads, each, -1, x.shape[4])


def _join(x: Tensor, pieces: int, heads: int, kv_heads: int) -> Tensor:
    x = x.view(pieces, kv_heads, heads // kv_heads, -1, x.shape[-1])
    return x.permute(0, 3, 1, 2, 4).reshape(-1, heads, x.shape[4])


def _put(out: Tensor, group: AttentionGroup, x: Tensor) -> None:
    kv_heads = len(x) // group.pieces
    joined = _join(x, group.pieces, out.shape[1], kv_heads)
    torch.index_select(joined, 0, group.back, out=out[group.first : group.first + len(group.back)])


def _add(total: Tensor, group: AttentionGroup, x: Tensor) -> None:
    total.index_add_(0, group.keys, _join(x, group.pieces, total.shape[1], total.shape[1]))


def line_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Compute attention over packed rows, with the shapes of transformers' attention interface: [1, heads,
    tokens, dim] -> [1, tokens, heads, dim]."""
    if layout.long_rows:
        rows = zip(*(x.split(layout.sizes, dim=2) for x in (query, key, value)), strict=True)
        gqa = query.shape[1] != key.shape[1]
        found = [
            scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
            for q, k, v in rows
        ]
        return torch.cat(found, dim=2).transpose(1, 2)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    return _LineAttention.apply(q, k, v, layout, scale)[None]  # type: ignore[no-any-return]


# The type annotations of torch, transformers and numpy are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


NAME = "orchestrate_short_rows"
SHORT_ROW = 1024
"""Maximum row length in tokens for which attention weights are stored for the backward pass. Each layer
stores about heads x length / 2 of them per token, so memory grows with the square of the length."""


_POSITIONS = ("position_ids", "cache_position")
"""Tensor arguments that `attention` can ignore. All other tensor arguments (sinks, biases, selected keys)
would change the result."""
_calls: ContextVar[list[bool] | None] = ContextVar("_calls", default=None)


@contextmanager
def watched() -> Generator[list[bool]]:
    """Yield a list with one entry per call of `attention`: True if the call used Orchestrate's kernel, False
    if it fell back to torch's."""
    calls: list[bool] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


class _Attention(torch.autograd.Function):
    """q: [rows * kv heads, heads per kv head, tokens, dim]; k, v: [rows * kv heads, tokens, dim]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out, kept = attend(q, k, v, 0, scale)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        grad_q, grad_k, grad_v = slopes(grads[0], q, k, v, kept, 0, ctx.scale)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


def is_plain(module: Any, dropout: float, more: Mapping[str, Any]) -> bool:
    """Return whether a model's arguments request plain causal attention."""
    return (
        dropout == 0.0
        and more.get("softcap") is None
        and more.get("is_causal") is not False
        and getattr(module, "is_causal", True)
        and not any(isinstance(v, Tensor) for name, v in more.items() if name not in _POSITIONS)
    )


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention with transformers' attention interface: [rows, heads, tokens, dim] -> [rows, tokens,
    heads, dim]. Falls back to torch's kernels for long rows, other devices, and anything other than plain
    causal attention."""
    rows, heads, length, dim = query.shape
    scale = dim**-0.5 if scaling is None else scaling
    plain = is_plain(module, dropout, kwargs)
    if (layout := kwargs.pop("layout", None)) is not None:
        # `Loaded.hidden` passes a mask with a single element. Any larger mask was created by the model.
        if not plain or (attention_mask is not None and attention_mask.numel() > 1):
            raise NotImplementedError(
                "attention over packed rows does not support dropout, soft cap, bias or mask"
            )
        return line_attention(query, key, value, layout, scale), None
    ours = (
        plain
        and query.device.type == "cpu"
        and length == key.shape[2] <= SHORT_ROW
        and attention_mask is None
    )
    if (calls := _calls.get()) is not None:
        calls.append(ours)
    if not ours:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    kv_heads = key.shape[1]
    each = heads // kv_heads  # queries that share a key: one matrix, so that keys are not repeated
    out = _Attention.apply(
        query.reshape(rows * kv_heads, each, length, dim),
        key.reshape(rows * kv_heads, length, dim),
        value.reshape(rows * kv_heads, length, value.shape[-1]),
        scale,
    )
    return out.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None  # pyright: ignore[reportAttributeAccessIssue]


class _Norm(torch.autograd.Function):
    """x / rms(x) * weight, the weight frozen; keeps the normed values in the input's precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = torch.linalg.vecdot(rows, rows).div_(rows.shape[1]).add_(epsilon).rsqrt_().unsqueeze(1)
        normed = rows.mul(scale).to(x.dtype)
        ctx.save_for_backward(normed, scale, weight)
        return (normed * weight).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        normed, scale, weight = ctx.saved_tensors
        grad = (grads[0].reshape(normed.shape) * weight).float()
        rows = normed.float()
        along = torch.linalg.vecdot(grad, rows).div_(rows.shape[1]).unsqueeze(1)
        grad = grad.addcmul_(rows, along, value=-1).mul_(scale)
        return grad.to(normed.dtype).view(grads[0].shape), None, None


def use_on_cpu(model: Any) -> list[str]:
    """Replace attention and norms of a transformers model with Orchestrate's. The model's own weights must be
    frozen. Returns the names of the replaced parts."""
    replaced: list[str] = []
    if model.config.get_text_config()._attn_implementation == "sdpa":
        if NAME not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
            ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        if _agrees(model):
            replaced.append("attention")
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm") and _norm_agrees(m)]
    for norm in norms:
        norm.forward = types.MethodType(_norm_forward, norm)
    return [*replaced, f"{len(norms)} norms"] if norms else replaced


def undo(model: Any) -> None:
    """Restore the library's norms and attention."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) is _norm_forward:
            del module.forward
    if model.config.get_text_config()._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


@torch.no_grad()
def _agrees(model: Any) -> bool:
    """Switch the model over, unless its hidden states change by more than rounding, or it fails."""
    ids = torch.arange(3, 35)[None] % model.get_input_embeddings().weight.shape[0]
    decoder = decoder_of(model)
    training = model.training
    model.eval()
    try:
        before = decoder(input_ids=ids, use_cache=False).last_hidden_state.float()
        model.set_attn_implementation(NAME)
        after = decoder(input_ids=ids, use_cache=False).last_hidden_state.float()
        if (before - after).norm() <= 0.05 * before.norm():
            return True
    except Exception:  # noqa: BLE001, S110  whatever a model's code raises: it keeps its own
        pass
    finally:
        model.train(training)
    model.set_attn_implementation("sdpa")
    return False


def _epsilon(norm: Any) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@torch.no_grad()
def _norm_agrees(norm: Any) -> bool:
    weight, epsilon = getattr(norm, "weight", None), _epsilon(norm)
    if weight is None or epsilon is None or weight.requires_grad:
        return False
    x = torch.linspace(-3, 5, 2 * weight.shape[0]).view(2, -1).to(weight.dtype)
    return torch.allclose(norm(x).float(), _Norm.apply(x, weight, epsilon).float(), rtol=1e-2, atol=1e-3)


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    return _Norm.apply(x, self.weight, _epsilon(self))
