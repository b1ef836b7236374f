"""The price of a job whose spec and data are gone, by what its host tells of it.

Only its high end is of use, to hold a share of a budget: the tokens of a file are known by its bytes alone.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.costing.size import JobSize
from orchestrate.costing.training.hours import HourlyRate
from orchestrate.costing.training.jobs import Priced, quote_sized_job
from orchestrate.text import duration, rate
from orchestrate.types import Confidence, Quote, Recalled

if TYPE_CHECKING:
    from orchestrate.profile import Profile

BYTES_PER_TOKEN = 4
"""Of JSON lines. English prose has 4 to 5, its JSON more; a language that UTF-8 writes in three bytes has 3,
and escapes have 6."""
BAND = {"bytes": 1.0, "tokens": 0.2}
"""Relative half-width: at most one token for each 2 bytes, and what hosts call an estimate."""


def spec_of(model: str, told: Recalled | None) -> dict[str, Any]:
    """As much of a spec as is known of such a job. Its data is called `unknown`."""
    spec: dict[str, Any] = {"model": model, "train": "unknown"}
    if told is not None and told.method != "sft":
        spec["method"] = {"type": told.method} | (
            {"grader": {"type": "unknown"}} if told.method == "rft" else {}
        )
    if told is not None and told.adapter == "full":
        spec["adapter"] = {"type": "full"}
    return spec


def quote_recalled(job: Priced, told: Recalled) -> Quote:
    """`unavailable` says why there is none."""
    if told.usd_per_hour is not None or told.most_seconds is not None:
        return _by_the_hour(job, told)
    if told.train_tokens is None and told.train_bytes is None:
        return _none(job, "the host reports neither the tokens nor the size of its data")
    if not told.packing and told.rows is None:
        return _none(job, "each row is billed at full length, and the host does not say how many there are")
    return msgspec.structs.replace(quote_sized_job(job, lambda: size_of(job.profile, told)), recalled=True)


def _by_the_hour(job: Priced, told: Recalled) -> Quote:
    """Up to the end of its machine: how long the work takes nobody can tell any more."""
    if told.usd_per_hour is None:
        return _none(job, "nobody knows what an hour of its machine costs")
    if told.most_seconds is None:
        return _none(job, "nothing says when its machine ends")
    hours = Decimal(str(told.most_seconds)) / 3600
    hourly = HourlyRate(
        component="rental",
        usd_per_hour=told.usd_per_hour,
        label="its machine",
        source=told.price_source or "the host",
        as_of=f"{job.prices.on:%Y-%m-%d}",
        confidence=Confidence.QUOTED,
        low_usd_per_hour=told.usd_per_hour,
        high_usd_per_hour=told.usd_per_hour,
    )
    line = hourly.line(Decimal(0), "0.01", high=hours)
    return Quote(
        provider=job.provider,
        model=job.resolved.name,
        lines=(line,),
        assumptions=(
            f"its machine ends after {duration(told.most_seconds)}, at {rate(told.usd_per_hour)} an hour",
        ),
        expected_usd=None,
        high_usd=line.usd_high,
        recalled=True,
        undecided="it was recovered without its quote: only the end of its machine is known",
    )


def quote_assumed(job: Priced, told: Recalled) -> Quote:
    """As `quote_recalled`, of data that there is not yet: so many rows with so many tokens."""
    rows, tokens = told.rows or 0, told.train_tokens or 0
    words = f"{rows:,} rows with {tokens:,} tokens in all, give or take {BAND['tokens']:.0%}"
    size = msgspec.structs.replace(size_of(job.profile, told), notes=(words,))
    return quote_sized_job(job, lambda: size)


def size_of(profile: Profile, told: Recalled) -> JobSize:
    counted = told.train_tokens is not None
    tokens = _tokens(told.train_bytes) if told.train_tokens is None else told.train_tokens
    epochs = low = high = told.epochs
    if epochs is None or low is None or high is None:
        fewest = profile.rules.least_rows if profile.rules is not None else 1
        epochs = profile.default_epochs or profile.auto_epochs(told.rows or 0)
        low, high = 1, profile.default_epochs or profile.auto_epochs(told.rows or fewest)
    note = f"{tokens:,} tokens, as the host counts them"
    if not counted:
        note = f"{told.train_bytes:,} bytes, taken as {tokens:,} tokens and at most twice as many"
    evaluated = _tokens(told.validation_bytes)
    band = Decimal(str(BAND["tokens" if counted else "bytes"]))
    return JobSize(
        rows=told.rows or 0,
        sequences=(told.rows or 0) * (2 if told.method == "dpo" else 1),
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
        evals=told.evals,
        packing=told.packing,
        max_length=told.max_length,
        reasoning=told.average_turns > 2,  # not told; it only makes such a job dearer
        average_turns=told.average_turns,
        band=float(band),
        notes=(note,),
    )


def _tokens(size: int | None) -> int:
    return -(-(size or 0) // BYTES_PER_TOKEN)


def _none(job: Priced, reason: str) -> Quote:
    return Quote(provider=job.provider, model=job.resolved.name, unavailable=reason, recalled=True)
