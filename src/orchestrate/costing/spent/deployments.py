"""What a deployment costs: hours up x price, which is an estimate until the host's bill comes."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from orchestrate.costing.spent.budget import Spending
from orchestrate.text import limit
from orchestrate.types import Deployment

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


def spending(deployment: Deployment, now: datetime) -> Spending:
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
    if cap is not None and spent is not None and spent >= cap:
        return f"it has cost its {limit(cap)}, by the hours that it was up"
    return None
