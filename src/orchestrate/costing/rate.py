"""Prices, what they apply to, and which prices a quote needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate.errors import UsageError
from orchestrate.types import Confidence, Record

if TYPE_CHECKING:
    from orchestrate.costing.rates import RateBook

FLAG = "--rate"
"""Command-line option that sets a price for one command."""
PLAY_MONEY = "sandbox"
"""Provider name of simulated rates. Only sandboxes use them, for hosts that publish no rates."""
UNITS = (
    "usd_per_mtok",
    "usd_per_gpu_hour",
    "usd_per_hour",
    "usd_per_job",
    "usd_per_kwh",
    "usd_per_gb_month",
)

MOST_USD = Decimal(1_000_000_000)
"""Upper limit for the price of one unit. A higher price is a typo, and including it would make sums
inexact."""
SPREAD = {Confidence.QUOTED: Decimal(0), Confidence.INFERRED: Decimal("0.2"), Confidence.OLD: Decimal("0.3")}
"""Relative half-width of the range around a rate, as `{confidence: half-width}`. `OLD` covers a typical price
change. The last known changes were -30% (Together's training rates, September 2026) and +14% to +30%
(Fireworks' GPUs, same month). `INFERRED` covers the error of the rule that infers Together's prices from its
old size bands. The rule is off by 18% for gpt-oss, the only model family that does not follow it."""


class Rate(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A price. Exactly one of the `usd_per_...` fields is set, and it determines the unit."""

    provider: str
    method: str | tuple[str, ...]
    """Method, such as sft_lora, dpo_full, rft, minimum, deployment, gpu_rental or inference_tuned_input."""
    model: str | tuple[str, ...] | None = None
    """One or more names of the model: its id on the host, its Hub id or its canonical name. `None` means any
    model."""
    over_b: Decimal | None = None
    """Lower end of the size band, in billions of parameters (exclusive)."""
    upto_b: Decimal | None = None
    """Upper end of the size band, in billions of parameters (inclusive)."""
    gpu: str | None = None
    tier: str | None = None
    usd_per_mtok: Decimal | None = None
    usd_per_gpu_hour: Decimal | None = None
    usd_per_hour: Decimal | None = None
    usd_per_job: Decimal | None = None
    usd_per_kwh: Decimal | None = None
    usd_per_gb_month: Decimal | None = None
    usd_max: Decimal | None = None
    """Upper end of the price, if the host publishes a range."""
    start: date
    """First day on which the price is known to apply."""
    end: date | None = None
    """Last day on which the price is offered."""
    checked: date | None = None
    """Day on which the source was last read. If `None`, it was read on `start`."""
    undated: bool = False
    """True if the source is a copy that has no date."""
    confidence: Confidence
    source: str
    note: str | None = None
    own: str | None = None
    """File or flag with which the user set the rate, or `None` for built-in rates."""

    def __post_init__(self) -> None:
        units = [name for name in UNITS if getattr(self, name) is not None]
        if len(units) != 1:
            raise ValueError(f"a rate needs exactly one of {', '.join(UNITS)} (got {units or 'none'})")
        if not all(usd.is_finite() and usd < MOST_USD for usd in (self.usd, self.usd_max or Decimal(0))):
            raise ValueError(f"a price must be a number below {MOST_USD:,}")
        if self.usd < 0 or (self.usd_max is not None and self.usd_max < self.usd):
            raise ValueError("a price must not be negative, and usd_max must not be below the price")
        if self.end is not None and self.end < self.start:
            raise ValueError(f"the price ends on {self.end}, before it starts on {self.start}")

    @property
    def unit(self) -> str:
        return next(name for name in UNITS if getattr(self, name) is not None)

    @property
    def usd(self) -> Decimal:
        return getattr(self, self.unit)

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method,) if isinstance(self.method, str) else self.method

    @property
    def models(self) -> tuple[str, ...]:
        if self.model is None:
            return ()
        return (self.model,) if isinstance(self.model, str) else self.model

    @property
    def last_checked(self) -> date:
        return self.checked or self.start

    @property
    def as_of(self) -> str:
        """Date of the price for display and for `QuoteLine.as_of`, or `undated`."""
        return "undated" if self.undated else self.last_checked.isoformat()

    @property
    def doubt(self) -> str | None:
        """Reason why the host may charge a different price today, or `None` if the host quotes this price."""
        if self.confidence is Confidence.OLD:
            when = f"about {self.last_checked}, from an undated copy" if self.undated else self.last_checked
            more = f"; {self.note}" if self.note else ""
            return f"this is the newest price found, but it is old ({when}): {self.source}{more}"
        if self.undated:
            return f"the price comes from an undated copy: {self.source}"
        if self.confidence is Confidence.INFERRED:
            return f"the price is inferred, not quoted: {self.source}"
        return None

    @property
    def applies_to(self) -> str:
        """Model, size band or GPU that the rate applies to, for display, or `any`."""
        if self.models:
            return ", ".join(self.models)
        if self.gpu:
            return f"{self.gpu} {self.tier}" if self.tier else self.gpu
        if self.over_b is None and self.upto_b is None:
            return "any"
        if self.upto_b is None:
            return f"over {self.over_b}B"
        return (
            f"up to {self.upto_b}B" if self.over_b is None else f"over {self.over_b}B, up to {self.upto_b}B"
        )

    def offered(self, on: date) -> bool:
        """Return whether the price is available on this day. A price that the user set in a file applies only
        from its `start` on. Before that day, the host's price applies."""
        begun = self.own is None or self.source == FLAG or self.start <= on
        return begun and (self.end is None or on <= self.end)

    def band(self) -> tuple[Decimal, Decimal, Decimal]:
        """Return the low, expected and high price per unit. If the host publishes a range, the expected price
        is its midpoint."""
        if self.usd_max is not None:
            return self.usd, (self.usd + self.usd_max) / 2, self.usd_max
        spread = SPREAD[self.confidence]
        return self.usd * (1 - spread), self.usd, self.usd * (1 + spread)

    def concerns(self, ids: Iterable[str], params_b: float | None) -> bool:
        """Return True if this rate can apply to a model with one of these names and this size."""
        size = None if params_b is None else Decimal(str(params_b))
        return self.fit(frozenset(name.lower() for name in ids), size, None, None) > 0

    def fit(self, ids: frozenset[str], params_b: Decimal | None, gpu: str | None, tier: str | None) -> int:
        """Score how closely the rate matches a model or GPU: 3 for the exact model or GPU, 2 for its size
        band or a less specific GPU name, 1 for a rate that applies to everything, and 0 for no match."""
        if self.models:
            return 3 if any(name.lower() in ids for name in self.models) else 0
        if self.gpu is not None:
            if gpu is None or (tier is not None and tier != self.tier):
                return 0
            requested, mine = _words(gpu), _words(self.gpu)
            # The user may write H100, while the driver reports NVIDIA H100 80GB HBM3.
            return 3 if requested <= mine else 2 if mine <= requested else 0
        if self.over_b is None and self.upto_b is None:
            return 1
        if params_b is None:
            return 0
        above = self.over_b is None or params_b > self.over_b
        return 2 if above and (self.upto_b is None or params_b <= self.upto_b) else 0


@dataclass(frozen=True)
class Lookup:
    """The rates that a quote needs."""

    provider: str
    methods: tuple[tuple[str, ...], ...]
    """Methods whose rates the quote needs. Each is a tuple of alternative names for one method, most specific
    first."""
    ids: frozenset[str] = frozenset()
    params_b: float | None = None
    gpu: str | None = None
    instead: tuple[str, ...] = ()
    """Fallback method, as a tuple of alternative names. If no rate is found for the first entry of `methods`,
    the price is derived from the fallback's rate."""

    def takes(self, rate: Rate, book: RateBook, on: date) -> bool:
        """Return True if the quote would use this rate, because no other rate in `book` takes precedence. For
        a machine billed hourly, returns True for every rate that matches the machine's GPU."""
        if rate.provider != self.provider:
            return False
        if self.gpu is not None and set(rate.methods) & {name for group in self.methods for name in group}:
            names = frozenset(name.lower() for name in self.ids)
            return (rate.gpu is None and not rate.models) or rate.fit(names, None, self.gpu, None) > 0
        found = [self._find(book, group, on) for group in self.methods]
        if found[0] is None and self.instead:
            found[0] = self._find(book, self.instead, on)
        return rate in found

    def _find(self, book: RateBook, methods: tuple[str, ...], on: date) -> Rate | None:
        return book.find(self.provider, methods, ids=self.ids, params_b=self.params_b, on=on)

    @property
    def flags(self) -> tuple[str, ...]:
        """The `--rate` flags that would set this price."""
        of = f"@{self.gpu}" if self.gpu else ""
        return tuple(
            f"{self.provider}:{method}{'' if method == 'electricity' else of}"
            for group in self.methods
            for method in group
        )


def require_used(rates: Iterable[Rate], lookups: Sequence[Lookup], book: RateBook, on: date) -> None:
    """Raise `UsageError` for a rate that doesn't affect any quote."""
    for rate in rates:
        if any(lookup.takes(rate, book, on) for lookup in lookups):
            continue
        flags = sorted({flag for lookup in lookups for flag in lookup.flags})
        raise UsageError(
            f"{rate.own} does not affect this quote",
            fix=f"use each of these at most once: {', '.join(flags)}" if flags else "leave it out",
        )


def _words(gpu: str) -> set[str]:
    text = re.sub(r"(?i)nvidia|geforce|-|_", " ", gpu)
    return {word for word in re.sub(r"(?i)(?<=\d)\s*gb\b", "GB", text).upper().split() if word != "TENSOR"}
