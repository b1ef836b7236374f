"""Cost of a tuned model over several months (training, hosting and serving), compared with prompting a base
model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from decimal import ROUND_CEILING, Decimal
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from orchestrate import catalog, profile, text
from orchestrate.catalog import HostModel, Model, ModelOnHost
from orchestrate.catalog.models import lookup
from orchestrate.core import days
from orchestrate.costing import ways
from orchestrate.costing.lines import rounded
from orchestrate.costing.rate import Rate
from orchestrate.costing.rates import Prices, RateBook, built_in
from orchestrate.costing.training import HourlyRate
from orchestrate.costing.ways import (
    DAYS_PER_MONTH,
    UNLIMITED,
    BasePrice,
    ServingUnit,
    ServingUse,
    ServingWay,
    Traffic,
    base_monthly,
    by_tokens,
    gpu_rates,
    on_gpus,
    own_machine,
    token_cost_note,
    token_rates,
)
from orchestrate.errors import SetupError, UsageError
from orchestrate.profile import Profile
from orchestrate.profile import profile as profile_of
from orchestrate.types import Quote, QuoteLine, Record, decoding


def break_even(
    training: Decimal, saved: Decimal, units: Sequence[ServingUnit] = (), *, single: bool = False
) -> int | None:
    """Return the break-even traffic in requests per day. At this traffic and above, the tuned model never
    costs more than the base model. Returns `None` if it never breaks even.

    `training` is the training cost per month, and `saved` is the monthly saving per daily request. `units`
    are the types of serving units that you can rent, such as GPUs. At each traffic level, the cheapest type
    is used, with as many units as needed. With `single`, only one unit of the first type is available.
    """
    if saved <= 0:
        return None
    if not units:
        return _ceiling(training / saved)
    if single:
        least = _ceiling((training + units[0].usd) / saved)
        return least if least <= units[0].carried else None
    alone = [least for unit in units if (least := _alone(training, saved, unit)) is not None]
    if not alone:  # a full unit of any kind costs more than it saves, so that no number of them pays
        return None
    at = min(alone) - 1  # below it two kinds may pay between them: down to the first traffic that does not
    while at > 0:
        cost = training + min(unit.usd * -(-at // unit.carried) for unit in units)
        least = _ceiling(cost / saved)
        start = max((at - 1) // unit.carried * unit.carried + 1 for unit in units)
        if least > start:  # the cost is the same from there to `at`
            return min(least, at + 1)
        at = start - 1
    return 1


def _alone(training: Decimal, saved: Decimal, unit: ServingUnit) -> int | None:
    """Return the break-even traffic with one type of unit.

    The worst case is traffic for which one unit was just added: n full units and one more request must pay
    for n + 1 units. From the smallest n for which they do, all higher traffic pays off too.
    """
    gain = saved * unit.carried - unit.usd
    if gain <= 0:
        return None
    full = max(1, _ceiling((training + unit.usd - saved) / gain))
    return _ceiling((training + full * unit.usd) / saved)


def _ceiling(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_CEILING))


def base_price(model: str, traffic: Traffic, *, saved_tokens: int = 0) -> BasePrice:
    """Return the price of one request to a base model, according to the package `genai-prices`.

    `saved_tokens` is the number of prompt tokens for examples and instructions, which a tuned model does not
    need. The shutdown date and the successor come from the catalog. Raises `UsageError` if the package
    doesn't know the model.
    """
    from importlib.metadata import version

    from genai_prices import Usage, calc_price

    known = lookup(model)
    wanted = (known and (known.hub or next((host.id for host in known.hosts.values()), None))) or model
    tokens = traffic.input_tokens + saved_tokens
    usage = Usage(input_tokens=tokens, output_tokens=traffic.output_tokens)
    for name in dict.fromkeys((model, wanted)):
        try:
            found = calc_price(usage, model_ref=name)
        except LookupError:
            continue
        host = _ending(known)
        return BasePrice(
            model=found.model.name or model,
            provider=found.provider.id,
            usd_per_request=found.total_price,
            input_tokens=tokens,
            source=f"genai-prices {version('genai-prices')}",
            until=host.shutdown if host else None,
            successor=_named(host, traffic, saved_tokens) if host else None,
        )
    raise UsageError(
        f"genai-prices has no price for {model!r}",
        fix="use the provider's name for the model, such as gpt-4.1",
    )


def _ending(model: Model | None) -> HostModel | None:
    """Return where its maker's own host ends it. Open weights go on elsewhere."""
    if model is None or model.open:
        return None
    hosts = [host for host in model.hosts.values() if host.shutdown]
    return max(hosts, key=lambda host: host.shutdown or date.min, default=None)


