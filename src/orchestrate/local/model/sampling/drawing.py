"""The next token of each row, by that row's own settings and random numbers. Imports torch."""

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

NO_NUMBERS = "no_numbers"
"""The model gave none that are finite."""
NO_FORM = "no_form"
"""The form that the answer is held to took too much work."""
NO_MEMORY = "no_memory"
"""The row does not fit into memory, even alone."""
LEAST_TEMPERATURE = 1e-6
"""Below it the division overflows, and the likeliest token is as good as certain."""


class Holds(Protocol):
    """What an answer may go on with."""

    def allowed(self, logits: Tensor) -> Tensor:
        """[vocabulary]; what may not come next is -inf. Raises `ValueError` where that cannot be said."""
        ...

    def take(self, id: int) -> None:
        """The token that was drawn."""
        ...


@dataclass
class Luck:
    """How a row's tokens are drawn. Temperature 0 takes the likeliest. The same seed draws the same, whoever
    else is answered at the time."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 is all."""
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict[int, float])
    tops: int | None = None
    """How many of the likeliest tokens are returned beside the one drawn; `None` tells no
    log-probabilities."""
    generator: torch.Generator | None = None
    """`None`: random numbers are those of whoever draws, for all rows together."""
    held: Holds | None = None
    """To the form of the answer."""

    @property
    def shared(self) -> bool:
        """Whether the token is drawn together with those of other rows."""
        changed = self.presence or self.frequency or self.bias or self.top_k or self.top_p < 1
        own = self.generator is not None or self.tops is not None or self.held is not None
        return not own and not changed and bool(self.temperature)

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is wanted."""
        changed = self.temperature or self.presence or self.frequency or self.bias
        return not changed and self.tops is None and self.held is None


@dataclass(frozen=True)
class Drawn:
    id: int
    logprob: float | None = None
    """Nats, by the model itself: before temperature, penalties and biases."""
    tops: tuple[tuple[int, float], ...] = ()
    failed: str = ""
    """Why there is no token, in the API's word: `id` then means nothing."""


def draw(logits: Tensor, rows: Sequence[tuple[Luck, Counter[int]]]) -> list[Drawn]:
    """`logits`: [rows, vocabulary]. Each row comes with the tokens that it has drawn so far."""
    values, ids = logits.max(dim=-1)
    finite: list[bool] = values.isfinite().tolist()
    chosen: list[int] = ids.tolist()
    shared = [n for n, (luck, _) in enumerate(rows) if luck.shared and finite[n]]
    if shared:
        heat = torch.tensor([[max(rows[n][0].temperature, LEAST_TEMPERATURE)] for n in shared])
        odds = torch.softmax(logits[shared].float() / heat.to(logits.device), dim=-1)
        for n, [id] in zip(shared, torch.multinomial(odds, 1).tolist(), strict=True):
            chosen[n] = id
    return [
        Drawn(chosen[n], failed="" if finite[n] else NO_NUMBERS)
        if luck.plain or luck.shared or not finite[n]
        else _one(logits[n].float().cpu(), luck, counts)
        for n, (luck, counts) in enumerate(rows)
    ]


def _one(logits: Tensor, luck: Luck, counts: Counter[int]) -> Drawn:
    """`logits`: [vocabulary]."""
    told = None if luck.tops is None else torch.log_softmax(logits, dim=-1)
    changed = _changed(logits, luck, counts)
    if luck.held is not None:
        try:
            changed = luck.held.allowed(changed)
        except ValueError:
            return Drawn(0, failed=NO_FORM)
    id = _chosen(changed, luck)
    if luck.held is not None:
        luck.held.take(id)
    if told is None:
        return Drawn(id)
    tops: tuple[tuple[int, float], ...] = ()
    if luck.tops:
        values, ids = told.topk(min(luck.tops, len(told)))
        tops = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Drawn(id, told[id].item(), tops)


def _changed(logits: Tensor, luck: Luck, counts: Counter[int]) -> Tensor:
    if not (luck.bias or ((luck.presence or luck.frequency) and counts)):
        return logits
    logits = logits.clone()
    for id, bias in luck.bias.items():
        logits[id] += bias
    for id, count in counts.items():
        logits[id] -= luck.presence + luck.frequency * count
    return logits


def _chosen(logits: Tensor, luck: Luck) -> int:
    if luck.temperature < LEAST_TEMPERATURE:
        return int(logits.argmax())
    odds = torch.softmax(logits / luck.temperature, dim=-1)
    if luck.top_k or luck.top_p < 1:
        values, ids = odds.sort(descending=True, stable=True)
        before = values.cumsum(dim=0) - values
        kept = before < luck.top_p
        if luck.top_k:
            kept[luck.top_k :] = False
        kept[0] = True
        odds = torch.zeros_like(odds).scatter(0, ids[kept], values[kept])
    return int(torch.multinomial(odds, 1, generator=luck.generator))
