"""Estimates of the cost of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
from msgspec.structs import replace

from orchestrate import text
from orchestrate.catalog import ModelOnHost
from orchestrate.core import days
from orchestrate.costing import hardware, lines
from orchestrate.costing.lines import MTOK, line, minimum_top_up, rounded, summed
from orchestrate.costing.rate import Lookup, Rate
from orchestrate.costing.rates import Prices, RateBook, built_in, names
from orchestrate.costing.size import JobSize, PlannedJob, measure
from orchestrate.errors import UsageError
from orchestrate.profile import Profile
from orchestrate.spec import DPO, JobSpec, method_word
from orchestrate.text import duration, rate
from orchestrate.types import Confidence, JobRecovery, Quote, QuoteLine, Record

# Jobs on machines that are billed hourly or by their electricity use: the local and Ray backends.


EVAL_SHARE = Decimal(1) / 3
"""Time to evaluate on a token, relative to the time to train on it. Evaluation skips the backward pass, which
takes twice as long as the forward pass."""

DRAWN_SHARE = (Decimal(2), Decimal(4), Decimal(8))
"""Time to sample a token, divided by the time to train on one, as (low, expected, high). Measured on a CPU:
2.9 with 128 answers sampled concurrently, 7.3 with 16."""
ANSWER_SHARE = (Decimal("0.1"), Decimal("0.5"), Decimal(1))
"""Answer length as a fraction of the maximum length, as (low, expected, high). The actual length is not known
in advance."""


class SampledAnswers(Record, frozen=True, kw_only=True):
    """The answers that reinforcement fine-tuning samples in each epoch."""

    samples: int
    """Number of answers per prompt."""
    most_tokens: int


class HourlyRate(Record, frozen=True, kw_only=True):
    """The hourly cost of a machine, with its source."""

    component: str
    """Component of the quote line: electricity, owned or rental."""
    usd_per_hour: Decimal
    label: str
    source: str
    as_of: str
    confidence: Confidence
    low_usd_per_hour: Decimal
    high_usd_per_hour: Decimal
    own: str | None = None
    """File or flag that sets the user's own price. `None` for a built-in price."""

    def line(
        self,
        hours: Decimal,
        places: str,
        *,
        component: str | None = None,
        low: Decimal | None = None,
        high: Decimal | None = None,
    ) -> QuoteLine:
        """Build a quote line for `hours` at this rate, with the quantity rounded to `places`. `low` and
        `high` are the minimum and maximum hours."""
        return QuoteLine(
            component=component or self.component,
            quantity=hours.quantize(Decimal(places)),
            unit="usd_per_hour",
            usd_per_unit=self.usd_per_hour,
            usd_low=rounded((hours if low is None else low) * self.low_usd_per_hour),
            usd=rounded(hours * self.usd_per_hour),
            usd_high=rounded((hours if high is None else high) * self.high_usd_per_hour),
            note=self.label,
            source=self.source,
            as_of=self.as_of,
            confidence=self.confidence,
            own=self.own,
        )


def watts(device: str, count: int = 1) -> int:
    """Return the power draw of a machine at full load, in watts. `device` is the name of its GPUs, such as
    `NVIDIA H100 80GB HBM3`, or `cpu`. `count` is the number of GPUs."""
    table = hardware.table()
    if device.lower() == "cpu":
        return table.watts["cpu"]
    name = hardware.closest(device, table.watts)
    return table.host_watts + count * (table.watts[name] if name else table.unknown_gpu)