def _named(host: HostModel, traffic: Traffic, saved_tokens: int) -> BasePrice | None:
    if host.successor is None:
        return None
    found = base_price(host.successor, traffic, saved_tokens=saved_tokens)
    return replace(found, note=host.successor_note or "")


def default_base(traffic: Traffic, months: int, on: date, *, saved_tokens: int = 0) -> BasePrice:
    """Return the price of one request to the catalog's comparison model. If that model will be shut down
    within the period, returns the price of the successor that the host recommends."""
    base = base_price(catalog.comparison().name, traffic, saved_tokens=saved_tokens)
    days = int(DAYS_PER_MONTH * months)
    while base.ends(on, days) and base.successor is not None:
        base = base.successor
    return base


RENTAL = "gpu_rental"
_ENGINE = "your own vLLM server on rented GPUs, not including your working time, storage and startup time"


class AdapterHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that serves adapters uploaded by users and bills them per token."""

    provider: str
    """Provider name in the rate files, which list its prices as `inference_adapter_input` and
    `inference_adapter_output`."""
    title: str
    models: tuple[str, ...]
    """Catalog names of the base models whose adapters the host accepts."""
    source: str
    note: str = ""
    closed: str = ""
    """Reason why the host can't serve adapters trained elsewhere, or an empty string if it can."""


@cache
def adapter_hosts() -> tuple[AdapterHost, ...]:
    import yaml

    text = files("orchestrate.costing").joinpath("adapters.yaml").read_text(encoding="utf-8")
    return decoding.convert(yaml.safe_load(text)["hosts"], tuple[AdapterHost, ...])


def rented(resolved: ModelOnHost, use: ServingUse, prices: Prices) -> Iterator[tuple[str, ServingWay]]:
    """Yield (provider, serving option) for each provider that rents out GPUs. The option uses the provider's
    cheapest GPU type for the expected use. `prices` supplies the rate book and the day."""
    names = {rate.provider for rate in prices.book if rents(rate)}
    for name in sorted(names):
        rates = gpu_rates(Prices(name, prices.book, prices.on), RENTAL)
        if found := on_gpus(resolved, use, rates, what="rented", note=_ENGINE):
            yield name, found


def adapters(
    resolved: ModelOnHost, trainer: str, use: ServingUse, prices: Prices
) -> Iterator[tuple[str, ServingWay | str]]:
    """Yield (host, serving option) for each host that bills adapters of this base model per token. If an
    option has no price or is unavailable, yields (host, reason) instead."""
    for host in adapter_hosts():
        if resolved.model is None or resolved.model.name not in host.models:
            continue
        theirs = Prices(host.provider, prices.book, prices.on)
        # A training backend's rate for tuned models also applies to adapters trained elsewhere.
        rates = token_rates(theirs, resolved, "inference_adapter") or token_rates(theirs, resolved)
        if host.closed and host.provider != trainer:
            yield host.title, host.closed
        elif rates is None:
            reason = f"serves adapters of {resolved.name} and bills per token, but no price was found"
            yield host.title, f"{reason} ({host.source})"
        else:
            found = by_tokens(use.traffic, *rates)
            assumptions = (*found.assumptions, *([host.note] if host.note else []))
            yield host.title, msgspec.structs.replace(found, assumptions=assumptions)


