"""Rows of a step in one line of tokens, without padding and with what they have in common once.

Everything in a transformer but attention looks at one token at a time, so it needs no rows; attention
gets them back from the `Layout`. Rows that begin alike, such as those under one system prompt or the two
answers of a preference pair, share their beginning: under a causal mask its hidden states are the same in
each of them, and the gradients that the rows send to it add up.
"""

# torch and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Group:
    """Pieces of the line whose attention is computed side by side. Each piece asks with its own tokens and
    sees those before it: its row's shared beginning, then itself."""

    first: int
    last: int
    """The pieces' own tokens lie at first:last of the line, piece after piece."""
    queries: Tensor
    """[pieces * longest] places in the line; what is beyond a piece's end points anywhere."""
    real: Tensor
    """[pieces * longest, 1] 0 beyond a piece's end."""
    back: Tensor
    """[last - first] where each own token is among the queries."""
    keys: Tensor
    """[pieces * most keys]"""
    bias: Tensor
    """[pieces or 1, longest, most keys] 0, or minus infinity for what is not seen."""
    pieces: int


@dataclass(frozen=True)
class Layout:
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Line:
    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    starts: list[int]
    """Of each row: the place of its first own token."""
    shared: list[int]
    """Of each row: how many of its tokens are in its family's beginning."""
    layout: Layout


def common_start(rows: Sequence[Ids], limit: int) -> int:
    """How many first tokens all rows have in common, at most `limit`."""
    for row in rows[1:]:
        limit = min(limit, len(row))
        differs = np.flatnonzero(row[:limit] != rows[0][:limit])
        limit = int(differs[0]) if len(differs) else limit
    return limit


def line_up(rows: Sequence[Ids], families: Sequence[Sequence[int]], shared: Sequence[int]) -> Line:
    """`families` split the rows; the rows of family f have their first `shared[f]` tokens in common, and
    each of them has more."""
    begun = [f for f, n in enumerate(shared) if n]
    family = {r: f for f, members in enumerate(families) for r in members}
    order = [r for members in families for r in members]
    ids = [rows[families[f][0]][: shared[f]] for f in begun] + [rows[r][shared[family[r]] :] for r in order]
    offsets = np.cumsum([0, *(len(part) for part in ids)])
    beginning = {f: np.arange(offsets[i], offsets[i + 1]) for i, f in enumerate(begun)}
    nothing = np.arange(0)
    starts = [0] * len(rows)
    pieces: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for i, r in enumerate(order, len(begun)):
        starts[r] = int(offsets[i])
        pieces.append((beginning.get(family[r], nothing), np.arange(offsets[i], offsets[i + 1])))
    groups = [_group([(nothing, own) for own in beginning.values()])] if begun else []
    positions = [np.arange(shared[f]) for f in begun]
    positions += [np.arange(shared[family[r]], len(rows[r])) for r in order]
    return Line(
        ids=np.concatenate(ids).astype(np.int64),
        positions=np.concatenate(positions),
        starts=starts,
        shared=[shared[family[r]] for r in range(len(rows))],
        layout=Layout((*groups, _group(pieces))),
    )


def _group(pieces: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]) -> Group:
    """Each piece: the places that it sees before itself, and its own."""
    longest = max(len(own) for _, own in pieces)
    most = max(len(before) + len(own) for before, own in pieces)
    queries = np.zeros((len(pieces), longest), dtype=np.int64)
    real = np.zeros((len(pieces), longest), dtype=np.float32)
    keys = np.zeros((len(pieces), most), dtype=np.int64)
    for p, (before, own) in enumerate(pieces):
        queries[p, : len(own)], real[p, : len(own)] = own, 1
        keys[p, : len(before) + len(own)] = np.concatenate([before, own])
    seen_before = np.array([len(before) for before, _ in pieces])
    if (seen_before == seen_before[0]).all():
        seen_before = seen_before[:1]
    last_seen = seen_before[:, None, None] + np.arange(longest)[None, :, None]
    bias = np.where(np.arange(most)[None, None] <= last_seen, np.float32(0), np.float32("-inf"))
    return Group(
        first=int(pieces[0][1][0]),
        last=int(pieces[-1][1][-1]) + 1,
        queries=torch.from_numpy(queries.reshape(-1)),
        real=torch.from_numpy(real.reshape(-1, 1)),
        back=torch.from_numpy(np.flatnonzero(real)),
        keys=torch.from_numpy(keys.reshape(-1)),
        bias=torch.from_numpy(bias),
        pieces=len(pieces),
    )