def local_rate(
    prices: str,
    device: str = "cpu",
    count: int = 1,
    *,
    book: RateBook | None = None,
    today: date | None = None,
) -> HourlyRate:
    """Return the hourly rate of a machine. Prices are looked up for the provider `prices`. Uses the user's
    own price if one is set: `owned` (US dollars per hour for the entire machine), or else `gpu_rental` (US
    dollars per GPU-hour). Otherwise, the rate is the cost of electricity at full load."""
    book, on = book or built_in(), today or days.today()
    if owned := book.find(prices, "owned", ids=[device], gpu=device, on=on):
        return _hourly("owned", owned, Decimal(1), "your hourly price for this machine")
    if rental := book.find(prices, "gpu_rental", gpu=device, on=on) or _flat(book, prices, on):
        return _hourly("rental", rental, Decimal(count), f"{count} x {device} at your rental price")
    power = watts(device, count)
    electricity = book.find(prices, "electricity", on=on)
    if electricity is None:
        raise UsageError("no electricity price is set", fix=f"to set one: --rate {prices}:electricity=0.30")
    label = (
        f"{power} W at full load x {text.rate(electricity.usd)} per kWh. The cost of the hardware is "
        "not included"
    )
    return _hourly("electricity", electricity, lines.electricity_kwh(3600, power), label)


def rental_rate(
    provider: str,
    gpu: str,
    count: int = 1,
    *,
    tier: str | None = None,
    book: RateBook | None = None,
    today: date | None = None,
) -> HourlyRate:
    """Return the hourly rate of `count` GPUs rented from a provider such as runpod, vast or lambda. Raises
    `UsageError` if no such price is known."""
    book, on = book or built_in(), today or days.today()
    rate = book.find(provider, "gpu_rental", gpu=gpu, tier=tier, on=on)
    if rate is None:
        known = sorted({r.applies_to for r in book if r.provider == provider and "gpu_rental" in r.methods})
        there = f"; it has {', '.join(known)}" if known else ""
        raise UsageError(
            f"no rental price for {gpu} at {provider}{there}",
            fix="orchestrate prices list --method gpu_rental",
        )
    return _hourly("rental", rate, Decimal(count), f"{count} x {rate.applies_to} at {provider}")


def _flat(book: RateBook, prices: str, on: date) -> Rate | None:
    mine = (r for r in book if r.provider == prices and "gpu_rental" in r.methods)
    return next((r for r in mine if r.gpu is None), None)


def _hourly(component: str, rate: Rate, per_hour: Decimal, label: str) -> HourlyRate:
    low, usd, high = rate.band()
    return HourlyRate(
        component=component,
        usd_per_hour=rounded(usd * per_hour),
        low_usd_per_hour=rounded(low * per_hour),
        high_usd_per_hour=rounded(high * per_hour),
        label=label,
        source=rate.source,
        as_of=rate.as_of,
        confidence=rate.confidence,
        own=rate.own,
    )


class Speed(Record, frozen=True, kw_only=True):
    """Training speed in tokens per second, measured or modeled by the caller."""

    tokens_per_second: float
    source: str
    """Source of the speed, such as "measured on this machine on ..." or "modeled from ..."."""
    band: float = 0.5
    """Relative half-width of the speed's range: expected x (1 - band) to expected x (1 + band)."""
    factor: float | None = None
    """Alternative to `band`, as a factor: the speed is between expected / factor and expected x factor."""

    @property
    def slowest_and_fastest(self) -> tuple[float, float]:
        """Slowest and fastest speed, relative to the expected one."""
        if self.factor is not None:
            return 1 / self.factor, self.factor
        return 1 - min(self.band, 0.9), 1 + min(self.band, 0.9)

    @property
    def description(self) -> str:
        if self.factor is None:
            return f"{self.source}, +/-{self.band:.0%}"
        low, high = (self.tokens_per_second * share for share in self.slowest_and_fastest)
        return f"{low:,.0f} to {high:,.0f}; {self.source}"

    def __post_init__(self) -> None:
        if self.tokens_per_second <= 0:
            raise ValueError(f"tokens_per_second must be positive, got {self.tokens_per_second}")


