"""Submission: what is checked before anything is sent, and what sends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate.costing import caps, check_budget
from orchestrate.errors import UsageError
from orchestrate.handles.run import RunHandle
from orchestrate.preparing import earlier
from orchestrate.preparing.prepared import UNCOUNTED
from orchestrate.providers.base import Limited
from orchestrate.settings import trust
from orchestrate.spec import specfile
from orchestrate.tracking import Submitter
from orchestrate.tracking.submitting.repeats import already
from orchestrate.tracking.submitting.submission import Submission

if TYPE_CHECKING:
    from orchestrate.preparing.prepared import Offer, Prepared
    from orchestrate.providers.base import Progress
    from orchestrate.service.orchestrator import Orchestrator
    from orchestrate.spec import JobSpec
    from orchestrate.types import Quote


def limits(
    ft: Orchestrator,
    prepared: Prepared,
    names: Sequence[str],
    *,
    strict: bool,
    max_cost_usd: Decimal | None,
    each_usd: Decimal | None,
) -> dict[str, Decimal | None]:
    """As `Orchestrator.preflight`."""
    trust.require_to_spend(ft.settings, *(ft.provider(name) for name in names))
    if not prepared.checked:
        raise UsageError("the spec was prepared for quotes only", fix="prepare it with checked=True")
    committed_usd = Decimal(0)
    for name in names:
        offer = prepared.offer(name)
        if offer.quote.unavailable == UNCOUNTED:
            raise UsageError(
                f"{name}: the price of this is not known, as its tokens were not counted",
                fix="prepare it with tokens counted (exact or sampled)",
            )
        ft.require(offer.spec, name)
        offer.require_fit(strict=strict)
        sandbox = ft.provider(name).sandbox
        budget_usd = None if sandbox else ft.settings.budget_usd
        used_usd = Decimal(0) if budget_usd is None else ft.store.runs.spending().total_usd + committed_usd
        check_budget(offer.quote, budget_usd=budget_usd, used_usd=used_usd)
        if not sandbox:
            committed_usd += offer.quote.high_usd
    offers = [prepared.offer(name) for name in names]
    own = [offer.spec.max_cost_usd for offer in offers if offer.spec.max_cost_usd is not None]
    limit_usd = max(own, default=None) if max_cost_usd is None else max_cost_usd
    shares = caps([offer.quote for offer in offers], max_cost_usd=limit_usd, each_usd=each_usd)
    return dict(zip(names, shares, strict=True))


def submitter(ft: Orchestrator, name: str, agree: Callable[[Quote], bool] | None) -> Submitter:
    """To one backend; `agree` is asked when the host's own estimate is above the quote's high end."""
    made = Submitter(ft.store, ft.provider(name), budget_usd=ft.settings.budget_usd)
    return made if agree is None else replace(made, agree=agree)


def of(
    ft: Orchestrator,
    prepared: Prepared,
    name: str,
    *,
    key: str | None,
    limit_usd: Decimal | None = None,
    again: bool = True,
    patient: bool = False,
) -> Submission:
    """What is asked of one backend, as it was prepared. `limit_usd` goes before the spec's own limit."""
    offer = prepared.offer(name)
    spec = specfile.anchored(offer.spec)
    if limit_usd is not None:
        spec = spec.model_copy(update={"max_cost_usd": limit_usd})
    allowed_usd = ends_usd(ft, offer, spec)
    return Submission(
        spec=spec,
        translation=offer.translation,
        data=prepared.data,
        quote=offer.quote,
        max_cost_usd=spec.max_cost_usd,
        allowed_usd=allowed_usd,
        idempotency_key=key,
        again=again,
        patient=patient,
        made_by=ft.settings.made_by,
    )


def ends_usd(ft: Orchestrator, offer: Offer, spec: JobSpec) -> Decimal | None:
    """At what the bill of a rented machine ends: where the run's limits say, else at the high end of its
    quote, and never above what is left of the budget."""
    backend = ft.provider(offer.provider)
    found = backend.ends_usd(spec, offer.translation, offer.quote) if isinstance(backend, Limited) else None
    if found is None or backend.sandbox or ft.settings.budget_usd is None:
        return found
    left = ft.settings.budget_usd - ft.store.runs.spending().total_usd
    return min(found, max(left, offer.quote.high_usd))


def send(
    ft: Orchestrator,
    prepared: Prepared,
    name: str,
    asked: Submission,
    *,
    strict: bool = False,
    agree: Callable[[Quote], bool] | None = None,
    progress: Progress | None = None,
) -> RunHandle:
    """As `Orchestrator.submit`."""
    wish, to = earlier.wish(ft, prepared, name, asked.idempotency_key), submitter(ft, name, agree)
    if known := wish.known(ft.store):
        trust.require_to_spend(ft.settings, ft.provider(name))
        return RunHandle(ft, to.take_up(known, asked, progress=progress))
    if not asked.again and (same := wish.same(ft.store)):
        raise already(same)
    ft.preflight(prepared, name, strict=strict, max_cost_usd=asked.max_cost_usd)
    prepared.require_unchanged()
    return RunHandle(ft, to.submit(asked, progress=progress))