class _LineAttention(torch.autograd.Function):
    """q, k, v: [tokens, heads, dim] -> [tokens, heads, dim]. Scores in 32 bits, weights kept in the input's
    precision."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        out = torch.empty((*q.shape[:2], v.shape[2]), dtype=v.dtype)
        kept: list[Tensor] = []
        for group in layout.groups:
            queries, keys, values = _side_by_side(group, q, k, v)
            bias = _bias(group, q.shape[1], k.shape[1])
            scores = torch.baddbmm(
                bias.expand(len(queries), -1, -1),
                queries.float(),
                keys.float().transpose(1, 2),
                alpha=scale,
            )
            weights = scores.softmax(-1).to(v.dtype)
            kept.append(weights)
            _put(out, group, torch.bmm(weights, values))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        # Several rows add to a shared beginning: in 32 bits.
        grad_k = torch.zeros(k.shape, dtype=torch.float32)
        grad_v = torch.zeros(v.shape, dtype=torch.float32)
        for group, weights in zip(ctx.layout.groups, kept, strict=True):
            queries, keys, values = _side_by_side(group, q, k, v)
            toward = grads[0].reshape(len(q), -1).index_select(0, group.queries)
            toward = toward.mul_(group.real).view(-1, *grads[0].shape[1:])
            toward = _split(toward, group.pieces, k.shape[1])
            slope = torch.bmm(toward, values.transpose(1, 2)).float()
            slope = torch.ops.aten._softmax_backward_data(slope, weights.float(), -1, torch.float32)
            slope = slope.mul_(ctx.scale).to(q.dtype)
            _put(grad_q, group, torch.bmm(slope, keys))
            _add(grad_k, group, torch.bmm(slope.transpose(1, 2), queries))
            _add(grad_v, group, torch.bmm(weights.transpose(1, 2), toward))
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _side_by_side(group: Group, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads = k.shape[1]
    return (
        _split(q.index_select(0, group.queries), group.pieces, kv_heads),
        _split(k.index_select(0, group.keys), group.pieces, kv_heads),
        _split(v.index_select(0, group.keys), group.pieces, kv_heads),
    )


def _split(x: Tensor, pieces: int, kv_heads: int) -> Tensor:
    """[pieces * tokens, heads, dim] -> [pieces * kv heads, heads per kv head * tokens, dim]: queries that
    share a key are one matrix, so that keys are not repeated."""
    x = x.view(pieces, -1, kv_heads, x.shape[1] // kv_heads, x.shape[2])
    return x.permute(0, 2, 3, 1, 4).reshape(pieces * kv_heads, -1, x.shape[4])


def _join(x: Tensor, pieces: int, heads: int, kv_heads: int) -> Tensor:
    x = x.view(pieces, kv_heads, heads // kv_heads, -1, x.shape[2])
    return x.permute(0, 3, 1, 2, 4).reshape(-1, heads, x.shape[4])


def _put(out: Tensor, group: Group, x: Tensor) -> None:
    kv_heads = len(x) // group.pieces
    joined = _join(x, group.pieces, out.shape[1], kv_heads)
    torch.index_select(joined, 0, group.back, out=out[group.first : group.last])


def _add(total: Tensor, group: Group, x: Tensor) -> None:
    total.index_add_(0, group.keys, _join(x, group.pieces, total.shape[1], total.shape[1]).float())


def _bias(group: Group, heads: int, kv_heads: int) -> Tensor:
    each = heads // kv_heads
    bias = group.bias.repeat(1, each, 1) if each > 1 else group.bias
    return bias if len(bias) == 1 else bias.repeat_interleave(kv_heads, 0)


def line_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """[1, heads, tokens, dim] -> [1, tokens, heads, dim], as transformers' attention interface has it."""
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    return _LineAttention.apply(q, k, v, layout, scale)[None]  # type: ignore[no-any-return]
