"""How long a run will still train: by a short measurement at its start, then by what its steps took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrate.local.encoding.encoded import Rows
from orchestrate.local.model.oom import give_back, out_of_memory
from orchestrate.local.objectives.base import Objective
from orchestrate.local.plan.paces import READ_SHARE
from orchestrate.local.run.schedule import random_state, set_random_state

MOST_TOKENS = 2048
"""Of the measured pass; one row goes through in any case."""
SLOW = 5.0
"""Seconds of a first pass of one row after which no second one is measured."""
SOON = 20.0
"""Seconds within which a first step tells more than a second pass could: none is measured then."""


@dataclass
class Work:
    """In tokens that are trained; those that are only read count for a share."""

    rows: Rows
    valid: Rows | None
    eval_steps: set[int]
    per_epoch: int
    total_steps: int
    measured: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """(tokens, seconds) of passes at the start of this worker."""

    @property
    def total(self) -> float:
        return self.rows.tokens * self.total_steps / self.per_epoch + self._read(self.total_steps)

    def done(self, step: int, seen_tokens: int) -> float:
        return seen_tokens + self._read(step)

    def _read(self, step: int) -> float:
        read = 0 if self.valid is None else self.valid.tokens
        return READ_SHARE * read * sum(at <= step for at in self.eval_steps)

    def remaining(self, step: int, seen_tokens: int, seconds: float) -> float | None:
        """Seconds of training; `None` while nothing is known."""
        if self.rows.prompts:  # answers are drawn, of lengths that nobody knows
            return seconds / step * (self.total_steps - step) if step else None
        done = self.done(step, seen_tokens)
        tokens = done + sum(n for n, _ in self.measured)
        spent = seconds + sum(s for _, s in self.measured)
        return max(0.0, self.total - done) * spent / tokens if tokens and spent else None

    def measure(self, objective: Objective, batch: Sequence[int]) -> float | None:
        """Tokens per second of a pass over some rows of the batch, forward and backward; `None` where the
        objective takes no part of a batch. Gradients are left behind; nothing else of the run notices."""
        if not objective.divisible:
            return None
        device = objective.loaded.device
        random = random_state(device)
        try:
            found = self._timed(objective, sorted(batch, key=lambda i: int(self.rows.lengths[i])))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None  # the step will find out how much fits
        finally:
            set_random_state(random)
            give_back(device)
        self.measured = [found]
        return found[0] / found[1]

    def _timed(self, objective: Objective, order: Sequence[int]) -> tuple[float, float]:
        first = self._time(objective, order[:1])
        step = first[1] * sum(int(self.rows.lengths[i]) for i in order) / first[0]
        if first[1] >= SLOW or step < SOON:
            return first
        # That one made kernels and buffers. Like lengths go together: rows from the middle are typical.
        part = order[len(order) // 2 :]
        longest = int(self.rows.lengths[part[-1]])
        return self._time(objective, part[: max(1, MOST_TOKENS // longest)])

    def _time(self, objective: Objective, examples: Sequence[int]) -> tuple[float, float]:
        begun = time.perf_counter()
        sums = objective.run(self.rows, examples, 1.0, backward=True)
        return float(sums.tokens), time.perf_counter() - begun
