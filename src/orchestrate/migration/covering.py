"""Which prompts to record, when not all can be: each once, then so many that cover the rest.

Half of the places go to prompts that lie apart (farthest first), so that no kind is left out; the other half
to the clusters around them by their size, so that what is common stays common. Likeness is that of near
duplicates: the sketches of `data.passes.near`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrate.data.passes import near
from orchestrate.data.passes.compare import numpy
from orchestrate.evaluation.items import Item


@dataclass(frozen=True)
class Covering:
    """`items` in the order of the file."""

    items: tuple[Item, ...]
    equal: int
    """Prompts left out because an equal one came before."""
    near: int
    """Because a nearly equal one is taken."""
    clusters: int
    """Kinds of prompts that were told apart; 0 where all are taken."""


def covering(items: Sequence[Item], most: int | None) -> Covering:
    """All different prompts, or `most` of them; the same for the same file. Raises `MissingExtra` where there
    is a choice to be made and rensa is missing."""
    first: dict[tuple[Any, ...], Item] = {}
    for item in items:
        first.setdefault((item.prompt, str(item.tools)), item)
    distinct = list(first.values())
    equal = len(items) - len(distinct)
    if most is None or len(distinct) <= most:
        return Covering(tuple(distinct), equal, 0, 0)
    fresh = near.Seen().add([_asked(item) for item in distinct])
    apart = [item for item, seen in zip(distinct, fresh, strict=True) if not seen]
    if len(apart) <= most:  # nearly equal ones fill the places that are left
        fill = [item for item, seen in zip(distinct, fresh, strict=True) if seen][: most - len(apart)]
        chosen = {item.id for item in (*apart, *fill)}
        taken = tuple(item for item in distinct if item.id in chosen)
        return Covering(taken, equal, len(distinct) - len(taken), len(apart))
    _, sketches = near.digests([_asked(item) for item in apart])
    places, clusters = _spread(sketches, most)
    taken = tuple(apart[i] for i in sorted(places))
    return Covering(taken, equal, len(distinct) - len(apart), clusters)


def _spread(sketches: Any, most: int) -> tuple[set[int], int]:
    """Indices of `most` rows, and the number of clusters."""
    np = numpy()
    centres = [0]
    likeness = (sketches == sketches[0]).mean(axis=1)
    cluster = np.zeros(len(sketches), dtype=np.int64)
    while len(centres) < max(1, most // 2):
        farthest = int(likeness.argmin())
        own = (sketches == sketches[farthest]).mean(axis=1)
        cluster[own > likeness] = len(centres)
        likeness = np.maximum(likeness, own)
        centres.append(farthest)
    chosen = set(centres)
    left = [
        [int(i) for i in np.flatnonzero(cluster == c) if int(i) not in chosen] for c in range(len(centres))
    ]
    room, total = most - len(chosen), sum(map(len, left))
    shares = [room * len(members) / total for members in left] if total else []
    counts = [int(share) for share in shares]
    rest = sorted(range(len(shares)), key=lambda c: counts[c] - shares[c])
    for c in rest[: room - sum(counts)]:
        counts[c] += 1
    for members, wanted in zip(left, counts, strict=False):
        step = len(members) / wanted if wanted else 0
        chosen.update(members[int(k * step)] for k in range(wanted))
    return chosen, len(centres)


def _asked(item: Item) -> str:
    """What tells prompts apart: not the system text, which a task's prompts share."""
    said = [m.content for m in item.prompt if m.role not in ("system", "developer")]
    return "\n".join(said) or item.prompt[-1].content
