"""The price of training, before anything is uploaded."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate import text
from orchestrate.catalog import ModelOnHost
from orchestrate.costing import rules
from orchestrate.costing.book import Lookup, Rate, RateBook, built_in
from orchestrate.costing.lines import MTOK, line, summed
from orchestrate.costing.size import measure
from orchestrate.types import Confidence, Quote, QuoteLine, Translation

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.profile import Profile
    from orchestrate.spec import JobSpec

STALE_DAYS = 60
"""A rate checked longer ago is warned about."""


def training_rate(
    resolved: ModelOnHost, spec: JobSpec, *, profile: Profile, prices: str, book: RateBook, on: date
) -> Rate | None:
    """The rate of a training token: of the method and adapter, of the method alone, or DPO by its factor over
    SFT."""
    method = spec.method.type
    adapter = "full" if spec.adapter.type == "full" else "lora"

    def look(name: str) -> Rate | None:
        return book.find(prices, name, ids=names(resolved), params_b=resolved.params_b, on=on)

    found = look(f"{method}_{adapter}") or look(method)
    if found is None and method == "dpo" and (sft := look(f"sft_{adapter}")) and sft.usd_per_mtok is not None:
        factor = profile.dpo_factor
        return Rate(
            provider=sft.provider,
            method=f"dpo_{adapter}",
            model=sft.model,
            usd_per_mtok=sft.usd_per_mtok * factor,
            start=sft.start,
            checked=sft.checked,
            confidence=Confidence.INFERRED if sft.confidence is Confidence.QUOTED else sft.confidence,
            source=f"{factor} x SFT: {sft.source}",
        )
    return found


def lookup(
    spec: JobSpec, resolved: ModelOnHost, *, prices: str, gpu: str | None = None, near: bool = False
) -> Lookup:
    """For which rates a quote of this spec looks."""
    if near:
        return Lookup(prices, ("electricity", "gpu_rental", "owned"), gpu=gpu)
    method = spec.method.type
    adapter = "full" if spec.adapter.type == "full" else "lora"
    methods = (f"{method}_{adapter}", method, "minimum")
    return Lookup(prices, methods, names(resolved), resolved.params_b, "H100" if method == "rft" else None)


def names(resolved: ModelOnHost) -> frozenset[str]:
    """All names under which a rate file may list the model."""
    known = {resolved.id, resolved.name}
    if resolved.host is not None:
        known.add(resolved.host.id)
    if resolved.model is not None:
        known |= {
            resolved.model.name,
            *resolved.model.aliases,
            *([resolved.model.hub] if resolved.model.hub else []),
        }
    return frozenset(known)


def quote_tokens_job(
    *,
    provider: str,
    profile: Profile,
    spec: JobSpec,
    data: TrainingData,
    translation: Translation,
    resolved: ModelOnHost,
    prices: str | None = None,
    gpu_hours: Decimal | None = None,
    sandbox: bool = False,
    today: date | None = None,
    book: RateBook | None = None,
) -> Quote:
    """A hosted job that is billed by tokens (RFT: by GPU-hours, which only `gpu_hours` can tell).

    `prices` names the rates to use when they are not those of the profile's kind. A model that is gone or
    without a published price gives a quote with `unavailable`, never a guess; a `sandbox` goes on taking jobs
    after its host has closed.
    """
    on = today or date.today()
    book = book or built_in()
    kind = prices or profile.kind

    def none(reason: str) -> Quote:
        return Quote(provider=provider, model=resolved.name, unavailable=reason, warnings=resolved.warnings)

    if reason := None if sandbox else _gone(resolved, profile, on):
        return none(reason)
    if spec.method.type == "rft":
        return _quote_rft(provider, kind, resolved, gpu_hours, book, on)
    if profile.bills is None:
        return none(f"{provider} does not say how it bills a job, so its price is not known")
    rate = training_rate(resolved, spec, profile=profile, prices=kind, book=book, on=on)
    if rate is None or rate.usd_per_mtok is None:
        return none(_no_price(resolved, spec, kind, book))
    if rate.usd_max is not None:
        return none(
            f"{provider} published only a range for {resolved.name}, "
            f"{text.rate(rate.usd)} to {text.rate(rate.usd_max)} per million tokens "
            f"({rate.source}, {rate.last_checked}); "
            f"give the price with --rate {kind}:{spec.method.type}_lora=USD_PER_MTOK"
        )
    size = measure(profile, spec, data, translation, resolved)
    billed = profile.bills(size, rate)
    lines, notes = list(billed.lines), list(billed.notes)
    undecided = None
    if minimum := book.find(kind, "minimum", ids=names(resolved), params_b=resolved.params_b, on=on):
        top_up = _minimum(lines, minimum)
        lines.append(top_up)
        if minimum.usd_max is not None and top_up.usd_high > 0:
            span = text.span(minimum.usd, minimum.usd_max)
            undecided = f"its minimum per job is {span} by model, and no table is published"
    return summed(
        provider=provider,
        model=resolved.name,
        lines=lines,
        assumptions=[*size.notes, *notes],
        warnings=[*resolved.warnings, *_rate_warnings(rate, on)],
        billed_tokens=sum(int(entry.quantity * MTOK) for entry in lines if entry.unit == "usd_per_mtok"),
        open_end=billed.open_end,
        undecided=undecided,
    )


def _gone(resolved: ModelOnHost, profile: Profile, on: date) -> str | None:
    if closed := profile.closed(on):
        return closed
    host = resolved.host
    if host is not None and host.tunable == "no":
        return (
            next(iter(resolved.warnings), None) or f"{resolved.name} can no longer be tuned on {profile.kind}"
        )
    return None


def _no_price(resolved: ModelOnHost, spec: JobSpec, kind: str, book: RateBook) -> str:
    method = f"{spec.method.type}_{'full' if spec.adapter.type == 'full' else 'lora'}"
    if not any(rate.provider == kind for rate in book):
        reason = f"there are no rates for {kind}"
    elif resolved.params_b is None:
        reason = f"the size of {resolved.name} is not known, so its price band on {kind} is not either"
    else:
        reason = f"no price of {method} for {resolved.name} on {kind} was found"
    return f"{reason}; give it with --rate {kind}:{method}=USD_PER_MTOK"


def _quote_rft(
    provider: str, kind: str, resolved: ModelOnHost, hours: Decimal | None, book: RateBook, on: date
) -> Quote:
    rate = book.find(kind, "rft", ids=names(resolved), gpu="H100", on=on)
    if rate is None or hours is None:
        each = f" at {text.rate(rate.usd)} per hour" if rate else ""
        return Quote(
            provider=provider,
            model=resolved.name,
            unavailable=f"RFT is billed by the time it takes{each}, which nothing tells beforehand; "
            "give your own figure with --gpu-hours",
            warnings=resolved.warnings,
        )
    return summed(
        provider=provider,
        model=resolved.name,
        lines=[line("training", hours, rate, note="hours as you gave them, on H100")],
        assumptions=[f"{hours} GPU-hours, your own figure", "tokens of a model grader are not included"],
        warnings=[*resolved.warnings, *_rate_warnings(rate, on)],
    )


def _minimum(lines: list[QuoteLine], minimum: Rate) -> QuoteLine:
    """The line that tops the others up to the minimum of a job; zero where they reach it."""
    low, expected, high = minimum.band()
    if minimum.usd_max is None:
        low = high = expected  # a flat charge: what is uncertain about it is said by its confidence
    top_low = rules.minimum_top_up(sum((entry.usd_low for entry in lines), Decimal(0)), low)
    top = rules.minimum_top_up(sum((entry.usd for entry in lines), Decimal(0)), expected)
    top_high = rules.minimum_top_up(sum((entry.usd_high for entry in lines), Decimal(0)), high)
    span = text.rate(low)
    if low != high:
        span += f" to {text.rate(high)}, by model; the table was not found"
    if minimum.note:
        span += f" ({minimum.note})"
    return QuoteLine(
        component="minimum",
        quantity=Decimal(1),
        unit="usd_per_job",
        usd_per_unit=top,
        # A small job costs its minimum whatever its tokens, so its top-up falls as the tokens' price rises.
        usd_low=top_low,
        usd=top,
        usd_high=top_high,
        note=f"tops the job up to the minimum of {span}",
        own=minimum.own,
        source=minimum.source,
        as_of=minimum.as_of,
        confidence=minimum.confidence,
    )


def _rate_warnings(rate: Rate, on: date) -> list[str]:
    found: list[str] = []
    age = (on - rate.last_checked).days
    if rate.undated:
        found.append(f"the price is from a copy without a date: {rate.source}")
    elif rate.confidence is Confidence.INFERRED:
        found.append(f"the price is inferred, not quoted: {rate.source}")
    elif rate.confidence is Confidence.OLD:
        found.append(f"the price is the newest found, but old ({rate.last_checked}): {rate.source}")
    elif age > STALE_DAYS:
        found.append(f"the price was last checked {age} days ago: {rate.source}")
    return found
