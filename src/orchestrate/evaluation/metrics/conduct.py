"""Metrics that don't depend on the expected answer: length, latency, cost, refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrate.evaluation import Answer, Item, Mark
from orchestrate.evaluation.metrics.base import Totals
from orchestrate.types import MetricUsed

_REFUSAL = re.compile(
    r"""\bas\ an\ ai\b
    | \b(?: I(?:'?m|\ am)\ (?:very\ |so\ |really\ )?sorry,?\ but\b
         | I(?:'?m|\ am)\ (?:not\ comfortable|uncomfortable)\b
         | I\ (?:don't|do\ not)\ feel\ comfortable\b
         | I(?:'ll|'d|(?:'m|\ am)\ going\ to)?
           (?:\ (?:must|should|will|would|have\ to|need\ to|respectfully|politely))+\ decline\b
         | I\ (?:decline|refuse)\ to\b
         | I(?:'m|\ am)\ (?:declining|refusing)\ (?:this|that|your|the|to)\b
         | I(?:'d|\ would)\ (?:rather|prefer)\ not\ (?:to\ )?(?:help|assist|answer|say|discuss|comply)\b
         | it\ (?:(?:would\ not|wouldn't)\ be|is\ not|isn't)\ (?:appropriate|right|ethical|responsible)
           \ (?:for\ me\ )?to\ (?:help|assist|provide|answer|discuss|share|write|create)\b
         | my\ (?:guidelines|principles|policies|policy|rules|instructions|programming|training)
           \ (?:prevent|prohibit|forbid|stop|keep
                |(?:do\ not|don't|does\ not|doesn't|won't)\ (?:allow|permit|let))s?
           \ me\b
         | (?:help|assist)ing\ (?:you\ )?(?:with\ )?(?:that|this|it)\ (?:isn't|is\ not)
           \ something\ (?:that\ )?I(?:'m\ able\ to|\ can|\ am\ able\ to)\b
         | I\ (?:can't|can\ ?not|could\ not|couldn't)\ in\ good\ conscience\b
         | I(?: \ (?:really\ |simply\ |just\ )?(?:can't|can\ ?not|won't|will\ not)
                (?:\ and\ will\ not|\ be\ able\ to)?
              | (?:'?m|\ am)\ (?:just\ |simply\ )?(?:un|not\ )(?:able|willing)\ to
              | (?:'?m|\ am)\ not\ (?:allowed|permitted|going)\ to )
           \ (?:help(?!\ but)|assist|provide|answer|comply|do\ (?:that|this)|fulfill?|share|discuss|support
              |create|write|give|generate|engage|take\ part)\b
      )(?![^.!?\n]*\b(?:until|unless|before|once|yet)\b)""",
    re.IGNORECASE | re.VERBOSE,
)
"""Pattern of a refusal. Its last line excludes answers that only ask for missing input: "I can't create the
invoice until I have the amount." """
_HEAD = 300
"""Number of characters at the start of an answer in which to look for a refusal."""


def refuses(text: str) -> bool:
    """Return whether an answer refuses in its first sentences. Detects English only."""
    return bool(_REFUSAL.search(text[:_HEAD].replace("’", "'")))


def length_ratio(item: Item, answer: Answer) -> float | None:
    """Return the length of the answer divided by the length of the expected one, in characters."""
    return len(answer.text) / len(item.expected) if item.expected else None


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of the expected answers under the model: the exponential of their mean loss in nats per
    token."""

    used: MetricUsed

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        return [
            Mark(
                math.exp(a.expected_nats / a.expected_tokens)
                if a.expected_nats is not None and a.expected_tokens
                else None
            )
            for _, a in pairs
        ]

    def parts(self, item: Item, answer: Answer, mark: Mark) -> Totals | None:
        del item, mark
        return [answer.expected_nats or 0.0, float(answer.expected_tokens or 0)]

    def total(self, sums: Totals) -> float:
        nats, tokens = sums
        return math.exp(nats / tokens) if tokens else math.nan
