"""Options for serving a tuned model, and their monthly costs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal

from msgspec.structs import replace

from orchestrate import text
from orchestrate.catalog import ModelOnHost
from orchestrate.costing import hardware
from orchestrate.costing.lines import MTOK, line, rounded
from orchestrate.costing.rate import Rate
from orchestrate.costing.rates import Prices, current
from orchestrate.costing.training import HourlyRate
from orchestrate.errors import UsageError
from orchestrate.text import rate
from orchestrate.types import Confidence, Quote, QuoteLine, Record

DAYS_PER_MONTH = Decimal(365) / 12
UTILISATION = Decimal(1) / 3
"""Average load as a fraction of a replica's capacity. The load in the busiest hour is three times the
average."""


class Traffic(Record, frozen=True, kw_only=True):
    """Requests per day to the tuned model, and tokens per request."""

    requests_per_day: Decimal
    input_tokens: int
    output_tokens: int

    @classmethod
    def parse(cls, words: str) -> Traffic:
        """Parse a description such as `20k req/day, 900 in, 150 out`. Raises `UsageError` if the form is
        invalid."""
        asked = " ".join(words.lower().replace("_", "").split())
        found = _TRAFFIC.match(asked) if len(asked) <= _LONGEST else None
        if found is None:
            raise UsageError(
                f"--traffic {words!r} is not valid", fix='use the form "20k req/day, 900 in, 150 out"'
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


class BasePrice(Record, frozen=True, kw_only=True):
    """Price of one request to a prompted base model, at a provider's public rate."""

    model: str
    provider: str
    usd_per_request: Decimal
    input_tokens: int
    """Number of prompt tokens, including those that the tuned model does not need."""
    source: str
    until: date | None = None
    """Day on which the model is shut down, if its host has announced one."""
    successor: BasePrice | None = None
    """Price of the successor that the host named."""
    note: str = ""

    def ends(self, on: date, days: int) -> bool:
        """Return whether the model will be shut down within `days` days after `on`."""
        return self.until is not None and (self.until - on).days < days

    def mean_usd(self, on: date, days: int) -> Decimal:
        """Return the average price of a request, in US dollars, over the `days` days after `on`. After the
        base model's shutdown, the successor's price applies. If the host named no successor, the base model's
        price applies throughout."""
        if self.until is None or self.successor is None or not self.ends(on, days) or days <= 0:
            return self.usd_per_request
        alive = max((self.until - on).days, 0)
        after = self.successor.mean_usd(on + timedelta(alive), days - alive)
        return (self.usd_per_request * alive + after * (days - alive)) / days

    def words(self, on: date, days: int) -> str:
        """Describe which model is prompted during the `days` days after `on`: the base model and, if it is
        shut down in that time, its successor."""
        if not self.ends(on, days):
            return self.model
        if self.successor is None:
            return f"{self.model} (to be shut down on {self.until}, with no named successor)"
        return f"{self.model} until its shutdown on {self.until}, then {self.successor.model}"

    def terms(self) -> str:
        more = f"; {self.note}" if self.note else ""
        return (
            f"prompting {self.model} ({self.provider}) with {self.input_tokens} input tokens "
            f"costs {rate(self.usd_per_request)} per request ({self.source}){more}"
        )


class ServingUse(Record, frozen=True, kw_only=True):
    """Expected use of the tuned model."""

    traffic: Traffic
    months: int = 6
    hours_per_day: float = 24.0
    """Hours per day during which a dedicated deployment is up. Below 24 if the deployment scales to zero or
    is taken down at night."""
    utilisation: Decimal = UTILISATION
    """Maximum average load of a replica, low enough to leave room for the busiest hour."""
    base: BasePrice | None = None
    """Price of the base model that the tuned model is compared with."""


_LONGEST = 200
_N = r"[\d.,]*\d ?[km]?"
_TRAFFIC = re.compile(
    rf"^(?P<requests>{_N}) ?(?:req\w*|calls?)? ?(?:/|per|a) ?"
    r"(?P<per>s|sec|second|min|minute|h|hour|d|day|month)\b"
    rf"[ ,;]+(?P<input>{_N}) ?(?:tok\w* ?)?in\w*[ ,;]+(?P<output>{_N}) ?(?:tok\w* ?)?out\w*$"
)


def _number(text: str) -> Decimal:
    text = text.replace(",", "").replace(" ", "")
    factor = {"k": 1000, "m": 1_000_000}.get(text[-1:], 1)
    return Decimal(text.rstrip("km")) * factor


# Estimates of how many GPUs a model requires and how many requests a replica can serve, fitted to published
# measurements. They ignore latency limits, long contexts and cached prompts.