def rents(rate: Rate) -> bool:
    """Return True if the rate is for GPUs that a provider rents out for serving. Rates of this machine and of
    hosts that train models don't count."""
    return RENTAL in rate.methods and rate.provider not in profile.built_in()


class ServingTotal(Record, frozen=True, kw_only=True):
    """Total cost of one serving option over the period. If the total is missing, `unavailable` states why."""

    server: str = ""
    """Host that serves the model, or an empty string if the model is served where it was trained."""
    monthly: tuple[QuoteLine, ...] = ()
    monthly_usd: Decimal | None = None
    """Monthly cost. This and the next three fields are `None` if the total is `unavailable`."""
    low_usd: Decimal | None = None
    """Low end of the total cost: training, and serving until the end of the period or the model's
    shutdown."""
    expected_usd: Decimal | None = None
    """Expected total cost. Also `None` if the training quote is `undecided`."""
    high_usd: Decimal | None = None
    serving: str = ""
    """Description of how the tuned model is served."""
    utilisation: float | None = None
    """Average load of the GPUs as a fraction of their capacity while they are up."""
    base_monthly_usd: Decimal | None = None
    """Average monthly cost of prompting the base model over the same period."""
    base_usd: Decimal | None = None
    """Total cost of prompting the base model over the same period."""
    break_even_months: Decimal | None = None
    """Months until the training has paid for itself compared with the base model, or `None` if it never
    does."""
    break_even_requests_per_day: Decimal | None = None
    """Break-even traffic in requests per day. With this traffic or more, the tuned model costs no more than
    the base model over the entire period. Assumes as many GPUs as needed. `None` if it never breaks even."""
    most_requests_per_day: Decimal | None = None
    """Maximum requests per day that this option can serve. `None` if there is no maximum, because you can add
    GPUs."""
    assumptions: tuple[str, ...] = ()
    unavailable: str | None = None


class Paid(NamedTuple):
    """Total cost of a serving option, with the amounts used to display and rank it."""

    least_usd: Decimal
    """Expected total. If the training quote is `undecided`, uses the low end of its price."""
    counted_usd: Decimal
    """Expected total. If the training quote is `undecided`, uses the high end of its price."""
    low_usd: Decimal
    high_usd: Decimal


class Ownership(ServingTotal, frozen=True, kw_only=True):
    """Cost of training a model once, then hosting and serving it every month."""

    provider: str
    model: str
    months: int
    training: Quote
    requests_per_day: Decimal = Decimal(0)
    """Requests per day in the expected traffic."""
    months_served: Decimal = Decimal(0)
    """Number of months in which the model is served: fewer than `months` if it is shut down earlier."""
    serves_until: date | None = None
    """Last day on which the tuned model is served, if that is within the period."""
    base: BasePrice | None = None
    base_words: str = ""
    """Description of the base models that you would otherwise prompt during the same period."""
    elsewhere: tuple[ServingTotal, ...] = ()
    """Options for serving the same adapter on other hosts, cheapest first."""

    @property
    def options(self) -> tuple[Ownership, ...]:
        """Return the serving option on the training backend, followed by the options in `elsewhere`."""
        names = ServingTotal.__struct_fields__
        others = (
            msgspec.structs.replace(self, elsewhere=(), **{name: getattr(way, name) for name in names})
            for way in self.elsewhere
        )
        return (self, *others)

    @property
    def paid(self) -> Paid | None:
        """The total cost, or `None` if it is unavailable."""
        once = self.training.price
        if once is None or self.monthly_usd is None or self.low_usd is None or self.high_usd is None:
            return None
        if self.expected_usd is not None:
            return Paid(self.expected_usd, self.expected_usd, self.low_usd, self.high_usd)
        counted = rounded(once.high_usd + self.months_served * self.monthly_usd)
        return Paid(counted - (once.high_usd - once.low_usd), counted, self.low_usd, self.high_usd)

    @property
    def rank(self) -> tuple[bool, Decimal]:
        """Sort key: `counted_usd` in ascending order, with options without a total last."""
        return (self.paid is None, self.paid.counted_usd if self.paid else Decimal(0))

    @property
    def place(self) -> str:
        """Names of the backends that train and serve the model."""
        return f"{self.provider}, served at {self.server}" if self.server else self.provider


