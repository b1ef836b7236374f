"""BLEU and chrF of sacrebleu, from 0 to 1 instead of 100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from orchestrate.evaluation.items import Answer, Item, Mark
from orchestrate.evaluation.metrics.base import Totals
from orchestrate.packages import needed
from orchestrate.types import MetricUsed

# sacrebleu's types leave out what its metrics compute from.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false


@dataclass(frozen=True)
class Overlap:
    """A metric of sacrebleu: of a corpus the n-grams of all answers are counted together."""

    used: MetricUsed
    corpus: Any
    sentence: Any
    """With effective order, so that a short answer has a BLEU too."""

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        return [Mark(self.sentence.sentence_score(a.text, [i.expected]).score / 100) for i, a in pairs]

    def parts(self, item: Item, answer: Answer, mark: Mark) -> Totals | None:
        del mark
        [found] = self.corpus._extract_corpus_statistics([answer.text], [[item.expected]])
        return [float(n) for n in found]

    def total(self, sums: Totals) -> float:
        return float(self.corpus._compute_score_from_stats([round(n) for n in sums]).score) / 100


def overlap(name: str) -> Overlap:
    """`bleu` or `chrf`. Raises `MissingExtra` without sacrebleu."""
    with needed("eval", name, "sacrebleu"):
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    corpus = BLEU() if name == "bleu" else CHRF()
    sentence = BLEU(effective_order=True) if name == "bleu" else corpus
    used = MetricUsed(name=name, kind="graded", detail={"sacrebleu": version("sacrebleu")})
    return Overlap(used, corpus, sentence)