BYTES_PER_PARAM = {"bf16": 2.0, "fp8": 1.0, "mxfp4": 0.56}
"""Bytes per parameter of the published weights. MXFP4: gpt-oss-120b's checkpoint is 65 GB for 116.8 billion
parameters, because not all of its tensors use four bits."""
HEADROOM = 1.2
"""Factor by which memory must exceed the weights, for the cache and activations."""
REFERENCE_TB_S = 3.35
"""Memory bandwidth of the H100 SXM in TB/s, the reference for the speed of other GPUs. The H200, with 1.43
times that bandwidth, was measured to be 1.2 to 1.4 times as fast."""
SPEED = (25_000.0, 50_000.0, 160_000.0)
"""Throughput of one H100, as (low, expected, high): output tokens per second times billions of parameters.
For a mixture of experts, the parameter count is the geometric mean of total and active parameters.

- High: from NVIDIA's TensorRT-LLM performance overview, with 8-bit weights at the highest load and no latency
  limit. Six dense and mixture-of-experts models from 8B to 405B reach 133,000 to 212,000 in this unit.
- Expected: from GPUStack's performance lab. Qwen3-32B with vLLM's defaults, 16-bit weights, one H100 and
  ShareGPT prompts processes 2,353 tokens per second (input and output).
- Low: half of the expected value, an assumption that allows for adapters and latency limits."""
SPEED_SOURCE = "based on measurements of vLLM by GPUStack and of TensorRT-LLM by NVIDIA"
PREFILL_SPEEDUP = 3
"""Speed of processing input tokens relative to generating output tokens. NVIDIA's figures for 1,000 tokens in
and out, compared with 2,048 in and 128 out, imply 3.4 for Llama 3.1 8B and 2.3 for Llama 3.3 70B."""


class Replica(Record, frozen=True, kw_only=True):
    """One copy of a model, on as many GPUs of one type as the model requires."""

    gpu: str
    gpus: int
    bytes_per_param: float
    tokens_per_second: tuple[float, float, float]
    """Output tokens per second, not counting the time to process input: low, expected and high."""


def effective_b(params_b: float, active_b: float | None) -> float:
    """Return the model size that determines the speed, in billions of parameters (at least 1)."""
    return max(math.sqrt(params_b * (active_b or params_b)), 1.0)


def gpus_for(params_b: float, width: float, memory_gb: float) -> int:
    """Return the number of GPUs that can hold the weights, cache and activations. It is a power of two, as
    tensor parallelism requires."""
    share = params_b * width * HEADROOM / memory_gb
    return 1 if share <= 1 else 2 ** math.ceil(math.log2(share))


def replica(resolved: ModelOnHost, gpu: str) -> Replica | None:
    """Return a replica of the model on this type of GPU, or `None` if the model's size or the GPU's memory is
    unknown."""
    name = hardware.closest(gpu, hardware.table().gpus)
    params_b = resolved.params_b
    if name is None or params_b is None:
        return None
    memory_gb, tb_s = hardware.table().gpus[name]
    model = resolved.model
    width = BYTES_PER_PARAM[model.precision if model else "bf16"]
    gpus = gpus_for(params_b, width, memory_gb)
    factor = gpus * tb_s / REFERENCE_TB_S / effective_b(params_b, model.active_params_b if model else None)
    low, expected, high = (speed * factor for speed in SPEED)
    return Replica(gpu=name, gpus=gpus, bytes_per_param=width, tokens_per_second=(low, expected, high))


def seconds_per_request(traffic: Traffic, tokens_per_second: float) -> float:
    tokens = traffic.output_tokens + traffic.input_tokens / PREFILL_SPEEDUP
    return tokens / tokens_per_second


def busiest_share(hours_per_day: float, utilisation: Decimal = UTILISATION) -> float:
    """Return the share of a day's requests that arrives in the busiest hour: an eighth by default, more if
    the model is up for fewer than eight hours."""
    return max(1 / (24 * float(utilisation)), 1 / hours_per_day)


def requests_per_day(
    traffic: Traffic, tokens_per_second: float, hours_per_day: float, utilisation: Decimal = UTILISATION
) -> int:
    """Return the number of requests per day that one replica can serve without falling behind in the busiest
    hour."""
    seconds = seconds_per_request(traffic, tokens_per_second)
    return math.floor(3600 / (seconds * busiest_share(hours_per_day, utilisation))) if seconds else 2**53


def replicas(traffic: Traffic, carried: int) -> int:
    """Return how many replicas the traffic requires if each can serve `carried` requests per day."""
    return max(1, math.ceil(traffic.requests_per_day / max(carried, 1)))


UNLIMITED = 2**53
"""Number of requests per day that stands for an unknown limit. No real traffic reaches it."""
FORWARD_SPEEDUP = 3
"""Speed of a forward pass relative to a training step. A training step also has a backward pass, which takes
twice as long."""


