"""What one evaluation may cost."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from orchestrate.evaluation.items import Answer


@dataclass
class Purse:
    """For all of its answers, those of earlier tries included. Several may be asked at the same time."""

    limit_usd: Decimal | None = None
    spent_usd: Decimal = Decimal(0)
    held_usd: Decimal = Decimal(0)
    """The worst price of requests under way."""
    counted: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def has(self, usd: Decimal) -> bool:
        return self.limit_usd is None or self.spent_usd + self.held_usd + usd <= self.limit_usd

    def hold(self, usd: Decimal) -> None:
        with self._lock:
            self.held_usd += usd

    def spend(self, usd: Decimal) -> None:
        with self._lock:
            self.spent_usd += usd

    def count(self, key: str, answers: Iterable[tuple[str, Answer]]) -> None:
        """Adds what answers cost, each once."""
        with self._lock:
            for digest, answer in answers:
                if (key, digest) not in self.counted:
                    self.counted.add((key, digest))
                    self.spent_usd += answer.usd or Decimal(0)