def own(
    training: Quote,
    use: ServingUse,
    *,
    resolved: ModelOnHost,
    profile: Profile,
    hourly: HourlyRate | None = None,
    prices: Prices | None = None,
    portable: bool = False,
) -> Ownership:
    """Compute the total cost of ownership of a tuned model, compared with prompting a base model.

    `hourly` is the rate of the serving machine on a backend that bills hourly. `prices` defaults to today's
    prices of the training backend. If the adapter can be downloaded, set `portable` to include options for
    serving it on other hosts.
    """
    prices = prices or Prices(profile.kind)
    period = _Period(training, use, resolved, prices.on)
    if training.why_none is not None:
        return period.total(training.why_none)
    if use.hours_per_day <= 0:
        return period.total("hours per day must be above 0")
    if hourly is not None:
        serving = own_machine(hourly, use, training)
    else:
        serving = _hosted(profile, resolved, use, prices)
    others: list[tuple[str, ServingWay | str]] = []
    if portable:
        others = [*rented(resolved, use, prices), *adapters(resolved, profile.kind, use, prices)]
    base_usd = base_monthly(prices, resolved, use.traffic)

    def with_note(way: ServingWay | str) -> ServingWay | str:
        if isinstance(way, str) or not (why := token_cost_note(way, base_usd, profile.title, use.traffic)):
            return way
        return msgspec.structs.replace(way, assumptions=(*way.assumptions, why))

    elsewhere = [period.served(with_note(way), name) for name, way in others]
    elsewhere.sort(key=lambda way: (way.monthly_usd is None, way.monthly_usd or Decimal(0)))
    return msgspec.structs.replace(period.total(with_note(serving)), elsewhere=tuple(elsewhere))


def served_as(profile: Profile, resolved: ModelOnHost, prices: Prices, *, portable: bool) -> str | None:
    """Describe in a few words how the backend serves models that it tuned from this base model. Returns
    `None` if unknown."""
    if resolved.host is not None and resolved.host.deployable == "no":
        return "only downloaded"
    if profile.near:
        return "on this machine"
    if token_rates(prices, resolved) is not None:
        return "per token"
    if gpu_rates(prices, "deployment"):
        return "on dedicated GPUs, billed hourly"
    return "only downloaded" if portable else None


def _hosted(profile: Profile, resolved: ModelOnHost, use: ServingUse, prices: Prices) -> ServingWay | str:
    if resolved.host is not None and resolved.host.deployable == "no":
        return f"{profile.title} does not serve tuned {resolved.name}: {resolved.host.deploy_note}"
    if (tokens := token_rates(prices, resolved)) is not None:
        return by_tokens(use.traffic, *tokens)
    rates = gpu_rates(prices, "deployment")
    if not rates:
        known = f" ({profile.serving_note})" if profile.serving_note else ""
        return f"no known price for serving a tuned {resolved.name} on {prices.name}{known}"
    if resolved.params_b is None:
        return f"the size of {resolved.name} is unknown, so the required number of GPUs is unknown"
    found = on_gpus(resolved, use, rates, what="dedicated", note=profile.serving_note)
    return found or f"the GPU memory of {', '.join(sorted({str(r.gpu) for r in rates}))} is unknown"


