"""What a tuned model costs over months: training, hosting and serving, against prompting a base model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal

import msgspec

from orchestrate import catalog, days, text
from orchestrate.catalog import ModelOnHost
from orchestrate.costing.lines import rounded
from orchestrate.costing.rates.book import RateBook, built_in
from orchestrate.costing.rates.prices import Prices
from orchestrate.costing.serving import capacity
from orchestrate.costing.serving.baseline import BasePrice
from orchestrate.costing.serving.breakeven import break_even
from orchestrate.costing.serving.elsewhere import adapters, rented
from orchestrate.costing.serving.traffic import DAYS_PER_MONTH, Traffic
from orchestrate.costing.serving.ways import (
    UNLIMITED,
    Serving,
    base_monthly,
    by_tokens,
    dearer_by_token,
    gpu_rates,
    on_gpus,
    own_machine,
    token_rates,
)
from orchestrate.costing.training.hours import HourlyRate
from orchestrate.errors import SetupError, UsageError
from orchestrate.profile import Profile
from orchestrate.profile import profile as profile_of
from orchestrate.types import Quote, QuoteLine, Record


class Served(Record, frozen=True, kw_only=True):
    """One way to serve, over the period. `unavailable` says why there is no total."""

    server: str = ""
    """Where it is served; empty: where it was trained."""
    monthly: tuple[QuoteLine, ...] = ()
    monthly_usd: Decimal = Decimal(0)
    low_usd: Decimal = Decimal(0)
    """Training and the months in which the model answers, as the two that follow."""
    expected_usd: Decimal | None = Decimal(0)
    """`None` where the price of the training is undecided."""
    high_usd: Decimal = Decimal(0)
    serving: str = ""
    """How the tuned model is served here, in words."""
    utilisation: float | None = None
    """Mean load over what the GPUs could do while they are up."""
    base_monthly_usd: Decimal | None = None
    """The base model over the same time, in a mean month."""
    base_usd: Decimal | None = None
    """And in all."""
    break_even_months: Decimal | None = None
    """When the training has paid for itself against the base model; `None` when it never does."""
    break_even_requests_per_day: Decimal | None = None
    """From which traffic on, at every higher one too, the whole period is not dearer than the base model,
    with as many GPUs as that traffic needs; `None` when there is none."""
    most_requests_per_day: Decimal | None = None
    """Beyond which this cannot carry more; `None` where more GPUs can be had."""
    assumptions: tuple[str, ...] = ()
    unavailable: str | None = None


class Ownership(Served, frozen=True, kw_only=True):
    """Training once, then hosting and serving every month."""

    provider: str
    model: str
    months: int
    training: Quote
    requests_per_day: Decimal = Decimal(0)
    """Of the traffic that was asked for."""
    months_served: Decimal = Decimal(0)
    """Fewer than `months` where the model stops answering before."""
    serves_until: date | None = None
    """The last day on which the tuned model answers, when that is within the period."""
    base: BasePrice | None = None
    base_words: str = ""
    """What is prompted instead over that time."""
    elsewhere: tuple[Served, ...] = ()
    """The same adapter served by others, cheapest first."""

    @property
    def options(self) -> tuple[Ownership, ...]:
        """This and each of `elsewhere`, as totals of their own."""
        names = Served.__struct_fields__
        others = (
            msgspec.structs.replace(self, elsewhere=(), **{name: getattr(way, name) for name in names})
            for way in self.elsewhere
        )
        return (self, *others)

    @property
    def counted_usd(self) -> Decimal:
        """By which totals are compared: the expected one, or that with the high end of the training."""
        if self.expected_usd is not None:
            return self.expected_usd
        return rounded(self.training.high_usd + self.months_served * self.monthly_usd)

    @property
    def least_usd(self) -> Decimal:
        """As `counted_usd`, with the low end of a training that is undecided."""
        if self.expected_usd is not None:
            return self.expected_usd
        return self.counted_usd - (self.training.high_usd - self.training.low_usd)

    @property
    def place(self) -> str:
        """Where it is trained and served."""
        return f"{self.provider}, served at {self.server}" if self.server else self.provider


class Use(Record, frozen=True, kw_only=True):
    """What the tuned model is for."""

    traffic: Traffic
    months: int = 6
    hours_per_day: float = 24.0
    """How long a dedicated deployment is up (scale-to-zero, or taken down at night)."""
    utilisation: Decimal = capacity.UTILISATION
    """Most that the mean load may take of what a replica can do, so that its busiest hour fits."""
    base: BasePrice | None = None
    """What it is compared with."""


def own(
    training: Quote,
    use: Use,
    *,
    resolved: ModelOnHost,
    profile: Profile,
    hourly: HourlyRate | None = None,
    prices: Prices | None = None,
    portable: bool = False,
) -> Ownership:
    """The whole cost of its use. `hourly` is the machine that serves, on a backend that is paid by the hour;
    `prices`: today's of the profile's kind, when not given. `portable`: the adapter can be taken away, and so
    be served elsewhere too."""
    prices = prices or Prices(profile.kind)
    period = _Period(training, use, resolved, prices.on)
    if training.unavailable:
        return period.total(training.unavailable)
    if use.hours_per_day <= 0:
        return period.total("a model that is up 0 hours a day answers nothing")
    if hourly is not None:
        serving = own_machine(hourly, use, training)
    else:
        serving = _hosted(profile, resolved, use, prices)
    others: list[tuple[str, Serving | str]] = []
    if portable:
        others = [*rented(resolved, use, prices), *adapters(resolved, profile.kind, use, prices)]
    base_usd = base_monthly(prices, resolved, use.traffic)

    def told(way: Serving | str) -> Serving | str:
        if isinstance(way, str) or not (why := dearer_by_token(way, base_usd, profile.title, use.traffic)):
            return way
        return msgspec.structs.replace(way, assumptions=(*way.assumptions, why))

    elsewhere = [period.served(told(way), name) for name, way in others]
    elsewhere.sort(key=lambda way: (way.unavailable is not None, way.monthly_usd))
    return msgspec.structs.replace(period.total(told(serving)), elsewhere=tuple(elsewhere))


def _hosted(profile: Profile, resolved: ModelOnHost, use: Use, prices: Prices) -> Serving | str:
    if (tokens := token_rates(prices, resolved)) is not None:
        return by_tokens(use.traffic, *tokens)
    rates = gpu_rates(prices, "deployment")
    if not rates:
        known = f" ({profile.serving_note})" if profile.serving_note else ""
        return f"no price of serving a tuned {resolved.name} on {prices.name} is known{known}"
    if resolved.params_b is None:
        return f"the size of {resolved.name} is not known, so neither is the number of GPUs that serve it"
    found = on_gpus(resolved, use, rates, what="dedicated", note=profile.serving_note)
    return found or f"the memory of {', '.join(sorted({str(r.gpu) for r in rates}))} is not known"


class _Period:
    """The time over which a model is served and compared."""

    def __init__(self, training: Quote, use: Use, resolved: ModelOnHost, on: date) -> None:
        self.training, self.use, self.on = training, use, on
        days = int(DAYS_PER_MONTH * use.months)
        end = resolved.host.shutdown if resolved.host else None
        left = days if end is None else min(days, max((end - on).days, 0))
        self.until = end if left < days else None
        self.days = left
        self.months = Decimal(left) / DAYS_PER_MONTH if left < days else Decimal(use.months)

    def total(self, serving: Serving | str) -> Ownership:
        served, base = self.served(serving), self.use.base
        return Ownership(
            provider=self.training.provider,
            model=self.training.model,
            months=self.use.months,
            training=self.training,
            requests_per_day=self.use.traffic.requests_per_day,
            months_served=self.months.quantize(Decimal("0.01")),
            serves_until=self.until,
            base=base,
            base_words=base.words(self.on, self.days) if base else "",
            **{name: getattr(served, name) for name in Served.__struct_fields__},
        )

    def served(self, serving: Serving | str, server: str = "") -> Served:
        if isinstance(serving, str):
            return Served(server=server, unavailable=serving)
        training, months, traffic, base = self.training, self.months, self.use.traffic, self.use.base
        low, month, high = (
            sum((getattr(entry, end) for entry in serving.lines), Decimal(0))
            for end in ("usd_low", "usd", "usd_high")
        )
        each = base.mean_usd(self.on, self.days) if base else None
        base_month = None if each is None else each * traffic.requests_per_month
        since = None
        if each is not None and months > 0:
            since = break_even(
                training.counted_usd / months,
                (each - serving.each_usd) * DAYS_PER_MONTH,
                serving.units,
                single=serving.single,
            )
        limit = serving.units[0].carried if serving.single else UNLIMITED
        most = Decimal(limit) if limit < UNLIMITED else None
        paid = _months_to_pay(training.counted_usd, month, base_month)
        once = training.expected_usd
        return Served(
            server=server,
            monthly=serving.lines,
            monthly_usd=month,
            low_usd=rounded(training.low_usd + months * low),
            expected_usd=None if once is None else rounded(once + months * month),
            high_usd=rounded(training.high_usd + months * high),
            serving=serving.words,
            utilisation=serving.utilisation,
            base_monthly_usd=None if base_month is None else rounded(base_month),
            base_usd=None if base_month is None else rounded(base_month * months),
            break_even_months=paid if paid is not None and paid <= months else None,
            break_even_requests_per_day=None if since is None else Decimal(since),
            most_requests_per_day=most,
            assumptions=(*serving.assumptions, *self._notes()),
        )

    def _notes(self) -> Iterable[str]:
        base = self.use.base
        if self.training.undecided:
            high = text.money(self.training.high_usd)
            yield f"the training is counted with its high end, {high}: {self.training.undecided}"
        if self.until is not None:
            yield (
                f"{self.training.model} stops answering on {self.until}: "
                f"{self.months:.1f} of {self.use.months} months are counted, of both sides"
            )
        while base is not None:
            yield base.terms()
            if not base.ends(self.on, self.days):
                return
            if base.successor is None:
                yield f"{base.model} ends on {base.until}, with no named successor: its price is counted on"
            else:
                yield (
                    f"{base.model} ends on {base.until}: from then on {base.successor.model} is counted, "
                    "which its host names as the replacement"
                )
            base = base.successor


def _months_to_pay(training: Decimal, monthly: Decimal, base_monthly: Decimal | None) -> Decimal | None:
    if base_monthly is None or base_monthly <= monthly:
        return None
    return (training / (base_monthly - monthly)).quantize(Decimal("0.01"))


def serving_terms(
    provider: str, model: str, *, book: RateBook | None = None, today: date | None = None
) -> str | None:
    """How a tuned model is paid for on a backend, in a few words; `None` where no price is known."""
    prices = Prices(provider, book or built_in(), today or days.today())
    try:
        near, resolved = profile_of(provider).near, catalog.resolve(model, provider, prices.on)
    except (SetupError, UsageError):  # a host that is no longer configured, a model that has left the catalog
        return None
    if tokens := token_rates(prices, resolved):
        return f"{text.rate(tokens[0].usd)} in, {text.rate(tokens[1].usd)} out per million tokens"
    rates = gpu_rates(prices, "deployment")
    if not rates:
        return "this machine" if near else None
    if resolved.params_b is None:
        least = min(rates, key=lambda rate: rate.usd)
        return f"{text.rate(least.usd)} per {least.applies_to}-hour, dedicated"
    sized = [(rate, one) for rate in rates if (one := capacity.replica(resolved, rate.gpu or ""))]
    if not sized:
        return None
    rate, one = min(sized, key=lambda pair: pair[0].usd * pair[1].gpus)
    return f"{text.rate(rate.usd * one.gpus)} per hour: {one.gpus} dedicated {rate.applies_to}"


def cheapest(totals: Sequence[Ownership]) -> Ownership | None:
    """The least expected total, wherever served, of a job that would be taken and that serves the whole
    period."""
    whole = [
        way
        for total in totals
        for way in total.options
        if not (way.unavailable or way.serves_until) and way.training.ranked
    ]
    return min(whole, key=lambda way: way.counted_usd, default=None)