def quote_hours_job(
    work: PlannedJob,
    *,
    speed: Speed,
    hourly: HourlyRate,
    startup_seconds: float | tuple[float, float, float] = 30.0,
    answers: SampledAnswers | None = None,
) -> Quote:
    """Quote a job that is billed hourly.

    The hours are computed from the job's size and the training speed. `startup_seconds` is the additional
    time before and after training, as one number or as (minimum, expected, maximum). For reinforcement
    fine-tuning, pass `answers` to include the time for sampling answers."""
    size = measure(work)
    read_only = _read_only(work.spec, size)
    per_second = Decimal(str(speed.tokens_per_second))
    besides = startup_seconds if isinstance(startup_seconds, tuple) else (startup_seconds,) * 3
    soonest, start, latest = (Decimal(str(seconds)) for seconds in besides)
    least, likely, most = (_work(size, answers, n, read_only) / per_second for n in range(3))
    slow, fast = (Decimal(str(share)) for share in speed.slowest_and_fastest)
    tokens = Decimal(str(size.band))
    fastest, slowest = least * (1 - tokens) / fast, most * (1 + tokens) / slow
    seconds = likely + start
    hours = seconds / 3600
    entry = hourly.line(hours, "0.0001", low=(fastest + soonest) / 3600, high=(slowest + latest) / 3600)
    return summed(
        provider=work.provider,
        model=work.resolved.name,
        lines=[entry],
        assumptions=[
            *size.notes,
            f"{size.passes:.4g} {'epoch' if size.passes == 1 else 'epochs'} and "
            f"{text.count(size.evals, 'evaluation')} "
            f"at {speed.tokens_per_second:,.0f} tokens per second ({speed.description})",
            *_drawn(answers),
            *_judged(work.spec, read_only),
            hourly.label,
        ],
        warnings=work.resolved.warnings,
        billed_tokens=round(size.train_tokens * size.passes),
        train_seconds=float(seconds),
    )


def _work(size: JobSize, answers: SampledAnswers | None, likely: int, read_only: int = 0) -> Decimal:
    """Return the work in units of a trained token. `likely` is 0 for the low, 1 for the expected and 2 for
    the high estimate. `read_only` is the number of tokens that are only processed by a forward pass."""
    trained, evaluated = size.train_tokens * size.passes, size.validation_tokens * size.evals
    if answers is None:
        return trained + EVAL_SHARE * (evaluated + read_only)
    answer = ANSWER_SHARE[likely] * answers.most_tokens
    drawn = DRAWN_SHARE[likely] * answer
    each_epoch = answers.samples * ((1 + EVAL_SHARE) * size.train_tokens + size.rows * (answer + drawn))
    return each_epoch * size.passes + EVAL_SHARE * evaluated + size.validation_rows * size.evals * drawn


def _read_only(spec: JobSpec, size: JobSize) -> int:
    """Return the number of tokens that the reference model processes before the first step. With KTO,
    includes the mismatched answers of each epoch, which the trained model processes too."""
    method = spec.method
    if not isinstance(method, DPO) or method.loss == "orpo" or method.simpo_gamma is not None:
        return 0
    once = size.train_tokens + size.validation_tokens
    if method.loss != "kto":
        return once
    evaluated = size.validation_tokens * (1 + size.evals)
    return once + round(2 * size.train_tokens * size.passes) + evaluated


def _judged(spec: JobSpec, read_only: int) -> list[str]:
    if not read_only:
        return []
    why = "for the reference model"
    if method_word(spec.method) == "kto":
        why += " and to estimate the divergence"
    return [f"{read_only:,} tokens only need a forward pass {why}, which takes a third of the time"]


def _drawn(answers: SampledAnswers | None) -> list[str]:
    if answers is None:
        return []
    return [
        f"{answers.samples} answers of {ANSWER_SHARE[1] * answers.most_tokens:.0f} tokens are sampled per "
        f"prompt and epoch ({ANSWER_SHARE[0] * answers.most_tokens:.0f} to "
        f"{answers.most_tokens})",
        f"sampling a token takes {DRAWN_SHARE[1]} times as long as training on one "
        f"({DRAWN_SHARE[0]} to {DRAWN_SHARE[2]}), excluding the grader's time",
    ]


# Quotes for hosted jobs, computed before anything is uploaded.


STALE_DAYS = 60
"""Age in days above which a price gets a warning."""


