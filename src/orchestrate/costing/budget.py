"""Limits: of one run, and of all runs of a store together."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from orchestrate.errors import OverBudget
from orchestrate.types import Bill, JobStatus, Quote, Record, Run, SubmitPhase


class Spending(Record, frozen=True, kw_only=True):
    """Money over all backends; runs in a sandbox cost nothing and are not counted."""

    spent_usd: Decimal
    """Bills, final or not."""
    committed_usd: Decimal
    """The high end of the quote of every run that is under way and has no bill yet."""
    unknown: tuple[str, ...] = ()
    """Runs that may cost something of which neither a bill nor a quote tells how much."""

    @property
    def total_usd(self) -> Decimal:
        return self.spent_usd + self.committed_usd


def spending(runs: Iterable[Run]) -> Spending:
    spent, committed, unknown = Decimal(0), Decimal(0), list[str]()
    for run in runs:
        if run.sandbox or run.phase is SubmitPhase.REFUSED:
            continue
        if run.bill is not None and (run.bill.final or run.status.terminal):
            spent += run.bill.usd
        elif run.quote is not None and not run.quote.unavailable:
            # A run that ended without a bill is held at its quote until the host tells better, except one
            # that failed.
            if run.status is not JobStatus.FAILED:
                committed += max(run.quote.high_usd, run.bill.usd if run.bill else Decimal(0))
        elif run.status is not JobStatus.FAILED:
            unknown.append(run.id)
    return Spending(spent_usd=spent, committed_usd=committed, unknown=tuple(unknown))


def check_budget(
    quote: Quote,
    *,
    max_cost_usd: Decimal | None = None,
    budget_usd: Decimal | None = None,
    runs: Iterable[Run] = (),
) -> None:
    """Raises `OverBudget` when the quote's high end is above `max_cost_usd`, or with what `runs` spent and
    committed above `budget_usd`, or when a limit is set and the price is not known."""
    if max_cost_usd is None and budget_usd is None:
        return
    if quote.unavailable:
        limit = max_cost_usd if max_cost_usd is not None else budget_usd
        raise UnknownPrice(quote.provider, limit or Decimal(0), quote.unavailable)
    if max_cost_usd is not None and quote.high_usd > max_cost_usd:
        raise OverBudget(quote.provider, quote.high_usd, max_cost_usd)
    if budget_usd is not None:
        used = spending(runs).total_usd
        if used + quote.high_usd > budget_usd:
            what = f"what is left of the budget (${budget_usd:.2f}, ${used:.2f} spent and committed):"
            raise OverBudget(quote.provider, quote.high_usd, max(budget_usd - used, Decimal(0)), what=what)


class UnknownPrice(OverBudget):
    """A limit is set and the price is not known, so it cannot be kept."""

    def __init__(self, provider: str, limit_usd: Decimal, reason: str) -> None:
        super().__init__(provider, limit_usd, limit_usd)
        self.message = f"{provider}: a limit of ${limit_usd:.2f} is set and the price is not known: {reason}"
        self.args = (self.message,)
        self.fix = "give the price with --rate, or drop the limit"


def over_cap(run: Run, so_far: Bill | None) -> bool:
    """Whether a running job has passed its own cap, so that the watcher must cancel it."""
    return run.max_cost_usd is not None and so_far is not None and so_far.usd > run.max_cost_usd
