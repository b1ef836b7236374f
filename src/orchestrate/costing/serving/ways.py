"""Ways to serve a tuned model, and what a month of each costs."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrate import text
from orchestrate.catalog import ModelOnHost
from orchestrate.costing.lines import MTOK, line, rounded
from orchestrate.costing.rate import Rate
from orchestrate.costing.rates.listing import current
from orchestrate.costing.rates.prices import Prices
from orchestrate.costing.serving import capacity
from orchestrate.costing.serving.traffic import DAYS_PER_MONTH, Traffic
from orchestrate.costing.training.hours import HourlyRate
from orchestrate.types import Confidence, Quote, QuoteLine, Record

if TYPE_CHECKING:
    from orchestrate.costing.serving.ownership import Use

UNLIMITED = 2**53
"""Requests a day of what has no known limit."""
FORWARD_SPEEDUP = 3
"""A training step is a forward pass and a backward one of twice its length."""


class Unit(Record, frozen=True, kw_only=True):
    """A replica, or the least machine with one that can be rented."""

    usd: Decimal
    """Of a month."""
    carried: int
    """Requests a day."""


class Serving(Record, frozen=True, kw_only=True):
    """One way to serve."""

    lines: tuple[QuoteLine, ...]
    """Of one month."""
    words: str
    assumptions: tuple[str, ...]
    units: tuple[Unit, ...] = ()
    """What can be added to carry more, for each kind of GPU that is to be had here; none where the token is
    paid for."""
    single: bool = False
    """There is one unit and no second."""
    utilisation: float | None = None
    """Mean load over what the units could do while they are up."""

    each_usd: Decimal = Decimal(0)
    """What one more request costs by the token."""

    @property
    def monthly_usd(self) -> Decimal:
        return sum((entry.usd for entry in self.lines), Decimal(0))


def token_rates(
    prices: Prices, resolved: ModelOnHost, method: str = "inference_tuned"
) -> tuple[Rate, Rate] | None:
    """Of a token in and of a token out, where tuned models are served by the token."""
    tokens_in, tokens_out = prices.of(f"{method}_input", resolved), prices.of(f"{method}_output", resolved)
    return (tokens_in, tokens_out) if tokens_in and tokens_out else None


def by_tokens(traffic: Traffic, tokens_in: Rate, tokens_out: Rate) -> Serving:
    month = traffic.requests_per_month
    return Serving(
        lines=(
            line("serving input", month * traffic.input_tokens / MTOK, tokens_in),
            line("serving output", month * traffic.output_tokens / MTOK, tokens_out),
        ),
        words=f"by the token, {text.rate(tokens_in.usd)} in and {text.rate(tokens_out.usd)} out per million; "
        "no hosting fee",
        each_usd=(traffic.input_tokens * tokens_in.usd + traffic.output_tokens * tokens_out.usd) / MTOK,
        assumptions=("no cached prompt tokens, no batch discount",),
    )


def gpu_rates(prices: Prices, method: str) -> list[Rate]:
    """The GPUs of a name, one rate for each kind: quoted ones where there are any, else old ones."""
    found = [
        rate
        for rate in current(prices.book, prices.on)
        if rate.provider == prices.name and method in rate.methods and rate.gpu
    ]
    mine = [rate for rate in found if rate.own]
    return mine or [rate for rate in found if rate.confidence is Confidence.QUOTED] or found


def on_gpus(
    resolved: ModelOnHost, use: Use, rates: Iterable[Rate], *, what: str, note: str = ""
) -> Serving | None:
    """The cheapest kind of GPU for the load. `what` they are: dedicated, rented. `None` where no kind is
    known."""
    options = [found for rate in rates if (found := _on_gpu(resolved, use, rate, what, note))]
    if not options:
        return None
    best = min(options, key=lambda option: option.monthly_usd)
    return replace(best, units=tuple(unit for option in options for unit in option.units))


def _on_gpu(resolved: ModelOnHost, use: Use, rate: Rate, what: str, note: str) -> Serving | None:
    one = capacity.replica(resolved, rate.gpu or "")
    if one is None:
        return None
    sold = _machine(rate)
    if sold is not None and one.gpus > sold and sold < _WHOLE:
        return None
    sold = sold or 1
    unit_gpus = -(-one.gpus // sold) * sold
    in_unit = unit_gpus // one.gpus
    slow, likely, fast = (
        in_unit * capacity.requests_per_day(use.traffic, speed, use.hours_per_day, use.utilisation)
        for speed in one.tokens_per_second
    )
    units = capacity.replicas(use.traffic, likely)
    hours = Decimal(str(use.hours_per_day)) * DAYS_PER_MONTH * unit_gpus
    gpus, per_day = units * unit_gpus, f"{use.hours_per_day:g} h a day"
    entry = line(
        "hosting",
        hours * units,
        rate,
        low=hours * capacity.replicas(use.traffic, fast),
        high=hours * capacity.replicas(use.traffic, slow),
        note=f"{gpus} x {_kind(rate)}, {per_day}, idle included",
    )
    mean = float(use.traffic.requests_per_day) * capacity.seconds_per_request(
        use.traffic, one.tokens_per_second[1]
    )
    utilisation = mean / (units * in_unit * use.hours_per_day * 3600)
    return Serving(
        lines=(entry,),
        words=f"{gpus} {what} {_kind(rate)} at {text.rate(rate.usd)} per GPU-hour, {per_day}, "
        f"{utilisation:.0%} used",
        assumptions=(*_sized(resolved, use, one, (slow, likely, fast)), *([note] if note else [])),
        units=(Unit(usd=rounded(hours * rate.usd), carried=likely),),
        utilisation=utilisation,
    )


_WHOLE = 8
"""GPUs of a whole machine; only such are joined for one replica."""


def _machine(rate: Rate) -> int | None:
    """GPUs of the machine that is rented, where the tier tells: 8 of `8x`."""
    tier = rate.tier or ""
    return int(tier[:-1]) if tier.endswith("x") and tier[:-1].isdigit() else None


def _kind(rate: Rate) -> str:
    return rate.applies_to if _machine(rate) is None else str(rate.gpu)


def _sized(
    resolved: ModelOnHost, use: Use, one: capacity.Replica, carried: tuple[int, int, int]
) -> Iterable[str]:
    slow, likely, fast = (f"{speed:,.0f}" for speed in one.tokens_per_second)
    bits = f"{one.bytes_per_param * 8:g} bits"
    busiest = capacity.busiest_share(use.hours_per_day, use.utilisation)
    yield (
        f"one replica needs {one.gpus} {one.gpu}: {resolved.params_b:g}B parameters in {bits}, "
        f"x {capacity.HEADROOM:g} for the cache"
    )
    yield (
        f"a replica writes {likely} tokens a second, {slow} to {fast} (modelled; {capacity.SPEED_SOURCE}), "
        f"and reads {capacity.PREFILL_SPEEDUP} times as fast: up to {carried[1]:,} of these requests a day, "
        f"{carried[0]:,} to {carried[2]:,}"
    )
    share = f"{busiest * 100:.3g}% of a day's requests come in its busiest hour"
    yield f"it is up {use.hours_per_day:g} hours a day; {share}"


def base_monthly(prices: Prices, resolved: ModelOnHost, traffic: Traffic) -> Decimal | None:
    """What the host's own serverless price of the base would come to in a month."""
    both = prices.of("inference_base", resolved)
    pair = token_rates(prices, resolved, "inference_base") or ((both, both) if both else None)
    return by_tokens(traffic, *pair).monthly_usd if pair else None


