"""Expenses in a run store: amounts spent and committed, by user and purpose. Each run is one expense, and the
store combines those of ended runs into groups. Each deployment is one expense per month in which it was up.
Paid answers are combined into one expense per purpose, backend, month and user. Sums of expenses are exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Literal

import msgspec

from orchestrate.errors import UsageError
from orchestrate.paid.limits import reached, require_within
from orchestrate.text import limit, meant, money
from orchestrate.types import Deployment, DeploymentState, Quote, Record, Run, SubmitPhase, Trial, TrialState

# Cost limits for one run, and for all runs in a store together.


_SIXTH = Decimal("0.000001")


class Spending(Record, frozen=True, kw_only=True):
    """Amounts in US dollars, for one run or for everything in a store."""

    spent_usd: Decimal = Decimal(0)
    """Total of the bills of ended runs."""
    committed_usd: Decimal = Decimal(0)
    """Upper estimate of the cost of runs that have no final bill yet. Each run adds the largest of these
    amounts: the quote's high end, the host's own estimate, the limit that you set, and the cost so far. A
    paused training session counts only its cost so far, because resuming it reserves its limit again."""

    @property
    def total_usd(self) -> Decimal:
        return self.spent_usd + self.committed_usd


def spending(run: Run) -> Spending:
    """Return how much of a budget a run uses.

    Sandbox runs, runs without a job, and imported runs whose job has ended use nothing. The cost of an ended
    run stays committed until its bill is known. If the host does not bill a failure, the bill is zero.
    """
    return Spending() if run.sandbox else charges(run)


def charges(run: Run) -> Spending:
    """Return what `spending` returns, but count simulated costs of sandbox runs like real costs."""
    if run.phase is SubmitPhase.REFUSED or (run.imported and run.status.terminal):
        return Spending()
    if run.released and run.phase in (SubmitPhase.INTENT, SubmitPhase.UPLOADED):
        return Spending()
    if run.bill is not None and (run.bill.final or run.status.terminal):
        return Spending(spent_usd=run.bill.usd)
    if run.abandoned is not None:
        return Spending(spent_usd=run.bill.usd if run.bill else Decimal(0))
    if run.dormant and run.bill is not None:
        return Spending(committed_usd=run.bill.usd)
    quoted = run.quote.held_usd if run.quote else Decimal(0)
    so_far = run.bill.usd if run.bill else Decimal(0)
    given = run.allowed_usd or Decimal(0)
    return Spending(committed_usd=max(quoted, run.estimate_usd or Decimal(0), given, so_far))


def of_trial(run: Run | None, trial: Trial) -> Decimal:
    """Return the cost of a sweep's trial in US dollars. Until the bill is known, returns the maximum cost.
    Simulated costs of sandbox runs count like real costs."""
    orphan = run is None and trial.run_id is not None
    if run is None or run.phase is SubmitPhase.REFUSED:
        return trial.high_usd if orphan or trial.state is TrialState.OPEN else Decimal(0)
    if run.status.terminal and run.bill is not None:
        return run.bill.usd
    most, allowed = run.max_cost_usd or Decimal(0), run.allowed_usd or Decimal(0)
    if run.status.terminal and allowed <= most:  # a limit that was raised is what the bill may come to
        return trial.high_usd
    return max(trial.high_usd, most, allowed)


def caps(
    quotes: Sequence[Quote], *, max_cost_usd: Decimal | None = None, each_usd: Decimal | None = None
) -> list[Decimal | None]:
    """Divide a total limit into one cost limit per quote. The limits add up to at most `max_cost_usd`, are
    proportional to the quotes' high ends, and don't exceed `each_usd`. Raises `OverBudget` if the quotes
    exceed a limit, and `UnknownPrice` if there is a limit and a price is unknown."""
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
    """Raise `OverBudget` if the quote's high end exceeds `max_cost_usd` or the remaining budget (`budget_usd`
    minus `used_usd`). Raises `UnknownPrice` if there is a limit and the price is unknown."""
    name, high, unknown = quote.provider, quote.held_usd, unpriced(quote)
    require_within(name, high, max_cost_usd, unknown=unknown, what=what)
    if budget_usd is not None:
        left, note = (
            "the remaining budget",
            f"; {limit(budget_usd)} in total, {money(used_usd)} spent or committed",
        )
        require_within(name, high, budget_usd, taken_usd=used_usd, unknown=unknown, what=left, note=note)


def unpriced(quote: Quote) -> str | None:
    """Return why a run may cost more than its quote, or `None` if the quote is an upper bound."""
    if quote.why_none or not quote.open_end:
        return quote.why_none
    return f"the quote does not include {quote.open_end}"


def cap_of(run: Run) -> Decimal | None:
    """Return the cost limit at which Orchestrate stops or pauses a run that it watches, or `None` if the run
    has no limit."""
    return run.max_cost_usd if run.allowed_usd is None else run.allowed_usd


OPEN_END_HOURS = Decimal(24)
"""Hours that a budget reserves in advance for a deployment without a limit."""


def hours_billed(deployment: Deployment, now: datetime) -> Decimal:
    since = deployment.billing_since
    running = max((now - since).total_seconds(), 0.0) if since is not None else 0.0
    return Decimal(str(deployment.billed_s + running)) / 3600


def seconds_by_month(since: datetime, until: datetime) -> dict[str, float]:
    """Return the seconds between `since` and `until` in each month, such as `{"2026-10": 3600.0}`. Months are
    in the time zone of `since`. The result is empty if `until` is not after `since`."""
    found: dict[str, float] = {}
    while since < until:
        following = (since.replace(day=1) + timedelta(days=32)).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        found[f"{since:%Y-%m}"] = (min(following, until) - since).total_seconds()
        since = following
    return found


def billed_by_month(deployment: Deployment, since: datetime, until: datetime) -> dict[str, float]:
    """Add the time from `since` to `until` to the deployment's billed seconds. Returns the seconds in each
    month, such as `{"2026-10": 3600.0}`."""
    found = dict(deployment.billed_by_month)
    for month, seconds in seconds_by_month(since, until).items():
        found[month] = found.get(month, 0.0) + seconds
    return found


def spent_usd(deployment: Deployment, now: datetime) -> Decimal | None:
    """Return the deployment's cost so far, or `None` if its price is unknown."""
    price = deployment.usd_per_hour
    if price is None:
        return None
    hours = hours_billed(deployment, now) - Decimal(str(deployment.earlier_s)) / 3600
    return deployment.earlier_usd + max(hours, Decimal(0)) * price