class ServingUnit(Record, frozen=True, kw_only=True):
    """The smallest amount of serving capacity that can be added: one replica, or the smallest rentable
    machine that fits one."""

    usd: Decimal
    """Cost per month in US dollars."""
    carried: int
    """Number of requests per day that the unit can serve."""


class ServingWay(Record, frozen=True, kw_only=True):
    """An option for serving a tuned model."""

    lines: tuple[QuoteLine, ...]
    """Quote lines of the monthly cost."""
    words: str
    assumptions: tuple[str, ...]
    units: tuple[ServingUnit, ...] = ()
    """Types of units that can be added for more traffic, one per type of GPU. Empty if billed per token."""
    single: bool = False
    """True if no units can be added."""
    utilisation: float | None = None
    """Average load as a fraction of the units' capacity while they are up."""

    each_usd: Decimal = Decimal(0)
    """Cost of each additional request, if billed per token."""

    @property
    def monthly_usd(self) -> Decimal:
        return sum((entry.usd for entry in self.lines), Decimal(0))


def token_rates(
    prices: Prices, resolved: ModelOnHost, method: str = "inference_tuned"
) -> tuple[Rate, Rate] | None:
    """Return the rates of input and output tokens, or `None` if the host does not bill tuned models per
    token."""
    tokens_in, tokens_out = prices.of(f"{method}_input", resolved), prices.of(f"{method}_output", resolved)
    return (tokens_in, tokens_out) if tokens_in and tokens_out else None


def by_tokens(traffic: Traffic, tokens_in: Rate, tokens_out: Rate) -> ServingWay:
    month = traffic.requests_per_month
    return ServingWay(
        lines=(
            line("serving input", month * traffic.input_tokens / MTOK, tokens_in),
            line("serving output", month * traffic.output_tokens / MTOK, tokens_out),
        ),
        words=f"per token, {text.rate(tokens_in.usd)} in and {text.rate(tokens_out.usd)} out per million, "
        "without a hosting fee",
        each_usd=(traffic.input_tokens * tokens_in.usd + traffic.output_tokens * tokens_out.usd) / MTOK,
        assumptions=("assumes no prompt caching and no batch discount",),
    )


def gpu_rates(prices: Prices, method: str) -> list[Rate]:
    """Return a provider's hourly GPU rates from the best source that has any: rates set by the user, then
    rates with confidence `QUOTED`, then all others."""
    found = [
        rate
        for rate in current(prices.book, prices.on)
        if rate.provider == prices.name and method in rate.methods and rate.gpu
    ]
    mine = [rate for rate in found if rate.own]
    return mine or [rate for rate in found if rate.confidence is Confidence.QUOTED] or found


def on_gpus(
    resolved: ModelOnHost, use: ServingUse, rates: Iterable[Rate], *, what: str, note: str = ""
) -> ServingWay | None:
    """Return the cheapest option for serving the expected use on GPUs at these rates, or `None` if no GPU is
    known to fit the model. `what` names the kind of billing: dedicated or rented."""
    options = [found for rate in rates if (found := _on_gpu(resolved, use, rate, what, note))]
    if not options:
        return None
    best = min(options, key=lambda option: option.monthly_usd)
    return replace(best, units=tuple(unit for option in options for unit in option.units))


