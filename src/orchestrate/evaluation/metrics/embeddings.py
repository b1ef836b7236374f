"""Likeness of meaning, by the vectors of an embedding model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrate.errors import UsageError
from orchestrate.evaluation.items import Answer, Item, Mark
from orchestrate.evaluation.metrics.base import MeanOfMarks
from orchestrate.evaluation.metrics.context import Embed
from orchestrate.types import MetricUsed


@dataclass(frozen=True)
class Similarity(MeanOfMarks):
    """The cosine between the vectors of the answer and of the expected answer, 0 where it is below."""

    used: MetricUsed
    embed: Embed

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        texts = list(dict.fromkeys(t for i, a in pairs for t in (i.expected, a.text) if t.strip()))
        vectors = dict(zip(texts, self.embed(texts), strict=True)) if texts else {}
        return [Mark(_cosine(vectors.get(i.expected), vectors.get(a.text))) for i, a in pairs]


def _cosine(a: Sequence[float] | None, b: Sequence[float] | None) -> float:
    if a is None or b is None:
        return 0.0  # an empty text has no meaning
    if len(a) != len(b):
        raise UsageError("the embedding model gave vectors of different lengths")
    size = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return min(1.0, max(0.0, sum(x * y for x, y in zip(a, b, strict=True)) / size)) if size else 0.0