def training_rate(resolved: ModelOnHost, spec: JobSpec, profile: Profile, prices: Prices) -> Rate | None:
    """Return the price per training token for the spec's method. A rate for both the method and the adapter
    takes precedence over a rate for the method alone. If there is no DPO rate, it is derived from the SFT
    rate."""
    found = prices.of(training_methods(spec), resolved)
    derived = found is None and spec.method.type == "dpo"
    sft = prices.of(training_methods(spec, "sft"), resolved) if derived else None
    if sft is not None and sft.usd_per_mtok is not None:
        factor = profile.dpo_factor
        return Rate(
            provider=sft.provider,
            method=training_methods(spec)[0],
            model=sft.model,
            usd_per_mtok=sft.usd_per_mtok * factor,
            start=sft.start,
            checked=sft.checked,
            confidence=Confidence.INFERRED if sft.confidence is Confidence.QUOTED else sft.confidence,
            source=f"{factor} x SFT: {sft.source}",
        )
    return found


def training_methods(spec: JobSpec, method: str | None = None) -> tuple[str, str]:
    """Return the method names that the spec's training rate may have in a rate book, most specific first,
    such as `sft_lora` and `sft`. `method` overrides the spec's method."""
    method = method or spec.method.type
    return f"{method}_{'full' if spec.adapter.type == 'full' else 'lora'}", method


def lookup(spec: JobSpec, resolved: ModelOnHost, prices: str, *, gpu: str | None = None) -> Lookup:
    """Build the query for the rates that are needed to quote this spec. With `gpu` (a GPU name, or `cpu`),
    the query is for the rates of a machine that is billed hourly."""
    if gpu is not None:
        return Lookup(prices, (("electricity",), ("gpu_rental",), ("owned",)), gpu=gpu)
    if spec.method.type == "rft":
        return Lookup(prices, (("rft",),), names(resolved), resolved.params_b, "H100")
    # If the host has no DPO price, training_rate derives one from the SFT price.
    instead = training_methods(spec, "sft") if spec.method.type == "dpo" else ()
    wanted = (training_methods(spec), ("minimum",))
    return Lookup(prices, wanted, names(resolved), resolved.params_b, instead=instead)


def quote_tokens_job(
    work: PlannedJob,
    *,
    prices: Prices | None = None,
    gpu_hours: Decimal | None = None,
    sandbox: bool = False,
) -> Quote:
    """Quote a hosted job that is billed by tokens. RFT jobs are billed by GPU-hours, which you must pass as
    `gpu_hours`.

    `prices` defaults to the host's prices of today. If the model was shut down or has no published price, the
    quote has no total, and `unavailable` states the reason. With `sandbox`, jobs are quoted even if the real
    host no longer accepts them.
    """
    priced = PricedJob(
        work.provider,
        work.profile,
        work.spec,
        work.resolved,
        prices or Prices(work.profile.kind),
        sandbox,
    )
    return quote_sized_job(priced, lambda: measure(work), gpu_hours=gpu_hours)


@dataclass(frozen=True)
class PricedJob:
    """Everything that a quote needs, except the size of the job."""

    provider: str
    profile: Profile
    spec: JobSpec
    resolved: ModelOnHost
    prices: Prices
    sandbox: bool = False


