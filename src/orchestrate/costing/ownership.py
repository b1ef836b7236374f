"""What a tuned model costs over months: training, hosting and serving, against prompting a base model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import date
from decimal import Decimal

from orchestrate import catalog, text
from orchestrate.catalog import ModelOnHost
from orchestrate.catalog.models import lookup
from orchestrate.costing.book import Rate, RateBook, built_in
from orchestrate.costing.hours import HourlyRate
from orchestrate.costing.lines import MTOK, line, rounded
from orchestrate.costing.prices import Prices
from orchestrate.errors import SetupError, UsageError
from orchestrate.profile import Profile
from orchestrate.profile import profile as profile_of
from orchestrate.types import Quote, QuoteLine, Record

DAYS_PER_MONTH = Decimal(365) / 12

# A model of serving, for sizing only; each number is printed among the assumptions of the result.
GPU_GB = 80
BYTES_PER_PARAM = 2
HEADROOM = 1.2
"""Of the weights, for cache and activations."""
DECODE_TOKENS_PER_SECOND_B = 20_000
"""Output tokens per second of one H100 at full batches, times billions of active parameters: about 2,500 for
8B."""
PREFILL_SPEEDUP = 8
"""An input token takes an eighth of the time of an output token."""
FORWARD_SPEEDUP = 3
"""A training step is a forward pass and a backward one of twice its length."""
PEAK = 3
"""Busiest hour over the mean."""


class Traffic(Record, frozen=True, kw_only=True):
    """Requests to the tuned model, and the tokens of one."""

    requests_per_day: Decimal
    input_tokens: int
    output_tokens: int

    @classmethod
    def parse(cls, words: str) -> Traffic:
        """`20k req/day, 900 in, 150 out`. Raises `UsageError`."""
        found = _TRAFFIC.match(words.strip().lower().replace("_", ""))
        if found is None:
            raise UsageError(
                f"--traffic {words!r} is not understood", fix='write it as "20k req/day, 900 in, 150 out"'
            )
        per_day = {"second": 86_400, "minute": 1440, "hour": 24, "day": 1, "month": 1 / DAYS_PER_MONTH}
        unit = next(value for name, value in per_day.items() if name.startswith(found["per"]))
        return cls(
            requests_per_day=_number(found["requests"]) * unit,
            input_tokens=int(_number(found["input"])),
            output_tokens=int(_number(found["output"])),
        )

    @property
    def requests_per_month(self) -> Decimal:
        return self.requests_per_day * DAYS_PER_MONTH


_N = r"[\d.,]*\d\s*[km]?"
_TRAFFIC = re.compile(
    rf"^(?P<requests>{_N})\s*(?:req\w*|calls?)?\s*(?:/|per|a)\s*(?P<per>s|sec|second|min|minute|h|hour|d|day|month)\b"
    rf"[\s,;]+(?P<input>{_N})\s*(?:tok\w*\s*)?in\w*[\s,;]+(?P<output>{_N})\s*(?:tok\w*\s*)?out\w*$"
)


def _number(text: str) -> Decimal:
    text = text.replace(",", "").replace(" ", "")
    factor = {"k": 1000, "m": 1_000_000}.get(text[-1:], 1)
    return Decimal(text.rstrip("km")) * factor


class BasePrice(Record, frozen=True, kw_only=True):
    """Prompting a base model at a provider's public price, per request of the traffic it was asked for."""

    model: str
    provider: str
    usd_per_request: Decimal
    input_tokens: int
    """Of the prompt, with what the tuned model would not need."""
    source: str


def base_price(model: str, traffic: Traffic, *, saved_tokens: int = 0) -> BasePrice:
    """The price of one request from the package `genai-prices`; `saved_tokens` are the examples and
    instructions that only the base model needs in its prompt. Raises `UsageError` for a model that it does
    not know."""
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
        return BasePrice(
            model=found.model.name or model,
            provider=found.provider.id,
            usd_per_request=found.total_price,
            input_tokens=tokens,
            source=f"genai-prices {version('genai-prices')}",
        )
    raise UsageError(
        f"genai-prices has no price of {model!r}",
        fix="name a model as its provider does, for example gpt-4.1",
    )


class Ownership(Record, frozen=True, kw_only=True):
    """Training once, then hosting and serving every month. `unavailable` says why there is no total."""

    provider: str
    model: str
    months: int
    training: Quote
    monthly: tuple[QuoteLine, ...] = ()
    monthly_usd: Decimal = Decimal(0)
    low_usd: Decimal = Decimal(0)
    expected_usd: Decimal = Decimal(0)
    high_usd: Decimal = Decimal(0)
    serving: str = ""
    """How the tuned model is served here, in words."""
    base: BasePrice | None = None
    base_monthly_usd: Decimal | None = None
    break_even_months: Decimal | None = None
    """When the training has paid for itself against the base model; `None` when it never does."""
    break_even_requests_per_day: Decimal | None = None
    """From which traffic on the whole period is cheaper than the base model; `None` when none is."""
    serves_until: date | None = None
    """The last day on which the tuned model answers, when that is within the period."""
    assumptions: tuple[str, ...] = ()
    unavailable: str | None = None


