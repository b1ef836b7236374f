"""Submit prepared specs: run the checks before anything is sent, then submit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate.core.amounts import amount
from orchestrate.costing import caps, check_budget, spending
from orchestrate.errors import UsageError
from orchestrate.providers.base import Limited, Progress
from orchestrate.runs.preparing import earlier
from orchestrate.runs.preparing.prepared import UNCOUNTED, Offer, Prepared, prepare, require
from orchestrate.runs.submitting.repeats import Submission, already
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.spec import JobSpec, specfile
from orchestrate.store.ledger import Limit

if TYPE_CHECKING:
    from orchestrate.types import Quote, Run
    from orchestrate.workspace import Backends, Workspace


def preflight(
    ws: Workspace,
    prepared: Prepared,
    provider: Backends,
    *,
    strict: bool = False,
    max_cost_usd: Decimal | None = None,
    max_cost_each_usd: Decimal | None = None,
    continued: Mapping[str, Run] | None = None,
) -> dict[str, Decimal | None]:
    """Check that a prepared spec may be submitted, and return each backend's cost limit. See
    `Orchestrator.preflight`."""
    names = ws.backends(provider)
    ws.settings.require_to_spend(*(ws.provider(name) for name in names))
    if not prepared.checked:
        raise UsageError("the spec was prepared for quotes only", fix="prepare it with checked=True")
    # What is reserved for these runs is replaced by the quotes.
    committed_usd = -sum((spending(run).total_usd for run in (continued or {}).values()), Decimal(0))
    for name in names:
        offer = prepared.offer(name)
        if offer.quote.unavailable == UNCOUNTED:
            raise UsageError(
                f"{name}: the price is unknown because the tokens were not counted",
                fix="prepare it with tokens counted (exact or sampled)",
            )
        require(ws, offer.spec, name)
        offer.require_fit(strict=strict)
        sandbox = ws.provider(name).config.sandbox
        budget_usd = None if sandbox else ws.settings.budget_usd
        used_usd = Decimal(0) if budget_usd is None else ws.store.ledger.spending().total_usd + committed_usd
        check_budget(offer.quote, budget_usd=budget_usd, used_usd=used_usd)
        if not sandbox:
            committed_usd += offer.quote.held_usd
    offers = [prepared.offer(name) for name in names]
    own = [offer.spec.max_cost_usd for offer in offers if offer.spec.max_cost_usd is not None]
    limit_usd = max(own, default=None) if max_cost_usd is None else max_cost_usd
    shares = caps([offer.quote for offer in offers], max_cost_usd=limit_usd, each_usd=max_cost_each_usd)
    return dict(zip(names, shares, strict=True))


def submitter(ws: Workspace, name: str, agree: Callable[[Quote], bool] | None) -> Submitter:
    """Return the submitter for one backend. `agree` is called if the host's own estimate is above the quote's
    high end."""
    made = Submitter(ws.store, ws.provider(name), budget_usd=ws.settings.budget_usd)
    return made if agree is None else replace(made, agree=agree)


def of(
    ws: Workspace,
    prepared: Prepared,
    name: str,
    *,
    key: str | None,
    limit_usd: Decimal | None = None,
    limits: tuple[Limit, ...] = (),
    again: bool = True,
    patient: bool = False,
) -> Submission:
    """Build the submission to one backend from a prepared spec. `limit_usd` overrides the spec's own
    limit."""
    offer = prepared.offer(name)
    spec = specfile.anchored(offer.spec)
    if limit_usd is not None:
        spec = spec.model_copy(update={"max_cost_usd": limit_usd})
    allowed_usd = ends_usd(ws, offer, spec)
    return Submission(
        spec=spec,
        translation=offer.translation,
        data=prepared.data,
        quote=offer.quote,
        max_cost_usd=spec.max_cost_usd,
        allowed_usd=allowed_usd,
        limits=limits,
        idempotency_key=key,
        again=again,
        patient=patient,
        made_by=ws.settings.made_by,
    )


def ends_usd(ws: Workspace, offer: Offer, spec: JobSpec) -> Decimal | None:
    """Return the cost, in US dollars, at which a run's rented machine is stopped. This is the run's own limit
    or, without one, the high end of its quote. If less remains in the budget, the machine is stopped at the
    remaining amount, but never below the quote's high end. Returns `None` if the backend has no such limit or
    the price is unknown."""
    backend = ws.provider(offer.provider)
    found = backend.ends_usd(spec, offer.translation, offer.quote) if isinstance(backend, Limited) else None
    if found is None or backend.config.sandbox or ws.settings.budget_usd is None:
        return found
    left = ws.settings.budget_usd - ws.store.ledger.spending().total_usd
    return min(found, max(left, offer.quote.held_usd))


def submit(  # noqa: PLR0913  as the public one
    ws: Workspace,
    spec: JobSpec | Prepared,
    provider: str,
    *,
    max_cost_usd: Decimal | float | str | None = None,
    strict: bool = False,
    idempotency_key: str | None = None,
    again: bool = False,
    patient: bool = False,
    agree: Callable[[Quote], bool] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Submit a spec and return the stored run. See `Orchestrator.submit`."""
    [name], limit = ws.backends(provider), amount(max_cost_usd, "max_cost_usd")
    if not isinstance(spec, Prepared):
        require(ws, spec, name)  # before the data are read
    prepared = spec if isinstance(spec, Prepared) else prepare(ws, spec, name)
    asked = of(ws, prepared, name, key=idempotency_key, limit_usd=limit, again=again, patient=patient)
    return send(ws, prepared, name, asked, strict=strict, agree=agree, progress=progress)


def send(
    ws: Workspace,
    prepared: Prepared,
    name: str,
    asked: Submission,
    *,
    strict: bool = False,
    agree: Callable[[Quote], bool] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Submit the job, or continue the run with its idempotency key."""
    request, to = earlier.request_of(ws, prepared, name, asked.idempotency_key), submitter(ws, name, agree)
    if known := request.known(ws.store):
        ws.settings.require_to_spend(ws.provider(name))

        def check(run: Run) -> None:
            limit_usd = asked.max_cost_usd
            preflight(ws, prepared, name, strict=strict, max_cost_usd=limit_usd, continued={name: run})

        return to.take_up(known, asked, progress=progress, check=check)
    if not asked.again and (same := request.same(ws.store)):
        raise already(same)
    preflight(ws, prepared, name, strict=strict, max_cost_usd=asked.max_cost_usd)
    prepared.require_unchanged()
    return to.submit(asked, progress=progress)