def quote_sized_job(
    job: PricedJob, size_of: Callable[[], JobSize], *, gpu_hours: Decimal | None = None
) -> Quote:
    """Quote a hosted job as `quote_tokens_job` does, with the size that `size_of` returns. Calls `size_of`
    only if there is a price."""
    provider, profile, spec, resolved, prices = job.provider, job.profile, job.spec, job.resolved, job.prices

    def none(reason: str) -> Quote:
        return Quote(provider=provider, model=resolved.name, unavailable=reason, warnings=resolved.warnings)

    if reason := None if job.sandbox else _closed(resolved, profile, prices.on):
        return none(reason)
    if spec.method.type == "rft":
        return _quote_rft(provider, resolved, gpu_hours, prices, profile.hourly_factor(spec))
    if profile.bills is None:
        return none(f"{provider} does not publish how it bills a job, so the price is unknown")
    rate = training_rate(resolved, spec, profile, prices)
    if rate is None or rate.usd_per_mtok is None:
        return none(_no_price(resolved, spec, prices))
    if rate.usd_max is not None:
        return none(
            f"{provider} published only a range for {resolved.name}: {text.rate(rate.usd)} to "
            f"{text.rate(rate.usd_max)} per million tokens ({rate.source}, {rate.last_checked}). "
            f"Set the price with --rate {prices.name}:{spec.method.type}_lora=USD_PER_MTOK"
        )
    gate = None if job.sandbox else profile.gated(prices.on)
    gates = [gate] if gate else []
    size = size_of()
    billed = profile.bills(size, rate)
    lines, notes = _with_token_range(billed.lines, size), list(billed.notes)
    undecided = None
    if minimum := prices.of("minimum", resolved):
        top_up = _minimum(lines, minimum)
        if minimum.note and top_up.usd_high > 0:
            notes.append(f"minimum charge: {minimum.note}")
        lines.append(top_up)
        if minimum.usd_max is not None and top_up.usd_high > 0:
            span = text.span(minimum.usd, minimum.usd_max)
            undecided = (
                f"the host's minimum charge per job depends on the model ({span}), and the host does not "
                "publish the minimum for this model"
            )
    quote = summed(
        provider=provider,
        model=resolved.name,
        lines=lines,
        assumptions=[*size.notes, *notes],
        warnings=[*resolved.warnings, *gates, *_rate_warnings(rate, prices.on)],
        billed_tokens=sum(int(entry.quantity * MTOK) for entry in lines if entry.unit == "usd_per_mtok"),
        open_end=billed.open_end,
    )
    return quote if undecided is None else replace(quote, undecided=undecided, expected_usd=None)


def _with_token_range(lines: Sequence[QuoteLine], size: JobSize) -> list[QuoteLine]:
    """Widen lines of tokens without a range to the uncertainty of the token count, because limits use the
    high end."""
    by_token = [entry for entry in lines if entry.unit == "usd_per_mtok"]
    if not size.train_tokens or any(entry.usd_low != entry.usd_high for entry in by_token):
        return list(lines)
    low, high = (each / size.train_tokens for each in (size.train_least, size.train_most))
    return [
        replace(entry, usd_low=rounded(entry.usd * low), usd_high=rounded(entry.usd * high))
        if entry in by_token
        else entry
        for entry in lines
    ]


def _closed(resolved: ModelOnHost, profile: Profile, on: date) -> str | None:
    if closed := profile.closed(on):
        return closed
    host = resolved.host
    if host is not None and host.no_new_jobs_after is not None and on >= host.no_new_jobs_after:
        return f"{profile.title} has not accepted new jobs for {resolved.name} since {host.no_new_jobs_after}"
    if host is not None and host.tunable == "no":
        return (
            next(iter(resolved.warnings), None)
            or f"{resolved.name} can no longer be fine-tuned on {profile.kind}"
        )
    return None


def _no_price(resolved: ModelOnHost, spec: JobSpec, prices: Prices) -> str:
    kind = prices.name
    method = training_methods(spec)[0]
    rates = [rate for rate in prices.book if rate.provider == kind]
    fitting = [rate for rate in rates if {method, spec.method.type} & {*rate.methods}]
    if not rates:
        reason = f"no rates for {kind}"
    elif not fitting:
        reason = f"no known price for {spec.method.type} on {kind}"
    elif resolved.params_b is None and any(rate.over_b or rate.upto_b for rate in fitting):
        reason = f"the size of {resolved.name} is unknown, so its price tier on {kind} is unknown"
    else:
        reason = f"no price found for {method} of {resolved.name} on {kind}"
    return f"{reason}. Set it with --rate {kind}:{method}=USD_PER_MTOK, or in rates.yaml"