class Use(Record, frozen=True, kw_only=True):
    """What the tuned model is for."""

    traffic: Traffic
    months: int = 6
    hours_per_day: float = 24.0
    """How long a dedicated deployment is up (scale-to-zero, or taken down at night)."""
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
) -> Ownership:
    """The whole cost of its use. `hourly` is the machine that serves, on a backend that is paid by the hour;
    `prices`: today's of the profile's kind, when not given."""
    prices = prices or Prices(profile.kind)

    def none(reason: str) -> Ownership:
        return Ownership(
            provider=training.provider,
            model=training.model,
            months=use.months,
            training=training,
            unavailable=reason,
        )

    if training.unavailable:
        return none(training.unavailable)
    if hourly is not None:
        serving = _own_machine(hourly, use, training)
    else:
        serving = _hosted(profile, resolved, use, prices)
    if isinstance(serving, str):
        return none(serving)
    return _totalled(training, serving, resolved, use, prices.on)


class _Serving(Record, frozen=True, kw_only=True):
    lines: tuple[QuoteLine, ...]
    """Of one month."""
    words: str
    assumptions: tuple[str, ...]
    fixed_usd: Decimal
    """The part of a month that does not move with traffic."""


def _hosted(profile: Profile, resolved: ModelOnHost, use: Use, prices: Prices) -> _Serving | str:
    tokens = _token_rates(prices, resolved)
    if tokens is not None:
        return _by_tokens(use.traffic, *tokens)
    gpu = prices.of("deployment", gpu="H100")
    if gpu is None:
        return f"no price of serving a tuned {resolved.name} on {prices.name} is known"
    if resolved.params_b is None:
        return f"the size of {resolved.name} is not known, so neither is the number of GPUs that serve it"
    return _dedicated(profile, resolved, use, gpu)


def _token_rates(prices: Prices, resolved: ModelOnHost) -> tuple[Rate, Rate] | None:
    """Of a token in and of a token out, where the host serves a tuned model by the token."""
    tokens_in = prices.of("inference_tuned_input", resolved)
    tokens_out = prices.of("inference_tuned_output", resolved)
    return (tokens_in, tokens_out) if tokens_in and tokens_out else None


def _by_tokens(traffic: Traffic, tokens_in: Rate, tokens_out: Rate) -> _Serving:
    month = traffic.requests_per_month
    return _Serving(
        lines=(
            line("serving input", month * traffic.input_tokens / MTOK, tokens_in),
            line("serving output", month * traffic.output_tokens / MTOK, tokens_out),
        ),
        words=f"by the token, {text.rate(tokens_in.usd)} in and {text.rate(tokens_out.usd)} out per million; "
        "no hosting fee",
        assumptions=("no cached prompt tokens, no batch discount",),
        fixed_usd=Decimal(0),
    )


def gpus_needed(params_b: float, active_b: float, traffic: Traffic) -> tuple[int, int, float]:
    """H100s of 80 GB that serve the traffic: for the weights of one replica, in all, and a replica's output
    tokens per second. A model for sizing, not a measurement."""
    weights = params_b * BYTES_PER_PARAM * HEADROOM / GPU_GB
    replica = 1 if weights <= 1 else 2 ** math.ceil(math.log2(weights))
    speed = DECODE_TOKENS_PER_SECOND_B / max(active_b, 1.0) * replica
    seconds_per_request = traffic.output_tokens / speed + traffic.input_tokens / (speed * PREFILL_SPEEDUP)
    load = float(traffic.requests_per_day) / 86_400 * PEAK * seconds_per_request
    return replica, replica * max(1, math.ceil(load)), speed


def _dedicated(profile: Profile, resolved: ModelOnHost, use: Use, gpu: Rate) -> _Serving:
    hours_per_day = use.hours_per_day
    params = resolved.params_b or 0.0
    active = (resolved.model.active_params_b if resolved.model else None) or params
    replica, gpus, speed = gpus_needed(params, active, use.traffic)
    hours = Decimal(str(hours_per_day)) * DAYS_PER_MONTH * gpus
    entry = line(
        "hosting", hours, gpu, note=f"{gpus} x {gpu.applies_to}, {hours_per_day:g} h a day, idle included"
    )
    return _Serving(
        lines=(entry,),
        words=f"{gpus} dedicated {gpu.applies_to} at {text.rate(gpu.usd)} per GPU-hour, "
        f"{hours_per_day:g} h a day",
        assumptions=(
            f"one replica needs {text.count(replica, 'GPU')}: {params:g}B parameters in 16 bits, "
            f"x {HEADROOM:g} for the cache",
            f"a replica writes {speed:,.0f} tokens a second (modelled), the busiest hour is {PEAK} x "
            "the mean",
            f"the deployment is up {hours_per_day:g} hours a day"
            + (f"; {profile.serving_note}" if profile.serving_note else ""),
        ),
        fixed_usd=entry.usd,
    )