def dearer_by_token(serving: Serving, base_usd: Decimal | None, host: str, traffic: Traffic) -> str | None:
    """Why GPUs of one's own cost more by the token than a host's serverless base; `None` where they do
    not."""
    tokens = traffic.requests_per_month * (traffic.input_tokens + traffic.output_tokens) / MTOK
    if base_usd is None or not serving.units or not tokens or serving.monthly_usd <= base_usd:
        return None
    mine, theirs = serving.monthly_usd / tokens, base_usd / tokens
    idle = f", and used to {serving.utilisation:.0%} here" if serving.utilisation is not None else ""
    return (
        f"dearer by the token than {host}'s own serverless price of the untuned base, {text.money(mine)} per "
        f"million against {text.money(theirs)}: these GPUs are paid for while they are idle{idle}; those are "
        "shared among many users, and do not serve this tune"
    )


def own_machine(hourly: HourlyRate, use: Use, training: Quote) -> Serving | str:
    """Refused where the machine that trains so fast cannot carry the traffic: a forward pass is taken to be
    three times as fast as a training step."""
    carried, utilisation = UNLIMITED, None
    sized = "the speed of this machine is not known; measure it before relying on that"
    if training.billed_tokens and training.train_seconds:
        traffic, speed = use.traffic, FORWARD_SPEEDUP * training.billed_tokens / training.train_seconds
        carried = capacity.requests_per_day(traffic, speed, use.hours_per_day, use.utilisation)
        seconds = capacity.seconds_per_request(traffic, 1.0)
        share = capacity.busiest_share(use.hours_per_day, use.utilisation)
        needed = float(traffic.requests_per_day) * share / 3600 * seconds
        if traffic.requests_per_day > carried:
            return (
                f"this machine would answer about {speed:,.0f} tokens a second (from its training speed), "
                f"and the traffic needs {needed:,.0f} at its peak"
            )
        utilisation = float(traffic.requests_per_day) * seconds / speed / (use.hours_per_day * 3600)
        sized = f"about {speed:,.0f} tokens a second (from its training speed) for {needed:,.0f} at the peak"
    hours = Decimal(str(use.hours_per_day)) * DAYS_PER_MONTH
    entry = hourly.line(hours, "0.01", component="hosting")
    return Serving(
        lines=(entry,),
        words=f"this machine, {use.hours_per_day:g} h a day: {hourly.label}",
        assumptions=(sized,),
        units=(Unit(usd=entry.usd, carried=carried),),
        single=True,
        utilisation=utilisation,
    )