def _quote_rft(
    provider: str, resolved: ModelOnHost, hours: Decimal | None, prices: Prices, factor: Decimal
) -> Quote:
    rate = prices.of("rft", resolved, gpu="H100")
    surcharge = f", times {factor} for the chosen region" if factor != 1 else ""
    if rate is None or hours is None:
        each = f" at {text.rate(rate.usd)} per hour" if rate else ""
        return Quote(
            provider=provider,
            model=resolved.name,
            unavailable=f"RFT is billed by time{each}, and the duration is unknown before the run. "
            "Set your own estimate with --gpu-hours",
            warnings=resolved.warnings,
        )
    return summed(
        provider=provider,
        model=resolved.name,
        lines=[
            line("training", hours * factor, rate, note=f"your estimate of the hours, on H100{surcharge}")
        ],
        assumptions=[f"{hours} GPU-hours, as you estimated", "the tokens of a model grader are not included"],
        warnings=[*resolved.warnings, *_rate_warnings(rate, prices.on)],
    )


def _minimum(lines: list[QuoteLine], minimum: Rate) -> QuoteLine:
    """Build the line that raises the job to the minimum charge. It is zero if the other lines reach the
    minimum."""
    low, expected, high = minimum.band()
    if minimum.usd_max is None:
        low = high = expected  # a flat charge: what is uncertain about it is said by its confidence
    else:
        expected = high  # which one it is cannot be told, and the middle is none of them
    top_low = minimum_top_up(sum((entry.usd_low for entry in lines), Decimal(0)), low)
    top = minimum_top_up(sum((entry.usd for entry in lines), Decimal(0)), expected)
    top_high = minimum_top_up(sum((entry.usd_high for entry in lines), Decimal(0)), high)
    span = text.rate(low)
    if low != high:
        span += f" to {text.rate(high)}, depending on the model"
    return QuoteLine(
        component="minimum",
        quantity=Decimal(1),
        unit="usd_per_job",
        usd_per_unit=top,
        # The more the tokens cost, the smaller the top-up, so usd_low can be above usd_high.
        usd_low=top_low,
        usd=top,
        usd_high=top_high,
        note=f"top-up to the minimum charge of {span}",
        own=minimum.own,
        source=minimum.source,
        as_of=minimum.as_of,
        confidence=minimum.confidence,
    )


def _rate_warnings(rate: Rate, on: date) -> list[str]:
    found: list[str] = []
    age = (on - rate.last_checked).days
    if age < -1:  # a day earlier is still the same one elsewhere
        why = f"this machine's clock says {on}. Prices and shutdown dates depend on it, so set it correctly"
        found.append(f"{days.pretended(on) or why}. The price was checked later, on {rate.last_checked}")
    if rate.doubt is not None:
        found.append(rate.doubt)
    elif age > STALE_DAYS:
        found.append(f"the price was last checked {age} days ago: {rate.source}")
    return found


# Quotes for recovered jobs, whose spec and data are unknown, from what the host reports.
#
# Budgets reserve the high end. The range is wide because tokens are often estimated from the file size alone.

BYTES_PER_TOKEN = 4
"""Assumed bytes per token in JSON lines. English prose has 4 to 5 bytes per token, and more when encoded
as JSON. Scripts with three-byte UTF-8 characters have 3, or 6 if the characters are escaped."""
BAND = {"bytes": 1.0, "tokens": 0.2}
"""Relative half-width of the range of a token count, keyed by the count's source: `bytes` if it is estimated
from the file size (up to one token per 2 bytes), `tokens` if the host reports it."""


def spec_of(model: str, reported: JobRecovery | None) -> dict[str, Any]:
    """Build the known part of a recovered job's spec. The path of its data is `unknown`."""
    spec: dict[str, Any] = {"model": model, "train": "unknown"}
    if reported is not None and reported.method != "sft":
        spec["method"] = {"type": reported.method} | (
            {"grader": {"type": "unknown"}} if reported.method == "rft" else {}
        )
    if reported is not None and reported.adapter == "full":
        spec["adapter"] = {"type": "full"}
    return spec


def quote_recovered(job: PricedJob, reported: JobRecovery) -> Quote:
    """Quote a job from what its host reports about it. If there is no price, `unavailable` states why."""
    if reported.usd_per_hour is not None or reported.most_seconds is not None:
        return _by_the_hour(job, reported)
    if reported.train_tokens is None and reported.train_bytes is None:
        return _none(job, "the host reports neither the token count nor the size of the data")
    if not reported.packing and reported.rows is None:
        return _none(
            job, "the host bills each row at the maximum length but does not report the number of rows"
        )
    return msgspec.structs.replace(
        quote_sized_job(job, lambda: size_of(job.profile, reported)), recovered=True
    )


