"""Which of the engine's shortcuts a model bears: each is tried on made-up tokens and left out when the model
then gives other states."""

# torch and transformers describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrate.local.model.kernels import NAME, SHORT_ROW
from orchestrate.local.model.line import line_up
from orchestrate.local.model.loaded import Loaded, TrainedOnly

CLOSE = 0.03
"""Relative distance of hidden states that rounding to 16 bits explains."""
APART = 0.005
"""How much a row's states may change, relatively, with what another row says."""


def trained_only(loaded: Loaded) -> TrainedOnly | None:
    """Puts the last layer's MLP to work on the trained places alone. `None` when the architecture has no such
    MLP or would notice."""
    layers = getattr(loaded.inner.get_decoder(), "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if layers is not None else None
    if mlp is None:
        return None
    chosen, original = TrainedOnly(), mlp.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if chosen.places is None or args or kwargs:
            return original(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1])
        out = original(rows[chosen.places][None])[0]
        return torch.zeros_like(rows).index_copy(0, chosen.places, out).view(x.shape)

    ids = _ids(loaded, 16, 7).view(2, 8)
    places = torch.tensor([3, 6, 9], device=loaded.device)
    with loaded.judging(), torch.no_grad():
        wanted = loaded.hidden(ids).flatten(0, 1)[places]
        mlp.forward = forward
        loaded.trained_only = chosen
        try:
            if distance(loaded.hidden(ids, places).flatten(0, 1)[places], wanted) <= CLOSE:
                return chosen
        except (TypeError, ValueError, RuntimeError, IndexError):
            pass
    loaded.trained_only = None
    mlp.forward = original
    return None


def line_limit(loaded: Loaded) -> int:
    """Tokens up to which rows may lie in one line (`layout`), 0 when the model does not bear it: it must be
    our attention's, keep the rows apart, and give each the states that it has alone."""
    config = loaded.inner.config.get_text_config()
    if loaded.device.type != "cpu" or config._attn_implementation != NAME:
        return 0
    chance = np.random.default_rng(0)
    rows = [_ids(loaded, n, seed).cpu().numpy() for seed, n in enumerate((9, 5, 12, 7))]
    beginning = chance.integers(3, 50, 3)
    rows = [np.concatenate([beginning, row]) for row in rows]
    with loaded.judging(), torch.no_grad():
        try:
            together = _states(loaded, rows)
            alone = [loaded.hidden(torch.from_numpy(row)[None])[0, 3:] for row in rows]
            others = _states(loaded, [*rows[:1], np.concatenate([beginning, rows[0][3:]]), *rows[2:]])
        except (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError):
            return 0
    if any(distance(a, b) > CLOSE for a, b in zip(together, alone, strict=True)):
        return 0
    if any(distance(together[r], others[r]) > APART for r in (0, 2, 3)):
        return 0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min([SHORT_ROW, *(w for w in windows if w)])


def _states(loaded: Loaded, rows: Sequence[Any]) -> list[Tensor]:
    """Of each row's own tokens, the rows in one line behind three tokens that they share."""
    line = line_up(rows, [range(len(rows))], [3])
    positions = torch.from_numpy(line.positions)[None]
    states = loaded.hidden(torch.from_numpy(line.ids)[None], position_ids=positions, layout=line.layout)[0]
    return [states[s : s + len(row) - 3] for s, row in zip(line.starts, rows, strict=True)]


def head_is_understood(loaded: Loaded) -> bool:
    """Whether decoder plus head gives the model's own logits, on a few tokens."""
    ids = torch.arange(1, 5, device=loaded.device)[None] % loaded.head.layer.weight.shape[0]
    with loaded.judging(), torch.no_grad():
        own = loaded.inner(input_ids=ids, use_cache=False).logits.float()
        ours = loaded.head.logits(loaded.hidden(ids))
    return torch.allclose(own, ours, atol=1e-2, rtol=1e-2)


def _ids(loaded: Loaded, count: int, seed: int) -> Tensor:
    vocabulary = int(loaded.inner.get_input_embeddings().weight.shape[0])
    ids = np.random.default_rng(seed).integers(3, vocabulary, count)
    return torch.from_numpy(ids).to(loaded.device)


def distance(a: Tensor, b: Tensor) -> float:
    """Of `a` from `b`, relative to the length of `b`."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()
