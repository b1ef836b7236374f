"""Prices: offline quotes, the hosts' live prices, and the cost of serving for several months."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate import catalog, costing
from orchestrate.core import days
from orchestrate.costing import (
    Lookup,
    Rate,
    ServingUse,
    Traffic,
)
from orchestrate.costing import Ownership as Ownership
from orchestrate.costing.ways import UTILISATION
from orchestrate.errors import OrchestrateError, SpecError
from orchestrate.providers.base import Downloads, EstimatesPrice, lookup, prices_of
from orchestrate.types import Feature, JobRecovery, Quote, Record

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.runs.preparing.prepared import Offer, Prepared
    from orchestrate.spec import JobSpec
    from orchestrate.workspace import Workspace


_SERVING = ("inference_", "deployment", "hosting", "storage")
"""Prefixes of the billing methods for serving a model after training."""


class LivePrice(Record, frozen=True, kw_only=True):
    """A host's own estimate, compared with the offline quote."""

    provider: str
    offline_usd: Decimal | None
    live_usd: Decimal | None
    relative: float | None = None
    """Relative difference: (offline - live) / live."""
    within_band: bool | None = None
    """True if the host's figure lies between the low and high ends of the quote."""
    reason: str | None = None
    """Reason why no live price is available."""


def live_prices(ft: Workspace, prepared: Prepared) -> list[LivePrice]:
    """Request a price from each host that provides estimates. Uploads the data, unless data with the same
    digest was uploaded before, but creates no job."""
    return [_live(ft, prepared.offer(quote.provider), prepared.data) for quote in prepared.quotes]


def _live(ft: Workspace, offer: Offer, data: TrainingData) -> LivePrice:
    from orchestrate.runs.submitting import accounts  # imports the store, which only live prices need

    name, quote = offer.provider, offer.quote
    offline = quote.expected_usd
    provider = ft.provider(name)
    if not isinstance(provider, EstimatesPrice):
        reason = provider.missing.get(Feature.LIVE_PRICE, "the host provides no estimate")
        return LivePrice(provider=name, offline_usd=offline, live_usd=None, reason=reason)
    try:
        with accounts.alone(ft.store, provider, accounts.account_of(ft.store, provider), data):
            remote = provider.upload(offer.spec, data, offer.translation)
        live = provider.live_price(offer.spec, remote, offer.translation)
    except OrchestrateError as error:
        return LivePrice(provider=name, offline_usd=offline, live_usd=None, reason=error.message)
    live_usd, named = live.counted_usd, quote.price
    if live_usd is None or named is None:
        return LivePrice(provider=name, offline_usd=offline, live_usd=live_usd, reason=live.why_none)
    return LivePrice(
        provider=name,
        offline_usd=offline,
        live_usd=live_usd,
        relative=float((offline - live_usd) / live_usd) if live_usd and offline is not None else None,
        within_band=named.low_usd <= live_usd <= named.high_usd,
    )


def assumed(ft: Workspace, spec: JobSpec, rows: int, tokens_a_row: int) -> list[Quote]:
    """Quote each backend for a given number of rows and tokens per row, cheapest first. The training file
    need not exist yet. Works offline. Quotes of backends that charge by time have no price, because their
    price depends on the file."""
    job_recovery = JobRecovery(epochs=spec.epochs, rows=rows, train_tokens=rows * tokens_a_row)
    found: list[Quote] = []
    for name in ft.backends():
        backend = ft.provider(name)
        try:
            resolved = backend.resolve(spec)
        except SpecError as error:
            found.append(Quote(provider=name, model="", unavailable=error.message))
            continue
        if backend.profile.near:
            need = "its price depends on the training time, which depends on your data. Run orchestrate quote"
            found.append(Quote(provider=name, model=resolved.name, unavailable=need))
            continue
        prices = costing.Prices(prices_of(backend), ft.rates)
        found.append(
            costing.quote_assumed(
                costing.PricedJob(name, backend.profile, spec, resolved, prices), job_recovery
            )
        )
    return sorted(found, key=lambda quote: quote.rank)


def require_used(
    ft: Workspace, jobs: Iterable[tuple[str, JobSpec]], rates: Sequence[Rate], *, serving: bool = False
) -> None:
    """Raise `UsageError` if the user's `rates` contain a rate that no quote for these (backend, spec) pairs
    uses. The rates must already be in the rate book. If `serving` is set, rates for serving are not
    checked."""
    lookups: list[Lookup] = []
    for provider, spec in jobs:
        with suppress(SpecError):
            lookups.append(lookup(ft.provider(provider), spec))
    asked = [rate for rate in rates if not (serving and _serves(rate))]
    costing.require_used(asked, lookups, ft.rates, days.today())


def _serves(rate: Rate) -> bool:
    return costing.rents(rate) or any(m.startswith(_SERVING) for m in rate.methods)


def use(
    traffic: str,
    *,
    months: int = 6,
    hours_per_day: float = 24.0,
    utilisation: float | None = None,
    compare_with: str | None = None,
    saved_tokens: int = 0,
) -> ServingUse:
    """Describe the expected use of the tuned model, for computing serving costs. `traffic` is text such as
    "20k req/day, 900 in, 150 out". `compare_with` is the base model that would be prompted instead of tuning.
    By default, a model is chosen that stays available for the entire period. `saved_tokens` is the number of
    additional prompt tokens per request that the base model needs. Raises `UsageError` if the traffic can't
    be parsed or the price of the base model is unknown."""
    asked = Traffic.parse(traffic)
    if compare_with:
        base = costing.base_price(compare_with, asked, saved_tokens=saved_tokens)
    else:
        base = costing.default_base(asked, months, days.today(), saved_tokens=saved_tokens)
    most = Decimal(str(utilisation)) if utilisation else UTILISATION
    return ServingUse(traffic=asked, months=months, hours_per_day=hours_per_day, utilisation=most, base=base)


def ownership(
    ft: Workspace, spec: JobSpec, quotes: Sequence[Quote], use: ServingUse, *, private: bool = False
) -> list[Ownership]:
    """Compare the total cost of each quoted backend over several months with the cost of prompting a base
    model. The total includes training, hosting and serving on every host that can serve the model. Works
    offline. With `private`, only training and serving on this machine are included."""
    totals: list[Ownership] = []
    for quote in quotes:
        backend = ft.provider(quote.provider)
        if private and not backend.profile.near:
            continue
        try:
            resolved = backend.resolve(spec)
        except SpecError as error:
            resolved = catalog.ModelOnHost(provider=quote.provider, id=quote.model, warnings=(error.message,))
        totals.append(
            costing.own(
                quote,
                use,
                resolved=resolved,
                profile=backend.profile,
                hourly=costing.quoted_hour(quote),
                prices=costing.Prices(backend.profile.kind, ft.rates),
                portable=not private and isinstance(backend, Downloads),
            )
        )
    return totals