def _own_machine(hourly: HourlyRate, use: Use, training: Quote) -> _Serving | str:
    """Refused where the machine that trains so fast cannot carry the traffic: a forward pass is taken to be
    three times as fast as a training step."""
    sized = "the speed of this machine is not known; measure it before relying on that"
    if training.billed_tokens and training.train_seconds:
        traffic, speed = use.traffic, FORWARD_SPEEDUP * training.billed_tokens / training.train_seconds
        tokens = traffic.output_tokens + traffic.input_tokens / PREFILL_SPEEDUP
        needed = float(traffic.requests_per_day) / 86_400 * PEAK * tokens
        if needed > speed:
            return (
                f"this machine would answer about {speed:,.0f} tokens a second (from its training speed), "
                f"and the traffic needs {needed:,.0f} at its peak"
            )
        sized = f"about {speed:,.0f} tokens a second (from its training speed) for {needed:,.0f} at the peak"
    hours = Decimal(str(use.hours_per_day)) * DAYS_PER_MONTH
    entry = hourly.line(hours, "0.01", component="hosting")
    return _Serving(
        lines=(entry,),
        words=f"this machine, {use.hours_per_day:g} h a day: {hourly.label}",
        assumptions=(sized,),
        fixed_usd=entry.usd,
    )


def _totalled(training: Quote, serving: _Serving, resolved: ModelOnHost, use: Use, on: date) -> Ownership:
    traffic, months, base = use.traffic, use.months, use.base
    monthly = sum((entry.usd for entry in serving.lines), Decimal(0))
    base_monthly = rounded(base.usd_per_request * traffic.requests_per_month) if base else None
    end = resolved.host.shutdown if resolved.host else None
    period_end = date.fromordinal(on.toordinal() + int(DAYS_PER_MONTH * months))
    assumptions = [*serving.assumptions]
    if base is not None:
        assumptions.append(
            f"prompting {base.model} ({base.provider}) with {base.input_tokens} input tokens costs "
            f"{text.rate(base.usd_per_request)} per request ({base.source})"
        )
    return Ownership(
        provider=training.provider,
        model=training.model,
        months=months,
        training=training,
        monthly=serving.lines,
        monthly_usd=monthly,
        low_usd=training.low_usd + months * sum((e.usd_low for e in serving.lines), Decimal(0)),
        expected_usd=training.expected_usd + months * monthly,
        high_usd=training.high_usd + months * sum((e.usd_high for e in serving.lines), Decimal(0)),
        serving=serving.words,
        base=base,
        base_monthly_usd=base_monthly,
        break_even_months=_months_to_pay(training.expected_usd, monthly, base_monthly),
        break_even_requests_per_day=_break_even(training.expected_usd, serving, monthly, use),
        serves_until=end if end is not None and end < period_end else None,
        assumptions=tuple(assumptions),
    )


def _months_to_pay(training: Decimal, monthly: Decimal, base_monthly: Decimal | None) -> Decimal | None:
    if base_monthly is None or base_monthly <= monthly:
        return None
    return (training / (base_monthly - monthly)).quantize(Decimal("0.01"))


def _break_even(training: Decimal, serving: _Serving, monthly: Decimal, use: Use) -> Decimal | None:
    """Requests per day at which training + fixed months equal what each request saves, at today's number of
    GPUs."""
    traffic, months, base = use.traffic, use.months, use.base
    if base is None or traffic.requests_per_month <= 0 or months <= 0:
        return None
    each = (monthly - serving.fixed_usd) / traffic.requests_per_month
    saved = base.usd_per_request - each
    if saved <= 0:
        return None
    fixed = training / months + serving.fixed_usd
    return (fixed / saved / DAYS_PER_MONTH).quantize(Decimal(1))


def serving_terms(
    provider: str, model: str, *, book: RateBook | None = None, today: date | None = None
) -> str | None:
    """How a tuned model is paid for on a backend, in a few words; `None` where no price is known."""
    prices = Prices(provider, book or built_in(), today or date.today())
    try:
        near, resolved = profile_of(provider).near, catalog.resolve(model, provider, prices.on)
    except (SetupError, UsageError):  # a host that is no longer configured, a model that has left the catalog
        return None
    if tokens := _token_rates(prices, resolved):
        return f"{text.rate(tokens[0].usd)} in, {text.rate(tokens[1].usd)} out per million tokens"
    gpu = prices.of("deployment", gpu="H100")
    if gpu is None:
        return "this machine" if near else None
    if resolved.params_b is None:
        return f"{text.rate(gpu.usd)} per {gpu.applies_to}-hour, dedicated"
    nothing = Traffic(requests_per_day=Decimal(0), input_tokens=1, output_tokens=1)
    _, gpus, _ = gpus_needed(resolved.params_b, resolved.params_b, nothing)
    return f"{text.rate(gpu.usd * gpus)} per hour: {gpus} dedicated {gpu.applies_to}"


def cheapest(totals: Sequence[Ownership]) -> Ownership | None:
    """The least expected total of a job that would be taken and that serves the whole period."""
    whole = [t for t in totals if not (t.unavailable or t.serves_until) and t.training.ranked]
    return min(whole, key=lambda t: t.expected_usd, default=None)