def deployment_spending(deployment: Deployment, now: datetime) -> Spending:
    """Return how much of a budget a deployment uses: its cost so far, and the further cost that its limits
    allow. For a deployment without a limit, one more day is reserved. Sandbox deployments use nothing."""
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
    """Describe the limit that the deployment has reached, or return `None`."""
    most = deployment.max_hours
    if most is not None and (now - deployment.created_at).total_seconds() >= most * 3600:
        return f"the deployment has used up its {most.normalize():f} hours"
    cap, spent = deployment.max_cost_usd, spent_usd(deployment, now)
    if cap is not None and reached(spent, cap):
        return f"the deployment has reached its cost limit of {limit(cap)}, based on uptime"
    return None


CENT = Decimal("0.01")
_NANO = Decimal("1e-9")
_WIDE = Context(prec=400)
"""Has enough digits for the largest number that a host may report as its price."""
NONE = "(none)"
BY = ("backend", "month", "purpose", "project", "tag", "person", "account")
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


class Expense(Record, frozen=True, kw_only=True):
    """Cost of one run, of a group of ended runs, of one deployment in one month, or of one month's answers.
    Amounts are rounded to a billionth of a dollar, so their sums are exact."""

    id: str
    kind: Literal["run", "deployment", "answers"] = "run"
    purpose: str | None = None
    """What the answers were used for, such as `evaluation` or `judging`. `None` for runs and deployments."""
    requests: int = 0
    """Number of requests. Only set for answers."""
    backend: str
    account: str | None = None
    month: str
    """UTC month, such as `2026-11`, in which the run ended or the deployment was up. An open run counts
    toward the current month."""
    tags: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    project: str | None = None
    """Value of the run's `project` tag, or else the name of its Weights & Biases project."""
    person: str | None = None
    sandbox: bool = False
    """True if the cost is simulated by a sandbox."""
    spent_usd: Decimal = Decimal(0)
    committed_usd: Decimal = Decimal(0)
    known: bool = True
    """False if neither a bill nor a price is known. Sums then list the id of this expense in `unknown`."""
    abandoned: bool = False
    """True if the user abandoned the run or deployment. Its cost is the last known amount."""
    runs: int = 1
    """Number of runs that this expense covers. See `group_of`."""


