"""Limits: of one run, and of all runs of a store together."""

from __future__ import annotations

from decimal import Decimal

from orchestrate.errors import OverBudget
from orchestrate.text import limit, money
from orchestrate.types import Bill, JobStatus, Quote, Record, Run, SubmitPhase


class Spending(Record, frozen=True, kw_only=True):
    """US dollars over all backends: of one run, or of all runs of a store."""

    spent_usd: Decimal = Decimal(0)
    """Bills of ended runs."""
    committed_usd: Decimal = Decimal(0)
    """The high end of the quote of every run that may still be billed and has no such bill yet."""

    @property
    def total_usd(self) -> Decimal:
        return self.spent_usd + self.committed_usd


def spending(run: Run) -> Spending:
    """What one run takes out of a budget. A run in a sandbox costs nothing, and neither does one that has no
    job or failed. One that ended otherwise is held at its quote until its bill is known."""
    if run.sandbox or run.phase is SubmitPhase.REFUSED:
        return Spending()
    if run.bill is not None and (run.bill.final or run.status.terminal):
        return Spending(spent_usd=run.bill.usd)
    if run.quote is None or run.quote.unavailable or run.status is JobStatus.FAILED:
        return Spending()
    return Spending(committed_usd=max(run.quote.high_usd, run.bill.usd if run.bill else Decimal(0)))


def check_budget(
    quote: Quote,
    *,
    max_cost_usd: Decimal | None = None,
    budget_usd: Decimal | None = None,
    used_usd: Decimal = Decimal(0),
) -> None:
    """Raises `OverBudget` when the quote's high end is above `max_cost_usd`, or above what `used_usd`, spent
    and committed by all runs, leaves of `budget_usd`, or when a limit is set and the price is not known."""
    if max_cost_usd is None and budget_usd is None:
        return
    if quote.unavailable:
        limit_usd = max_cost_usd if max_cost_usd is not None else budget_usd
        raise UnknownPrice(quote.provider, limit_usd or Decimal(0), quote.unavailable)
    if max_cost_usd is not None and quote.high_usd > max_cost_usd:
        raise OverBudget(quote.provider, quote.high_usd, max_cost_usd)
    if budget_usd is not None:
        left = max(budget_usd - used_usd, Decimal(0))
        if quote.high_usd > left:
            taken = f"{limit(budget_usd)}, {money(used_usd)} spent and committed"
            what = f"what is left of the budget ({taken}):"
            raise OverBudget(quote.provider, quote.high_usd, left, what=what)


class UnknownPrice(OverBudget):
    """A limit is set and the price is not known, so it cannot be kept."""

    def __init__(self, provider: str, limit_usd: Decimal, reason: str) -> None:
        super().__init__(provider, limit_usd, limit_usd)
        self.message = (
            f"{provider}: a limit of {limit(limit_usd)} is set and the price is not known: {reason}"
        )
        self.args = (self.message,)
        self.fix = "give the price with --rate, or drop the limit"


def over_cap(run: Run, so_far: Bill | None) -> bool:
    """Whether a running job has passed its own cap, so that the watcher must cancel it."""
    return run.max_cost_usd is not None and so_far is not None and so_far.usd > run.max_cost_usd