def _by_the_hour(job: PricedJob, reported: JobRecovery) -> Quote:
    """Quote a job up to the end of its machine, because the duration of its work is unknown."""
    if reported.usd_per_hour is None:
        return _none(job, "the hourly price of the job's machine is unknown")
    if reported.most_seconds is None:
        return _none(job, "the maximum running time of the job's machine is unknown")
    hours = Decimal(str(reported.most_seconds)) / 3600
    hourly = HourlyRate(
        component="rental",
        usd_per_hour=reported.usd_per_hour,
        label="its machine",
        source=reported.price_source or "the host",
        as_of=f"{job.prices.on:%Y-%m-%d}",
        confidence=Confidence.QUOTED,
        low_usd_per_hour=reported.usd_per_hour,
        high_usd_per_hour=reported.usd_per_hour,
    )
    line = hourly.line(Decimal(0), "0.01", high=hours)
    return Quote(
        provider=job.provider,
        model=job.resolved.name,
        lines=(line,),
        assumptions=(
            f"the job's machine runs for at most {duration(reported.most_seconds)}, at "
            f"{rate(reported.usd_per_hour)} "
            "per hour",
        ),
        expected_usd=None,
        high_usd=line.usd_high,
        recovered=True,
        undecided="the job was recovered without its quote. Only the maximum running time of its machine "
        "is known",
    )


def quote_assumed(job: PricedJob, reported: JobRecovery) -> Quote:
    """Quote a job from an assumed number of rows and tokens. Use this for data that does not exist yet."""
    rows, tokens = reported.rows or 0, reported.train_tokens or 0
    note = f"{rows:,} rows with {tokens:,} tokens in total, +/- {BAND['tokens']:.0%}"
    size = msgspec.structs.replace(size_of(job.profile, reported), notes=(note,))
    return quote_sized_job(job, lambda: size)


def size_of(profile: Profile, reported: JobRecovery) -> JobSize:
    counted = reported.train_tokens is not None
    tokens = _tokens(reported.train_bytes) if reported.train_tokens is None else reported.train_tokens
    epochs = low = high = reported.epochs
    if epochs is None or low is None or high is None:
        fewest = profile.rules.least_rows if profile.rules is not None else 1
        epochs = profile.default_epochs or profile.auto_epochs(reported.rows or 0)
        low, high = 1, profile.default_epochs or profile.auto_epochs(reported.rows or fewest)
    note = f"{tokens:,} tokens, counted by the host"
    if not counted:
        note = f"{reported.train_bytes:,} bytes: {tokens:,} tokens expected, and at most twice as many"
    evaluated = _tokens(reported.validation_bytes)
    band = Decimal(str(BAND["tokens" if counted else "bytes"]))
    return JobSize(
        rows=reported.rows or 0,
        sequences=(reported.rows or 0) * (2 if reported.method == "dpo" else 1),
        longest=0,
        train_tokens=tokens,
        train_least=tokens * (1 - band),
        train_most=tokens * (1 + band),
        validation_tokens=evaluated,
        validation_least=evaluated * (1 - band),
        validation_most=evaluated * (1 + band),
        validation_rows=0,
        validation_sequences=0,
        epochs=epochs,
        passes=Decimal(epochs),
        epochs_low=low,
        epochs_high=max(high, epochs),
        evals=reported.evals,
        packing=reported.packing,
        max_length=reported.max_length,
        reasoning=reported.average_turns > 2,  # not reported, and only makes such a job more expensive
        average_turns=reported.average_turns,
        band=float(band),
        notes=(note,),
    )


def _tokens(size: int | None) -> int:
    return -(-(size or 0) // BYTES_PER_TOKEN)


def _none(job: PricedJob, reason: str) -> Quote:
    return Quote(provider=job.provider, model=job.resolved.name, unavailable=reason, recovered=True)
