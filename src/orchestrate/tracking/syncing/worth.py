"""What a budget counts for a job whose spec and quote are gone, from the best that is known of it:

1. what its host says that it costs;
2. its host's rule for how it ended: its trained tokens at their rate, its share of the steps, or nothing for
   a failure that is not billed;
3. the high end of a quote of what its host tells of its data.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate import catalog, costing
from orchestrate.catalog import ModelOnHost
from orchestrate.errors import OrchestrateError, SpecError
from orchestrate.providers.base import Recalls
from orchestrate.spec import JobSpec
from orchestrate.text import limit, money
from orchestrate.types import Bill, Job, Quote, Recalled, Told

if TYPE_CHECKING:
    from orchestrate.costing import RateBook
    from orchestrate.providers.base import Provider


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    spec: dict[str, Any]
    """As much of it as the host tells."""
    dataset_digest: str | None = None
    """Where the host has it, and then `spec` is all of it."""
    max_cost_usd: Decimal | None = None
    quote: Quote | None = None
    bill: Bill | None = None
    words: str | None = None
    """What is counted, and by what."""
    reason: str | None = None
    """Why it cannot be counted, or not the whole of it."""


def valued(provider: Provider, job: Job, rates: RateBook | None = None) -> Worth:
    """Asks the host for the size of the job's data where nothing better is known; never raises for what it
    answers."""
    told, problem = _recalled(provider, job)
    asked = asked_for(provider, job)
    whole = _whole(asked)
    spec = whole or costing.spec_of(job.model or "unknown", told)
    parsed = JobSpec.parse(spec)
    resolved = _resolved(provider, job)
    book = rates or costing.built_in()
    priced = costing.Priced(
        provider.config.name,
        provider.profile,
        parsed,
        resolved,
        costing.Prices(provider.prices, book),
        # What its host takes no more of was made when it did.
        sandbox=True,
    )
    quote = costing.quote_recalled(priced, told) if told is not None else None
    problem = problem or (quote.unavailable if quote is not None else None)
    usable = quote if quote is not None and not quote.unavailable else None
    bill = costing.bill(
        job,
        profile=provider.profile,
        spec=parsed,
        resolved=resolved,
        quote=quote,
        hourly=costing.quoted_hour(usable),
        prices=priced.prices,
    )
    words = _words(job, bill, usable)
    known = usable is not None or job.cost_usd is not None or (bill is not None and job.status.terminal)
    reason = None if known else problem or "its host says nothing about the data of its jobs"
    return Worth(
        spec=spec,
        dataset_digest=asked.dataset_digest if whole else None,
        max_cost_usd=asked.max_cost_usd,
        quote=usable,
        bill=bill,
        words=words,
        reason=reason,
    )


def _whole(asked: Told) -> dict[str, Any] | None:
    """The spec as it was submitted, where the host has all of it."""
    if asked.dataset_digest is None:
        return None
    try:
        JobSpec.parse(asked.spec)
    except SpecError:  # of another version
        return None
    return asked.spec


def _words(job: Job, bill: Bill | None, quote: Quote | None) -> str | None:
    if bill is not None and (job.status.terminal or job.cost_usd is not None):
        return f"{money(bill.usd)}: {bill.origin}"
    if quote is not None and costing.quoted_hour(quote) is not None:
        return f"up to {limit(quote.high_usd)}: {quote.assumptions[0]}"
    if quote is not None:
        [*_, size] = quote.assumptions[:1]
        return f"up to {limit(quote.high_usd)}: the high end of a quote of its data, {size}"
    return f"{money(bill.usd)} so far: {bill.origin}" if bill is not None else None


def asked_for(provider: Provider, job: Job) -> Told:
    """What a job that was made without this store was asked for; nothing where its backend does not tell."""
    return provider.asked_for(job) if isinstance(provider, Recalls) else Told()


def _recalled(provider: Provider, job: Job) -> tuple[Recalled | None, str | None]:
    try:
        return provider.recall(job) if isinstance(provider, Recalls) else None, None
    except OrchestrateError as error:
        return None, f"its data could not be asked about: {error.message}"


def _resolved(provider: Provider, job: Job) -> ModelOnHost:
    try:
        return catalog.resolve(job.model or "unknown", provider.profile)
    except SpecError:
        return ModelOnHost(provider=provider.config.name, id=job.model or "unknown")
