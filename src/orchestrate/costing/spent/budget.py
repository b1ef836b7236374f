"""Limits: of one run, and of all runs of a store together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal

from orchestrate.paid.limits import reached, require_within
from orchestrate.text import limit, money
from orchestrate.types import Deployment, Quote, Record, Run, SubmitPhase, Trial, TrialState

_SIXTH = Decimal("0.000001")


class Spending(Record, frozen=True, kw_only=True):
    """US dollars over all backends: of one run, or of all runs of a store."""

    spent_usd: Decimal = Decimal(0)
    """Bills of ended runs."""
    committed_usd: Decimal = Decimal(0)
    """Of every run that may still be billed and has no such bill yet: the most of its quote's high end, its
    host's own estimate, what its user allowed it since and what it has cost so far."""

    @property
    def total_usd(self) -> Decimal:
        return self.spent_usd + self.committed_usd


def spending(run: Run) -> Spending:
    """What one run takes out of a budget. A run in a sandbox costs nothing, and neither does one that has no
    job, and one that was imported after its end. One that ended, however, is held at its quote until its bill
    is known: where a host bills nothing for a failure, the bill says so."""
    if run.sandbox or run.phase is SubmitPhase.REFUSED or (run.imported and run.status.terminal):
        return Spending()
    if run.released and run.phase in (SubmitPhase.INTENT, SubmitPhase.UPLOADED):
        return Spending()
    if run.bill is not None and (run.bill.final or run.status.terminal):
        return Spending(spent_usd=run.bill.usd)
    if run.abandoned is not None:
        return Spending(spent_usd=run.bill.usd if run.bill else Decimal(0))
    quoted = run.quote.held_usd if run.quote else Decimal(0)
    so_far = run.bill.usd if run.bill else Decimal(0)
    given = run.allowed_usd or Decimal(0)
    return Spending(committed_usd=max(quoted, run.estimate_usd or Decimal(0), given, so_far))


def of_trial(run: Run | None, trial: Trial) -> Decimal:
    """What a trial of a sweep has cost, or may yet; the play money of a sandbox counts as money does."""
    lost = run is None and trial.run_id is not None
    if run is None or run.phase is SubmitPhase.REFUSED:
        return trial.high_usd if lost or trial.state is TrialState.OPEN else Decimal(0)
    if run.status.terminal:
        return trial.high_usd if run.bill is None else run.bill.usd
    return max(trial.high_usd, run.max_cost_usd or Decimal(0), run.allowed_usd or Decimal(0))


def caps(
    quotes: Sequence[Quote], *, max_cost_usd: Decimal | None = None, each_usd: Decimal | None = None
) -> list[Decimal | None]:
    """The cap of the run behind each quote, so that all together stay within `max_cost_usd` and none is above
    `each_usd`: what is to be spent is shared out as the quotes' high ends are. Raises `OverBudget` when they
    do not fit, and `UnknownPrice`."""
    for quote in quotes:
        check_budget(quote, max_cost_usd=max_cost_usd)
        check_budget(quote, max_cost_usd=each_usd, what="--max-cost-each")
    if max_cost_usd is None:
        return [each_usd] * len(quotes)
    ends = [quote.held_usd for quote in quotes]
    high = sum(ends, Decimal(0))
    names = ", ".join(quote.provider for quote in quotes)
    require_within(names, high, max_cost_usd, figure="the sum of the quotes' high ends")
    spare = max_cost_usd - high
    parts = [end / high if high else Decimal(1) / len(ends) for end in ends]
    shares = [
        end + (spare * part).quantize(_SIXTH, ROUND_FLOOR) for end, part in zip(ends, parts, strict=True)
    ]
    return [share if each_usd is None else min(share, each_usd) for share in shares]


def check_budget(
    quote: Quote,
    *,
    max_cost_usd: Decimal | None = None,
    budget_usd: Decimal | None = None,
    used_usd: Decimal = Decimal(0),
    what: str = "--max-cost",
) -> None:
    """Raises `OverBudget` when the quote's high end is above `max_cost_usd`, or above what `used_usd`, spent
    and committed by all runs, leaves of `budget_usd`, or when a limit is set and the price is not known."""
    name, high, unknown = quote.provider, quote.held_usd, unpriced(quote)
    require_within(name, high, max_cost_usd, unknown=unknown, what=what)
    if budget_usd is not None:
        taken = f"{limit(budget_usd)}, {money(used_usd)} spent and committed"
        left = f"what is left of the budget ({taken}):"
        require_within(name, high, budget_usd, taken_usd=used_usd, unknown=unknown, what=left)


def unpriced(quote: Quote) -> str | None:
    """Why a quote is no upper bound of what its run costs; `None` where it is one."""
    if quote.why_none or not quote.open_end:
        return quote.why_none
    return f"the quote does not count {quote.open_end}"


def cap_of(run: Run) -> Decimal | None:
    """At what a bill so far ends the run, or pauses it, while somebody watches."""
    return run.max_cost_usd if run.allowed_usd is None else run.allowed_usd


OPEN_END_HOURS = Decimal(24)
"""What is held in a budget for a deployment without a limit, from now on."""


def hours_billed(deployment: Deployment, now: datetime) -> Decimal:
    since = deployment.billing_since
    running = max((now - since).total_seconds(), 0.0) if since is not None else 0.0
    return Decimal(str(deployment.billed_s + running)) / 3600


def seconds_by_month(since: datetime, until: datetime) -> dict[str, float]:
    """`{"2026-10": 3600.0}`: the months of `since`'s time zone; empty where `until` is not later."""
    found: dict[str, float] = {}
    while since < until:
        following = (since.replace(day=1) + timedelta(days=32)).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        found[f"{since:%Y-%m}"] = (min(following, until) - since).total_seconds()
        since = following
    return found


def billed_by_month(deployment: Deployment, since: datetime, until: datetime) -> dict[str, float]:
    """Its seconds by month, with those from `since` to `until` added."""
    found = dict(deployment.billed_by_month)
    for month, seconds in seconds_by_month(since, until).items():
        found[month] = found.get(month, 0.0) + seconds
    return found


def spent_usd(deployment: Deployment, now: datetime) -> Decimal | None:
    """So far; `None` when the price is not known."""
    price = deployment.usd_per_hour
    return None if price is None else hours_billed(deployment, now) * price


def deployment_spending(deployment: Deployment, now: datetime) -> Spending:
    """What it takes out of a budget: what it has cost, and what its limits still allow; without a limit a day
    more. In a sandbox nothing."""
    if deployment.sandbox:
        return Spending()
    spent = spent_usd(deployment, now) or Decimal(0)
    if deployment.state.over:
        return Spending(spent_usd=spent)
    left: list[Decimal] = []
    if deployment.max_cost_usd is not None:
        left.append(deployment.max_cost_usd - spent)
    if deployment.usd_per_hour is not None:
        hours = OPEN_END_HOURS
        if deployment.max_hours is not None:
            hours = deployment.max_hours - hours_billed(deployment, now)
        left.append(hours * deployment.usd_per_hour)
    return Spending(spent_usd=spent, committed_usd=max(min(left, default=Decimal(0)), Decimal(0)))


def limit_reached(deployment: Deployment, now: datetime) -> str | None:
    """The limit that has come, in words."""
    most = deployment.max_hours
    if most is not None and (now - deployment.created_at).total_seconds() >= most * 3600:
        return f"its {most.normalize():f} hours are over"
    cap, spent = deployment.max_cost_usd, spent_usd(deployment, now)
    if cap is not None and reached(spent, cap):
        return f"it has cost its {limit(cap)}, by the hours that it was up"
    return None
