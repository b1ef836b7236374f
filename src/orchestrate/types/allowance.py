"""Limits and usage of a run on a machine that is billed hourly."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from orchestrate.types.record import Record

_START_S = 300.0
"""Allowance in seconds for starting a machine and loading its packages and the model's weights."""


ENDING_S = 600.0


def ending_s(left_s: float) -> float:
    """Return how many seconds before the machine's time limit a worker must stop: a third of the remaining
    time `left_s`, but at most 10 minutes.

    The worker needs this time to save a last checkpoint. It also makes up for the late start of the worker's
    clock, which starts after the machine has fetched its image and packages.
    """
    return min(ENDING_S, left_s / 3)


class Allowance(Record, frozen=True, kw_only=True):
    """Limits of a run, and the total usage of its workers. Workers stop themselves at a limit."""

    max_hours: float | None = None
    max_usd: Decimal | None = None
    usd_per_hour: Decimal | None = None
    """Hourly price of the run's machine."""
    used_s: float = 0.0
    remaining_s: float | None = None
    """Remaining training time in seconds, if known."""

    @property
    def used_usd(self) -> Decimal | None:
        return None if self.usd_per_hour is None else self.usd_per_hour * Decimal(str(self.used_s)) / 3600

    @property
    def most_usd(self) -> Decimal | None:
        """The lower of the cost limit and the cost of the maximum hours, in US dollars. `None` if neither is
        known."""
        found = [] if self.max_usd is None else [self.max_usd]
        if self.max_hours is not None and self.usd_per_hour is not None:
            found.append(self.usd_per_hour * Decimal(str(self.max_hours)))
        return min(found, default=None)

    @property
    def used_up(self) -> bool:
        return not self.holds(self.used_s)

    def holds(self, seconds: float) -> bool:
        """Return whether a total of `seconds` of work stays below both the hour limit and the cost limit."""
        return not (self._below(seconds) or self._dear(seconds))

    def least(self) -> str:
        """Return the `resume` options that raise the limits far enough to finish the run, such as
        `--max-hours 3.5`. Returns an empty string if the current limits suffice."""
        work = _START_S + (self.remaining_s or _START_S)
        seconds = self.used_s + min(work * 3 / 2, work + ENDING_S)
        hours, words = Decimal(str(seconds)) / 3600, list[str]()
        if self._below(seconds):
            words.append(f"--max-hours {hours.quantize(Decimal('0.1'), ROUND_CEILING)}")
        if self._dear(seconds) and self.usd_per_hour is not None:
            usd = (hours * self.usd_per_hour).quantize(Decimal("0.01"), ROUND_CEILING)
            words.append(f"--max-cost {usd}")
        return " ".join(words)

    def _below(self, seconds: float) -> bool:
        """Return whether the hour limit is at most this many seconds."""
        return self.max_hours is not None and self.max_hours * 3600 <= seconds

    def _dear(self, seconds: float) -> bool:
        if self.max_usd is None or not self.usd_per_hour:
            return False
        return float(self.max_usd / self.usd_per_hour) * 3600 <= seconds