class Sum(Record, frozen=True, kw_only=True):
    """A group of expenses."""

    key: str
    spent_usd: Decimal = Decimal(0)
    committed_usd: Decimal = Decimal(0)
    runs: int = 0
    deployments: int = 0
    requests: int = 0
    """Number of requests in the group's expenses for answers."""
    unknown: tuple[str, ...] = ()
    """Ids of items whose cost is unknown. The sums exclude these items."""
    abandoned: tuple[str, ...] = ()
    """Ids of abandoned runs and deployments, whose hosts are no longer polled."""


def of_run(run: Run, now: datetime) -> Expense:
    money = charges(run)
    at = (run.finished_at or run.updated_at) if run.status.terminal else now
    return Expense(
        id=run.id,
        backend=run.provider,
        account=run.account,
        month=f"{at.year:04}-{at.month:02}",
        tags=run.tags,
        project=run.tags.get("project") or _wandb_project(run),
        person=run.made_by,
        sandbox=run.sandbox,
        spent_usd=exact(money.spent_usd),
        committed_usd=exact(money.committed_usd),
        known=run.phase is SubmitPhase.REFUSED or _billed(run) or _priced(run),
        abandoned=run.abandoned is not None,
    )


def group_of(run: Run) -> Expense | None:
    """Return the group of ended runs whose sums include this run's cost, as an expense without an id and
    amounts. Reports can't tell the runs of one group apart: they have the same backend, account, month, tags,
    project and user.

    Returns `None` for runs that belong to no group: open runs, because their month is the current one, and
    abandoned runs and runs with an unknown cost, because reports list them by id.

    Stores keep a hash of the result's JSON with each run. A change of this function or of the fields of
    `Expense` therefore needs a migration.
    """
    if not run.status.terminal:
        return None
    one = of_run(run, run.updated_at)
    if one.abandoned or not one.known:
        return None
    zero, tags = Decimal(0), dict(sorted(one.tags.items()))
    return msgspec.structs.replace(one, id="", tags=tags, spent_usd=zero, committed_usd=zero, runs=0)


def of_deployment(deployment: Deployment, run: Run | None, now: datetime) -> list[Expense]:
    """Return one expense for each month in which the deployment was up. The current month includes the
    committed cost. The tags and the project come from the run."""
    money = deployment_spending(msgspec.structs.replace(deployment, sandbox=False), now)
    at = (deployment.ended_at or deployment.updated_at) if deployment.state.over else now
    last = f"{at:%Y-%m}"
    seconds = billed_by_month(deployment, deployment.billing_since or now, now)
    earlier = deployment.billed_s - sum(deployment.billed_by_month.values())  # of no month that is known
    seconds[last] = seconds.get(last, 0.0) + max(earlier, 0.0)
    total_s = sum(seconds.values())
    billed = bool(deployment.billed_s) or deployment.billing_since is not None
    spent = {month: exact(money.spent_usd * _share(part, total_s)) for month, part in seconds.items()}
    # Add the rounding difference to the last month, so the months add up to the total.
    spent[last] += exact(money.spent_usd) - sum(spent.values(), Decimal(0))
    return [
        Expense(
            id=deployment.id,
            kind="deployment",
            backend=deployment.provider,
            account=deployment.account,
            month=month,
            tags=run.tags if run else {},
            project=(run.tags.get("project") or _wandb_project(run)) if run else None,
            person=deployment.made_by,
            sandbox=deployment.sandbox,
            spent_usd=usd,
            committed_usd=exact(money.committed_usd) if month == last else Decimal(0),
            known=deployment.usd_per_hour is not None or (deployment.state.over and not billed),
            abandoned=deployment.state is DeploymentState.ABANDONED,
        )
        for month, usd in spent.items()
        if usd or month == last
    ]