class _Period:
    """The period over which a model is served and compared."""

    def __init__(self, training: Quote, use: ServingUse, resolved: ModelOnHost, on: date) -> None:
        self.training, self.use, self.on = training, use, on
        days = int(DAYS_PER_MONTH * use.months)
        end = resolved.host.shutdown if resolved.host else None
        left = days if end is None else min(days, max((end - on).days, 0))
        self.until = end if left < days else None
        self.days = left
        self.months = Decimal(left) / DAYS_PER_MONTH if left < days else Decimal(use.months)

    def total(self, serving: ServingWay | str) -> Ownership:
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
            **{name: getattr(served, name) for name in ServingTotal.__struct_fields__},
        )

    def served(self, serving: ServingWay | str, server: str = "") -> ServingTotal:
        price = self.training.price
        if isinstance(serving, str) or price is None:
            return ServingTotal(server=server, unavailable=serving if isinstance(serving, str) else None)
        months, traffic, base = self.months, self.use.traffic, self.use.base
        low, month, high = (
            sum((getattr(entry, end) for entry in serving.lines), Decimal(0))
            for end in ("usd_low", "usd", "usd_high")
        )
        each = base.mean_usd(self.on, self.days) if base else None
        base_month = None if each is None else each * traffic.requests_per_month
        since = None
        if each is not None and months > 0:
            since = break_even(
                price.counted_usd / months,
                (each - serving.each_usd) * DAYS_PER_MONTH,
                serving.units,
                single=serving.single,
            )
        limit = serving.units[0].carried if serving.single else UNLIMITED
        most = Decimal(limit) if limit < UNLIMITED else None
        paid = _months_to_pay(price.counted_usd, month, base_month)
        once = price.expected_usd
        return ServingTotal(
            server=server,
            monthly=serving.lines,
            monthly_usd=month,
            low_usd=rounded(price.low_usd + months * low),
            expected_usd=None if once is None else rounded(once + months * month),
            high_usd=rounded(price.high_usd + months * high),
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
            why = self.training.undecided
            yield f"the comparison uses the high end of the training cost ({high}), because {why}"
        if self.until is not None:
            yield (
                f"{self.training.model} will be shut down on {self.until}, so the comparison covers only "
                f"{self.months:.1f} of {self.use.months} months"
            )
        while base is not None:
            yield base.terms()
            if not base.ends(self.on, self.days):
                return
            if base.successor is None:
                yield (
                    f"{base.model} will be shut down on {base.until} and its host named no successor, so "
                    "the comparison assumes the current price after that date"
                )
            else:
                yield (
                    f"{base.model} will be shut down on {base.until}. After that date, the comparison uses "
                    f"the price of {base.successor.model}, the successor that its host named"
                )
            base = base.successor


def _months_to_pay(training: Decimal, monthly: Decimal, base_monthly: Decimal | None) -> Decimal | None:
    if base_monthly is None or base_monthly <= monthly:
        return None
    return (training / (base_monthly - monthly)).quantize(Decimal("0.01"))


def serving_terms(
    provider: str, model: str, *, book: RateBook | None = None, today: date | None = None
) -> str | None:
    """Describe in a few words how a backend bills a tuned model. Returns `None` if no price is known."""
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
    sized = [(rate, one) for rate in rates if (one := ways.replica(resolved, rate.gpu or ""))]
    if not sized:
        return None
    rate, one = min(sized, key=lambda pair: pair[0].usd * pair[1].gpus)
    return f"{text.rate(rate.usd * one.gpus)} per hour: {one.gpus} dedicated {rate.applies_to}"


def cheapest(totals: Sequence[Ownership]) -> Ownership | None:
    """Return the option for serving with the lowest expected total. Only considers jobs that would be
    accepted and models that are served for the entire period."""
    complete = [
        way
        for total in totals
        for way in total.options
        if not (way.unavailable or way.serves_until) and way.training.ranked
    ]
    return min(complete, key=lambda way: way.rank, default=None)
