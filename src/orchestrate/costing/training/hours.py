"""Jobs on hardware that is billed hourly, or by the electricity that it draws: local and Ray."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate import text
from orchestrate.core import days
from orchestrate.costing import hardware, lines
from orchestrate.costing.lines import rounded, summed
from orchestrate.costing.rate import Rate
from orchestrate.costing.rates import RateBook, built_in
from orchestrate.costing.size import JobSize, Work, measure
from orchestrate.errors import UsageError
from orchestrate.spec import DPO, method_word
from orchestrate.types import Confidence, Quote, QuoteLine, Record

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec

EVAL_SHARE = Decimal(1) / 3
"""Time of an evaluated token over a trained one: a forward pass without the backward one, which is twice as
long."""

DRAWN_SHARE = (Decimal(2), Decimal(4), Decimal(8))
"""Time of a drawn token over a trained one, low to high: 2.9 to 7.3 seen on a CPU with 128 and 16 answers at
once."""
ANSWER_SHARE = (Decimal("0.1"), Decimal("0.5"), Decimal(1))
"""Tokens of an answer over the most that it may have; nothing tells beforehand when the model ends one."""


class Answers(Record, frozen=True, kw_only=True):
    """What reinforcement fine-tuning draws in each epoch."""

    samples: int
    """Answers to each prompt."""
    most_tokens: int


class HourlyRate(Record, frozen=True, kw_only=True):
    """What one hour of the machine costs, and why."""

    component: str
    """electricity, owned or rental: the component of the quote line."""
    usd_per_hour: Decimal
    label: str
    source: str
    as_of: str
    confidence: Confidence
    low_usd_per_hour: Decimal
    high_usd_per_hour: Decimal
    own: str | None = None
    """Where the user's own price is from; `None` for a published one."""

    def line(
        self,
        hours: Decimal,
        places: str,
        *,
        component: str | None = None,
        low: Decimal | None = None,
        high: Decimal | None = None,
    ) -> QuoteLine:
        """`hours` of it, shown to `places`; `low` and `high` are the least and the most hours."""
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
    """Full-load draw of the machine with `count` devices of this name (`cpu`, `NVIDIA H100 80GB HBM3`
    ...)."""
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
    """The hour of a machine whose rates are listed under `prices`: `local:owned` (US dollars per hour of the
    whole machine) or `local:gpu_rental` (per GPU-hour) where the user set one, else the electricity that the
    devices draw at full load."""
    book, on = book or built_in(), today or days.today()
    if owned := book.find(prices, "owned", ids=[device], gpu=device, on=on):
        return _hourly("owned", owned, Decimal(1), "the machine's own hourly cost, as you set it")
    if rental := book.find(prices, "gpu_rental", gpu=device, on=on) or _flat(book, prices, on):
        return _hourly("rental", rental, Decimal(count), f"{count} x {device} at the rental price you set")
    power = watts(device, count)
    electricity = book.find(prices, "electricity", on=on)
    if electricity is None:
        raise UsageError("there is no price of electricity", fix=f"set one: --rate {prices}:electricity=0.30")
    label = f"{power} W at full load x {text.rate(electricity.usd)} per kWh; the hardware counts as paid for"
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
    """The hour of `count` rented GPUs at runpod, vast, lambda ... Raises `UsageError` when it has no such
    price."""
    book, on = book or built_in(), today or days.today()
    rate = book.find(provider, "gpu_rental", gpu=gpu, tier=tier, on=on)
    if rate is None:
        known = sorted({r.applies_to for r in book if r.provider == provider and "gpu_rental" in r.methods})
        there = f"; it has {', '.join(known)}" if known else ""
        raise UsageError(
            f"no rental price of {gpu} at {provider}{there}",
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
    """Trained tokens per second, measured or modelled by the caller."""

    tokens_per_second: float
    source: str
    """Which of the two: "measured on this machine on ...", "modelled from ..."."""
    band: float = 0.5
    """Relative half-width: the time is between tokens / (1 + band) and tokens / (1 - band)."""
    factor: float | None = None
    """In place of `band`: the speed is between it divided and it multiplied by this."""

    @property
    def slowest_and_fastest(self) -> tuple[float, float]:
        """Over the speed."""
        if self.factor is not None:
            return 1 / self.factor, self.factor
        return 1 - min(self.band, 0.9), 1 + min(self.band, 0.9)

    @property
    def told(self) -> str:
        if self.factor is None:
            return f"{self.source}, +/-{self.band:.0%}"
        low, high = (self.tokens_per_second * share for share in self.slowest_and_fastest)
        return f"{low:,.0f} to {high:,.0f}; {self.source}"

    def __post_init__(self) -> None:
        if self.tokens_per_second <= 0:
            raise ValueError(f"tokens_per_second must be positive, got {self.tokens_per_second}")


def quote_hours_job(
    work: Work,
    *,
    speed: Speed,
    hourly: HourlyRate,
    startup_seconds: float | tuple[float, float, float] = 30.0,
    answers: Answers | None = None,
) -> Quote:
    """Hours x rate, the hours from the speed. `startup_seconds`: what comes besides training, or (least,
    likely, most) of it; `answers` for reinforcement fine-tuning."""
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
            f"at {speed.tokens_per_second:,.0f} tokens per second ({speed.told})",
            *_drawn(answers),
            *_judged(work.spec, read_only),
            hourly.label,
        ],
        warnings=work.resolved.warnings,
        billed_tokens=round(size.train_tokens * size.passes),
        train_seconds=float(seconds),
    )


def _work(size: JobSize, answers: Answers | None, likely: int, read_only: int = 0) -> Decimal:
    """Tokens to go through in the time of a trained one; `likely` is 0 for the low estimate, 1, or 2 for the
    high one. `read_only`: tokens that are read beside training and evaluation."""
    trained, evaluated = size.train_tokens * size.passes, size.validation_tokens * size.evals
    if answers is None:
        return trained + EVAL_SHARE * (evaluated + read_only)
    answer = ANSWER_SHARE[likely] * answers.most_tokens
    drawn = DRAWN_SHARE[likely] * answer
    each_epoch = answers.samples * ((1 + EVAL_SHARE) * size.train_tokens + size.rows * (answer + drawn))
    return each_epoch * size.passes + EVAL_SHARE * evaluated + size.validation_rows * size.evals * drawn


def _read_only(spec: JobSpec, size: JobSize) -> int:
    """Tokens that the reference reads before the first step; with KTO also those of each epoch's mismatched
    answers, which the model reads too."""
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
    why = "by the reference"
    if method_word(spec.method) == "kto":
        why += ", and for the estimate of the divergence"
    return [f"{read_only:,} tokens are read {why}, in a third of the time of trained ones"]


def _drawn(answers: Answers | None) -> list[str]:
    if answers is None:
        return []
    return [
        f"{answers.samples} answers of {ANSWER_SHARE[1] * answers.most_tokens:.0f} tokens drawn to each "
        f"prompt in each epoch ({ANSWER_SHARE[0] * answers.most_tokens:.0f} to {answers.most_tokens})",
        f"drawing a token takes {DRAWN_SHARE[1]} times as long as training one "
        f"({DRAWN_SHARE[0]} to {DRAWN_SHARE[2]}); the grader's own time is not included",
    ]
