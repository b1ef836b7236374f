"""Rows of a step in one line of tokens, without padding and with what they have in common once.

Everything in a transformer but attention looks at one token at a time, so it needs no rows; attention
gets them back from the `Layout`. Rows that begin alike, such as those under one system prompt or the two
answers of a preference pair, share their beginning: under a causal mask its hidden states are the same in
each of them, and the gradients that the rows send to it add up.
"""

# torch and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrate.local.model.shortcuts.blocks import attend, block_count, slopes

Ids = npt.NDArray[np.integer[Any]]
Piece = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""The places that it sees before itself, and its own."""


AT_ONCE = 32_768
"""Scores of a head in one group, at most, where it has more than one piece."""


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
    """[pieces * (before + longest)]"""
    before: int
    """Tokens of the shared beginning, as many for each piece."""
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
    times: npt.NDArray[np.float32]
    """Of each token: how many rows have it."""
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
    pieces: list[Piece] = []
    for i, r in enumerate(order, len(begun)):
        starts[r] = int(offsets[i])
        pieces.append((beginning.get(family[r], nothing), np.arange(offsets[i], offsets[i + 1])))
    positions = [np.arange(shared[f]) for f in begun]
    positions += [np.arange(shared[family[r]], len(rows[r])) for r in order]
    return Line(
        ids=np.concatenate(ids).astype(np.int64),
        positions=np.concatenate(positions),
        starts=starts,
        shared=[shared[family[r]] for r in range(len(rows))],
        times=np.repeat(
            np.array([len(families[f]) for f in begun] + [1] * len(order), dtype=np.float32),
            [len(part) for part in ids],
        ),
        layout=Layout(tuple(map(_group, _alike([(nothing, own) for own in beginning.values()] + pieces)))),
    )


def _alike(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Neighbours that see as many tokens before themselves, and are so short that one by one each would
    cost more in calls than in arithmetic."""
    found: list[Piece] = []
    longest = 0
    for piece in pieces:
        seen, wider = len(piece[0]), max(longest, len(piece[1]))
        full = (len(found) + 1) * wider * (seen + wider) > AT_ONCE
        if found and (full or seen != len(found[0][0])):
            yield found
            found, wider = [], len(piece[1])
        found.append(piece)
        longest = wider
    yield found


def _group(pieces: Sequence[Piece]) -> Group:
    longest, before = max(len(own) for _, own in pieces), len(pieces[0][0])
    queries = np.zeros((len(pieces), longest), dtype=np.int64)
    real = np.zeros((len(pieces), longest), dtype=np.float32)
    keys = np.zeros((len(pieces), before + longest), dtype=np.int64)
    for p, (seen, own) in enumerate(pieces):
        queries[p, : len(own)], real[p, : len(own)] = own, 1
        keys[p, : before + len(own)] = np.concatenate([seen, own])
    return Group(
        first=int(pieces[0][1][0]),
        last=int(pieces[-1][1][-1]) + 1,
        queries=torch.from_numpy(queries.reshape(-1)),
        real=torch.from_numpy(real.reshape(-1, 1)),
        back=torch.from_numpy(np.flatnonzero(real)),
        keys=torch.from_numpy(keys.reshape(-1)),
        before=before,
        pieces=len(pieces),
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
        # Several rows add to a shared beginning: in 32 bits.
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


def _side_by_side(group: Group, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _put(out: Tensor, group: Group, x: Tensor) -> None:
    kv_heads = len(x) // group.pieces
    joined = _join(x, group.pieces, out.shape[1], kv_heads)
    torch.index_select(joined, 0, group.back, out=out[group.first : group.last])


def _add(total: Tensor, group: Group, x: Tensor) -> None:
    total.index_add_(0, group.keys, _join(x, group.pieces, total.shape[1], total.shape[1]))


def line_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """[1, heads, tokens, dim] -> [1, tokens, heads, dim], as transformers' attention interface has it."""
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    return _LineAttention.apply(q, k, v, layout, scale)[None]  # type: ignore[no-any-return]