def _on_gpu(resolved: ModelOnHost, use: ServingUse, rate: Rate, what: str, note: str) -> ServingWay | None:
    one = replica(resolved, rate.gpu or "")
    if one is None:
        return None
    sold = _machine(rate)
    if sold is not None and one.gpus > sold and sold < _WHOLE:
        return None
    sold = sold or 1
    unit_gpus = -(-one.gpus // sold) * sold
    in_unit = unit_gpus // one.gpus
    slow, likely, fast = (
        in_unit * requests_per_day(use.traffic, speed, use.hours_per_day, use.utilisation)
        for speed in one.tokens_per_second
    )
    units = replicas(use.traffic, likely)
    hours = Decimal(str(use.hours_per_day)) * DAYS_PER_MONTH * unit_gpus
    gpus, per_day = units * unit_gpus, f"{use.hours_per_day:g} h a day"
    entry = line(
        "hosting",
        hours * units,
        rate,
        low=hours * replicas(use.traffic, fast),
        high=hours * replicas(use.traffic, slow),
        note=f"{gpus} x {_kind(rate)}, {per_day}, idle included",
    )
    mean = float(use.traffic.requests_per_day) * seconds_per_request(use.traffic, one.tokens_per_second[1])
    utilisation = mean / (units * in_unit * use.hours_per_day * 3600)
    return ServingWay(
        lines=(entry,),
        words=f"{gpus} {what} {_kind(rate)} at {text.rate(rate.usd)} per GPU-hour, {per_day}, "
        f"{utilisation:.0%} used",
        assumptions=(*_sized(resolved, use, one, (slow, likely, fast)), *filter(None, (note, rate.doubt))),
        units=(ServingUnit(usd=rounded(hours * rate.usd), carried=likely),),
        utilisation=utilisation,
    )


_WHOLE = 8
"""Number of GPUs in a full machine. A replica is split across rented machines only if each of them has at
least this many GPUs."""


def _machine(rate: Rate) -> int | None:
    """Return the number of GPUs of the rented machine if the tier states it, such as 8 for `8x`."""
    tier = rate.tier or ""
    return int(tier[:-1]) if tier.endswith("x") and tier[:-1].isdigit() else None


def _kind(rate: Rate) -> str:
    return rate.applies_to if _machine(rate) is None else str(rate.gpu)


def _sized(
    resolved: ModelOnHost, use: ServingUse, one: Replica, carried: tuple[int, int, int]
) -> Iterable[str]:
    slow, likely, fast = (f"{speed:,.0f}" for speed in one.tokens_per_second)
    bits = f"{one.bytes_per_param * 8:g} bits"
    busiest = busiest_share(use.hours_per_day, use.utilisation)
    yield (
        f"one replica requires {one.gpus} {one.gpu} for {resolved.params_b:g}B parameters of {bits} each, "
        f"plus {HEADROOM - 1:.0%} for the cache"
    )
    yield (
        f"a replica generates {likely} tokens per second (modeled: {slow} to {fast}, "
        f"{SPEED_SOURCE}) and processes prompts {PREFILL_SPEEDUP} times as fast. It can serve up to "
        f"{carried[1]:,} of these requests per day ({carried[0]:,} to {carried[2]:,})"
    )
    share = f"{busiest * 100:.3g}% of a day's requests arrive in the busiest hour"
    yield f"up {use.hours_per_day:g} hours a day; {share}"


def base_monthly(prices: Prices, resolved: ModelOnHost, traffic: Traffic) -> Decimal | None:
    """Return the monthly cost of the base model at the host's serverless price, or `None` if the host has no
    such price."""
    both = prices.of("inference_base", resolved)
    pair = token_rates(prices, resolved, "inference_base") or ((both, both) if both else None)
    return by_tokens(traffic, *pair).monthly_usd if pair else None


def token_cost_note(serving: ServingWay, base_usd: Decimal | None, host: str, traffic: Traffic) -> str | None:
    """Return a note if these GPUs cost more per token than the host's serverless price for the base model.
    Returns `None` if they don't, or if there is no serverless price."""
    tokens = traffic.requests_per_month * (traffic.input_tokens + traffic.output_tokens) / MTOK
    if base_usd is None or not serving.units or not tokens or serving.monthly_usd <= base_usd:
        return None
    mine, theirs = serving.monthly_usd / tokens, base_usd / tokens
    idle = f" (the utilization here is {serving.utilisation:.0%})" if serving.utilisation is not None else ""
    return (
        f"these GPUs cost {text.money(mine)} per million tokens. {host}'s serverless price of the base "
        f"model is {text.money(theirs)}. You also pay while these GPUs are idle{idle}. Serverless GPUs are "
        "shared among many users and cannot serve this tuned model"
    )


def own_machine(hourly: HourlyRate, use: ServingUse, training: Quote) -> ServingWay | str:
    """Return the cost of serving on the training machine, or the reason why the machine can't serve the
    traffic. Assumes that a forward pass is three times as fast as a training step."""
    carried, utilisation = UNLIMITED, None
    sized = "the speed of this machine is unknown. Measure it before you rely on this cost"
    if training.billed_tokens and training.train_seconds:
        traffic, speed = use.traffic, FORWARD_SPEEDUP * training.billed_tokens / training.train_seconds
        carried = requests_per_day(traffic, speed, use.hours_per_day, use.utilisation)
        seconds = seconds_per_request(traffic, 1.0)
        share = busiest_share(use.hours_per_day, use.utilisation)
        needed = float(traffic.requests_per_day) * share / 3600 * seconds
        if traffic.requests_per_day > carried:
            return (
                f"this machine would generate about {speed:,.0f} tokens per second (estimated "
                f"from its training speed), but peak traffic requires {needed:,.0f}"
            )
        utilisation = float(traffic.requests_per_day) * seconds / speed / (use.hours_per_day * 3600)
        sized = (
            f"about {speed:,.0f} tokens per second (estimated from its training speed), and peak traffic "
            f"requires {needed:,.0f}"
        )
    hours = Decimal(str(use.hours_per_day)) * DAYS_PER_MONTH
    entry = hourly.line(hours, "0.01", component="hosting")
    return ServingWay(
        lines=(entry,),
        words=f"this machine, {use.hours_per_day:g} h a day: {hourly.label}",
        assumptions=(sized,),
        units=(ServingUnit(usd=entry.usd, carried=carried),),
        single=True,
        utilisation=utilisation,
    )