def _share(part: float, total: float) -> Decimal:
    return Decimal(str(part)) / Decimal(str(total)) if total else Decimal(0)


def _billed(run: Run) -> bool:
    """Return whether its bill is more than what it has come to so far."""
    over = run.status.terminal or run.abandoned is not None
    return run.bill is not None and (run.bill.final or over)


def _priced(run: Run) -> bool:
    if run.abandoned is not None:
        return False  # what its host still bills nobody asks
    return (
        run.estimate_usd is not None
        or run.allowed_usd is not None
        or (run.quote is not None and run.quote.price is not None)
    )


def _wandb_project(run: Run) -> str | None:
    wandb = run.spec.get("wandb")
    return wandb.get("project") if isinstance(wandb, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def exact(usd: Decimal) -> Decimal:
    """Round to a billionth of a dollar, so that amounts can be summed exactly in any order."""
    rounded_usd = usd.quantize(CENT, context=_WIDE)
    return rounded_usd if rounded_usd == usd else usd.quantize(_NANO, context=_WIDE)


def in_month(expenses: Iterable[Expense], month: str | None) -> list[Expense]:
    """Return the expenses of a month such as `2026-11`, or all expenses if `month` is `None`. Raises
    `UsageError` if `month` is invalid."""
    if month is not None and not _MONTH.fullmatch(month):
        raise UsageError(f"{month!r} must be a month (YYYY-MM)", fix="write it as 2026-11")
    return [e for e in expenses if month is None or e.month == month]


def grouped(expenses: Sequence[Expense], by: str) -> list[Sum]:
    """Group the expenses. Each expense is in exactly one group, so the groups add up to the total.

    `by` is one of `BY`, or `tag:NAME` for the values of one tag. `tag` alone groups by the combination of all
    tags. Months are in chronological order. Other groups are sorted by cost, most expensive first. Raises
    `UsageError` for any other `by`.
    """
    key = _key(by)
    groups: dict[str, list[Expense]] = {}
    for expense in expenses:
        groups.setdefault(key(expense) or NONE, []).append(expense)
    sums = [total(found, name) for name, found in groups.items()]
    if by == "month":
        return sorted(sums, key=lambda one: one.key)
    return sorted(sums, key=lambda one: (-(one.spent_usd + one.committed_usd), one.key))


def total(expenses: Iterable[Expense], key: str = "total") -> Sum:
    found = list(expenses)
    return Sum(
        key=key,
        spent_usd=sum((e.spent_usd for e in found), Decimal(0)),
        committed_usd=sum((e.committed_usd for e in found), Decimal(0)),
        runs=sum(e.runs for e in found if e.kind == "run"),
        deployments=len({e.id for e in found if e.kind == "deployment"}),
        requests=sum(e.requests for e in found),
        unknown=tuple(dict.fromkeys(e.id for e in found if not e.known)),
        abandoned=tuple(dict.fromkeys(e.id for e in found if e.abandoned)),
    )


def _key(by: str) -> Callable[[Expense], str | None]:
    name, _, tag = by.partition(":")
    if name == "tag" and tag:
        return lambda e: e.tags.get(tag)
    if by == "tag":
        return lambda e: ", ".join(f"{k}={v}" for k, v in sorted(e.tags.items()))
    if by not in BY:
        raise UsageError(
            f"cannot group spending by {by!r}{meant(by, BY)}",
            fix=f"use one of {', '.join(BY)}, or tag:NAME",
        )
    if by == "purpose":
        return lambda e: e.purpose or ("training" if e.kind == "run" else e.kind)
    return lambda e: getattr(e, by)


def cents(parts: Sequence[Decimal]) -> list[Decimal]:
    """Round the parts to cents so that the rounded parts add up to the exact total, itself rounded up to a
    cent. Each part is rounded down, and the remaining cents are added to the parts with the largest
    remainders. No part becomes negative."""
    floors = [part.quantize(CENT, ROUND_FLOOR) for part in parts]
    left = int((sum(parts, Decimal(0)).quantize(CENT, ROUND_CEILING) - sum(floors, Decimal(0))) / CENT)
    by_remainder = sorted(range(len(parts)), key=lambda i: (floors[i] - parts[i], i))
    for i in by_remainder[:left]:
        floors[i] += CENT
    return floors
